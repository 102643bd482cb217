//! Memberships in organizations.

use berth_domain::id::{OrganizationId, UserId};
use jiff::Timestamp;

use crate::{DbError, Executor, at};

/// A member with what people see of him.
#[derive(Debug, Clone)]
pub struct Member {
    /// The user.
    pub user_id: UserId,
    /// The organization.
    pub organization_id: OrganizationId,
    /// Organization roles, custom ones included.
    pub roles: Vec<String>,
    /// Since when.
    pub created_at: Timestamp,
    /// When the roles were changed.
    pub updated_at: Timestamp,
    /// His name.
    pub username: String,
    /// His full name.
    pub name: String,
    /// His address.
    pub email: String,
    /// His picture.
    pub avatar_url: String,
    /// Site roles.
    pub site_roles: Vec<String>,
}

/// Makes a user a member.
#[tracing::instrument(name = "db.member.insert", skip_all, fields(user.id = %user), err)]
pub async fn insert(
    db: impl Executor<'_>,
    organization: OrganizationId,
    user: UserId,
    roles: &[String],
    now: Timestamp,
) -> Result<(), DbError> {
    sqlx::query!(
        "
        insert into organization_members (organization_id, user_id, roles, created_at, updated_at)
        values ($1, $2, $3, $4, $4)",
        organization.0,
        user.0,
        roles,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Lists members by name: all, or one user; and tells how many there are in all.
#[tracing::instrument(name = "db.member.list", skip_all, fields(organization.id = %organization), err)]
pub async fn list(
    db: impl Executor<'_>,
    organization: OrganizationId,
    user: Option<UserId>,
    page: (i64, i64),
) -> Result<(Vec<Member>, i64), DbError> {
    let rows = sqlx::query!(
        r#"
        select m.user_id, m.organization_id, m.roles, m.created_at, m.updated_at, u.username,
               u.name, u.email, u.avatar_url, u.roles as site_roles, count(*) over () as "total!"
        from organization_members m join users u on u.id = m.user_id
        where m.organization_id = $1 and ($2::uuid is null or m.user_id = $2) and not u.deleted
          and not u.is_system
        order by lower(u.username)
        limit $3 offset $4"#,
        organization.0,
        user.map(|it| it.0),
        page.0,
        page.1
    )
    .fetch_all(db)
    .await?;
    let total = rows.first().map_or(0, |row| row.total);
    let members = rows.into_iter().map(|row| Member {
        user_id: UserId(row.user_id),
        organization_id: OrganizationId(row.organization_id),
        roles: row.roles,
        created_at: row.created_at.to_jiff(),
        updated_at: row.updated_at.to_jiff(),
        username: row.username,
        name: row.name,
        email: row.email,
        avatar_url: row.avatar_url,
        site_roles: row.site_roles,
    });
    Ok((members.collect(), total))
}

/// Sets the roles. `false`: the user is no member.
#[tracing::instrument(name = "db.member.set_roles", skip_all, fields(user.id = %user), err)]
pub async fn set_roles(
    db: impl Executor<'_>,
    organization: OrganizationId,
    user: UserId,
    roles: &[String],
    now: Timestamp,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "
        update organization_members set roles = $3, updated_at = $4
        where organization_id = $1 and user_id = $2",
        organization.0,
        user.0,
        roles,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Ends a membership, and those in the organization's groups. `false`: there was none.
#[tracing::instrument(name = "db.member.delete", skip_all, fields(user.id = %user), err)]
pub async fn delete(
    db: impl Executor<'_>,
    organization: OrganizationId,
    user: UserId,
) -> Result<bool, DbError> {
    let deleted = sqlx::query_scalar!(
        r#"
        with groups as (
            delete from group_members
            where user_id = $2
              and group_id in (select id from groups where organization_id = $1)
        ), membership as (
            delete from organization_members where organization_id = $1 and user_id = $2
            returning user_id
        )
        select count(*) as "count!" from membership"#,
        organization.0,
        user.0
    )
    .fetch_one(db)
    .await?;
    Ok(deleted == 1)
}
