//! One pass over one preset: lock, read, decide once, write, commit. Nothing here retries; the next
//! pass starts again from what is stored.

use std::time::Duration;

use anyhow::Context as _;
use berth_backbone::{Backbone, Work};
use berth_db::pool::{self, LockedPool, Record};
use berth_domain::id::PresetId;
use berth_domain::plan::{Action, Failures, Plan, Policy, PoolSnapshot, PrebuildSettings, plan};
use tracing::Span;

use crate::config::Config;
use crate::execute;
use crate::metrics::Metrics;

/// A daemon not heard of for longer counts for no capacity. Its last sign of life is written at
/// most once a minute.
const DAEMON_GONE_AFTER_SECONDS: f64 = 90.0;

/// Reconciles presets. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Reconciler {
    pub(crate) backbone: Backbone,
    pub(crate) metrics: Metrics,
    pub(crate) concurrency: usize,
    pub(crate) interval: Duration,
    settings: PrebuildSettings,
}

impl Reconciler {
    pub(crate) fn new(backbone: Backbone, config: &Config, metrics: Metrics) -> Self {
        let settings = config.prebuilds.clone();
        let interval =
            Duration::try_from(settings.reconciliation_interval).unwrap_or(Duration::from_mins(1));
        Self { backbone, metrics, concurrency: config.concurrency(), interval, settings }
    }

    /// One pass. The pool's row is locked for the length of it, so two replicas on one preset come
    /// one after the other, and the second sees what the first has ordered.
    #[tracing::instrument(
        name = "reconcile.preset", skip_all,
        fields(preset.id = %preset, desired, claimable, actions, reasons), err
    )]
    pub(crate) async fn reconcile(&self, preset: PresetId) -> anyhow::Result<()> {
        let mut work = self.backbone.begin().await?;
        let Some(pool) = pool::lock(work.conn(), preset).await? else {
            // The version was removed; the marks went with this commit.
            return Ok(work.commit().await?);
        };
        let policy = Policy { settings: self.settings.clone(), ..Policy::default() };
        let snapshot = self.observe(&mut work, &pool).await?;
        let plan = plan(&pool.config, &policy, &snapshot, work.now());
        describe(&plan);
        let later = execute::carry_out(&mut work, &pool, &plan).await?;
        let record = record(&work, &pool, &snapshot, &plan)?;
        pool::record(work.conn(), &record).await?;
        work.commit().await.context("commit the plan")?;
        self.count(&plan);
        for (workspace, build) in later {
            // A transaction each: one that fails leaves the others done.
            if let Err(error) =
                execute::cancel_pending(&self.backbone, &pool, workspace, build).await
            {
                tracing::warn!(error = format!("{error:#}"), workspace.id = %workspace, "pending prebuild not cancelled");
            }
        }
        Ok(())
    }

    async fn observe(&self, work: &mut Work, pool: &LockedPool) -> anyhow::Result<PoolSnapshot> {
        let preset = pool.config.preset_id;
        let prebuilds = pool::list_members(work.conn(), preset).await?;
        let around = pool::environment(work.conn(), pool, DAEMON_GONE_AFTER_SECONDS).await?;
        let recent = if pool.consecutive_failures == 0 {
            Vec::new()
        } else {
            let since = work.now() - self.settings.reconciliation_backoff_lookback_period;
            pool::list_recent_failures(work.conn(), preset, since).await?
        };
        Ok(PoolSnapshot {
            prebuilds,
            failures: Failures {
                recent,
                consecutive: pool.consecutive_failures,
                breaker: pool.breaker,
            },
            pauses: around.pauses,
            has_daemon: around.has_daemon,
            in_flight: around.in_flight,
            ..PoolSnapshot::default()
        })
    }

    fn count(&self, plan: &Plan) {
        let is_held = plan.reasons.iter().any(|it| it.miss_reason().is_some());
        let result = match (plan.actions.is_empty(), is_held) {
            (false, _) => "acted",
            (true, true) => "held",
            (true, false) => "settled",
        };
        self.metrics.presets.with_label_values(&[result]).inc();
    }
}

fn describe(plan: &Plan) {
    let reasons: Vec<String> = plan.reasons.iter().map(ToString::to_string).collect();
    Span::current()
        .record("desired", plan.desired)
        .record("claimable", plan.counts.eligible)
        .record("actions", plan.actions.len())
        .record("reasons", reasons.join("; "));
}

/// The decision log gets an entry when something is done, or when the reasons have changed.
fn record(
    work: &Work,
    pool: &LockedPool,
    snapshot: &PoolSnapshot,
    plan: &Plan,
) -> anyhow::Result<Record> {
    let reasons = serde_json::to_value(&plan.reasons)?;
    // A plan that was cut off at its limit is continued at once.
    let creates_more = plan.actions.iter().any(|it| matches!(it, Action::Create { .. }))
        && plan.creates() == berth_domain::plan::CREATES_PER_PLAN_MAX;
    Ok(Record {
        id: work.id(),
        preset_id: pool.config.preset_id,
        desired: plan.desired,
        state: serde_json::json!({ "counts": plan.counts, "snapshot": snapshot }),
        actions: serde_json::to_value(&plan.actions)?,
        is_logged: !plan.actions.is_empty() || reasons != pool.last_reasons,
        reasons,
        trace_id: work
            .trace()
            .get("traceparent")
            .and_then(|it| it.as_str()?.split('-').nth(1).map(ToOwned::to_owned)),
        due_at: if creates_more { Some(work.now()) } else { plan.next_look },
        now: work.now(),
    })
}
