//! Provisioner daemons, as they registered.

use berth_domain::build::Tags;
use berth_domain::id::{DaemonId, OrganizationId, PresetId, ProvisionerKeyId};
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use crate::{DbError, Executor, at, maybe_time};

/// A daemon that registers.
#[derive(Debug, Clone)]
pub struct NewDaemon<'a> {
    /// Its id, unless one of that name is known already.
    pub id: DaemonId,
    /// Whose it is.
    pub organization_id: OrganizationId,
    /// The key it entered with, if any.
    pub key_id: Option<ProvisionerKeyId>,
    /// SHA-256 of the certificate it entered with, in hexadecimal digits, if any.
    pub certificate: Option<&'a str>,
    /// Its process; empty where it does not say.
    pub incarnation: &'a str,
    /// Unique in the organization.
    pub name: &'a str,
    /// Version of its binary.
    pub version: &'a str,
    /// Version of the protocol it speaks.
    pub api_version: &'a str,
    /// The tools it drives.
    pub provisioners: &'a [String],
    /// Normalised tags.
    pub tags: &'a Tags,
    /// Jobs it runs at once.
    pub capacity: i32,
    /// When.
    pub now: Timestamp,
}

/// A daemon as it registered last.
#[derive(Debug, Clone)]
pub struct Daemon {
    /// Its id.
    pub id: DaemonId,
    /// Whose it is.
    pub organization_id: OrganizationId,
    /// The key it entered with, if any.
    pub key_id: Option<ProvisionerKeyId>,
    /// SHA-256 of the certificate it entered with, in hexadecimal digits, if any.
    pub certificate_fingerprint: Option<String>,
    /// Its name.
    pub name: String,
    /// Version of its binary.
    pub version: String,
    /// Version of the protocol it speaks.
    pub api_version: String,
    /// The tools it drives.
    pub provisioners: Vec<String>,
    /// Normalised tags.
    pub tags: Tags,
    /// Jobs it runs at once.
    pub capacity: i32,
    /// When it first registered.
    pub created_at: Timestamp,
    /// When it was last heard of, to the minute.
    pub last_seen_at: Timestamp,
    /// When it left; `None` while it is registered.
    pub disconnected_at: Option<Timestamp>,
    /// Since when a registered daemon is not heard of: it counts for no capacity then.
    pub silent_at: Option<Timestamp>,
    /// Since when it is to take no new jobs.
    pub draining_since: Option<Timestamp>,
}

/// A daemon is gone when nothing was heard of it for this long.
const GONE_AFTER: SignedDuration = SignedDuration::from_secs(90);
/// The same from the moment on that it counts for no capacity: 15 s have passed then.
const GONE_AFTER_SILENT: SignedDuration = SignedDuration::from_secs(75);

impl Daemon {
    /// Whether it left, or was not heard of for 90 s. `last_seen_at` is written once a minute: while
    /// its broker watches it, what counts is since when that one has not heard of it. Where the
    /// broker died with it, the row is as that one left it, and 90 s pass from there.
    #[must_use]
    pub fn is_gone(&self, now: Timestamp) -> bool {
        let is_long_ago = now.duration_since(self.last_seen_at) >= GONE_AFTER;
        let is_silent_long =
            self.silent_at.is_none_or(|it| now.duration_since(it) >= GONE_AFTER_SILENT);
        self.disconnected_at.is_some() || (is_long_ago && is_silent_long)
    }
}

/// Registers a daemon: a new row, or the one of its name brought up to date. Gives the row's id, and
/// whether the daemon is to take no new jobs. One whose process is another than before may take them.
#[tracing::instrument(name = "db.daemon.upsert", skip_all, fields(daemon.name = new.name), err)]
pub async fn upsert(
    db: impl Executor<'_>,
    new: &NewDaemon<'_>,
) -> Result<(DaemonId, bool), DbError> {
    let row = sqlx::query!(
        r#"
        insert into provisioner_daemons (
            id, organization_id, key_id, name, version, api_version, provisioners, tags, capacity,
            created_at, last_seen_at, certificate_fingerprint, incarnation
        )
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10, $11, $12)
        on conflict (organization_id, name) do update
        set key_id = excluded.key_id, version = excluded.version,
            api_version = excluded.api_version, provisioners = excluded.provisioners,
            tags = excluded.tags, capacity = excluded.capacity,
            last_seen_at = excluded.last_seen_at, disconnected_at = null, silent_at = null,
            certificate_fingerprint = excluded.certificate_fingerprint,
            incarnation = excluded.incarnation,
            draining_since = case when provisioner_daemons.incarnation = excluded.incarnation
                                       and excluded.incarnation <> ''
                                  then provisioner_daemons.draining_since end
        returning id, draining_since is not null as "is_draining!""#,
        new.id.0,
        new.organization_id.0,
        new.key_id.map(|it| it.0),
        new.name,
        new.version,
        new.api_version,
        new.provisioners,
        serde_json::json!(new.tags),
        new.capacity,
        at(new.now),
        new.certificate,
        new.incarnation
    )
    .fetch_one(db)
    .await?;
    Ok((DaemonId(row.id), row.is_draining))
}

/// A daemon of an organization.
#[tracing::instrument(name = "db.daemon.find", level = "debug", skip_all, fields(daemon.id = %id), err)]
pub async fn find(
    db: impl Executor<'_>,
    organization: OrganizationId,
    id: DaemonId,
) -> Result<Option<Daemon>, DbError> {
    let row = sqlx::query_as!(
        Row,
        "
        select id, organization_id, key_id, name, version, api_version, provisioners, tags,
               capacity, created_at, last_seen_at, disconnected_at, certificate_fingerprint,
               silent_at, draining_since
        from provisioner_daemons where organization_id = $1 and id = $2",
        organization.0,
        id.0
    )
    .fetch_optional(db)
    .await?;
    row.map(Daemon::try_from).transpose()
}

/// The daemons of an organization, by name.
#[tracing::instrument(name = "db.daemon.list", skip_all, err)]
pub async fn list(
    db: impl Executor<'_>,
    organization: OrganizationId,
) -> Result<Vec<Daemon>, DbError> {
    let rows = sqlx::query_as!(
        Row,
        "
        select id, organization_id, key_id, name, version, api_version, provisioners, tags,
               capacity, created_at, last_seen_at, disconnected_at, certificate_fingerprint,
               silent_at, draining_since
        from provisioner_daemons where organization_id = $1 order by name",
        organization.0
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(Daemon::try_from).collect()
}

/// Says that a daemon was heard of. `false`: it left, or registered anew elsewhere since `seen`.
#[tracing::instrument(name = "db.daemon.mark_seen", level = "debug", skip_all, fields(daemon.id = %id), err)]
pub async fn mark_seen(
    db: impl Executor<'_>,
    id: DaemonId,
    seen: Timestamp,
    now: Timestamp,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "
        update provisioner_daemons set last_seen_at = $3, silent_at = null
        where id = $1 and last_seen_at = $2 and disconnected_at is null",
        id.0,
        at(seen),
        at(now)
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Says that a registered daemon is not heard of: it counts for no capacity until it is seen.
#[tracing::instrument(name = "db.daemon.mark_silent", level = "debug", skip_all, fields(daemon.id = %id), err)]
pub async fn mark_silent(
    db: impl Executor<'_>,
    id: DaemonId,
    seen: Timestamp,
    now: Timestamp,
) -> Result<(), DbError> {
    sqlx::query!(
        "
        update provisioner_daemons set silent_at = $3
        where id = $1 and last_seen_at = $2 and disconnected_at is null",
        id.0,
        at(seen),
        at(now)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Says that a daemon left, unless it registered anew since `seen`.
#[tracing::instrument(name = "db.daemon.mark_gone", skip_all, fields(daemon.id = %id), err)]
pub async fn mark_gone(
    db: impl Executor<'_>,
    id: DaemonId,
    seen: Timestamp,
    now: Timestamp,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "
        update provisioner_daemons set last_seen_at = $3, disconnected_at = $3
        where id = $1 and last_seen_at = $2 and disconnected_at is null",
        id.0,
        at(seen),
        at(now)
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Marks the organization's pools that create nothing for want of a daemon and that one with these
/// tools and tags could serve, and tells which they are. Pools that are marked already are left out.
///
/// A pass that looked for daemons before this one committed may hold its pool after we looked for
/// held pools: whoever calls this when a daemon appears calls it again while the daemon lives.
#[tracing::instrument(name = "db.daemon.mark_pools_dirty", skip_all, err)]
pub async fn mark_pools_dirty(
    db: impl Executor<'_>,
    organization: OrganizationId,
    (provisioners, tags): (&[String], &Tags),
    now: Timestamp,
) -> Result<Vec<PresetId>, DbError> {
    let rows = sqlx::query_scalar!(
        r#"
        insert into prebuild_pool_marks (preset_id, created_at)
        select p.preset_id, $4
        from prebuild_pools p
        join template_versions v on v.id = p.template_version_id
        join provisioner_jobs i on i.id = v.job_id
        where p.organization_id = $1 and p.holds <> '{}' and 'capacity' = any (p.holds)
          and v.provisioner = any ($2)
          and tags_fit(coalesce(p.job_tags, i.tags), $3::jsonb)
          and not exists (select from prebuild_pool_marks m where m.preset_id = p.preset_id)
        returning preset_id"#,
        organization.0,
        provisioners,
        serde_json::json!(tags),
        at(now)
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(PresetId).collect())
}

/// Asks daemons to take no new jobs: the one of this name, or all that are registered. Those that
/// drain already stay as they are. Gives those that are draining from now on, by name.
#[tracing::instrument(name = "db.daemon.drain", skip_all, err)]
pub async fn drain(
    db: impl Executor<'_>,
    organization: OrganizationId,
    name: Option<&str>,
    now: Timestamp,
) -> Result<Vec<(DaemonId, String)>, DbError> {
    let rows = sqlx::query!(
        "
        update provisioner_daemons set draining_since = $3
        where organization_id = $1 and ($2::text is null or name = $2)
          and disconnected_at is null and draining_since is null
        returning id, name",
        organization.0,
        name,
        at(now)
    )
    .fetch_all(db)
    .await?;
    let mut drained: Vec<_> = rows.into_iter().map(|row| (DaemonId(row.id), row.name)).collect();
    drained.sort_by(|one, two| one.1.cmp(&two.1));
    Ok(drained)
}

/// Takes the request to drain back: from the daemon of this name, or from all. Gives those that take
/// jobs again from now on, by name.
#[tracing::instrument(name = "db.daemon.undrain", skip_all, err)]
pub async fn undrain(
    db: impl Executor<'_>,
    organization: OrganizationId,
    name: Option<&str>,
) -> Result<Vec<Daemon>, DbError> {
    let rows = sqlx::query_as!(
        Row,
        "
        update provisioner_daemons set draining_since = null
        where organization_id = $1 and ($2::text is null or name = $2)
          and draining_since is not null
        returning id, organization_id, key_id, name, version, api_version, provisioners, tags,
                  capacity, created_at, last_seen_at, disconnected_at, certificate_fingerprint,
                  silent_at, draining_since",
        organization.0,
        name
    )
    .fetch_all(db)
    .await?;
    let mut daemons: Vec<Daemon> =
        rows.into_iter().map(Daemon::try_from).collect::<Result<_, _>>()?;
    daemons.sort_by(|one, two| one.name.cmp(&two.name));
    Ok(daemons)
}

/// The registered daemons of all organizations that are to take no new jobs.
#[tracing::instrument(name = "db.daemon.list_draining", level = "debug", skip_all, err)]
pub async fn list_draining(db: impl Executor<'_>) -> Result<Vec<DaemonId>, DbError> {
    let ids = sqlx::query_scalar!(
        "
        select id from provisioner_daemons
        where draining_since is not null and disconnected_at is null"
    )
    .fetch_all(db)
    .await?;
    Ok(ids.into_iter().map(DaemonId).collect())
}

struct Row {
    id: Uuid,
    organization_id: Uuid,
    key_id: Option<Uuid>,
    name: String,
    version: String,
    api_version: String,
    provisioners: Vec<String>,
    tags: serde_json::Value,
    capacity: i32,
    created_at: jiff_sqlx::Timestamp,
    last_seen_at: jiff_sqlx::Timestamp,
    disconnected_at: Option<jiff_sqlx::Timestamp>,
    certificate_fingerprint: Option<String>,
    silent_at: Option<jiff_sqlx::Timestamp>,
    draining_since: Option<jiff_sqlx::Timestamp>,
}

impl TryFrom<Row> for Daemon {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        Ok(Self {
            id: DaemonId(row.id),
            organization_id: OrganizationId(row.organization_id),
            key_id: row.key_id.map(ProvisionerKeyId),
            name: row.name,
            version: row.version,
            api_version: row.api_version,
            provisioners: row.provisioners,
            tags: serde_json::from_value(row.tags)
                .map_err(|source| DbError::Json { what: "provisioner_daemons.tags", source })?,
            capacity: row.capacity,
            created_at: row.created_at.to_jiff(),
            last_seen_at: row.last_seen_at.to_jiff(),
            disconnected_at: maybe_time(row.disconnected_at),
            certificate_fingerprint: row.certificate_fingerprint,
            silent_at: maybe_time(row.silent_at),
            draining_since: maybe_time(row.draining_since),
        })
    }
}
