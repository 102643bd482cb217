//! Workspaces.

use berth_domain::id::{BuildId, OrganizationId, PresetId, TemplateId, UserId, WorkspaceId};
use berth_domain::state::PoolState;
use jiff::Timestamp;
use uuid::Uuid;

use crate::{DbError, Executor, at, maybe_at, maybe_time};

/// What a request says about a workspace to be.
#[derive(Debug, Clone)]
pub struct NewWorkspace {
    /// Whose it will be.
    pub owner_id: UserId,
    /// Its organization.
    pub organization_id: OrganizationId,
    /// Its template.
    pub template_id: TemplateId,
    /// Its name.
    pub name: String,
    /// When it starts by itself.
    pub autostart_schedule: Option<String>,
    /// How long it runs, in milliseconds.
    pub ttl_ms: Option<i64>,
    /// `always` or `never`.
    pub automatic_updates: String,
}

/// A workspace with what is shown of its template, owner and organization.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "columns, each with a meaning of its own")]
pub struct Workspace {
    /// Its id.
    pub id: WorkspaceId,
    /// Its owner.
    pub owner_id: UserId,
    /// The owner's user name.
    pub owner_name: String,
    /// The owner's avatar.
    pub owner_avatar_url: String,
    /// Its organization.
    pub organization_id: OrganizationId,
    /// The organization's name.
    pub organization_name: String,
    /// Its template.
    pub template_id: TemplateId,
    /// The template's name.
    pub template_name: String,
    /// The template's display name.
    pub template_display_name: String,
    /// The template's icon.
    pub template_icon: String,
    /// The template's active version.
    pub template_active_version_id: Uuid,
    /// Whether owners may cancel builds of the template.
    pub allow_user_cancel_workspace_jobs: bool,
    /// Whether only the active version may be built.
    pub require_active_version: bool,
    /// Whether owners may choose an autostart schedule.
    pub allow_user_autostart: bool,
    /// Whether owners may choose a TTL.
    pub allow_user_autostop: bool,
    /// Its name.
    pub name: String,
    /// Whether it is gone.
    pub deleted: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it was last used.
    pub last_used_at: Timestamp,
    /// When it starts by itself.
    pub autostart_schedule: Option<String>,
    /// How long it runs, in milliseconds.
    pub ttl_ms: Option<i64>,
    /// `always` or `never`.
    pub automatic_updates: String,
    /// Since when it is dormant.
    pub dormant_at: Option<Timestamp>,
    /// When it will be deleted.
    pub deleting_at: Option<Timestamp>,
    /// Whether its owner marked it.
    pub favorite: bool,
    /// Grows with each committed change.
    pub revision: i64,
    /// Its newest build.
    pub latest_build_id: Option<BuildId>,
    /// The pool it belongs to; `None` for workspaces of people.
    pub pool_preset_id: Option<PresetId>,
    /// Where it stands in the pool.
    pub pool_state: Option<PoolState>,
}

/// Whose workspaces a reader may see.
#[derive(Debug, Clone, Default)]
pub struct Visibility {
    /// The reader: his own.
    pub user_id: Uuid,
    /// Everything.
    pub all: bool,
    /// Organizations whose workspaces he may read.
    pub organizations: Vec<Uuid>,
    /// Organizations he belongs to: his own workspaces there.
    pub own_in: Vec<Uuid>,
}

/// What of the workspaces is asked for. Empty fields ask for everything.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// The owner's user name.
    pub owner: Option<String>,
    /// The template's name.
    pub template: Option<String>,
    /// The organization, by name or id.
    pub organization: Option<String>,
    /// A part of the workspace's name.
    pub name: Option<String>,
    /// Statuses, as the REST contract spells them.
    pub statuses: Vec<String>,
    /// Deleted ones instead of live ones.
    pub deleted: bool,
    /// Only prebuilds, or none of them.
    pub prebuilds: Option<bool>,
}

/// A page of a list.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// At most so many.
    pub limit: i64,
    /// Leave out so many.
    pub offset: i64,
}

/// Inserts a workspace of a person.
#[tracing::instrument(name = "db.workspace.insert", skip_all, fields(workspace.id = %id), err)]
pub async fn insert(
    db: impl Executor<'_>,
    id: WorkspaceId,
    new: &NewWorkspace,
    now: Timestamp,
) -> Result<(), DbError> {
    sqlx::query!(
        "
        insert into workspaces (
            id, owner_id, organization_id, template_id, name, created_at, updated_at, last_used_at,
            autostart_schedule, ttl_ms, automatic_updates
        ) values ($1, $2, $3, $4, $5, $6, $6, $6, $7, $8, $9)",
        id.0,
        new.owner_id.0,
        new.organization_id.0,
        new.template_id.0,
        new.name,
        at(now),
        new.autostart_schedule,
        new.ttl_ms,
        new.automatic_updates
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Ids of a page of workspaces that the reader may see, in order of owner's and own name, and how
/// many there are in all.
#[tracing::instrument(name = "db.workspace.list_ids", skip_all, err)]
pub async fn list_ids(
    db: impl Executor<'_>,
    reader: &Visibility,
    filter: &Filter,
    page: Page,
) -> Result<(Vec<WorkspaceId>, i64), DbError> {
    let rows = sqlx::query!(
        r#"
        with matching as (
            select w.id, w.favorite and w.owner_id = $1 as favorite, u.username, w.name
            from workspaces w
            join users u on u.id = w.owner_id
            join templates t on t.id = w.template_id
            join organizations o on o.id = w.organization_id
            left join workspace_builds b on b.id = w.latest_build_id
            left join provisioner_jobs j on j.id = b.job_id
            where w.deleted = $9
              and ($2 or w.organization_id = any($3)
                   or (w.owner_id = $1 and w.organization_id = any($12)))
              and ($4::text is null or lower(u.username) = lower($4))
              and ($5::text is null or lower(t.name) = lower($5))
              and ($6::text is null or lower(o.name) = lower($6) or o.id::text = $6)
              and ($7::text is null or strpos(lower(w.name), lower($7)) > 0)
              and ($10::boolean is null or (w.pool_state is not null) = $10)
              and (cardinality($8::text[]) = 0 or (case
                  when j.status = 'pending' then 'pending'
                  when j.status = 'running' then
                      case b.transition when 'start' then 'starting' when 'stop' then 'stopping'
                           else 'deleting' end
                  when j.status = 'succeeded' then
                      case b.transition when 'start' then 'running' when 'stop' then 'stopped'
                           else 'deleted' end
                  else j.status end) = any($8))
        )
        select id, count(*) over () as "count!"
        from matching
        order by favorite desc, lower(username), lower(name), id
        limit $11 offset $13"#,
        reader.user_id,
        reader.all,
        &reader.organizations,
        filter.owner,
        filter.template,
        filter.organization,
        filter.name,
        &filter.statuses,
        filter.deleted,
        filter.prebuilds,
        page.limit,
        &reader.own_in,
        page.offset
    )
    .fetch_all(db)
    .await?;
    let count = rows.first().map_or(0, |row| row.count);
    Ok((rows.into_iter().map(|row| WorkspaceId(row.id)).collect(), count))
}

/// Looks a workspace up by owner and name, any letter case; deleted ones only if asked for, newest
/// first.
#[tracing::instrument(name = "db.workspace.find_id_by_name", skip_all, err)]
pub async fn find_id_by_name(
    db: impl Executor<'_>,
    owner: UserId,
    name: &str,
    include_deleted: bool,
) -> Result<Option<WorkspaceId>, DbError> {
    let id = sqlx::query_scalar!(
        "
        select id from workspaces
        where owner_id = $1 and lower(name) = lower($2) and (not deleted or $3)
        order by deleted, created_at desc limit 1",
        owner.0,
        name,
        include_deleted
    )
    .fetch_optional(db)
    .await?;
    Ok(id.map(WorkspaceId))
}

/// Looks one workspace up; deleted ones too.
pub async fn find(db: impl Executor<'_>, id: WorkspaceId) -> Result<Option<Workspace>, DbError> {
    Ok(list(db, &[id]).await?.pop())
}

/// Reads workspaces, in the order of `ids`; deleted ones too.
#[tracing::instrument(name = "db.workspace.list", skip_all, fields(rows = ids.len()), err)]
pub async fn list(db: impl Executor<'_>, ids: &[WorkspaceId]) -> Result<Vec<Workspace>, DbError> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    let rows = sqlx::query!(
        r#"
        select w.id, w.owner_id, u.username, u.avatar_url, w.organization_id,
               o.name as organization_name, w.template_id, t.name as template_name,
               t.display_name, t.icon, t.active_version_id, t.allow_user_cancel_workspace_jobs,
               t.require_active_version, t.allow_user_autostart, t.allow_user_autostop, w.name,
               w.deleted, w.created_at, w.updated_at, w.last_used_at, w.autostart_schedule,
               w.ttl_ms, w.automatic_updates, w.dormant_at, w.deleting_at, w.favorite, w.revision,
               w.latest_build_id, w.pool_preset_id, w.pool_state
        from unnest($1::uuid[]) with ordinality as wanted (id, place)
        join workspaces w on w.id = wanted.id
        join users u on u.id = w.owner_id
        join organizations o on o.id = w.organization_id
        join templates t on t.id = w.template_id
        order by wanted.place"#,
        &ids
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Workspace {
                id: WorkspaceId(row.id),
                owner_id: UserId(row.owner_id),
                owner_name: row.username,
                owner_avatar_url: row.avatar_url,
                organization_id: OrganizationId(row.organization_id),
                organization_name: row.organization_name,
                template_id: TemplateId(row.template_id),
                template_name: row.template_name,
                template_display_name: row.display_name,
                template_icon: row.icon,
                template_active_version_id: row.active_version_id,
                allow_user_cancel_workspace_jobs: row.allow_user_cancel_workspace_jobs,
                require_active_version: row.require_active_version,
                allow_user_autostart: row.allow_user_autostart,
                allow_user_autostop: row.allow_user_autostop,
                name: row.name,
                deleted: row.deleted,
                created_at: row.created_at.to_jiff(),
                updated_at: row.updated_at.to_jiff(),
                last_used_at: row.last_used_at.to_jiff(),
                autostart_schedule: row.autostart_schedule,
                ttl_ms: row.ttl_ms,
                automatic_updates: row.automatic_updates,
                dormant_at: maybe_time(row.dormant_at),
                deleting_at: maybe_time(row.deleting_at),
                favorite: row.favorite,
                revision: row.revision,
                latest_build_id: row.latest_build_id.map(BuildId),
                pool_preset_id: row.pool_preset_id.map(PresetId),
                pool_state: row.pool_state.map(|it| it.parse()).transpose()?,
            })
        })
        .collect()
}

/// A change of a person's workspace. `None` leaves a field as it is; the inner option clears it.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// Another name.
    pub name: Option<String>,
    /// When it starts by itself.
    pub autostart_schedule: Option<Option<String>>,
    /// How long it runs, in milliseconds.
    pub ttl_ms: Option<Option<i64>>,
    /// `always` or `never`.
    pub automatic_updates: Option<String>,
    /// Since when it is dormant.
    pub dormant_at: Option<Option<Timestamp>>,
    /// When it is deleted for being dormant.
    pub deleting_at: Option<Option<Timestamp>>,
    /// Whether its owner marked it.
    pub favorite: Option<bool>,
}

/// Changes a live workspace that is no prebuild and gives its new revision. `None`: it is gone, or
/// a prebuild.
#[tracing::instrument(name = "db.workspace.update", skip_all, fields(workspace.id = %id), err)]
pub async fn update(
    db: impl Executor<'_>,
    id: WorkspaceId,
    change: &Change,
    now: Timestamp,
) -> Result<Option<i64>, DbError> {
    let revision = sqlx::query_scalar!(
        "
        update workspaces
        set name = coalesce($3, name),
            autostart_schedule = case when $4 then $5 else autostart_schedule end,
            ttl_ms = case when $6 then $7 else ttl_ms end,
            automatic_updates = coalesce($8, automatic_updates),
            dormant_at = case when $9 then $10 else dormant_at end,
            deleting_at = case when $11 then $12 else deleting_at end,
            favorite = coalesce($13, favorite),
            last_used_at = case when $9 and $10::timestamptz is null then $2 else last_used_at end,
            updated_at = $2, revision = revision + 1
        where id = $1 and not deleted and pool_state is null
        returning revision",
        id.0,
        at(now),
        change.name,
        change.autostart_schedule.is_some(),
        change.autostart_schedule.clone().flatten(),
        change.ttl_ms.is_some(),
        change.ttl_ms.flatten(),
        change.automatic_updates,
        change.dormant_at.is_some(),
        maybe_at(change.dormant_at.flatten()),
        change.deleting_at.is_some(),
        maybe_at(change.deleting_at.flatten()),
        change.favorite
    )
    .fetch_optional(db)
    .await?;
    Ok(revision)
}

/// Marks a workspace used.
#[tracing::instrument(name = "db.workspace.mark_used", skip_all, fields(workspace.id = %id), err)]
pub async fn mark_used(
    db: impl Executor<'_>,
    id: WorkspaceId,
    now: Timestamp,
) -> Result<(), DbError> {
    sqlx::query!(
        "update workspaces set last_used_at = $2 where id = $1 and pool_state is null",
        id.0,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Counts a change of the workspace that its row does not show, and gives the new revision.
#[tracing::instrument(name = "db.workspace.bump", skip_all, fields(workspace.id = %id), err)]
pub async fn bump(db: impl Executor<'_>, id: WorkspaceId) -> Result<Option<i64>, DbError> {
    Ok(sqlx::query_scalar!(
        "update workspaces set revision = revision + 1 where id = $1 returning revision",
        id.0
    )
    .fetch_optional(db)
    .await?)
}

/// Budget and consumption of a user in an organization.
#[tracing::instrument(name = "db.workspace.quota", skip_all, err)]
pub async fn quota(
    db: impl Executor<'_>,
    organization: OrganizationId,
    user: UserId,
) -> Result<berth_domain::quota::Quota, DbError> {
    let row = sqlx::query!(
        r#"
        select coalesce((
                   select sum(g.quota_allowance) from groups g
                   where g.organization_id = $1
                     and (g.id = g.organization_id or exists (
                         select from group_members m where m.group_id = g.id and m.user_id = $2))
               ), 0)::bigint as "budget!",
               coalesce((
                   select sum(b.daily_cost)
                   from workspaces w join workspace_builds b on b.id = w.latest_build_id
                   where w.owner_id = $2 and w.organization_id = $1 and not w.deleted
               ), 0)::bigint as "consumed!""#,
        organization.0,
        user.0
    )
    .fetch_one(db)
    .await?;
    Ok(berth_domain::quota::Quota { budget: row.budget, consumed: row.consumed })
}
