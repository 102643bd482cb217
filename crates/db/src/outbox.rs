//! Events that wait for publication. Rows are written in the transaction of the change they tell
//! of and deleted once JetStream has stored the event.

use berth_domain::id::EventId;
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use crate::{DbError, Executor, at};

/// One event, ready for the wire.
#[derive(Debug, Clone)]
pub struct Row {
    /// Also `ce-id` and `Nats-Msg-Id`.
    pub id: EventId,
    /// The NATS subject.
    pub subject: String,
    /// An object of header names and values, without those that follow from id and time.
    pub headers: Value,
    /// The JSON payload.
    pub payload: Vec<u8>,
    /// When the change was made.
    pub created_at: Timestamp,
}

/// How much waits, and since when.
#[derive(Debug, Clone, Copy)]
pub struct Depth {
    /// Rows.
    pub rows: i64,
    /// Age of the oldest, in seconds; 0 without rows.
    pub oldest_seconds: f64,
}

/// Writes all rows in one statement.
#[tracing::instrument(name = "db.outbox.insert", skip_all, fields(rows = rows.len()), err)]
pub async fn insert(db: impl Executor<'_>, rows: &[Row]) -> Result<(), DbError> {
    let ids: Vec<Uuid> = rows.iter().map(|row| row.id.0).collect();
    let subjects: Vec<String> = rows.iter().map(|row| row.subject.clone()).collect();
    let headers: Vec<Value> = rows.iter().map(|row| row.headers.clone()).collect();
    let payloads: Vec<Vec<u8>> = rows.iter().map(|row| row.payload.clone()).collect();
    let times: Vec<jiff_sqlx::Timestamp> = rows.iter().map(|row| at(row.created_at)).collect();
    sqlx::query!(
        "
        insert into outbox (id, subject, headers, payload, created_at)
        select * from unnest($1::uuid[], $2::text[], $3::jsonb[], $4::bytea[], $5::timestamptz[])",
        &ids,
        &subjects,
        &headers,
        &payloads,
        &times
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Takes up to `limit` rows that were written more than `older_than_ms` ago, oldest first, locking
/// them against other replicas' relays until the transaction ends. Fresh rows are left to the
/// process that wrote them, which publishes right after its commit.
#[tracing::instrument(name = "db.outbox.lease", level = "debug", skip_all, err)]
pub async fn lease(
    db: impl Executor<'_>,
    older_than_ms: f64,
    limit: i64,
) -> Result<Vec<Row>, DbError> {
    let rows = sqlx::query!(
        "
        select id, subject, headers, payload, created_at
        from outbox
        where created_at < now() - $1::double precision * interval '1 millisecond'
        order by id
        limit $2
        for update skip locked",
        older_than_ms,
        limit
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Row {
            id: EventId(row.id),
            subject: row.subject,
            headers: row.headers,
            payload: row.payload,
            created_at: row.created_at.to_jiff(),
        })
        .collect())
}

/// Deletes what was published.
#[tracing::instrument(name = "db.outbox.delete", level = "debug", skip_all, fields(rows = ids.len()), err)]
pub async fn delete(db: impl Executor<'_>, ids: &[EventId]) -> Result<(), DbError> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    sqlx::query!("delete from outbox where id = any($1)", &ids).execute(db).await?;
    Ok(())
}

/// Counts what waits, for the metrics.
#[tracing::instrument(name = "db.outbox.depth", level = "debug", skip_all, err)]
pub async fn depth(db: impl Executor<'_>) -> Result<Depth, DbError> {
    let row = sqlx::query!(
        r#"
        select count(*) as "rows!",
               coalesce(extract(epoch from now() - min(created_at)), 0)::double precision as "oldest!"
        from outbox"#
    )
    .fetch_one(db)
    .await?;
    Ok(Depth { rows: row.rows, oldest_seconds: row.oldest })
}
