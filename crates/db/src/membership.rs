//! Where the prebuilds user has to be: member of the organization, the group of its quota there,
//! and member of that group.

use std::time::Duration;

use berth_domain::id::{GroupId, OrganizationId, PREBUILDS_USER};
use jiff::Timestamp;
use uuid::Uuid;

use crate::{DbError, Executor, at, maybe_at, maybe_time};

/// Name of the group that carries the prebuilds user's quota in an organization.
pub const GROUP_NAME: &str = "coderprebuiltworkspaces";
/// How that group is shown.
const GROUP_DISPLAY_NAME: &str = "Prebuilt Workspaces";

/// An organization where something is to be done, and which of the three hold there.
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
    /// A live template has pools: all three should hold.
    pub is_needed: bool,
    /// Since when it is known that nothing here is needed.
    pub unused_since: Option<Timestamp>,
}

impl Standing {
    /// Whether all three hold.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.is_member && self.is_in_group
    }
}

/// What besides missing rows is out of order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unused {
    /// Rows of the reconciler in organizations without pools are.
    pub remove: bool,
    /// Of those that are known to be unused, only since this moment or longer.
    pub since: Timestamp,
}

struct Row {
    organization_id: Uuid,
    is_member: bool,
    group_id: Option<Uuid>,
    is_in_group: bool,
    is_needed: bool,
    unused_since: Option<jiff_sqlx::Timestamp>,
}

impl From<Row> for Standing {
    fn from(row: Row) -> Self {
        Self {
            organization_id: OrganizationId(row.organization_id),
            is_member: row.is_member,
            group_id: row.group_id.map(GroupId),
            is_in_group: row.is_in_group,
            is_needed: row.is_needed,
            unused_since: maybe_time(row.unused_since),
        }
    }
}

/// The organizations that are out of order, in one statement: with all in order it answers nothing.
///
/// Its plan is three joins of the organizations with the prebuilds user's own rows. Whether there are
/// pools is asked last, and only where the answer matters: `case` keeps the planner from asking it
/// of every organization. That reads `templates.has_pools`, which triggers keep, from a partial
/// index; presets are never read. With 10 000 organizations in order, 20 000 templates and 40 000
/// presets it took 8 to 24 ms, and 12 to 41 ms when unused rows are to be removed, on two cores that
/// were busy with builds.
#[tracing::instrument(name = "db.membership.list_out_of_order", skip_all, err)]
pub async fn list_out_of_order(
    db: impl Executor<'_>,
    unused: Unused,
) -> Result<Vec<Standing>, DbError> {
    let rows = sqlx::query_as!(
        Row,
        r#"
        select organization_id as "organization_id!", is_member as "is_member!", group_id,
               is_in_group as "is_in_group!", is_needed as "is_needed!", unused_since
        from membership_standings
        where case
            when is_member and is_in_group and unused_since is null and not ($1 and has_additions)
                then false
            when is_needed then not is_member or not is_in_group or unused_since is not null
            else $1 and has_additions and coalesce(unused_since <= $2, true)
        end
        order by organization_id"#,
        unused.remove,
        at(unused.since)
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(Standing::from).collect())
}

/// The same of one organization: `None` when it is in order. Reads nothing of the others.
#[tracing::instrument(name = "db.membership.find_out_of_order", skip_all, fields(organization.id = %organization), err)]
pub async fn find_out_of_order(
    db: impl Executor<'_>,
    organization: OrganizationId,
    unused: Unused,
) -> Result<Option<Standing>, DbError> {
    let row = sqlx::query_as!(
        Row,
        r#"
        select organization_id as "organization_id!", is_member as "is_member!", group_id,
               is_in_group as "is_in_group!", is_needed as "is_needed!", unused_since
        from membership_standings
        where organization_id = $3 and case
            when is_member and is_in_group and unused_since is null and not ($1 and has_additions)
                then false
            when is_needed then not is_member or not is_in_group or unused_since is not null
            else $1 and has_additions and coalesce(unused_since <= $2, true)
        end"#,
        unused.remove,
        at(unused.since),
        organization.0
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(Standing::from))
}

/// Bounds every wait of this transaction: for a lock, and for a statement as a whole. One
/// organization that somebody holds must not keep the others waiting.
#[tracing::instrument(name = "db.membership.limit_waits", level = "debug", skip_all, err)]
pub async fn limit_waits(
    db: impl Executor<'_>,
    lock: Duration,
    statement: Duration,
) -> Result<(), DbError> {
    sqlx::query!(
        "
        select set_config('lock_timeout', $1, true) as lock,
               set_config('statement_timeout', $2, true) as statement",
        format!("{}ms", lock.as_millis()),
        format!("{}ms", statement.as_millis())
    )
    .fetch_one(db)
    .await?;
    Ok(())
}

/// Notes since when an organization is without pools; `None`: it has some.
#[tracing::instrument(name = "db.membership.set_unused_since", skip_all, fields(organization.id = %organization), err)]
pub async fn set_unused_since(
    db: impl Executor<'_>,
    organization: OrganizationId,
    since: Option<Timestamp>,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "
        update organizations set prebuilds_unused_since = $2
        where id = $1 and (prebuilds_unused_since is null) <> ($2::timestamptz is null)",
        organization.0,
        maybe_at(since)
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// What [`remove_additions`] removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// The membership.
    pub member: bool,
    /// The group.
    pub group: bool,
    /// The membership in the group; a removed group takes it along.
    pub group_member: bool,
}

/// Removes what the reconciler added in an organization without pools and without prebuilds, and
/// nothing that people configured. A group whose allowance, name or picture they changed, that has
/// other members, or to which a template is open, is theirs from now on; so is the membership when
/// they gave it a role or put the prebuilds user into another group.
#[tracing::instrument(name = "db.membership.remove_additions", skip_all, fields(organization.id = %organization), err)]
pub async fn remove_additions(
    db: impl Executor<'_>,
    organization: OrganizationId,
) -> Result<Removed, DbError> {
    let removed = sqlx::query_as!(
        Removed,
        r#"
        with standing as (
            select id from organizations where id = $1 and not exists (
                select from templates where organization_id = $1 and has_pools and not deleted
            ) and not exists (
                select from workspaces
                where organization_id = $1 and owner_id = $2 and not deleted
            )
        ), added_group as (
            select g.id, g.quota_allowance = 0 and g.display_name = $4 and g.avatar_url = ''
                and not exists (
                    select from group_members m
                    where m.group_id = g.id and not (m.user_id = $2 and m.added_by_reconciler)
                )
                and not exists (
                    select from templates t
                    where t.organization_id = g.organization_id and not t.deleted
                      and t.group_acl ? g.id::text
                ) as is_untouched
            from groups g join standing s on s.id = g.organization_id
            where g.name = $3 and g.added_by_reconciler
        ), added_member as (
            select m.organization_id, m.roles = '{}' and not exists (
                    select from group_members gm join groups g on g.id = gm.group_id
                    where g.organization_id = m.organization_id and gm.user_id = $2
                      and not gm.added_by_reconciler
                ) as is_untouched
            from organization_members m join standing s on s.id = m.organization_id
            where m.user_id = $2 and m.added_by_reconciler
        ), removed_group_member as (
            delete from group_members gm
            using groups g, standing s where g.organization_id = s.id and g.name = $3 and gm.group_id = g.id
              and gm.user_id = $2 and gm.added_by_reconciler
            returning gm.group_id
        ), removed_group as (
            delete from groups where id in (select id from added_group where is_untouched)
            returning id
        ), left_group as (
            update groups set added_by_reconciler = false
            where id in (select id from added_group where not is_untouched)
        ), removed_member as (
            delete from organization_members
            where user_id = $2
              and organization_id in (select organization_id from added_member where is_untouched)
            returning user_id
        ), left_member as (
            update organization_members set added_by_reconciler = false
            where user_id = $2
              and organization_id in (select organization_id from added_member where not is_untouched)
        ), noted as (
            update organizations set prebuilds_unused_since = null
            where id in (select id from standing)
        )
        select exists (select from removed_member) as "member!",
               exists (select from removed_group) as "group!",
               exists (select from removed_group_member) as "group_member!""#,
        organization.0,
        PREBUILDS_USER.0,
        GROUP_NAME,
        GROUP_DISPLAY_NAME
    )
    .fetch_one(db)
    .await?;
    Ok(removed)
}

/// Marks the organization's pools that the quota holds back, after a change of what the prebuilds
/// user may spend. Gives their number; one wake of the reconciler is enough for all of them.
#[tracing::instrument(name = "db.membership.mark_held_by_quota", skip_all, fields(organization.id = %organization), err)]
pub async fn mark_held_by_quota(
    db: impl Executor<'_>,
    organization: OrganizationId,
    now: Timestamp,
) -> Result<u64, DbError> {
    let done = sqlx::query!(
        "
        insert into prebuild_pool_marks (preset_id, created_at)
        select preset_id, $2 from prebuild_pools
        where organization_id = $1 and holds <> '{}' and 'quota' = any(holds)",
        organization.0,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
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
        select id, $2, true, $3, $3 from organizations where id = $1 and not deleted
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
