//! Creating a workspace: what is read before anything is written, the statement that hands a prebuild
//! to its new owner, and why there was none.

use berth_domain::authz::Acl;
use berth_domain::id::{OrganizationId, PresetId, TemplateId, UserId, VersionId};
use berth_domain::parameter::Parameter;
use berth_domain::preset::Preset;
use berth_domain::quota::Quota;
use berth_domain::state::JobStatus;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{DbError, Executor};

mod diagnose;
mod take;

pub use diagnose::{PoolFacts, diagnose};
pub use take::{Claim, Claimed, Key, Taken, take};

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
    /// The organization's name.
    pub organization_name: String,
    /// Whether `default` means that organization.
    pub organization_is_default: bool,
    /// Its name.
    pub template_name: String,
    /// The name that people see.
    pub template_display_name: String,
    /// Its icon.
    pub template_icon: String,
    /// Whether owners may cancel its builds.
    pub allow_user_cancel_workspace_jobs: bool,
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
        select t.id, t.organization_id, o.name as organization_name, o.is_default,
               t.name, t.display_name, t.icon, t.allow_user_cancel_workspace_jobs, t.deleted, t.deprecation_message, t.user_acl,
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
        join organizations o on o.id = t.organization_id and not o.deleted
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
        -- One version in any case, so that one plan serves every request: making a new plan each
        -- time takes longer than carrying it out.
        where v.id = coalesce($2, (select it.active_version_id from templates it where it.id = $1))"#,
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
            organization_name: row.organization_name,
            organization_is_default: row.is_default,
            template_name: row.name,
            template_display_name: row.display_name,
            template_icon: row.icon,
            allow_user_cancel_workspace_jobs: row.allow_user_cancel_workspace_jobs,
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
