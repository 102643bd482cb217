//! The one reading of a pool: what its plan is made from.

use std::collections::BTreeMap;

use berth_domain::id::{OrganizationId, PresetId, TemplateId, VersionId};
use berth_domain::plan::{
    Breaker, Failures, Need, Policy, PoolConfig, PoolSnapshot, Prebuild, PrebuildSettings,
    Standing, Successor,
};
use berth_domain::preset::Prebuilds;
use berth_domain::quota::Quota;
use berth_domain::schedule;
use berth_domain::state::{PrebuildStatus, ProvisionerType};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::Value;
use sqlx::types::Json;

use crate::claim::json;
use crate::rehearsal::ATTEMPTS_MAX;
use crate::{DbError, Executor, at, maybe_time};

/// A daemon not heard of for longer counts for no capacity. Its last sign of life is written at
/// most once a minute.
const DAEMON_GONE_AFTER: SignedDuration = SignedDuration::from_secs(90);

/// A pool as its plan needs it beside the snapshot.
#[derive(Debug, Clone)]
pub struct LockedPool {
    /// The preset.
    pub config: PoolConfig,
    /// The version it belongs to.
    pub version_id: VersionId,
    /// The template; `None` while the version belongs to none.
    pub template_id: Option<TemplateId>,
    /// The organization.
    pub organization_id: OrganizationId,
    /// The tool that builds it.
    pub provisioner: ProvisionerType,
    /// Names for messages: organization, template, version, preset.
    pub names: [String; 4],
    /// Reasons of the newest plan.
    pub last_reasons: Value,
    /// Names of those that held creation back.
    pub last_holds: Vec<String>,
    /// Nobody knows yet what a claim would replace, and nobody is finding out.
    pub is_unrehearsed: bool,
}

/// A pool, what holds for it, and what is there.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The pool.
    pub pool: LockedPool,
    /// The deployment's settings and the pool's own policy.
    pub policy: Policy,
    /// What is there.
    pub snapshot: PoolSnapshot,
}

/// Reads everything that a pool's plan depends on, in one statement: one snapshot, one round trip.
/// The reconciler asks it under the pool's lock, the dry run and `explain` without. `now` is the
/// present: daemons and pauses are judged by it. `None`: there is no such pool.
///
/// Every part goes through an index, and none looks into history: what is known from ended builds is
/// stored with the pool. Creations in flight are counted only where they are capped, and what the
/// prebuilds user spends only where the pool is known to cost anything: both grow with the
/// organization.
#[tracing::instrument(name = "db.pool.observe", skip_all, fields(preset.id = %preset), err)]
#[expect(clippy::too_many_lines, reason = "one statement and its mapping, column by column")]
pub async fn observe(
    db: impl Executor<'_>,
    preset: PresetId,
    settings: &PrebuildSettings,
    now: Timestamp,
) -> Result<Option<Observed>, DbError> {
    let lookback = now.checked_sub(settings.reconciliation_backoff_lookback_period);
    let row = sqlx::query!(
        r#"
        select p.template_version_id, p.template_id, p.organization_id, p.prebuild_status,
               p.consecutive_failures, p.breaker_opened_at, p.probe_attempts, p.last_probe_at,
               p.setbacks, p.setback_at, needed.tags as "tags!: Json<BTreeMap<String, String>>",
               p.last_invalidated_at, p.last_reasons, p.holds, p.policy, cost.credits as "cost!",
               p.daily_cost is null as "is_cost_guessed!",
               s.name as preset_name, v.name as version_name, v.provisioner,
               o.name as organization_name, t.name as "template_name?",
               pool_standing(p, t) as "standing!",
               case when s.desired_instances is not null then jsonb_build_object(
                   'instances', s.desired_instances, 'ttl_seconds', s.ttl_seconds,
                   'timezone', s.scheduling_timezone,
                   'schedules', coalesce((
                       select jsonb_agg(
                           jsonb_build_object('cron', c.cron, 'instances', c.desired_instances)
                           order by c.position)
                       from template_version_preset_schedules c where c.preset_id = s.id
                   ), '[]')
               ) end as prebuilds,
               coalesce((
                   select json_agg(json_build_object(
                       'workspace_id', w.id, 'build_id', b.id, 'build_number', b.build_number,
                       'state', w.pool_state, 'created_at', w.created_at,
                       'is_acquired', j.started_at is not null,
                       'is_canceled_by_person',
                       j.canceled_at is not null and j.canceled_by is not null,
                       'finished_at', j.completed_at,
                       'failed_deletes', case when w.pool_state = 'failed_delete' then (
                           select count(*) from workspace_builds d
                           where d.workspace_id = w.id and d.transition = 'delete'
                       ) else 0 end
                   ) order by w.created_at, w.id)
                   from workspaces w
                   join workspace_builds b on b.id = w.latest_build_id
                   join provisioner_jobs j on j.id = b.job_id
                   where w.pool_preset_id = p.preset_id and not w.deleted
               ), '[]') as "members!: Json<Vec<Prebuild>>",
               coalesce((
                   select jsonb_agg(
                       jsonb_build_object('scope', z.scope, 'reason', z.reason, 'until', z.expires_at))
                   from prebuild_pauses z
                   where (z.expires_at is null or z.expires_at > $2)
                     and (z.scope, coalesce(z.scope_id, o.id)) in (
                         ('deployment', o.id), ('organization', o.id), ('template', p.template_id),
                         ('preset', p.preset_id))
               ), '[]') as "pauses!",
               exists (
                   select from provisioner_daemons d
                   where d.organization_id = o.id and v.provisioner = any (d.provisioners)
                     and d.disconnected_at is null and d.silent_at is null and d.last_seen_at > $3
                     and d.draining_since is null
                     and tags_fit(needed.tags, d.tags)
               ) as "has_daemon!",
               case when $4 then (
                   select count(*) from provisioner_jobs f
                   where f.organization_id = o.id and f.class = 4 and f.completed_at is null
               ) else 0 end as "in_flight!",
               case when p.consecutive_failures > 0 then (
                   select jsonb_agg(recent.failed_at)
                   from (
                       select failed_at from prebuild_failures
                       where preset_id = p.preset_id and failed_at > $5
                       order by failed_at desc
                       limit 1000
                   ) recent
               ) end as failures,
               case when cost.credits > 0 then jsonb_build_object(
                   'budget', coalesce((
                       select sum(g.quota_allowance) from groups g
                       where g.organization_id = o.id
                         and (
                             (g.id = o.id and exists (
                                 select from organization_members m
                                 where m.organization_id = o.id
                                   and m.user_id = 'c42fdf75-3097-471c-8c33-fb52454d81c0'))
                             or exists (
                                 select from group_members gm
                                 where gm.group_id = g.id
                                   and gm.user_id = 'c42fdf75-3097-471c-8c33-fb52454d81c0'))
                   ), 0),
                   -- What is being built for the first time has no cost of its own yet.
                   'consumed', coalesce((
                       select sum(case when w.pool_state = 'starting' and b.daily_cost = 0
                                  then case when q.preset_id = p.preset_id then cost.credits
                                            else coalesce(q.daily_cost, 0) end
                                  else b.daily_cost end)
                       from prebuild_pools q
                       join workspaces w on w.pool_preset_id = q.preset_id and not w.deleted
                       join workspace_builds b on b.id = w.latest_build_id
                       where q.organization_id = o.id
                   ), 0)
               ) end as quota,
               case when n.preset_id is not null then jsonb_build_object(
                   'prebuilds', jsonb_build_object(
                       'instances', coalesce(ns.desired_instances, 0),
                       'timezone', ns.scheduling_timezone,
                       'schedules', coalesce((
                           select jsonb_agg(
                               jsonb_build_object('cron', c.cron, 'instances', c.desired_instances)
                               order by c.position)
                           from template_version_preset_schedules c where c.preset_id = ns.id
                       ), '[]')
                   ),
                   'eligible', (
                       select count(*) from workspaces w
                       where w.pool_preset_id = n.preset_id and is_claimable(w, n, t, $2)
                   )
               ) end as successor,
               (
                   select count(*)
                   from prebuild_pools q
                   join workspaces w on w.pool_preset_id = q.preset_id and not w.deleted
                   where q.successor_preset_id = p.preset_id
                     and w.pool_state in ('ready', 'unready', 'starting')
               ) as "predecessor!",
               (
                   select r.deadline_at from template_promotions r
                   where r.template_id = p.template_id and r.ended_at is null
                     and r.candidate_version_id = p.template_version_id
               ) as deadline,
               not exists (
                   select from prebuild_rehearsals r
                   where r.preset_id = p.preset_id
                     and (r.outcome is null or r.outcome <> 'lost' or r.attempts >= $6)
               ) as "is_unrehearsed!"
        from prebuild_pools p
        join template_version_presets s on s.id = p.preset_id
        join template_versions v on v.id = p.template_version_id
        join provisioner_jobs i on i.id = v.job_id
        join organizations o on o.id = p.organization_id
        cross join lateral (select coalesce(p.job_tags, i.tags) as tags) needed
        left join templates t on t.id = p.template_id
        left join prebuild_pools n on n.preset_id = p.successor_preset_id
        left join template_version_presets ns on ns.id = n.preset_id
        cross join lateral (
            select coalesce(p.daily_cost, (
                select q.daily_cost
                from prebuild_pools q join template_version_presets qs on qs.id = q.preset_id
                where q.template_id = p.template_id and qs.name = s.name
                  and q.daily_cost is not null
                order by qs.created_at desc
                limit 1
            ), 0) as credits
            -- Reckoned once, not wherever it is used.
            offset 0
        ) cost
        where p.preset_id = $1"#,
        preset.0,
        at(now),
        at(now.checked_sub(DAEMON_GONE_AFTER).unwrap_or(Timestamp::MIN)),
        settings.max_in_flight > 0,
        at(lookback.unwrap_or(Timestamp::MIN)),
        ATTEMPTS_MAX
    )
    .fetch_optional(db)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let successor: Option<NextPool> = maybe_json("successor", row.successor)?;
    let breaker = row.breaker_opened_at.map(|opened_at| Breaker {
        opened_at: opened_at.to_jiff(),
        probes: count(row.probe_attempts.into()),
        last_probe_at: maybe_time(row.last_probe_at),
    });
    let snapshot = PoolSnapshot {
        prebuilds: row.members.0,
        failures: Failures {
            recent: maybe_json("failures of a pool", row.failures)?.unwrap_or_default(),
            consecutive: count(row.consecutive_failures.into()),
            breaker,
            setbacks: count(row.setbacks.into()),
            setback_at: maybe_time(row.setback_at),
        },
        pauses: json("pauses", row.pauses)?,
        has_daemon: row.has_daemon,
        need: Need { provisioner: row.provisioner.clone(), tags: row.tags.0 },
        in_flight: count(row.in_flight),
        quota: maybe_json::<Quota>("quota", row.quota)?,
        cost: row.cost.into(),
        is_cost_guessed: row.is_cost_guessed,
        successor: successor.map(|it| Successor {
            desired: schedule::desired(&it.prebuilds, now).instances,
            eligible: it.eligible,
        }),
        predecessor: count(row.predecessor),
        deadline: maybe_time(row.deadline),
    };
    let pool = LockedPool {
        config: PoolConfig {
            preset_id: preset,
            standing: row.standing.parse::<Standing>()?,
            prebuilds: maybe_json("prebuild configuration", row.prebuilds)?,
            status: row.prebuild_status.parse::<PrebuildStatus>()?,
            last_invalidated_at: maybe_time(row.last_invalidated_at),
        },
        version_id: VersionId(row.template_version_id),
        template_id: row.template_id.map(TemplateId),
        organization_id: OrganizationId(row.organization_id),
        provisioner: row.provisioner.parse()?,
        names: [
            row.organization_name,
            row.template_name.unwrap_or_default(),
            row.version_name,
            row.preset_name,
        ],
        last_reasons: row.last_reasons,
        last_holds: row.holds,
        is_unrehearsed: row.is_unrehearsed,
    };
    let policy =
        Policy { settings: settings.clone(), pool: json("prebuild_pools.policy", row.policy)? };
    Ok(Some(Observed { pool, policy, snapshot }))
}

/// The pool that takes another's place.
#[derive(Deserialize)]
struct NextPool {
    prebuilds: Prebuilds,
    eligible: u32,
}

fn maybe_json<T: serde::de::DeserializeOwned>(
    what: &'static str,
    value: Option<Value>,
) -> Result<Option<T>, DbError> {
    value.map(|value| json(what, value)).transpose()
}

/// A count as the domain has it; none is negative, and more than `u32` holds do not exist.
fn count(stored: i64) -> u32 {
    u32::try_from(stored.max(0)).unwrap_or(u32::MAX)
}
