//! Which pools need a look, and taking one for a look.

use berth_domain::id::{OrganizationId, PresetId, TemplateId, VersionId};
use berth_domain::plan::{Breaker, PoolConfig, Standing};
use berth_domain::preset::{Prebuilds, PresetSchedule};
use berth_domain::state::{PrebuildStatus, ProvisionerType};
use jiff::Timestamp;
use serde_json::Value;

use crate::{DbError, Executor, maybe_time};

/// A pool, locked until the transaction ends.
#[derive(Debug, Clone)]
pub struct LockedPool {
    /// What a plan needs of the preset.
    pub config: PoolConfig,
    /// The version it belongs to.
    pub version_id: VersionId,
    /// The template; `None` while the version belongs to none.
    pub template_id: Option<TemplateId>,
    /// The organization.
    pub organization_id: OrganizationId,
    /// The tool that builds it.
    pub provisioner: ProvisionerType,
    /// Failures in a row.
    pub consecutive_failures: u32,
    /// The open breaker.
    pub breaker: Option<Breaker>,
    /// Names for messages: organization, template, version, preset.
    pub names: [String; 4],
    /// Reasons of the newest plan.
    pub last_reasons: Value,
}

/// Pools that were marked or whose time has come, at most `limit`. Reads the marks and the index on
/// the due time, and nothing else.
#[tracing::instrument(name = "db.pool.list_due", level = "debug", skip_all, err)]
pub async fn list_due(db: impl Executor<'_>, limit: i64) -> Result<Vec<PresetId>, DbError> {
    let rows = sqlx::query!(
        r#"
        (select distinct preset_id as "preset_id!" from prebuild_pool_marks limit $1)
        union
        (select preset_id from prebuild_pools where due_at <= now() order by due_at limit $1)"#,
        limit
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| PresetId(row.preset_id)).collect())
}

/// The earliest moment at which time alone makes a pool due.
#[tracing::instrument(name = "db.pool.next_due", level = "debug", skip_all, err)]
pub async fn next_due(db: impl Executor<'_>) -> Result<Option<Timestamp>, DbError> {
    let row =
        sqlx::query!("select min(due_at) as due_at from prebuild_pools").fetch_one(db).await?;
    Ok(maybe_time(row.due_at))
}

/// Locks a pool, takes its marks away (folding the claims that they tell of into its total), and
/// reads it. `None`: there is no such pool.
///
/// Two statements, in this order: the first one's snapshot is older than the lock, so it takes only
/// marks of changes that the second one, whose snapshot is newer, is sure to see. A change that
/// commits while we wait for the lock keeps its mark and gets another look.
#[tracing::instrument(name = "db.pool.lock", skip_all, fields(preset.id = %preset), err)]
pub async fn lock(
    db: &mut crate::Connection,
    preset: PresetId,
) -> Result<Option<LockedPool>, DbError> {
    sqlx::query!(
        "
        with taken as (
            delete from prebuild_pool_marks where preset_id = $1 returning claims
        )
        update prebuild_pools
        set claimed_total = claimed_total + (select coalesce(sum(claims), 0) from taken)
        where preset_id = $1",
        preset.0
    )
    .execute(&mut *db)
    .await?;
    read(db, preset).await
}

async fn read(db: &mut crate::Connection, preset: PresetId) -> Result<Option<LockedPool>, DbError> {
    let row = sqlx::query!(
        r#"
        select p.template_version_id, p.template_id, p.organization_id, p.prebuild_status,
               p.consecutive_failures, p.breaker_opened_at, p.probe_attempts, p.last_probe_at,
               p.last_invalidated_at, p.last_reasons,
               s.name as preset_name, s.desired_instances, s.ttl_seconds, s.scheduling_timezone,
               v.name as version_name, v.provisioner, o.name as organization_name,
               t.name as "template_name?",
               coalesce(t.active_version_id = v.id and not t.deleted and t.deprecation_message = '', false)
                   as "active!",
               coalesce((
                   select jsonb_agg(jsonb_build_object('cron', c.cron, 'instances', c.desired_instances)
                                    order by c.position)
                   from template_version_preset_schedules c where c.preset_id = p.preset_id
               ), '[]') as "schedules!"
        from prebuild_pools p
        join template_version_presets s on s.id = p.preset_id
        join template_versions v on v.id = p.template_version_id
        join organizations o on o.id = p.organization_id
        left join templates t on t.id = p.template_id
        where p.preset_id = $1"#,
        preset.0
    )
    .fetch_optional(db)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let schedules: Vec<PresetSchedule> = serde_json::from_value(row.schedules)
        .map_err(|source| DbError::Json { what: "preset schedules", source })?;
    let prebuilds = row.desired_instances.map(|instances| Prebuilds {
        instances,
        ttl_seconds: row.ttl_seconds,
        timezone: row.scheduling_timezone,
        schedules,
    });
    let breaker = row.breaker_opened_at.map(|opened_at| Breaker {
        opened_at: opened_at.to_jiff(),
        probes: count(row.probe_attempts),
        last_probe_at: maybe_time(row.last_probe_at),
    });
    Ok(Some(LockedPool {
        config: PoolConfig {
            preset_id: preset,
            standing: if row.active { Standing::Active } else { Standing::Inactive },
            prebuilds,
            status: row.prebuild_status.parse::<PrebuildStatus>()?,
            last_invalidated_at: maybe_time(row.last_invalidated_at),
        },
        version_id: VersionId(row.template_version_id),
        template_id: row.template_id.map(TemplateId),
        organization_id: OrganizationId(row.organization_id),
        provisioner: row.provisioner.parse()?,
        consecutive_failures: count(row.consecutive_failures),
        breaker,
        names: [
            row.organization_name,
            row.template_name.unwrap_or_default(),
            row.version_name,
            row.preset_name,
        ],
        last_reasons: row.last_reasons,
    }))
}

fn count(stored: i32) -> u32 {
    u32::try_from(stored).unwrap_or_default()
}
