//! Settings of the whole deployment.

use jiff::Timestamp;
use serde_json::Value;

use crate::{DbError, Executor, at};

/// Reads a setting.
#[tracing::instrument(name = "db.site_setting.find", skip_all, fields(key), err)]
pub async fn find(db: impl Executor<'_>, key: &str) -> Result<Option<Value>, DbError> {
    Ok(sqlx::query_scalar!("select value from site_settings where key = $1", key)
        .fetch_optional(db)
        .await?)
}

/// Writes a setting.
#[tracing::instrument(name = "db.site_setting.upsert", skip_all, fields(key), err)]
pub async fn upsert(
    db: impl Executor<'_>,
    key: &str,
    value: &Value,
    now: Timestamp,
) -> Result<(), DbError> {
    sqlx::query!(
        "
        insert into site_settings (key, value, updated_at) values ($1, $2, $3)
        on conflict (key) do update set value = excluded.value, updated_at = excluded.updated_at",
        key,
        value,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(())
}
