//! What a plan looks at.

use berth_domain::id::{BuildId, PresetId, VersionId, WorkspaceId};
use berth_domain::plan::{Pause, Prebuild};
use jiff::Timestamp;

use super::LockedPool;
use crate::{DbError, Executor, at, maybe_time};

/// What surrounds a pool.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Pauses that cover it and have not ended.
    pub pauses: Vec<Pause>,
    /// A live daemon could run its jobs.
    pub has_daemon: bool,
    /// Prebuild creations in flight in its organization.
    pub in_flight: u32,
}

/// One pool's gauges.
#[derive(Debug, Clone)]
pub struct PoolRow {
    /// Its organization's name.
    pub organization_name: String,
    /// Its template's name.
    pub template_name: String,
    /// Its preset's name.
    pub preset_name: String,
    /// Instances wanted without schedules.
    pub desired: i64,
    /// Running, ready or not.
    pub running: i64,
    /// Claimable at this moment.
    pub eligible: i64,
    /// Start builds on their way.
    pub starting: i64,
    /// Failed start builds.
    pub failed: i64,
    /// The breaker is open.
    pub is_hard_limited: bool,
    /// Monotonic totals: created, failed, claimed, replaced.
    pub totals: [i64; 4],
}

/// The pool's workspaces that are not deleted, oldest first.
#[tracing::instrument(name = "db.pool.list_members", skip_all, fields(preset.id = %preset), err)]
pub async fn list_members(
    db: impl Executor<'_>,
    preset: PresetId,
) -> Result<Vec<Prebuild>, DbError> {
    let rows = sqlx::query!(
        r#"
        select w.id, w.pool_state as "pool_state!", w.created_at, b.id as build_id, b.build_number,
               j.started_at is not null as "acquired!", j.completed_at,
               (j.canceled_at is not null and j.canceled_by is not null) as "canceled_by_person!",
               case when w.pool_state = 'failed_delete' then (
                   select count(*) from workspace_builds d
                   where d.workspace_id = w.id and d.transition = 'delete'
               ) else 0 end as "failed_deletes!"
        from workspaces w
        join workspace_builds b on b.id = w.latest_build_id
        join provisioner_jobs j on j.id = b.job_id
        where w.pool_preset_id = $1 and not w.deleted
        order by w.created_at, w.id"#,
        preset.0
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Prebuild {
                workspace_id: WorkspaceId(row.id),
                build_id: BuildId(row.build_id),
                build_number: row.build_number,
                state: row.pool_state.parse()?,
                created_at: row.created_at.to_jiff(),
                is_acquired: row.acquired,
                is_canceled_by_person: row.canceled_by_person,
                finished_at: maybe_time(row.completed_at),
                failed_deletes: u32::try_from(row.failed_deletes).unwrap_or(u32::MAX),
            })
        })
        .collect()
}

/// Pauses, daemons and creations in flight around a pool.
#[tracing::instrument(name = "db.pool.environment", skip_all, fields(preset.id = %pool.config.preset_id), err)]
pub async fn environment(
    db: impl Executor<'_>,
    pool: &LockedPool,
    daemon_gone_after_seconds: f64,
) -> Result<Environment, DbError> {
    let row = sqlx::query!(
        r#"
        select
            coalesce((
                select jsonb_agg(jsonb_build_object('scope', scope, 'reason', reason, 'until', expires_at))
                from prebuild_pauses
                where (expires_at is null or expires_at > now())
                  and (scope = 'deployment' or scope_id in ($1, $2, $3))
            ), '[]') as "pauses!",
            exists (
                select from provisioner_daemons d
                where d.organization_id = $1 and $4 = any (d.provisioners)
                  and d.disconnected_at is null
                  and d.last_seen_at > now() - $5::double precision * interval '1 second'
            ) as "has_daemon!",
            (
                select count(*) from provisioner_jobs j
                where j.organization_id = $1 and j.class = 4 and j.completed_at is null
            ) as "in_flight!""#,
        pool.organization_id.0,
        pool.template_id.map(|it| it.0),
        pool.config.preset_id.0,
        pool.provisioner.as_str(),
        daemon_gone_after_seconds
    )
    .fetch_one(db)
    .await?;
    Ok(Environment {
        pauses: serde_json::from_value(row.pauses)
            .map_err(|source| DbError::Json { what: "pauses", source })?,
        has_daemon: row.has_daemon,
        in_flight: u32::try_from(row.in_flight).unwrap_or(u32::MAX),
    })
}

/// When creations of the pool failed by the template's fault, since `since`.
#[tracing::instrument(name = "db.pool.list_recent_failures", skip_all, fields(preset.id = %preset), err)]
pub async fn list_recent_failures(
    db: impl Executor<'_>,
    preset: PresetId,
    since: Timestamp,
) -> Result<Vec<Timestamp>, DbError> {
    let rows = sqlx::query!(
        r#"
        select j.completed_at as "completed_at!"
        from workspace_builds b
        join provisioner_jobs j on j.id = b.job_id
        where b.preset_id = $1 and b.stage = 'prebuild' and b.transition = 'start'
          and b.created_at > $2 and j.status = 'failed' and j.error_code = 'template'
        order by j.completed_at desc
        limit 1000"#,
        preset.0,
        at(since)
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| row.completed_at.to_jiff()).collect())
}

/// The values of a new prebuild's parameters: the preset's, else the template's defaults. `None`
/// stands for a required parameter that has neither.
#[tracing::instrument(name = "db.pool.list_creation_parameters", skip_all, fields(preset.id = %preset), err)]
pub async fn list_creation_parameters(
    db: impl Executor<'_>,
    version: VersionId,
    preset: PresetId,
) -> Result<Vec<(String, Option<String>)>, DbError> {
    let rows = sqlx::query!(
        r#"
        select p.name,
               coalesce(v.value, case when not p.required then p.default_value end) as value
        from template_version_parameters p
        left join template_version_preset_parameters v on v.preset_id = $2 and v.name = p.name
        where p.template_version_id = $1
        order by p.name"#,
        version.0,
        preset.0
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.name, row.value)).collect())
}

/// Gauges and totals of every pool of an active version, and of others that still have prebuilds.
#[tracing::instrument(name = "db.pool.list_rows", level = "debug", skip_all, err)]
pub async fn list_rows(db: impl Executor<'_>) -> Result<Vec<PoolRow>, DbError> {
    let rows = sqlx::query!(
        r#"
        select o.name as organization_name, t.name as template_name, s.name as preset_name,
               sum(case when t.active_version_id = p.template_version_id
                   then coalesce(s.desired_instances, 0) else 0 end) as "desired!",
               sum(coalesce(m.running, 0))::bigint as "running!",
               sum(case when t.active_version_id = p.template_version_id and t.deprecation_message = ''
                   then coalesce(m.eligible, 0) else 0 end)::bigint as "eligible!",
               sum(coalesce(m.starting, 0))::bigint as "starting!",
               sum(coalesce(m.failed, 0))::bigint as "failed!",
               bool_or(t.active_version_id = p.template_version_id
                       and p.prebuild_status = 'hard_limited') as "hard_limited!",
               sum(p.created_total)::bigint as "created_total!",
               sum(p.failed_total)::bigint as "failed_total!",
               sum(p.claimed_total)::bigint as "claimed_total!",
               sum(p.replaced_total)::bigint as "replaced_total!"
        from prebuild_pools p
        join template_version_presets s on s.id = p.preset_id
        join templates t on t.id = p.template_id
        join organizations o on o.id = p.organization_id
        left join lateral (
            select count(*) filter (where w.pool_state in ('ready', 'unready')) as running,
                   count(*) filter (
                       where w.pool_state = 'ready'
                         and (w.pool_expires_at is null or w.pool_expires_at > now())
                         and (p.last_invalidated_at is null or w.created_at >= p.last_invalidated_at)
                   ) as eligible,
                   count(*) filter (where w.pool_state = 'starting') as starting,
                   count(*) filter (where w.pool_state = 'failed') as failed
            from workspaces w
            where w.pool_preset_id = p.preset_id and not w.deleted
        ) m on true
        where not t.deleted
        group by o.name, t.name, s.name"#
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| PoolRow {
            organization_name: row.organization_name,
            template_name: row.template_name,
            preset_name: row.preset_name,
            desired: row.desired,
            running: row.running,
            eligible: row.eligible,
            starting: row.starting,
            failed: row.failed,
            is_hard_limited: row.hard_limited,
            totals: [row.created_total, row.failed_total, row.claimed_total, row.replaced_total],
        })
        .collect())
}
