//! Users.

use berth_domain::authz::SiteRole;
use berth_domain::id::{OrganizationId, UserId};
use jiff::Timestamp;
use uuid::Uuid;

use crate::{Connection, DbError, Executor, at, maybe_time};

/// A user.
#[derive(Debug, Clone)]
pub struct User {
    /// Its id.
    pub id: UserId,
    /// Unique, whatever the case.
    pub username: String,
    /// Unique, whatever the case.
    pub email: String,
    /// Full name.
    pub name: String,
    /// Picture.
    pub avatar_url: String,
    /// `active`, `dormant` or `suspended`.
    pub status: String,
    /// `password`, `oidc` or `none`.
    pub login_type: String,
    /// Site roles beyond `member`.
    pub roles: Vec<SiteRole>,
    /// Not a person: the prebuilds user.
    pub is_system: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was changed.
    pub updated_at: Timestamp,
    /// When a request of his was last noted; at most once an hour.
    pub last_seen_at: Option<Timestamp>,
    /// Where it is a member.
    pub organization_ids: Vec<OrganizationId>,
}

/// A user to be made.
#[derive(Debug, Clone)]
pub struct NewUser {
    /// Its id.
    pub id: UserId,
    /// Its name.
    pub username: String,
    /// Its address.
    pub email: String,
    /// Full name.
    pub name: String,
    /// PHC string; `None`: cannot log in with a password.
    pub password_hash: Option<String>,
    /// `active`, `dormant` or `suspended`.
    pub status: String,
    /// `password`, `oidc` or `none`.
    pub login_type: String,
    /// Site roles beyond `member`.
    pub roles: Vec<SiteRole>,
    /// When.
    pub now: Timestamp,
}

/// Which users are listed.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Part of the name, the full name or the address.
    pub search: Option<String>,
    /// Exactly this status.
    pub status: Option<String>,
    /// Only these users; `None`: any.
    pub ids: Option<Vec<UserId>>,
    /// Behind this one.
    pub after_id: Option<Uuid>,
    /// Rows at most.
    pub limit: i64,
    /// Rows left out.
    pub offset: i64,
}

struct Row {
    id: Uuid,
    username: String,
    email: String,
    name: String,
    avatar_url: String,
    status: String,
    login_type: String,
    roles: Vec<String>,
    is_system: bool,
    created_at: jiff_sqlx::Timestamp,
    updated_at: jiff_sqlx::Timestamp,
    last_seen_at: Option<jiff_sqlx::Timestamp>,
    organization_ids: Vec<Uuid>,
}

impl From<Row> for User {
    fn from(row: Row) -> Self {
        Self {
            id: UserId(row.id),
            username: row.username,
            email: row.email,
            name: row.name,
            avatar_url: row.avatar_url,
            status: row.status,
            login_type: row.login_type,
            // A role that this version does not know grants nothing.
            roles: row.roles.iter().filter_map(|role| role.parse().ok()).collect(),
            is_system: row.is_system,
            created_at: row.created_at.to_jiff(),
            updated_at: row.updated_at.to_jiff(),
            last_seen_at: maybe_time(row.last_seen_at),
            organization_ids: row.organization_ids.into_iter().map(OrganizationId).collect(),
        }
    }
}

/// Looks a user up by id.
#[tracing::instrument(name = "db.user.find", skip_all, fields(user.id = %id), err)]
pub async fn find(db: impl Executor<'_>, id: UserId) -> Result<Option<User>, DbError> {
    let row = sqlx::query_as!(
        Row,
        r#"
        select id, username, email, name, avatar_url, status, login_type, roles, is_system,
               created_at, updated_at, last_seen_at,
               array(
                   select organization_id from organization_members
                   where user_id = u.id order by organization_id
               ) as "organization_ids!"
        from users u
        where id = $1 and not deleted"#,
        id.0
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(User::from))
}

/// Looks a user up by name, whatever the case.
#[tracing::instrument(name = "db.user.find_by_name", skip_all, err)]
pub async fn find_by_name(db: impl Executor<'_>, name: &str) -> Result<Option<User>, DbError> {
    let row = sqlx::query_as!(
        Row,
        r#"
        select id, username, email, name, avatar_url, status, login_type, roles, is_system,
               created_at, updated_at, last_seen_at,
               array(
                   select organization_id from organization_members
                   where user_id = u.id order by organization_id
               ) as "organization_ids!"
        from users u
        where lower(username) = lower($1) and not deleted"#,
        name
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(User::from))
}

/// Who may log in with an address, and the password's PHC string.
#[derive(Debug, Clone)]
pub struct Login {
    /// The user.
    pub id: UserId,
    /// `active`, `dormant` or `suspended`.
    pub status: String,
    /// How it logs in.
    pub login_type: String,
    /// PHC string.
    pub password_hash: Option<String>,
}

/// Looks up by address, whatever the case, who wants to log in. System users are never found.
#[tracing::instrument(name = "db.user.find_login", skip_all, err)]
pub async fn find_login(db: impl Executor<'_>, email: &str) -> Result<Option<Login>, DbError> {
    let row = sqlx::query!(
        "
        select id, status, login_type, password_hash
        from users
        where lower(email) = lower($1) and email <> '' and not deleted and not is_system",
        email
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| Login {
        id: UserId(row.id),
        status: row.status,
        login_type: row.login_type,
        password_hash: row.password_hash,
    }))
}

/// The password's PHC string of a user.
#[tracing::instrument(name = "db.user.find_password", skip_all, fields(user.id = %id), err)]
pub async fn find_password(db: impl Executor<'_>, id: UserId) -> Result<Option<String>, DbError> {
    let row = sqlx::query!("select password_hash from users where id = $1 and not deleted", id.0)
        .fetch_optional(db)
        .await?;
    Ok(row.and_then(|row| row.password_hash))
}

/// Whether any person has ever been made.
#[tracing::instrument(name = "db.user.exists", skip_all, err)]
pub async fn exists(db: impl Executor<'_>) -> Result<bool, DbError> {
    let row = sqlx::query!(r#"select exists (select from users where not is_system) as "any!""#)
        .fetch_one(db)
        .await?;
    Ok(row.any)
}

/// Makes concurrent creations of the first user take turns until the transaction ends.
#[tracing::instrument(name = "db.user.lock_first", skip_all, err)]
pub async fn lock_first(db: &mut Connection) -> Result<(), DbError> {
    sqlx::query!("select pg_advisory_xact_lock(hashtext('berth.first_user'))").execute(db).await?;
    Ok(())
}

/// Makes a user.
#[tracing::instrument(name = "db.user.insert", skip_all, fields(user.id = %new.id), err)]
pub async fn insert(db: impl Executor<'_>, new: &NewUser) -> Result<(), DbError> {
    let roles: Vec<String> = new.roles.iter().map(ToString::to_string).collect();
    sqlx::query!(
        "
        insert into users (
            id, username, email, name, password_hash, status, login_type, roles, created_at,
            updated_at
        )
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)",
        new.id.0,
        new.username,
        new.email,
        new.name,
        new.password_hash,
        new.status,
        new.login_type,
        &roles,
        at(new.now)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Lists people by name, and tells how many there are in all. System users are never listed.
#[tracing::instrument(name = "db.user.list", skip_all, err)]
pub async fn list(db: &crate::Pool, filter: &Filter) -> Result<(Vec<User>, i64), DbError> {
    let ids: Option<Vec<Uuid>> = filter.ids.as_ref().map(|ids| ids.iter().map(|id| id.0).collect());
    let pattern = filter.search.as_deref().map(like);
    let rows = sqlx::query_as!(
        Row,
        r#"
        select id, username, email, name, avatar_url, status, login_type, roles, is_system,
               created_at, updated_at, last_seen_at,
               array(
                   select organization_id from organization_members
                   where user_id = u.id order by organization_id
               ) as "organization_ids!"
        from users u
        where not deleted and not is_system
          and ($1::uuid[] is null or id = any($1))
          and ($2::text is null or username ilike $2 or name ilike $2 or email ilike $2)
          and ($3::text is null or status = $3)
          and ($4::uuid is null
               or lower(username) > (select lower(username) from users where id = $4))
        order by lower(username)
        limit $5 offset $6"#,
        ids.as_deref(),
        pattern,
        filter.status,
        filter.after_id,
        filter.limit,
        filter.offset
    )
    .fetch_all(db)
    .await?;
    let count = sqlx::query!(
        r#"
        select count(*) as "count!"
        from users
        where not deleted and not is_system
          and ($1::uuid[] is null or id = any($1))
          and ($2::text is null or username ilike $2 or name ilike $2 or email ilike $2)
          and ($3::text is null or status = $3)"#,
        ids.as_deref(),
        pattern,
        filter.status
    )
    .fetch_one(db)
    .await?;
    Ok((rows.into_iter().map(User::from).collect(), count.count))
}

/// A pattern for `like` that finds the text anywhere.
fn like(text: &str) -> String {
    let text = text.replace('\\', r"\\").replace('%', r"\%").replace('_', r"\_");
    format!("%{text}%")
}

/// Sets the password.
#[tracing::instrument(name = "db.user.set_password", skip_all, fields(user.id = %id), err)]
pub async fn set_password(
    db: impl Executor<'_>,
    id: UserId,
    hash: &str,
    now: Timestamp,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "
        update users set password_hash = $2, updated_at = $3
        where id = $1 and not deleted and not is_system",
        id.0,
        hash,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Sets `active`, `dormant` or `suspended`.
#[tracing::instrument(name = "db.user.set_status", skip_all, fields(user.id = %id), err)]
pub async fn set_status(
    db: impl Executor<'_>,
    id: UserId,
    status: &str,
    now: Timestamp,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "
        update users set status = $2, updated_at = $3
        where id = $1 and not deleted and not is_system",
        id.0,
        status,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Sets the site roles.
#[tracing::instrument(name = "db.user.set_roles", skip_all, fields(user.id = %id), err)]
pub async fn set_roles(
    db: impl Executor<'_>,
    id: UserId,
    roles: &[SiteRole],
    now: Timestamp,
) -> Result<bool, DbError> {
    let roles: Vec<String> = roles.iter().map(ToString::to_string).collect();
    let done = sqlx::query!(
        "
        update users set roles = $2, updated_at = $3
        where id = $1 and not deleted and not is_system",
        id.0,
        &roles,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Notes that a user was there; a dormant one is active again.
#[tracing::instrument(name = "db.user.mark_seen", skip_all, fields(user.id = %id), err)]
pub async fn mark_seen(db: impl Executor<'_>, id: UserId, now: Timestamp) -> Result<(), DbError> {
    sqlx::query!(
        "
        update users
        set last_seen_at = $2, status = case status when 'dormant' then 'active' else status end
        where id = $1",
        id.0,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(())
}
