//! Sessions and API tokens.

use std::collections::{BTreeMap, BTreeSet};

use berth_domain::authz::{Membership, Permission, Person, Scope, Subject};
use berth_domain::id::{GroupId, OrganizationId, UserId, WorkspaceId};
use jiff::Timestamp;
use serde::Deserialize;
use uuid::Uuid;

use crate::user::User;
use crate::{DbError, Executor, at, maybe_time};

/// A session or token. Its secret is nowhere.
#[derive(Debug, Clone)]
pub struct ApiKey {
    /// The public half: 10 characters.
    pub id: String,
    /// Whose.
    pub user_id: UserId,
    /// `password`, `oidc`; `token` for tokens.
    pub login_type: String,
    /// What it may be used for at most.
    pub scope: Scope,
    /// Empty for sessions.
    pub token_name: String,
    /// How long it lives, in seconds; sessions from their last use.
    pub lifetime_seconds: i64,
    /// When a use was last noted.
    pub last_used_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was changed.
    pub updated_at: Timestamp,
}

/// A key to be stored.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// The public half.
    pub id: String,
    /// SHA-256 of the secret half.
    pub secret_hash: [u8; 32],
    /// Whose.
    pub user_id: UserId,
    /// `password`, `oidc` or `token`.
    pub login_type: &'static str,
    /// What it may be used for at most.
    pub scope: Scope,
    /// Empty for sessions.
    pub token_name: String,
    /// The workspace it is made for, if any.
    pub workspace_id: Option<WorkspaceId>,
    /// How long it lives, in seconds.
    pub lifetime_seconds: i64,
    /// From when.
    pub now: Timestamp,
    /// Until when.
    pub expires_at: Timestamp,
}

/// Everything that authentication needs to know.
#[derive(Debug, Clone)]
pub struct Session {
    /// The key.
    pub key: ApiKey,
    /// SHA-256 of its secret.
    pub secret_hash: Vec<u8>,
    /// Its user.
    pub user: User,
    /// The user, as authorization sees him.
    pub subject: Subject,
}

#[derive(Deserialize)]
struct StoredMembership {
    organization_id: OrganizationId,
    roles: Vec<String>,
    custom: Vec<Vec<Permission>>,
}

struct SessionRow {
    id: String,
    secret_hash: Vec<u8>,
    login_type: String,
    scope: String,
    token_name: String,
    lifetime_seconds: i64,
    last_used_at: jiff_sqlx::Timestamp,
    expires_at: jiff_sqlx::Timestamp,
    created_at: jiff_sqlx::Timestamp,
    updated_at: jiff_sqlx::Timestamp,
    user_id: Uuid,
    username: String,
    email: String,
    name: String,
    avatar_url: String,
    status: String,
    user_login_type: String,
    roles: Vec<String>,
    is_system: bool,
    user_created_at: jiff_sqlx::Timestamp,
    user_updated_at: jiff_sqlx::Timestamp,
    last_seen_at: Option<jiff_sqlx::Timestamp>,
    memberships: serde_json::Value,
    groups: Vec<Uuid>,
}

/// Loads key, user, memberships and groups in one statement. Whether the key is expired, the secret
/// right and the user active is for the caller to decide.
#[tracing::instrument(name = "db.api_key.find_session", skip_all, err)]
pub async fn find_session(db: impl Executor<'_>, id: &str) -> Result<Option<Session>, DbError> {
    let row = sqlx::query_as!(
        SessionRow,
        r#"
        select k.id, k.secret_hash, k.login_type, k.scope, k.token_name, k.lifetime_seconds,
               k.last_used_at, k.expires_at, k.created_at, k.updated_at,
               u.id as user_id, u.username, u.email, u.name, u.avatar_url, u.status,
               u.login_type as user_login_type, u.roles, u.is_system,
               u.created_at as user_created_at, u.updated_at as user_updated_at, u.last_seen_at,
               coalesce((
                   select jsonb_agg(jsonb_build_object(
                       'organization_id', m.organization_id, 'roles', m.roles,
                       'custom', coalesce((
                           select jsonb_agg(c.permissions) from custom_roles c
                           where c.organization_id = m.organization_id and c.name = any(m.roles)
                       ), '[]')
                   ) order by m.organization_id)
                   from organization_members m join organizations o on o.id = m.organization_id
                   where m.user_id = u.id and not o.deleted
               ), '[]') as "memberships!",
               array(select group_id from group_members where user_id = u.id) as "groups!"
        from api_keys k join users u on u.id = k.user_id
        where k.id = $1 and not u.deleted"#,
        id
    )
    .fetch_optional(db)
    .await?;
    row.map(Session::try_from).transpose()
}

/// The same of many keys at once, in no order; those that are gone are left out.
#[tracing::instrument(name = "db.api_key.list_sessions", skip_all, err)]
pub async fn list_sessions(db: impl Executor<'_>, ids: &[String]) -> Result<Vec<Session>, DbError> {
    let rows = sqlx::query_as!(
        SessionRow,
        r#"
        select k.id, k.secret_hash, k.login_type, k.scope, k.token_name, k.lifetime_seconds,
               k.last_used_at, k.expires_at, k.created_at, k.updated_at,
               u.id as user_id, u.username, u.email, u.name, u.avatar_url, u.status,
               u.login_type as user_login_type, u.roles, u.is_system,
               u.created_at as user_created_at, u.updated_at as user_updated_at, u.last_seen_at,
               coalesce((
                   select jsonb_agg(jsonb_build_object(
                       'organization_id', m.organization_id, 'roles', m.roles,
                       'custom', coalesce((
                           select jsonb_agg(c.permissions) from custom_roles c
                           where c.organization_id = m.organization_id and c.name = any(m.roles)
                       ), '[]')
                   ) order by m.organization_id)
                   from organization_members m join organizations o on o.id = m.organization_id
                   where m.user_id = u.id and not o.deleted
               ), '[]') as "memberships!",
               array(select group_id from group_members where user_id = u.id) as "groups!"
        from api_keys k join users u on u.id = k.user_id
        where k.id = any($1) and not u.deleted"#,
        ids
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(Session::try_from).collect()
}

impl TryFrom<SessionRow> for Session {
    type Error = DbError;

    fn try_from(row: SessionRow) -> Result<Self, DbError> {
        let memberships: Vec<StoredMembership> = serde_json::from_value(row.memberships)
            .map_err(|source| DbError::Json { what: "custom_roles.permissions", source })?;
        let user = User {
            id: UserId(row.user_id),
            username: row.username,
            email: row.email,
            name: row.name,
            avatar_url: row.avatar_url,
            status: row.status,
            login_type: row.user_login_type,
            roles: row.roles.iter().filter_map(|role| role.parse().ok()).collect(),
            is_system: row.is_system,
            created_at: row.user_created_at.to_jiff(),
            updated_at: row.user_updated_at.to_jiff(),
            last_seen_at: maybe_time(row.last_seen_at),
            organization_ids: memberships.iter().map(|it| it.organization_id).collect(),
        };
        let key = ApiKey {
            id: row.id,
            user_id: user.id,
            login_type: row.login_type,
            scope: row.scope.parse()?,
            token_name: row.token_name,
            lifetime_seconds: row.lifetime_seconds,
            last_used_at: row.last_used_at.to_jiff(),
            expires_at: row.expires_at.to_jiff(),
            created_at: row.created_at.to_jiff(),
            updated_at: row.updated_at.to_jiff(),
        };
        let subject = Subject::Person(person(&user, key.scope, memberships, row.groups));
        Ok(Self { key, secret_hash: row.secret_hash, user, subject })
    }
}

fn person(
    user: &User,
    scope: Scope,
    memberships: Vec<StoredMembership>,
    groups: Vec<Uuid>,
) -> Person {
    // Everyone of an organization is a group that nobody needs to be put into.
    let everyone = memberships.iter().map(|it| GroupId(it.organization_id.0));
    let groups: BTreeSet<GroupId> = groups.into_iter().map(GroupId).chain(everyone).collect();
    let organizations: BTreeMap<OrganizationId, Membership> = memberships
        .into_iter()
        .map(|it| {
            let roles = it.roles.iter().filter_map(|role| role.parse().ok()).collect();
            let custom = it.custom.into_iter().flatten().collect();
            (it.organization_id, Membership { roles, custom })
        })
        .collect();
    Person { id: user.id, site_roles: user.roles.clone(), organizations, groups, scope }
}

/// Stores a key.
#[tracing::instrument(name = "db.api_key.insert", skip_all, fields(user.id = %new.user_id), err)]
pub async fn insert(db: impl Executor<'_>, new: &NewKey) -> Result<(), DbError> {
    sqlx::query!(
        "
        insert into api_keys (
            id, secret_hash, user_id, login_type, scope, token_name, workspace_id,
            lifetime_seconds, last_used_at, expires_at, created_at, updated_at
        )
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $9, $9)",
        new.id,
        &new.secret_hash[..],
        new.user_id.0,
        new.login_type,
        new.scope.as_str(),
        new.token_name,
        new.workspace_id.map(|it| it.0),
        new.lifetime_seconds,
        at(new.now),
        at(new.expires_at)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Notes a use, and moves the end of a session.
#[tracing::instrument(name = "db.api_key.mark_used", skip_all, err)]
pub async fn mark_used(
    db: impl Executor<'_>,
    id: &str,
    now: Timestamp,
    expires_at: Timestamp,
) -> Result<(), DbError> {
    sqlx::query!(
        "update api_keys set last_used_at = $2, expires_at = $3 where id = $1",
        id,
        at(now),
        at(expires_at)
    )
    .execute(db)
    .await?;
    Ok(())
}

struct Row {
    id: String,
    user_id: Uuid,
    login_type: String,
    scope: String,
    token_name: String,
    lifetime_seconds: i64,
    last_used_at: jiff_sqlx::Timestamp,
    expires_at: jiff_sqlx::Timestamp,
    created_at: jiff_sqlx::Timestamp,
    updated_at: jiff_sqlx::Timestamp,
}

impl TryFrom<Row> for ApiKey {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        Ok(Self {
            id: row.id,
            user_id: UserId(row.user_id),
            login_type: row.login_type,
            scope: row.scope.parse()?,
            token_name: row.token_name,
            lifetime_seconds: row.lifetime_seconds,
            last_used_at: row.last_used_at.to_jiff(),
            expires_at: row.expires_at.to_jiff(),
            created_at: row.created_at.to_jiff(),
            updated_at: row.updated_at.to_jiff(),
        })
    }
}

/// Looks a key of a user up.
#[tracing::instrument(name = "db.api_key.find", skip_all, fields(user.id = %user), err)]
pub async fn find(
    db: impl Executor<'_>,
    user: UserId,
    id: &str,
) -> Result<Option<ApiKey>, DbError> {
    let row = sqlx::query_as!(
        Row,
        "
        select id, user_id, login_type, scope, token_name, lifetime_seconds, last_used_at,
               expires_at, created_at, updated_at
        from api_keys where id = $1 and user_id = $2",
        id,
        user.0
    )
    .fetch_optional(db)
    .await?;
    row.map(ApiKey::try_from).transpose()
}

/// Lists a user's tokens, at most 1000, newest first. Sessions are not among them.
#[tracing::instrument(name = "db.api_key.list_tokens", skip_all, fields(user.id = %user), err)]
pub async fn list_tokens(db: impl Executor<'_>, user: UserId) -> Result<Vec<ApiKey>, DbError> {
    let rows = sqlx::query_as!(
        Row,
        "
        select id, user_id, login_type, scope, token_name, lifetime_seconds, last_used_at,
               expires_at, created_at, updated_at
        from api_keys where user_id = $1 and login_type = 'token'
        order by created_at desc limit 1000",
        user.0
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(ApiKey::try_from).collect()
}

/// Revokes a key. `false`: the user has none of that id.
#[tracing::instrument(name = "db.api_key.delete", skip_all, fields(user.id = %user), err)]
pub async fn delete(db: impl Executor<'_>, user: UserId, id: &str) -> Result<bool, DbError> {
    let done = sqlx::query!("delete from api_keys where id = $1 and user_id = $2", id, user.0)
        .execute(db)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Revokes all sessions of a user, and his tokens too when `tokens`. `except` is left alone.
#[tracing::instrument(name = "db.api_key.delete_all", skip_all, fields(user.id = %user), err)]
pub async fn delete_all(
    db: impl Executor<'_>,
    user: UserId,
    tokens: bool,
    except: &str,
) -> Result<(), DbError> {
    sqlx::query!(
        "
        delete from api_keys
        where user_id = $1 and id <> $3 and ($2 or login_type <> 'token')",
        user.0,
        tokens,
        except
    )
    .execute(db)
    .await?;
    Ok(())
}
