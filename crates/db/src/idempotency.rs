//! Idempotency keys of requests that create a workspace: the same key and body within 24 hours
//! answers with the same workspace.

use berth_domain::id::{UserId, WorkspaceId};
use jiff::Timestamp;

use crate::{DbError, Executor, at};

/// What a key stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// SHA-256 of the request it came with.
    pub body_hash: Vec<u8>,
    /// The workspace that the request made.
    pub workspace_id: WorkspaceId,
}

/// Looks a key up. One that is older than 24 hours counts no more and is deleted: nothing may be in
/// the way of the new one.
#[tracing::instrument(name = "db.idempotency.find", skip_all, err)]
pub async fn find(
    db: impl Executor<'_>,
    user: UserId,
    key: &str,
    now: Timestamp,
) -> Result<Option<Stored>, DbError> {
    let row = sqlx::query!(
        "
        with gone as (
            delete from idempotency_keys
            where user_id = $1 and key = $2
              and created_at <= $3::timestamptz - interval '24 hours'
        )
        select body_hash, workspace_id from idempotency_keys
        where user_id = $1 and key = $2 and created_at > $3::timestamptz - interval '24 hours'",
        user.0,
        key,
        at(now)
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| Stored {
        body_hash: row.body_hash,
        workspace_id: WorkspaceId(row.workspace_id),
    }))
}

/// Keeps a key. A request with the same key that is under way is waited for; where it succeeds, this
/// one fails with the constraint `idempotency_keys_pkey`.
#[tracing::instrument(name = "db.idempotency.insert", skip_all, err)]
pub async fn insert(
    db: impl Executor<'_>,
    user: UserId,
    key: &str,
    stored: &Stored,
    now: Timestamp,
) -> Result<(), DbError> {
    sqlx::query!(
        "
        insert into idempotency_keys (user_id, key, body_hash, workspace_id, created_at)
        values ($1, $2, $3, $4, $5)",
        user.0,
        key,
        stored.body_hash,
        stored.workspace_id.0,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(())
}
