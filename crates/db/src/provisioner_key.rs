//! Keys with which provisioner daemons enter. A key belongs to one organization; its secret is
//! shown once and stored as a SHA-256.

use berth_domain::build::Tags;
use berth_domain::id::{OrganizationId, ProvisionerKeyId};
use jiff::Timestamp;
use uuid::Uuid;

use crate::{DbError, Executor, at, maybe_time};

/// Characters of a UUID in its usual spelling.
const UUID_LEN: usize = 36;

/// A stored key.
#[derive(Debug, Clone)]
pub struct ProvisionerKey {
    /// Its id, the first part of what a daemon shows.
    pub id: ProvisionerKeyId,
    /// Whose daemons enter with it.
    pub organization_id: OrganizationId,
    /// Unique among the organization's keys that are not revoked, ignoring case.
    pub name: String,
    /// Tags of every daemon that enters with it; empty: the daemon names its own.
    pub tags: Tags,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stopped being good, if it did.
    pub revoked_at: Option<Timestamp>,
}

/// A key to be stored.
#[derive(Clone)]
pub struct NewProvisionerKey<'a> {
    /// Its id.
    pub id: ProvisionerKeyId,
    /// Whose daemons enter with it.
    pub organization_id: OrganizationId,
    /// Its name.
    pub name: &'a str,
    /// SHA-256 of the secret.
    pub secret_hash: &'a [u8],
    /// Tags of every daemon that enters with it.
    pub tags: &'a Tags,
    /// When.
    pub now: Timestamp,
}

/// What a daemon shows: `<key uuid>-<secret>`.
#[must_use]
pub fn token(id: ProvisionerKeyId, secret: &str) -> String {
    format!("{id}-{secret}")
}

/// Takes apart what a daemon shows; `None` where it has another form.
#[must_use]
pub fn split(token: &str) -> Option<(ProvisionerKeyId, &str)> {
    let (id, rest) = token.split_at_checked(UUID_LEN)?;
    let secret = rest.strip_prefix('-').filter(|it| !it.is_empty())?;
    Some((id.parse().ok()?, secret))
}

/// Stores a key. The constraint `provisioner_keys_organization_id_name_key` refuses a name in use.
#[tracing::instrument(name = "db.provisioner_key.insert", skip_all, fields(key.id = %new.id), err)]
pub async fn insert(db: impl Executor<'_>, new: &NewProvisionerKey<'_>) -> Result<(), DbError> {
    sqlx::query!(
        "
        insert into provisioner_keys (id, organization_id, name, secret_hash, tags, created_at)
        values ($1, $2, $3, $4, $5, $6)",
        new.id.0,
        new.organization_id.0,
        new.name,
        new.secret_hash,
        serde_json::json!(new.tags),
        at(new.now)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The keys of an organization that are not revoked, by name.
#[tracing::instrument(name = "db.provisioner_key.list", skip_all, err)]
pub async fn list(
    db: impl Executor<'_>,
    organization: OrganizationId,
) -> Result<Vec<ProvisionerKey>, DbError> {
    let rows = sqlx::query!(
        "
        select id, organization_id, name, tags, created_at, revoked_at
        from provisioner_keys
        where organization_id = $1 and revoked_at is null
        order by lower(name)",
        organization.0
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(ProvisionerKey {
                id: ProvisionerKeyId(row.id),
                organization_id: OrganizationId(row.organization_id),
                name: row.name,
                tags: tags(row.tags)?,
                created_at: row.created_at.to_jiff(),
                revoked_at: maybe_time(row.revoked_at),
            })
        })
        .collect()
}

/// A key with the hash of its secret, revoked or not.
#[tracing::instrument(name = "db.provisioner_key.find", level = "debug", skip_all, fields(key.id = %id), err)]
pub async fn find(
    db: impl Executor<'_>,
    id: ProvisionerKeyId,
) -> Result<Option<(ProvisionerKey, Vec<u8>)>, DbError> {
    Ok(list_by_ids(db, &[id]).await?.pop())
}

/// The keys with these ids, each with the hash of its secret, revoked or not.
#[tracing::instrument(name = "db.provisioner_key.list_by_ids", level = "debug", skip_all, fields(keys = ids.len()), err)]
pub async fn list_by_ids(
    db: impl Executor<'_>,
    ids: &[ProvisionerKeyId],
) -> Result<Vec<(ProvisionerKey, Vec<u8>)>, DbError> {
    let mut ids: Vec<Uuid> = ids.iter().map(|it| it.0).collect();
    ids.sort_unstable();
    ids.dedup();
    let rows = sqlx::query!(
        "
        select id, organization_id, name, secret_hash, tags, created_at, revoked_at
        from provisioner_keys where id = any($1)",
        &ids
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            let key = ProvisionerKey {
                id: ProvisionerKeyId(row.id),
                organization_id: OrganizationId(row.organization_id),
                name: row.name,
                tags: tags(row.tags)?,
                created_at: row.created_at.to_jiff(),
                revoked_at: maybe_time(row.revoked_at),
            };
            Ok((key, row.secret_hash))
        })
        .collect()
}

/// Ends a key by its name: nobody enters with it from this commit on. `None`: there is no such key.
#[tracing::instrument(name = "db.provisioner_key.revoke", skip_all, err)]
pub async fn revoke(
    db: impl Executor<'_>,
    organization: OrganizationId,
    name: &str,
    now: Timestamp,
) -> Result<Option<ProvisionerKeyId>, DbError> {
    let id: Option<Uuid> = sqlx::query_scalar!(
        "
        update provisioner_keys set revoked_at = $3
        where organization_id = $1 and lower(name) = lower($2) and revoked_at is null
        returning id",
        organization.0,
        name,
        at(now)
    )
    .fetch_optional(db)
    .await?;
    Ok(id.map(ProvisionerKeyId))
}

fn tags(json: serde_json::Value) -> Result<Tags, DbError> {
    serde_json::from_value(json)
        .map_err(|source| DbError::Json { what: "provisioner_keys.tags", source })
}
