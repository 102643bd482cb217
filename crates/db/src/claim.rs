//! Creating a workspace: what is read before anything is written, and the statement that hands a
//! prebuild to its new owner.

use berth_domain::authz::Acl;
use berth_domain::id::{OrganizationId, PresetId, TemplateId, UserId, VersionId, WorkspaceId};
use berth_domain::parameter::Parameter;
use berth_domain::preset::Preset;
use berth_domain::quota::Quota;
use berth_domain::state::{JobStatus, PrebuildStatus};
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::build::{NewBuild, QueuedBuild};
use crate::workspace::NewWorkspace;
use crate::{DbError, Executor, at};

/// Which template version a workspace is asked of.
#[derive(Debug, Clone, Copy)]
pub enum Wanted {
    /// The template's active version.
    Template(TemplateId),
    /// This version.
    Version(VersionId),
}

/// Everything that decides about a request for a workspace, read in one statement.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "columns, each with a meaning of its own")]
pub struct Preparation {
    /// The template.
    pub template_id: TemplateId,
    /// Its organization.
    pub organization_id: OrganizationId,
    /// Its name.
    pub template_name: String,
    /// Whether it is deleted.
    pub template_deleted: bool,
    /// Why it must not be used any more; empty: it may.
    pub deprecation_message: String,
    /// Who beyond the role holders may use it.
    pub acl: Acl,
    /// Whether only the active version may be built.
    pub require_active_version: bool,
    /// TTL of workspaces that ask for none, in milliseconds; 0: none.
    pub default_ttl_ms: i64,
    /// Whether owners may choose an autostart schedule.
    pub allow_user_autostart: bool,
    /// Whether owners may choose a TTL.
    pub allow_user_autostop: bool,
    /// The template's active version.
    pub active_version_id: VersionId,
    /// The version that the request means.
    pub version_id: VersionId,
    /// That version's name.
    pub version_name: String,
    /// Whether it is archived.
    pub version_archived: bool,
    /// Where its import stands.
    pub import_status: JobStatus,
    /// Its parameters, in order.
    pub parameters: Vec<Parameter>,
    /// Its presets.
    pub presets: Vec<Preset>,
    /// The pools among them.
    pub pools: Vec<PoolCost>,
    /// Whether the owner is a member of the organization.
    pub owner_is_member: bool,
    /// Whether the owner has a live workspace of the name asked for.
    pub name_taken: bool,
    /// The owner's quota in the organization.
    pub quota: Quota,
}

/// What a claim from a pool is known to cost, and where else it may be served.
#[derive(Debug, Clone, Deserialize)]
pub struct PoolCost {
    /// The pool.
    pub preset_id: PresetId,
    /// Credits a day of its newest ready prebuild; 0 where there is none.
    pub daily_cost: i64,
    /// The previous version's pool whose place it takes, while claims may still be served there.
    #[serde(default)]
    pub previous: Option<PreviousPool>,
}

/// A previous version's pool that serves what its successor cannot.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PreviousPool {
    /// The pool.
    pub preset_id: PresetId,
    /// Its version.
    pub version_id: VersionId,
}

pub(crate) fn json<T: DeserializeOwned>(what: &'static str, value: Value) -> Result<T, DbError> {
    serde_json::from_value(value).map_err(|source| DbError::Json { what, source })
}

/// Reads what a request for a workspace of `owner` named `name` depends on. `None`: no such template
/// or version.
#[tracing::instrument(name = "db.claim.prepare", skip_all, err)]
#[expect(clippy::too_many_lines, reason = "one statement and its mapping, column by column")]
pub async fn prepare(
    db: impl Executor<'_>,
    wanted: Wanted,
    owner: UserId,
    name: &str,
) -> Result<Option<Preparation>, DbError> {
    let (template, version) = match wanted {
        Wanted::Template(id) => (Some(id.0), None),
        Wanted::Version(id) => (None, Some(id.0)),
    };
    let row = sqlx::query!(
        r#"
        select t.id, t.organization_id, t.name, t.deleted, t.deprecation_message, t.user_acl,
               t.group_acl, t.require_active_version, t.default_ttl_ms, t.allow_user_autostart,
               t.allow_user_autostop, t.active_version_id, v.id as version_id,
               v.name as version_name, v.archived as version_archived, j.status as "import_status!",
               coalesce((
                   select jsonb_agg(jsonb_build_object(
                       'name', p.name, 'display_name', p.display_name,
                       'description', p.description, 'type', p.type, 'mutable', p.mutable,
                       'default_value', p.default_value, 'icon', p.icon, 'options', p.options,
                       'required', p.required, 'ephemeral', p.ephemeral,
                       'form_type', p.form_type, 'order', p.display_order,
                       'validation', jsonb_build_object(
                           'regex', nullif(p.validation_regex, ''), 'min', p.validation_min,
                           'max', p.validation_max, 'error', p.validation_error,
                           'monotonic', nullif(p.validation_monotonic, '')
                       )) order by p.display_order, p.name)
                   from template_version_parameters p where p.template_version_id = v.id
               ), '[]') as "parameters!",
               coalesce((
                   select jsonb_agg(jsonb_build_object(
                       'id', p.id, 'name', p.name, 'description', p.description, 'icon', p.icon,
                       'default', p.is_default,
                       'parameters', coalesce((
                           select jsonb_object_agg(pp.name, pp.value)
                           from template_version_preset_parameters pp where pp.preset_id = p.id
                       ), '{}'),
                       'prebuilds', case when p.desired_instances is not null then
                           jsonb_build_object('instances', p.desired_instances,
                                              'ttl_seconds', p.ttl_seconds) end
                   ) order by p.name)
                   from template_version_presets p where p.template_version_id = v.id
               ), '[]') as "presets!",
               coalesce((
                   select jsonb_agg(jsonb_build_object('preset_id', p.id, 'daily_cost', coalesce((
                       select b.daily_cost
                       from workspaces w join workspace_builds b on b.id = w.latest_build_id
                       where w.pool_preset_id = p.id and w.pool_state = 'ready' and not w.deleted
                       limit 1
                   ), 0), 'previous', (
                       select jsonb_build_object('preset_id', o.preset_id,
                                                 'version_id', o.template_version_id)
                       from prebuild_pools o
                       where o.successor_preset_id = p.id and pool_standing(o, t) = 'previous'
                       limit 1
                   )))
                   from template_version_presets p
                   where p.template_version_id = v.id and p.desired_instances is not null
               ), '[]') as "pools!",
               exists (
                   select from organization_members m
                   where m.organization_id = t.organization_id and m.user_id = $3
               ) as "owner_is_member!",
               exists (
                   select from workspaces w
                   where w.owner_id = $3 and lower(w.name) = lower($4) and not w.deleted
               ) as "name_taken!",
               quota.budget as "budget!", quota.consumed as "consumed!"
        from template_versions v
        join templates t on t.id = v.template_id
        join provisioner_jobs j on j.id = v.job_id
        cross join lateral (
            select coalesce((
                       select sum(g.quota_allowance)
                       from groups g
                       where g.organization_id = t.organization_id
                         and (g.id = g.organization_id or exists (
                             select from group_members gm
                             where gm.group_id = g.id and gm.user_id = $3))
                   ), 0)::bigint as budget,
                   coalesce((
                       select sum(b.daily_cost)
                       from workspaces w join workspace_builds b on b.id = w.latest_build_id
                       where w.owner_id = $3 and w.organization_id = t.organization_id
                         and not w.deleted
                   ), 0)::bigint as consumed
        ) quota
        where (v.id = $2 or (t.id = $1 and v.id = t.active_version_id))"#,
        template,
        version,
        owner.0,
        name
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        Ok(Preparation {
            template_id: TemplateId(row.id),
            organization_id: OrganizationId(row.organization_id),
            template_name: row.name,
            template_deleted: row.deleted,
            deprecation_message: row.deprecation_message,
            acl: Acl {
                users: json("templates.user_acl", row.user_acl)?,
                groups: json("templates.group_acl", row.group_acl)?,
            },
            require_active_version: row.require_active_version,
            default_ttl_ms: row.default_ttl_ms,
            allow_user_autostart: row.allow_user_autostart,
            allow_user_autostop: row.allow_user_autostop,
            active_version_id: VersionId(row.active_version_id),
            version_id: VersionId(row.version_id),
            version_name: row.version_name,
            version_archived: row.version_archived,
            import_status: row.import_status.parse()?,
            parameters: json("template version parameters", row.parameters)?,
            presets: json("template version presets", row.presets)?,
            pools: json("pools", row.pools)?,
            owner_is_member: row.owner_is_member,
            name_taken: row.name_taken,
            quota: Quota { budget: row.budget, consumed: row.consumed },
        })
    })
    .transpose()
}

/// A prebuild that changed hands.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The workspace.
    pub workspace_id: WorkspaceId,
    /// Its claim build.
    pub build: QueuedBuild,
    /// When the prebuild was made.
    pub prebuild_created_at: Timestamp,
    /// W3C trace context of whoever ordered the prebuild.
    pub prebuild_trace: Value,
    /// Its version is the template's previous one, kept until enough of the new one are ready.
    pub is_previous_version: bool,
}

/// Hands one claimable prebuild of the preset to its new owner, in one statement: the workspace
/// row, the claim build with its parameters and job, the mark of the pool, and the revocation of
/// keys made for the prebuild. Never waits for a prebuild that somebody else is claiming. `new.workspace_id` is not
/// read: the statement finds the workspace. `None`: there is none to be had.
#[tracing::instrument(name = "db.claim.take", skip_all, fields(preset.id = %preset), err)]
#[expect(clippy::too_many_lines, reason = "one statement, laid out")]
pub async fn take(
    db: impl Executor<'_>,
    preset: PresetId,
    workspace: &NewWorkspace,
    new: &NewBuild,
) -> Result<Option<Claimed>, DbError> {
    let (names, values): (Vec<String>, Vec<String>) = new.parameters.iter().cloned().unzip();
    let row = sqlx::query!(
        r#"
        with candidate as (
            select w.id, w.created_at, pool_standing(p, t) = 'previous' as is_previous
            from workspaces w
            join prebuild_pools p on p.preset_id = w.pool_preset_id
            -- By the pool: by the workspace, the planner may come from the template's workspaces.
            join templates t on t.id = p.template_id
            where w.pool_preset_id = $1 and is_claimable(w, p, t, $2)
            order by w.pool_expires_at nulls last, w.created_at, w.id
            limit 1
            for update of w skip locked
        ), workspace as (
            update workspaces w
            set owner_id = $3, name = $4, autostart_schedule = $5, ttl_ms = $6,
                automatic_updates = $7, last_used_at = $2, updated_at = $2, dormant_at = null,
                deleting_at = null, pool_preset_id = null, pool_state = null,
                pool_ready_at = null, pool_expires_at = null, latest_build_id = $8,
                latest_build_number = w.latest_build_number + 1, revision = w.revision + 1
            from candidate c
            where w.id = c.id and w.pool_state = 'ready' and not w.deleted
            returning w.id, w.organization_id, w.template_id, w.revision, w.latest_build_number,
                      c.created_at, c.is_previous
        ), version as (
            select v.id, v.provisioner, j.file_id, j.tags
            from template_versions v join provisioner_jobs j on j.id = v.job_id
            where v.id = $9
        ), job as (
            insert into provisioner_jobs (
                id, organization_id, initiator_id, kind, provisioner, class, file_id, input, tags,
                trace_metadata, created_at, updated_at
            )
            select $10, w.organization_id, $11, 'workspace_build', v.provisioner, $12, v.file_id,
                   jsonb_build_object('workspace_build_id', $8::uuid), v.tags, $13, $2, $2
            from workspace w, version v
        ), build as (
            insert into workspace_builds (
                id, workspace_id, template_version_id, preset_id, build_number, transition,
                initiator_id, reason, stage, job_id, daily_cost, created_at, updated_at
            )
            select $8, w.id, v.id, $1, w.latest_build_number, $14, $11, $15, $16, $10,
                   coalesce((select b.daily_cost from workspace_builds b
                             where b.workspace_id = w.id
                               and b.build_number = w.latest_build_number - 1), 0), $2, $2
            from workspace w, version v
        ), parameters as (
            insert into workspace_build_parameters (build_id, name, value)
            select $8, p.name, p.value
            from workspace, unnest($17::text[], $18::text[]) as p (name, value)
        ), revoked as (
            delete from api_keys k using workspace w where k.workspace_id = w.id
        ), marked as (
            insert into prebuild_pool_marks (preset_id, created_at, claims)
            select $1, $2, 1 from workspace
            returning preset_id
        )
        select w.id, w.organization_id, w.template_id, w.revision, w.latest_build_number,
               w.created_at, w.is_previous as "is_previous!", v.provisioner, exists (select from marked) as "marked!",
               (
                   select j.trace_metadata
                   from workspace_builds b join provisioner_jobs j on j.id = b.job_id
                   where b.workspace_id = w.id and b.build_number = 1
               ) as prebuild_trace
        from workspace w, version v"#,
        preset.0,
        at(new.now),
        workspace.owner_id.0,
        workspace.name,
        workspace.autostart_schedule,
        workspace.ttl_ms,
        workspace.automatic_updates,
        new.id.0,
        new.version_id.0,
        new.job_id.0,
        new.initiator_id.0,
        new.class.rank(),
        new.trace,
        new.transition.as_str(),
        new.reason.as_str(),
        new.stage.as_str(),
        &names,
        &values
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        Ok(Claimed {
            workspace_id: WorkspaceId(row.id),
            build: QueuedBuild {
                number: row.latest_build_number,
                revision: row.revision,
                workspace_name: workspace.name.clone(),
                owner_id: workspace.owner_id,
                organization_id: OrganizationId(row.organization_id),
                template_id: TemplateId(row.template_id),
                provisioner: row.provisioner.parse()?,
            },
            prebuild_created_at: row.created_at.to_jiff(),
            prebuild_trace: row.prebuild_trace.unwrap_or_default(),
            is_previous_version: row.is_previous,
        })
    })
    .transpose()
}

/// What a pool looked like when nothing could be claimed from it.
#[derive(Debug, Clone)]
pub struct PoolFacts {
    /// Members, in whatever state.
    pub members: i64,
    /// Running and ready, expired ones included.
    pub ready: i64,
    /// Of those: expired or invalidated.
    pub ready_expired: i64,
    /// Running, with agents that are not ready.
    pub unready: i64,
    /// Being built.
    pub starting: i64,
    /// Names of the agents waited for.
    pub waiting_for: Vec<String>,
    /// Health of the pool.
    pub status: PrebuildStatus,
    /// Whether creation is paused at any level.
    pub paused: bool,
    /// Whether the preset belongs to the template's active version.
    pub active: bool,
    /// Reasons of the newest decision about the pool, as stored.
    pub reasons: Value,
}

/// Reads why nothing could be claimed. `None`: the preset is no pool.
#[tracing::instrument(name = "db.claim.diagnose", skip_all, fields(preset.id = %preset), err)]
pub async fn diagnose(
    db: impl Executor<'_>,
    preset: PresetId,
    now: Timestamp,
) -> Result<Option<PoolFacts>, DbError> {
    let row = sqlx::query!(
        r#"
        select p.prebuild_status, m.members as "members!", m.ready as "ready!",
               m.ready_expired as "ready_expired!", m.unready as "unready!",
               m.starting as "starting!",
               coalesce((
                   select array_agg(distinct a.name)
                   from workspaces w join workspace_agents a on a.build_id = w.latest_build_id
                   where w.pool_preset_id = p.preset_id and w.pool_state = 'unready'
                     and not w.deleted and a.parent_id is null and not a.retired
                     and a.lifecycle_state <> 'ready'
               ), '{}') as "waiting_for!",
               exists (
                   select from prebuild_pauses z
                   where (z.expires_at is null or z.expires_at > $2)
                     and (z.scope = 'deployment'
                          or z.scope_id in (p.organization_id, p.template_id, p.preset_id))
               ) as "paused!",
               coalesce(t.active_version_id = p.template_version_id, false) as "active!",
               p.last_reasons as reasons
        from prebuild_pools p
        left join templates t on t.id = p.template_id
        cross join lateral (
            select count(*) as members,
                   count(*) filter (where w.pool_state = 'ready') as ready,
                   count(*) filter (
                       where w.pool_state = 'ready' and not prebuild_lives(w, p, $2)
                   ) as ready_expired,
                   count(*) filter (where w.pool_state = 'unready') as unready,
                   count(*) filter (where w.pool_state = 'starting') as starting
            from workspaces w where w.pool_preset_id = p.preset_id and not w.deleted
        ) m
        where p.preset_id = $1"#,
        preset.0,
        at(now)
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        Ok(PoolFacts {
            members: row.members,
            ready: row.ready,
            ready_expired: row.ready_expired,
            unready: row.unready,
            starting: row.starting,
            waiting_for: row.waiting_for,
            status: row.prebuild_status.parse()?,
            paused: row.paused,
            active: row.active,
            reasons: row.reasons,
        })
    })
    .transpose()
}
