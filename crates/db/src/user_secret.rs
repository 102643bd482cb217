//! Secrets of users. Values come and go as the vault sealed them, and are read for builds alone.

use berth_domain::id::UserId;
use jiff::Timestamp;
use uuid::Uuid;

use crate::{DbError, Executor, Stored, at};

/// A secret without its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserSecret {
    /// Its id, to which the value is bound.
    pub id: Uuid,
    /// Unique among the user's.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// The variable that templates ask for it by; may be empty.
    pub env_name: String,
    /// The path that templates ask for it by; may be empty.
    pub file_path: String,
    /// Bytes of its value.
    pub size: i32,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was changed.
    pub updated_at: Timestamp,
}

/// A secret's value for a build.
#[derive(Debug)]
pub struct SecretValue {
    /// Its id, to which the value is bound.
    pub id: Uuid,
    /// The variable that templates ask for it by; may be empty.
    pub env_name: String,
    /// The path that templates ask for it by; may be empty.
    pub file_path: String,
    /// The value as it is stored.
    pub value: Stored,
}

struct Row {
    id: Uuid,
    name: String,
    description: String,
    env_name: String,
    file_path: String,
    size: i32,
    created_at: jiff_sqlx::Timestamp,
    updated_at: jiff_sqlx::Timestamp,
}

impl From<Row> for UserSecret {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            name: row.name,
            description: row.description,
            env_name: row.env_name,
            file_path: row.file_path,
            size: row.size,
            created_at: row.created_at.to_jiff(),
            updated_at: row.updated_at.to_jiff(),
        }
    }
}

/// Locks a user's secrets: those who change them come one after the other, so that their bounds
/// hold. Gives how many there are and the bytes of their values.
#[tracing::instrument(name = "db.user_secret.lock", skip_all, fields(user.id = %user), err)]
pub async fn lock(db: impl Executor<'_>, user: UserId) -> Result<(i64, i64), DbError> {
    let row = sqlx::query!(
        r#"
        select (select count(*) from user_secrets s where s.user_id = u.id) as "count!",
               (select coalesce(sum(s.size), 0) from user_secrets s where s.user_id = u.id)
                   as "bytes!"
        from (select id from users where id = $1 for no key update) u"#,
        user.0
    )
    .fetch_one(db)
    .await?;
    Ok((row.count, row.bytes))
}

/// Stores a secret. The constraints `user_secrets_user_id_name_key`, `…_env_name_key` and
/// `…_file_path_key` refuse what another of the user's has.
#[tracing::instrument(name = "db.user_secret.insert", skip_all, fields(user.id = %user), err)]
pub async fn insert(
    db: impl Executor<'_>,
    user: UserId,
    new: &UserSecret,
    value: &Stored,
) -> Result<(), DbError> {
    sqlx::query!(
        "
        insert into user_secrets (
            id, user_id, name, description, env_name, file_path, value, key_id, data_key, size,
            created_at, updated_at
        )
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11)",
        new.id,
        user.0,
        new.name,
        new.description,
        new.env_name,
        new.file_path,
        value.bytes,
        value.key_id(),
        value.data_key(),
        new.size,
        at(new.created_at)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Changes a secret, and its value where one is given. `false`: it is gone.
#[tracing::instrument(name = "db.user_secret.update", skip_all, fields(secret.id = %new.id), err)]
pub async fn update(
    db: impl Executor<'_>,
    new: &UserSecret,
    value: Option<&Stored>,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "
        update user_secrets
        set description = $2, env_name = $3, file_path = $4, size = $5, updated_at = $6,
            value = coalesce($7, value),
            key_id = case when $7::bytea is null then key_id else $8 end,
            data_key = case when $7::bytea is null then data_key else $9 end
        where id = $1",
        new.id,
        new.description,
        new.env_name,
        new.file_path,
        new.size,
        at(new.updated_at),
        value.map(|it| it.bytes.as_slice()),
        value.and_then(Stored::key_id),
        value.and_then(Stored::data_key)
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Deletes a secret. `false`: there was none.
#[tracing::instrument(name = "db.user_secret.delete", skip_all, fields(secret.id = %id), err)]
pub async fn delete(db: impl Executor<'_>, id: Uuid) -> Result<bool, DbError> {
    let done = sqlx::query!("delete from user_secrets where id = $1", id).execute(db).await?;
    Ok(done.rows_affected() == 1)
}

/// A user's secrets by name, without their values. There are few: the bound is the domain's.
#[tracing::instrument(name = "db.user_secret.list", skip_all, fields(user.id = %user), err)]
pub async fn list(db: impl Executor<'_>, user: UserId) -> Result<Vec<UserSecret>, DbError> {
    let rows = sqlx::query_as!(
        Row,
        "
        select id, name, description, env_name, file_path, size, created_at, updated_at
        from user_secrets where user_id = $1 order by name",
        user.0
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(UserSecret::from).collect())
}

/// One of a user's secrets by name.
#[tracing::instrument(name = "db.user_secret.find", skip_all, fields(user.id = %user), err)]
pub async fn find(
    db: impl Executor<'_>,
    user: UserId,
    name: &str,
) -> Result<Option<UserSecret>, DbError> {
    let row = sqlx::query_as!(
        Row,
        "
        select id, name, description, env_name, file_path, size, created_at, updated_at
        from user_secrets where user_id = $1 and name = $2",
        user.0,
        name
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(UserSecret::from))
}

/// The values of a user's secrets, as they are stored, for a build of a workspace of theirs.
#[tracing::instrument(name = "db.user_secret.list_values", skip_all, fields(user.id = %user), err)]
pub async fn list_values(db: impl Executor<'_>, user: UserId) -> Result<Vec<SecretValue>, DbError> {
    let rows = sqlx::query!(
        "
        select id, env_name, file_path, value, key_id, data_key
        from user_secrets where user_id = $1 order by name",
        user.0
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| SecretValue {
            id: row.id,
            env_name: row.env_name,
            file_path: row.file_path,
            value: Stored::new(row.value, row.key_id, row.data_key),
        })
        .collect())
}

/// The first `limit` values after the secret `after`, in their order, that another key than `key_id`
/// sealed or none.
#[tracing::instrument(name = "db.user_secret.list_keyed_otherwise", skip_all, err)]
pub async fn list_keyed_otherwise(
    db: impl Executor<'_>,
    key_id: Option<&str>,
    (after, limit): (Uuid, i64),
) -> Result<Vec<(Uuid, Stored)>, DbError> {
    let rows = sqlx::query!(
        "
        select id, value, key_id, data_key from user_secrets
        where id > $2 and key_id is distinct from $1
        order by id limit $3",
        key_id,
        after,
        limit
    )
    .fetch_all(db)
    .await?;
    let stored =
        rows.into_iter().map(|row| (row.id, Stored::new(row.value, row.key_id, row.data_key)));
    Ok(stored.collect())
}

/// Replaces a value that is still stored as `old`; `false`: it is another by now.
#[tracing::instrument(name = "db.user_secret.replace", skip_all, fields(secret.id = %id), err)]
pub async fn replace(
    db: impl Executor<'_>,
    id: Uuid,
    old: &Stored,
    new: &Stored,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "
        update user_secrets set value = $4, key_id = $5, data_key = $6
        where id = $1 and value = $2 and data_key is not distinct from $3",
        id,
        old.bytes,
        old.data_key(),
        new.bytes,
        new.key_id(),
        new.data_key()
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}
