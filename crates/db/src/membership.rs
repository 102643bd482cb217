//! Where the prebuilds user has to be: member of the organization, the group of its quota there,
//! and member of that group.

use berth_domain::id::{GroupId, OrganizationId, PREBUILDS_USER};
use jiff::Timestamp;

use crate::{DbError, Executor, at};

/// Name of the group that carries the prebuilds user's quota in an organization.
pub const GROUP_NAME: &str = "coderprebuiltworkspaces";
/// How that group is shown.
const GROUP_DISPLAY_NAME: &str = "Prebuilt Workspaces";

/// An organization that has pools, and which of the three hold there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The organization.
    pub organization_id: OrganizationId,
    /// The prebuilds user is a member.
    pub is_member: bool,
    /// The group, where it exists.
    pub group_id: Option<GroupId>,
    /// The prebuilds user is in the group.
    pub is_in_group: bool,
}

/// The organizations with pools where something is missing, in one statement: with all in order it
/// answers nothing. `only` looks at one organization.
#[tracing::instrument(name = "db.membership.list_out_of_order", skip_all, err)]
pub async fn list_out_of_order(
    db: impl Executor<'_>,
    only: Option<OrganizationId>,
) -> Result<Vec<Standing>, DbError> {
    let rows = sqlx::query!(
        r#"
        select o.id, m.user_id is not null as "is_member!", g.id as "group_id?",
               gm.user_id is not null as "is_in_group!"
        from organizations o
        left join organization_members m on m.organization_id = o.id and m.user_id = $1
        left join groups g on g.organization_id = o.id and g.name = $2
        left join group_members gm on gm.group_id = g.id and gm.user_id = $1
        where not o.deleted
          and (m.user_id is null or gm.user_id is null)
          and ($3::uuid is null or o.id = $3)
          and exists (
              select from templates t
              join template_version_presets p on p.template_version_id = t.active_version_id
              where t.organization_id = o.id and not t.deleted
                and p.desired_instances is not null
          )
        order by o.id"#,
        PREBUILDS_USER.0,
        GROUP_NAME,
        only.map(|it| it.0)
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Standing {
            organization_id: OrganizationId(row.id),
            is_member: row.is_member,
            group_id: row.group_id.map(GroupId),
            is_in_group: row.is_in_group,
        })
        .collect())
}

/// Makes the prebuilds user a member. `false`: somebody else did.
#[tracing::instrument(name = "db.membership.insert_member", skip_all, fields(organization.id = %organization), err)]
pub async fn insert_member(
    db: impl Executor<'_>,
    organization: OrganizationId,
    now: Timestamp,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "
        insert into organization_members (
            organization_id, user_id, added_by_reconciler, created_at, updated_at
        )
        values ($1, $2, true, $3, $3)
        on conflict (organization_id, user_id) do nothing",
        organization.0,
        PREBUILDS_USER.0,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Makes the group, with no allowance. `false`: somebody else did.
#[tracing::instrument(name = "db.membership.insert_group", skip_all, fields(organization.id = %organization), err)]
pub async fn insert_group(
    db: impl Executor<'_>,
    id: GroupId,
    organization: OrganizationId,
    now: Timestamp,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "
        insert into groups (
            id, organization_id, name, display_name, quota_allowance, added_by_reconciler, created_at
        )
        values ($1, $2, $3, $4, 0, true, $5)
        on conflict (organization_id, name) do nothing",
        id.0,
        organization.0,
        GROUP_NAME,
        GROUP_DISPLAY_NAME,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Puts the prebuilds user into the organization's group, found by its name because somebody else
/// may have made it a moment ago. `false`: somebody else did, or the group is gone again.
#[tracing::instrument(name = "db.membership.insert_group_member", skip_all, fields(organization.id = %organization), err)]
pub async fn insert_group_member(
    db: impl Executor<'_>,
    organization: OrganizationId,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "
        insert into group_members (group_id, user_id, added_by_reconciler)
        select id, $2, true from groups where organization_id = $1 and name = $3
        on conflict (group_id, user_id) do nothing",
        organization.0,
        PREBUILDS_USER.0,
        GROUP_NAME
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}
