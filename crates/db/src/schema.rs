//! Applies the migrations and refuses a schema that this binary does not know.

use crate::{DbError, Pool};

static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../../migrations");

/// Applies what is missing. Safe to run from several processes at once: the migrator takes an
/// advisory lock.
pub async fn migrate(pool: &Pool) -> Result<(), DbError> {
    Ok(MIGRATOR.run(pool).await?)
}

/// Newest migration in this binary.
#[must_use]
pub fn needed() -> i64 {
    MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// Checks that every migration of this binary was applied. A newer schema is accepted: migrations
/// only expand, so old and new services run side by side.
pub async fn check(pool: &Pool) -> Result<(), DbError> {
    let needed = needed();
    let found = match applied(pool).await {
        Ok(found) => found,
        // The migrations' own table is missing: nothing was ever applied.
        Err(DbError::Database(sqlx::Error::Database(error)))
            if error.code().as_deref() == Some("42P01") =>
        {
            0
        }
        Err(error) => return Err(error),
    };
    if found < needed { Err(DbError::Schema { found, needed }) } else { Ok(()) }
}

async fn applied(pool: &Pool) -> Result<i64, DbError> {
    // Not a checked query: the migrator's table is its own, and absent where queries are checked.
    let version: Option<i64> =
        sqlx::query_scalar("select max(version) from _sqlx_migrations where success")
            .fetch_one(pool)
            .await?;
    Ok(version.unwrap_or_default())
}
