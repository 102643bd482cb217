//! Prebuilds as operators see them: every pool with its numbers, and what they do to pools.

use berth_domain::id::{OrganizationId, PresetId, TemplateId, VersionId};
use berth_domain::plan::Standing;
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
    /// What the version is to the template.
    pub standing: Standing,
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
    /// Failures of its own in a row.
    pub consecutive_failures: i32,
    /// Since when the breaker is open.
    pub breaker_opened_at: Option<Timestamp>,
    /// Prebuilds made before this moment are expired.
    pub last_invalidated_at: Option<Timestamp>,
    /// Reasons of the newest plan.
    pub reasons: Value,
    /// When it was last looked at.
    pub last_reconciled_at: Option<Timestamp>,
}

/// Which pools.
#[derive(Debug, Clone, Copy, Default)]
pub struct Filter<'a> {
    /// Of these organizations; `None`: of all.
    pub organizations: Option<&'a [Uuid]>,
    /// Of this template.
    pub template: Option<TemplateId>,
    /// Of presets of this name.
    pub preset_name: Option<&'a str>,
}

/// The pools that are in use (of the active version, of a candidate, of a previous version that is
/// kept) or have members, by name.
#[tracing::instrument(name = "db.prebuild.list_pools", skip_all, err)]
#[expect(clippy::too_many_lines, reason = "one statement and its mapping, column by column")]
pub async fn list_pools(
    db: impl Executor<'_>,
    filter: Filter<'_>,
    now: Timestamp,
) -> Result<Vec<Pool>, DbError> {
    let rows = sqlx::query!(
        r#"
        select p.preset_id, r.name as preset_name, p.organization_id, o.name as organization_name,
               p.template_id, coalesce(t.name, '') as "template_name!", p.template_version_id,
               v.name as version_name, pool_standing(p, t) as "standing!", p.prebuild_status,
               p.consecutive_failures, p.breaker_opened_at, p.last_invalidated_at,
               p.last_reasons, p.last_reconciled_at, m.claimable as "claimable!",
               m.starting as "starting!", m.unready as "unready!", m.running as "running!",
               m.failed as "failed!", m.deleting as "deleting!",
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
            select count(*) as members,
                   count(*) filter (where is_claimable(w, p, t, $2)) as claimable,
                   count(*) filter (where w.pool_state = 'starting') as starting,
                   count(*) filter (where w.pool_state = 'unready') as unready,
                   count(*) filter (where w.pool_state in ('ready', 'unready')) as running,
                   count(*) filter (where w.pool_state = 'failed') as failed,
                   count(*) filter (where w.pool_state in ('deleting', 'failed_delete')) as deleting
            from workspaces w where w.pool_preset_id = p.preset_id and not w.deleted
        ) m
        where ($1::uuid[] is null or p.organization_id = any($1))
          and ($3::uuid is null or p.template_id = $3)
          and ($4::text is null or r.name = $4)
          and (pool_standing(p, t) <> 'inactive' or m.members > 0)
        order by o.name, t.name, v.created_at, r.name"#,
        filter.organizations,
        at(now),
        filter.template.map(|it| it.0),
        filter.preset_name
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
                standing: row.standing.parse()?,
                prebuilds: json("preset schedules", row.prebuilds)?,
                claimable: row.claimable,
                starting: row.starting,
                unready: row.unready,
                running: row.running,
                failed: row.failed,
                deleting: row.deleting,
                paused: row.paused,
                status: row.prebuild_status.parse()?,
                consecutive_failures: row.consecutive_failures,
                breaker_opened_at: maybe_time(row.breaker_opened_at),
                last_invalidated_at: maybe_time(row.last_invalidated_at),
                reasons: row.last_reasons,
                last_reconciled_at: maybe_time(row.last_reconciled_at),
            })
        })
        .collect()
}

/// Forgets the failures of a template's pools, or of those of one preset name, and marks them: the
/// next plan closes an open breaker. Gives those that had any.
#[tracing::instrument(name = "db.prebuild.reset", skip_all, fields(template.id = %template), err)]
pub async fn reset(
    db: impl Executor<'_>,
    template: TemplateId,
    preset_name: Option<&str>,
    now: Timestamp,
) -> Result<Vec<(PresetId, String)>, DbError> {
    let rows = sqlx::query!(
        "
        with reset as (
            update prebuild_pools p
            set consecutive_failures = 0, setbacks = 0
            from template_version_presets r
            where p.template_id = $1 and r.id = p.preset_id and ($2::text is null or r.name = $2)
              and (p.prebuild_status = 'hard_limited' or p.consecutive_failures > 0
                   or p.setbacks > 0)
            returning p.preset_id, r.name
        ), marked as (
            insert into prebuild_pool_marks (preset_id, created_at)
            select preset_id, $3 from reset
        )
        select preset_id, name from reset order by name, preset_id",
        template.0,
        preset_name,
        at(now)
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (PresetId(row.preset_id), row.name)).collect())
}

/// Whether the template has a pool of a preset of this name, in whatever version.
#[tracing::instrument(name = "db.prebuild.has_pool", skip_all, fields(template.id = %template), err)]
pub async fn has_pool(
    db: impl Executor<'_>,
    template: TemplateId,
    preset_name: &str,
) -> Result<bool, DbError> {
    Ok(sqlx::query_scalar!(
        r#"
        select exists (
            select from prebuild_pools p join template_version_presets r on r.id = p.preset_id
            where p.template_id = $1 and r.name = $2
        ) as "has!""#,
        template.0,
        preset_name
    )
    .fetch_one(db)
    .await?)
}

/// Invalidates every prebuild that a template's pools have, or those of one preset: none is
/// claimable from the commit on. Marks the pools and gives them, with the moment of invalidation.
///
/// The caller holds the template's lock ([`crate::pool_policy::lock_template`]). Three statements,
/// in this order:
///
/// 1. The members expire. A claim that began before our commit and gets to one of them afterwards
///    looks at the row again under its lock and leaves it; one that holds the row now is waited
///    for, and came first. The members come before their pools because that is the order in which
///    a failed build's report locks them.
/// 2. The pools are locked, which waits for passes that create prebuilds. Such a pass has committed
///    when we hold the lock: its prebuilds are seen by the next statement.
/// 3. The moment of invalidation is later than the creation of every member, whatever the clocks of
///    other processes said. A pass that comes after us was decided after us, and its prebuilds are
///    created no earlier than that moment ([`crate::pool::insert_prebuilds`]): they are valid.
#[tracing::instrument(name = "db.prebuild.invalidate", skip_all, fields(template.id = %template), err)]
pub async fn invalidate(
    db: &mut crate::Connection,
    template: TemplateId,
    preset: Option<PresetId>,
    now: Timestamp,
) -> Result<Vec<(PresetId, Timestamp)>, DbError> {
    let preset = preset.map(|it| it.0);
    sqlx::query!(
        "
        update workspaces w
        set pool_expires_at = least(w.pool_expires_at, w.created_at)
        from prebuild_pools p
        where p.template_id = $1 and ($2::uuid is null or p.preset_id = $2)
          and w.pool_preset_id = p.preset_id and not w.deleted
          and w.pool_state in ('ready', 'unready', 'starting')",
        template.0,
        preset
    )
    .execute(&mut *db)
    .await?;
    sqlx::query!(
        "
        select from prebuild_pools
        where template_id = $1 and ($2::uuid is null or preset_id = $2)
        order by preset_id
        for no key update",
        template.0,
        preset
    )
    .execute(&mut *db)
    .await?;
    let rows = sqlx::query!(
        r#"
        with invalidated as (
            update prebuild_pools p
            set last_invalidated_at = greatest($3, (
                select max(w.created_at) + interval '1 microsecond'
                from workspaces w where w.pool_preset_id = p.preset_id and not w.deleted
            ), p.last_invalidated_at)
            where p.template_id = $1 and ($2::uuid is null or p.preset_id = $2)
            returning p.preset_id, p.last_invalidated_at
        ), marked as (
            insert into prebuild_pool_marks (preset_id, created_at)
            select preset_id, $3 from invalidated
        )
        select preset_id, last_invalidated_at as "at!" from invalidated order by preset_id"#,
        template.0,
        preset,
        at(now)
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (PresetId(row.preset_id), row.at.to_jiff())).collect())
}
