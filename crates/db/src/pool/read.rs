//! What is read of pools beside [`super::observe`].

use berth_domain::id::{PresetId, VersionId};

use crate::{DbError, Executor};

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
               sum(coalesce(m.eligible, 0))::bigint as "eligible!",
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
                   count(*) filter (where is_claimable(w, p, t, now())) as eligible,
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
