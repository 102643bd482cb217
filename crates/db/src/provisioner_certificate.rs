//! Certificates of provisioner daemons that are not taken any more. A certificate is known by the
//! SHA-256 of its whole encoding, in lower-case hexadecimal digits.

use berth_domain::id::{OrganizationId, UserId};
use jiff::Timestamp;

use crate::{DbError, Executor, at};

/// Most revocations that are listed.
const LIST_MAX: i64 = 1000;

/// What there is to know of a certificate that is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is good.
    Good,
    /// The organization revoked it.
    Revoked,
    /// The organization that it names does not exist.
    NoOrganization,
}

/// A certificate that an organization revoked.
#[derive(Debug, Clone)]
pub struct Revocation {
    /// The certificate.
    pub fingerprint: String,
    /// Why, in words of whoever did it; may be empty.
    pub reason: String,
    /// Who did it, if that is known still.
    pub created_by: Option<UserId>,
    /// When.
    pub created_at: Timestamp,
}

/// What there is to know of a certificate that names an organization.
#[tracing::instrument(name = "db.provisioner_certificate.standing", level = "debug", skip_all, err)]
pub async fn standing(
    db: impl Executor<'_>,
    organization: OrganizationId,
    fingerprint: &str,
) -> Result<Standing, DbError> {
    let row = sqlx::query!(
        r#"
        select exists (select from organizations where id = $1 and not deleted) as "is_there!",
               exists (select from provisioner_certificate_revocations
                       where organization_id = $1 and fingerprint = $2) as "is_revoked!""#,
        organization.0,
        fingerprint
    )
    .fetch_one(db)
    .await?;
    Ok(match (row.is_there, row.is_revoked) {
        (false, _) => Standing::NoOrganization,
        (true, true) => Standing::Revoked,
        (true, false) => Standing::Good,
    })
}

/// Revokes a certificate: nobody enters with it from this commit on. `false`: it was revoked before.
#[tracing::instrument(name = "db.provisioner_certificate.revoke", skip_all, err)]
pub async fn revoke(
    db: impl Executor<'_>,
    organization: OrganizationId,
    (fingerprint, reason): (&str, &str),
    (by, now): (UserId, Timestamp),
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "
        insert into provisioner_certificate_revocations (
            organization_id, fingerprint, reason, created_by, created_at
        )
        values ($1, $2, $3, $4, $5)
        on conflict do nothing",
        organization.0,
        fingerprint,
        reason,
        by.0,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// What an organization revoked, the newest 1000 of it, newest first.
#[tracing::instrument(name = "db.provisioner_certificate.list", skip_all, err)]
pub async fn list(
    db: impl Executor<'_>,
    organization: OrganizationId,
) -> Result<Vec<Revocation>, DbError> {
    let rows = sqlx::query_as!(
        Row,
        "
        select fingerprint, reason, created_by, created_at
        from provisioner_certificate_revocations
        where organization_id = $1
        order by created_at desc, fingerprint limit $2",
        organization.0,
        LIST_MAX
    )
    .fetch_all(db)
    .await?;
    let revocation = |row: Row| Revocation {
        fingerprint: row.fingerprint,
        reason: row.reason,
        created_by: row.created_by.map(UserId),
        created_at: row.created_at.to_jiff(),
    };
    Ok(rows.into_iter().map(revocation).collect())
}

struct Row {
    fingerprint: String,
    reason: String,
    created_by: Option<uuid::Uuid>,
    created_at: jiff_sqlx::Timestamp,
}
