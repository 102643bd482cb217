//! What is read of pools beside [`super::observe`].

use berth_domain::id::{PresetId, VersionId};
use jiff::Timestamp;

use crate::{DbError, Executor, at};

/// Gauges and totals of the pools of one preset name, all versions of one template together; or of
/// one organization, where there are more pools than are shown one by one.
#[derive(Debug, Clone)]
pub struct PoolRow {
    /// Its organization's name.
    pub organization_name: String,
    /// Its template's name; empty for an organization.
    pub template_name: String,
    /// Its preset's name; empty for an organization.
    pub preset_name: String,
    /// What the newest plans of active versions want.
    pub desired: i64,
    /// Running, ready or not.
    pub running: i64,
    /// What claims would get at this moment, a previous version's that is kept included.
    pub eligible: i64,
    /// Start builds on their way.
    pub starting: i64,
    /// Running, and expired or invalidated.
    pub expired: i64,
    /// Delete builds on their way, and failed ones.
    pub deleting: i64,
    /// Failed start builds.
    pub failed: i64,
    /// Parked by an operator.
    pub stopped: i64,
    /// Active versions' pools whose breaker is open.
    pub hard_limited: i64,
    /// Active versions' pools whose values stand refused.
    pub validation_failed: i64,
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

/// Gauges and totals of the pools of live templates at `now`, by name: one row for each, or, where
/// there are more than `most` pools, one for each organization. Reads the pools and, once, the
/// prebuilds that live; claims that no look has folded yet are counted from their marks.
#[tracing::instrument(name = "db.pool.list_rows", level = "debug", skip_all, err)]
#[expect(clippy::too_many_lines, reason = "one statement and its mapping, column by column")]
pub async fn list_rows(
    db: impl Executor<'_>,
    most: u32,
    now: Timestamp,
) -> Result<Vec<PoolRow>, DbError> {
    let rows = sqlx::query!(
        r#"
        with members as (
            select p.preset_id,
                   count(*) filter (where w.pool_state in ('ready', 'unready')) as running,
                   count(*) filter (where is_claimable(w, p, t, $1)) as eligible,
                   count(*) filter (where w.pool_state = 'starting') as starting,
                   count(*) filter (
                       where w.pool_state in ('ready', 'unready')
                         and (w.pool_expires_at <= $1 or w.created_at < p.last_invalidated_at)
                   ) as expired,
                   count(*) filter (where w.pool_state in ('deleting', 'failed_delete')) as deleting,
                   count(*) filter (where w.pool_state = 'failed') as failed,
                   count(*) filter (where w.pool_state = 'stopped') as stopped
            from workspaces w
            join prebuild_pools p on p.preset_id = w.pool_preset_id
            join templates t on t.id = p.template_id
            where w.pool_preset_id is not null and not w.deleted
            group by p.preset_id
        ), claims as (
            select preset_id, sum(claims) as claims from prebuild_pool_marks
            where claims > 0
            group by preset_id
        ), shown as materialized (
            select count(*) <= $2::bigint as each from (
                select from prebuild_pools limit $2::bigint + 1
            ) counted
        )
        select o.name as organization_name, case when shown.each then t.name end as template_name,
               case when shown.each then s.name end as preset_name,
               coalesce(sum(p.desired) filter (where pool_standing(p, t) = 'active'), 0)::bigint
                   as "desired!",
               count(*) filter (
                   where pool_standing(p, t) = 'active' and p.prebuild_status = 'hard_limited'
               ) as "hard_limited!",
               count(*) filter (
                   where pool_standing(p, t) = 'active' and p.prebuild_status = 'validation_failed'
               ) as "validation_failed!",
               coalesce(sum(m.running), 0)::bigint as "running!",
               coalesce(sum(m.eligible), 0)::bigint as "eligible!",
               coalesce(sum(m.starting), 0)::bigint as "starting!",
               coalesce(sum(m.expired), 0)::bigint as "expired!",
               coalesce(sum(m.deleting), 0)::bigint as "deleting!",
               coalesce(sum(m.failed), 0)::bigint as "failed!",
               coalesce(sum(m.stopped), 0)::bigint as "stopped!",
               sum(p.created_total)::bigint as "created_total!",
               sum(p.failed_total)::bigint as "failed_total!",
               (sum(p.claimed_total) + coalesce(sum(k.claims), 0))::bigint as "claimed_total!",
               sum(p.replaced_total)::bigint as "replaced_total!"
        from prebuild_pools p
        join template_version_presets s on s.id = p.preset_id
        join templates t on t.id = p.template_id
        join organizations o on o.id = p.organization_id
        left join members m on m.preset_id = p.preset_id
        left join claims k on k.preset_id = p.preset_id
        cross join shown
        where not t.deleted
        group by 1, 2, 3"#,
        at(now),
        i64::from(most)
    )
    .fetch_all(db)
    .await?;
    let rows = rows.into_iter().map(|row| PoolRow {
        organization_name: row.organization_name,
        template_name: row.template_name.unwrap_or_default(),
        preset_name: row.preset_name.unwrap_or_default(),
        desired: row.desired,
        running: row.running,
        eligible: row.eligible,
        starting: row.starting,
        expired: row.expired,
        deleting: row.deleting,
        failed: row.failed,
        stopped: row.stopped,
        hard_limited: row.hard_limited,
        validation_failed: row.validation_failed,
        totals: [row.created_total, row.failed_total, row.claimed_total, row.replaced_total],
    });
    Ok(rows.collect())
}
