//! Messages that no handler could handle, kept with the reason.

use serde_json::Value;
use uuid::Uuid;

use crate::{DbError, Executor};

/// A message that was given up.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// The row's id.
    pub id: Uuid,
    /// The stream it came from.
    pub stream: String,
    /// The durable consumer that gave it up.
    pub consumer: String,
    /// Where it was published.
    pub subject: String,
    /// Its headers.
    pub headers: Value,
    /// Its payload.
    pub payload: Vec<u8>,
    /// The whole chain of errors.
    pub reason: String,
}

/// Keeps a message that was given up.
#[tracing::instrument(name = "db.dead_letter.insert", skip_all, err)]
pub async fn insert(db: impl Executor<'_>, letter: &DeadLetter) -> Result<(), DbError> {
    sqlx::query!(
        "
        insert into dead_letters (id, stream, consumer, subject, headers, payload, reason, created_at)
        values ($1, $2, $3, $4, $5, $6, $7, now())
        on conflict (id) do nothing",
        letter.id,
        letter.stream,
        letter.consumer,
        letter.subject,
        letter.headers,
        letter.payload,
        letter.reason
    )
    .execute(db)
    .await?;
    Ok(())
}
