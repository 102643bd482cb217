//! Groups of an organization's members. The group Everyone has the organization's id and no rows
//! in `group_members`: its members are the organization's.

use berth_domain::id::{GroupId, OrganizationId, UserId};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use crate::{DbError, Executor, at};

/// A group.
#[derive(Debug, Clone)]
pub struct Group {
    /// Its id.
    pub id: GroupId,
    /// Whose.
    pub organization_id: OrganizationId,
    /// That organization's name.
    pub organization_name: String,
    /// What people see of it.
    pub organization_display_name: String,
    /// Unique in the organization.
    pub name: String,
    /// What people see.
    pub display_name: String,
    /// Its picture.
    pub avatar_url: String,
    /// Credits that each member may use a day.
    pub quota_allowance: i32,
    /// `user` or `oidc`.
    pub source: String,
    /// Its members, by name.
    pub members: Vec<GroupMember>,
}

/// A member of a group.
#[derive(Debug, Clone, Deserialize)]
pub struct GroupMember {
    /// The user.
    pub id: UserId,
    /// His name.
    pub username: String,
    /// His address.
    pub email: String,
    /// His full name.
    pub name: String,
    /// His picture.
    pub avatar_url: String,
    /// `active`, `dormant` or `suspended`.
    pub status: String,
    /// How he logs in.
    pub login_type: String,
    /// When he was made.
    pub created_at: Timestamp,
    /// When he was changed.
    pub updated_at: Timestamp,
}

/// Which groups.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// This one.
    pub id: Option<GroupId>,
    /// Of these organizations; `None`: of any.
    pub organizations: Option<Vec<Uuid>>,
    /// Of this name.
    pub name: Option<String>,
}

/// Lists groups with their members by name, at most 1000.
#[tracing::instrument(name = "db.group.list", skip_all, err)]
pub async fn list(db: impl Executor<'_>, filter: &Filter) -> Result<Vec<Group>, DbError> {
    let rows = sqlx::query!(
        r#"
        select g.id, g.organization_id, o.name as organization_name,
               o.display_name as organization_display_name, g.name, g.display_name, g.avatar_url,
               g.quota_allowance, g.source,
               coalesce((
                   select jsonb_agg(jsonb_build_object(
                       'id', u.id, 'username', u.username, 'email', u.email, 'name', u.name,
                       'avatar_url', u.avatar_url, 'status', u.status, 'login_type', u.login_type,
                       'created_at', u.created_at, 'updated_at', u.updated_at
                   ) order by lower(u.username))
                   from users u
                   where not u.deleted and not u.is_system and (
                       exists (
                           select from group_members m where m.group_id = g.id and m.user_id = u.id
                       )
                       or (g.id = g.organization_id and exists (
                           select from organization_members m
                           where m.organization_id = g.id and m.user_id = u.id
                       ))
                   )
               ), '[]') as "members!: Value"
        from groups g join organizations o on o.id = g.organization_id
        where not o.deleted
          and ($1::uuid is null or g.id = $1)
          and ($2::uuid[] is null or g.organization_id = any($2))
          and ($3::text is null or g.name = $3)
        order by lower(o.name), lower(g.name)
        limit 1000"#,
        filter.id.map(|it| it.0),
        filter.organizations.as_deref(),
        filter.name
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            let members = serde_json::from_value(row.members)
                .map_err(|source| DbError::Json { what: "members of a group", source })?;
            Ok(Group {
                id: GroupId(row.id),
                organization_id: OrganizationId(row.organization_id),
                organization_name: row.organization_name,
                organization_display_name: row.organization_display_name,
                name: row.name,
                display_name: row.display_name,
                avatar_url: row.avatar_url,
                quota_allowance: row.quota_allowance,
                source: row.source,
                members,
            })
        })
        .collect()
}

/// Makes a group.
#[tracing::instrument(name = "db.group.insert", skip_all, fields(group.id = %new.id), err)]
pub async fn insert(db: impl Executor<'_>, new: &Group, now: Timestamp) -> Result<(), DbError> {
    sqlx::query!(
        "
        insert into groups (
            id, organization_id, name, display_name, avatar_url, quota_allowance, source, created_at
        )
        values ($1, $2, $3, $4, $5, $6, $7, $8)",
        new.id.0,
        new.organization_id.0,
        new.name,
        new.display_name,
        new.avatar_url,
        new.quota_allowance,
        new.source,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Changes name, picture and allowance.
#[tracing::instrument(name = "db.group.update", skip_all, fields(group.id = %changed.id), err)]
pub async fn update(db: impl Executor<'_>, changed: &Group) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "
        update groups set name = $2, display_name = $3, avatar_url = $4, quota_allowance = $5
        where id = $1",
        changed.id.0,
        changed.name,
        changed.display_name,
        changed.avatar_url,
        changed.quota_allowance
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Puts members of the organization into the group; others are left out.
#[tracing::instrument(name = "db.group.add_members", skip_all, fields(group.id = %id), err)]
pub async fn add_members(
    db: impl Executor<'_>,
    id: GroupId,
    users: &[Uuid],
) -> Result<(), DbError> {
    sqlx::query!(
        "
        insert into group_members (group_id, user_id)
        select g.id, m.user_id
        from groups g join organization_members m on m.organization_id = g.organization_id
        where g.id = $1 and m.user_id = any($2)
        on conflict do nothing",
        id.0,
        users
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Takes users out of the group.
#[tracing::instrument(name = "db.group.remove_members", skip_all, fields(group.id = %id), err)]
pub async fn remove_members(
    db: impl Executor<'_>,
    id: GroupId,
    users: &[Uuid],
) -> Result<(), DbError> {
    sqlx::query!(
        "delete from group_members where group_id = $1 and user_id = any($2)",
        id.0,
        users
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Deletes a group; Everyone stays. `false`: it is gone, or it is Everyone.
#[tracing::instrument(name = "db.group.delete", skip_all, fields(group.id = %id), err)]
pub async fn delete(db: impl Executor<'_>, id: GroupId) -> Result<bool, DbError> {
    let done = sqlx::query!("delete from groups where id = $1 and id <> organization_id", id.0)
        .execute(db)
        .await?;
    Ok(done.rows_affected() == 1)
}
