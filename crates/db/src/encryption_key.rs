//! The installation's encryption keys as the database knows them: a name, and a text that each
//! sealed. The keys themselves are never here.

use jiff::Timestamp;

use crate::{DbError, Executor, Stored, at};

/// A key that has sealed something.
#[derive(Debug, Clone)]
pub struct EncryptionKey {
    /// Its name.
    pub id: String,
    /// The known text, sealed by it.
    pub probe: Stored,
    /// Whether nothing is sealed by it any more.
    pub is_retired: bool,
}

/// All keys that ever sealed something, oldest first.
#[tracing::instrument(name = "db.encryption_key.list", skip_all, err)]
pub async fn list(db: impl Executor<'_>) -> Result<Vec<EncryptionKey>, DbError> {
    let rows = sqlx::query!(
        r#"
        select id, data_key, probe, retired_at is not null as "is_retired!"
        from encryption_keys order by created_at, id"#
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| EncryptionKey {
            probe: Stored::new(row.probe, Some(row.id.clone()), Some(row.data_key)),
            id: row.id,
            is_retired: row.is_retired,
        })
        .collect())
}

/// Remembers a key that is about to seal. One of this name that is there already stays as it is,
/// in use again if it was retired.
#[tracing::instrument(name = "db.encryption_key.put", skip_all, fields(key.id = id), err)]
pub async fn put(
    db: impl Executor<'_>,
    (id, data_key, probe): (&str, &[u8], &[u8]),
    now: Timestamp,
) -> Result<(), DbError> {
    sqlx::query!(
        "
        insert into encryption_keys (id, data_key, probe, created_at) values ($1, $2, $3, $4)
        on conflict (id) do update set retired_at = null",
        id,
        data_key,
        probe,
        at(now) as _
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Marks all keys but one as having nothing sealed by them; `None` marks all. The names of those
/// that were in use until now.
#[tracing::instrument(name = "db.encryption_key.retire_others", skip_all, err)]
pub async fn retire_others(
    db: impl Executor<'_>,
    kept: Option<&str>,
    now: Timestamp,
) -> Result<Vec<String>, DbError> {
    let names = sqlx::query_scalar!(
        "
        update encryption_keys set retired_at = $2
        where id is distinct from $1 and retired_at is null returning id",
        kept,
        at(now) as _
    )
    .fetch_all(db)
    .await?;
    Ok(names)
}
