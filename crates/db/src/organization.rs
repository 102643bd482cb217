//! Organizations.

use berth_domain::id::{OrganizationId, UserId};
use jiff::Timestamp;
use uuid::Uuid;

use crate::{DbError, Executor, at};

/// An organization.
#[derive(Debug, Clone)]
pub struct Organization {
    /// Its id; also the id of its group Everyone.
    pub id: OrganizationId,
    /// Unique, whatever the case.
    pub name: String,
    /// What people see.
    pub display_name: String,
    /// What it is for.
    pub description: String,
    /// Path or URL of an icon.
    pub icon: String,
    /// The one that `default` means.
    pub is_default: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was changed.
    pub updated_at: Timestamp,
}

struct Row {
    id: Uuid,
    name: String,
    display_name: String,
    description: String,
    icon: String,
    is_default: bool,
    created_at: jiff_sqlx::Timestamp,
    updated_at: jiff_sqlx::Timestamp,
}

impl From<Row> for Organization {
    fn from(row: Row) -> Self {
        Self {
            id: OrganizationId(row.id),
            name: row.name,
            display_name: row.display_name,
            description: row.description,
            icon: row.icon,
            is_default: row.is_default,
            created_at: row.created_at.to_jiff(),
            updated_at: row.updated_at.to_jiff(),
        }
    }
}

/// Looks one up by id.
#[tracing::instrument(name = "db.organization.find", skip_all, fields(organization.id = %id), err)]
pub async fn find(
    db: impl Executor<'_>,
    id: OrganizationId,
) -> Result<Option<Organization>, DbError> {
    let row = sqlx::query_as!(
        Row,
        "
        select id, name, display_name, description, icon, is_default, created_at, updated_at
        from organizations where id = $1 and not deleted",
        id.0
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(Organization::from))
}

/// Looks one up by name, whatever the case; `default` is the default one, whatever its name.
#[tracing::instrument(name = "db.organization.find_by_name", skip_all, err)]
pub async fn find_by_name(
    db: impl Executor<'_>,
    name: &str,
) -> Result<Option<Organization>, DbError> {
    let row = sqlx::query_as!(
        Row,
        "
        select id, name, display_name, description, icon, is_default, created_at, updated_at
        from organizations
        where not deleted and (lower(name) = lower($1) or ($1 = 'default' and is_default))
        order by is_default desc
        limit 1",
        name
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(Organization::from))
}

/// Lists organizations by name, at most 1000: all, or those of which `member` is a member.
#[tracing::instrument(name = "db.organization.list", skip_all, err)]
pub async fn list(
    db: impl Executor<'_>,
    member: Option<UserId>,
) -> Result<Vec<Organization>, DbError> {
    let rows = sqlx::query_as!(
        Row,
        "
        select id, name, display_name, description, icon, is_default, created_at, updated_at
        from organizations o
        where not deleted
          and ($1::uuid is null or exists (
              select from organization_members where organization_id = o.id and user_id = $1
          ))
        order by lower(name)
        limit 1000",
        member.map(|it| it.0)
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(Organization::from).collect())
}

/// Makes an organization and its group Everyone.
#[tracing::instrument(name = "db.organization.insert", skip_all, fields(organization.id = %new.id), err)]
pub async fn insert(db: impl Executor<'_>, new: &Organization) -> Result<(), DbError> {
    sqlx::query!(
        "
        with organization as (
            insert into organizations (
                id, name, display_name, description, icon, is_default, created_at, updated_at
            )
            values ($1, $2, $3, $4, $5, $6, $7, $7)
            returning id
        )
        insert into groups (id, organization_id, name, created_at)
        select id, id, 'Everyone', $7 from organization",
        new.id.0,
        new.name,
        new.display_name,
        new.description,
        new.icon,
        new.is_default,
        at(new.created_at)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Changes names and description.
#[tracing::instrument(name = "db.organization.update", skip_all, fields(organization.id = %changed.id), err)]
pub async fn update(db: impl Executor<'_>, changed: &Organization) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "
        update organizations
        set name = $2, display_name = $3, description = $4, icon = $5, updated_at = $6
        where id = $1 and not deleted",
        changed.id.0,
        changed.name,
        changed.display_name,
        changed.description,
        changed.icon,
        at(changed.updated_at)
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Deletes an organization without templates. `false`: it is the default one, or has some, or is
/// gone already.
#[tracing::instrument(name = "db.organization.mark_deleted", skip_all, fields(organization.id = %id), err)]
pub async fn mark_deleted(
    db: impl Executor<'_>,
    id: OrganizationId,
    now: Timestamp,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "
        update organizations set deleted = true, updated_at = $2
        where id = $1 and not deleted and not is_default
          and not exists (select from templates where organization_id = $1 and not deleted)
          and not exists (select from workspaces where organization_id = $1 and not deleted)",
        id.0,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}
