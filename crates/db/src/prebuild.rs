//! Prebuilds as operators see them: the pause of the deployment, and every pool with its numbers.

use berth_domain::id::{OrganizationId, PresetId, TemplateId, UserId, VersionId};
use berth_domain::preset::Prebuilds;
use berth_domain::state::PrebuildStatus;
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use crate::claim::json;
use crate::{DbError, Executor, at, maybe_time};

/// Whether reconciliation is paused for the whole deployment.
#[tracing::instrument(name = "db.prebuild.is_paused", skip_all, err)]
pub async fn is_paused(db: impl Executor<'_>, now: Timestamp) -> Result<bool, DbError> {
    Ok(sqlx::query_scalar!(
        r#"
        select exists (
            select from prebuild_pauses
            where scope = 'deployment' and (expires_at is null or expires_at > $1)
        ) as "paused!""#,
        at(now)
    )
    .fetch_one(db)
    .await?)
}

/// Pauses the whole deployment until it is resumed.
#[tracing::instrument(name = "db.prebuild.pause", skip_all, err)]
pub async fn pause(
    db: impl Executor<'_>,
    id: Uuid,
    actor: UserId,
    now: Timestamp,
) -> Result<(), DbError> {
    sqlx::query!(
        "
        insert into prebuild_pauses (id, scope, actor_id, created_at)
        values ($1, 'deployment', $2, $3)
        on conflict (scope, scope_id) do update
        set actor_id = excluded.actor_id, created_at = excluded.created_at, expires_at = null",
        id,
        actor.0,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Resumes the deployment.
#[tracing::instrument(name = "db.prebuild.resume", skip_all, err)]
pub async fn resume(db: impl Executor<'_>) -> Result<(), DbError> {
    sqlx::query!("delete from prebuild_pauses where scope = 'deployment'").execute(db).await?;
    Ok(())
}

/// A pool with its numbers.
#[derive(Debug, Clone)]
pub struct Pool {
    /// Its preset.
    pub preset_id: PresetId,
    /// The preset's name.
    pub preset_name: String,
    /// Its organization.
    pub organization_id: OrganizationId,
    /// The organization's name.
    pub organization_name: String,
    /// Its template; `None` while its version belongs to none.
    pub template_id: Option<TemplateId>,
    /// The template's name; empty without one.
    pub template_name: String,
    /// Its version.
    pub version_id: VersionId,
    /// The version's name.
    pub version_name: String,
    /// Whether the version is active and the template neither deleted nor deprecated.
    pub active: bool,
    /// What the template asks for.
    pub prebuilds: Prebuilds,
    /// What a claim could have at once.
    pub claimable: i64,
    /// Start builds on their way.
    pub starting: i64,
    /// Running, with agents that are not ready.
    pub unready: i64,
    /// Running, expired ones included.
    pub running: i64,
    /// Failed starts.
    pub failed: i64,
    /// Deletes on their way.
    pub deleting: i64,
    /// Whether it is paused at any level.
    pub paused: bool,
    /// Its health.
    pub status: PrebuildStatus,
    /// Reasons of the newest plan.
    pub reasons: Value,
    /// When it was last looked at.
    pub last_reconciled_at: Option<Timestamp>,
}

/// Every pool of the given organizations (`None`: of all) that is active or has members, by name.
#[tracing::instrument(name = "db.prebuild.list_pools", skip_all, err)]
#[expect(clippy::too_many_lines, reason = "one statement and its mapping, column by column")]
pub async fn list_pools(
    db: impl Executor<'_>,
    organizations: Option<&[Uuid]>,
    now: Timestamp,
) -> Result<Vec<Pool>, DbError> {
    let rows = sqlx::query!(
        r#"
        select p.preset_id, r.name as preset_name, p.organization_id, o.name as organization_name,
               p.template_id, coalesce(t.name, '') as "template_name!", p.template_version_id,
               v.name as version_name, s.active as "active!", p.prebuild_status, p.last_reasons,
               p.last_reconciled_at, m.claimable as "claimable!", m.starting as "starting!",
               m.unready as "unready!", m.running as "running!", m.failed as "failed!",
               m.deleting as "deleting!",
               jsonb_build_object(
                   'instances', coalesce(r.desired_instances, 0), 'ttl_seconds', r.ttl_seconds,
                   'timezone', r.scheduling_timezone,
                   'schedules', coalesce((
                       select jsonb_agg(
                           jsonb_build_object('cron', c.cron, 'instances', c.desired_instances)
                           order by c.position)
                       from template_version_preset_schedules c where c.preset_id = p.preset_id
                   ), '[]')
               ) as "prebuilds!",
               exists (
                   select from prebuild_pauses z
                   where (z.expires_at is null or z.expires_at > $2)
                     and (z.scope = 'deployment'
                          or z.scope_id in (p.organization_id, p.template_id, p.preset_id))
               ) as "paused!"
        from prebuild_pools p
        join template_version_presets r on r.id = p.preset_id
        join template_versions v on v.id = p.template_version_id
        join organizations o on o.id = p.organization_id
        left join templates t on t.id = p.template_id
        cross join lateral (
            select coalesce(t.active_version_id = p.template_version_id and not t.deleted
                            and t.deprecation_message = '', false) as active
        ) s
        cross join lateral (
            select count(*) as members,
                   count(*) filter (
                       where w.pool_state = 'ready' and s.active
                         and (w.pool_expires_at is null or w.pool_expires_at > $2)
                         and w.created_at > coalesce(p.last_invalidated_at, '-infinity')
                   ) as claimable,
                   count(*) filter (where w.pool_state = 'starting') as starting,
                   count(*) filter (where w.pool_state = 'unready') as unready,
                   count(*) filter (where w.pool_state in ('ready', 'unready')) as running,
                   count(*) filter (where w.pool_state = 'failed') as failed,
                   count(*) filter (where w.pool_state in ('deleting', 'failed_delete')) as deleting
            from workspaces w where w.pool_preset_id = p.preset_id and not w.deleted
        ) m
        where ($1::uuid[] is null or p.organization_id = any($1)) and (s.active or m.members > 0)
        order by o.name, t.name, v.created_at, r.name"#,
        organizations,
        at(now)
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Pool {
                preset_id: PresetId(row.preset_id),
                preset_name: row.preset_name,
                organization_id: OrganizationId(row.organization_id),
                organization_name: row.organization_name,
                template_id: row.template_id.map(TemplateId),
                template_name: row.template_name,
                version_id: VersionId(row.template_version_id),
                version_name: row.version_name,
                active: row.active,
                prebuilds: json("preset schedules", row.prebuilds)?,
                claimable: row.claimable,
                starting: row.starting,
                unready: row.unready,
                running: row.running,
                failed: row.failed,
                deleting: row.deleting,
                paused: row.paused,
                status: row.prebuild_status.parse()?,
                reasons: row.last_reasons,
                last_reconciled_at: maybe_time(row.last_reconciled_at),
            })
        })
        .collect()
}
