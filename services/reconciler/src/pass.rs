//! One pass over one preset: lock, read, decide once, write, commit. Nothing here retries; the next
//! pass starts again from what is stored.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use berth_backbone::{Backbone, Work};
use berth_db::pool::{self, Locked, Look, Observed, Patience, Record};
use berth_domain::id::PresetId;
use berth_domain::plan::{Action, Plan, PrebuildSettings, plan};
use tokio::sync::Notify;
use tracing::Span;

use crate::config::Config;
use crate::execute;
use crate::metrics::Metrics;
use crate::promotion;

/// Reconciles presets. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Reconciler {
    pub(crate) backbone: Backbone,
    pub(crate) metrics: Metrics,
    pub(crate) concurrency: usize,
    pub(crate) interval: Duration,
    /// Asks for a sweep at once.
    pub(crate) sweep: Arc<Notify>,
    settings: PrebuildSettings,
}

impl Reconciler {
    pub(crate) fn new(backbone: Backbone, config: &Config, metrics: Metrics) -> Self {
        let settings = config.prebuilds.clone();
        let interval =
            Duration::try_from(settings.reconciliation_interval).unwrap_or(Duration::from_mins(1));
        Self {
            backbone,
            metrics,
            concurrency: config.concurrency(),
            interval,
            sweep: Arc::default(),
            settings,
        }
    }

    /// One pass. The pool's row is locked for the length of it, so two replicas on one preset come
    /// one after the other, and the second sees what the first has ordered.
    #[tracing::instrument(
        name = "reconcile.preset", skip_all,
        fields(preset.id = %preset, desired, claimable, actions, reasons), err
    )]
    pub(crate) async fn reconcile(
        &self,
        preset: PresetId,
        patience: Patience,
    ) -> anyhow::Result<()> {
        let mut work = self.backbone.begin().await?;
        let now = work.now();
        let look = match pool::lock(work.conn(), preset, patience, &self.settings, now).await? {
            Locked::Ours(look) => look,
            // Somebody else looks at it; or the version was removed, and the marks go with this.
            Locked::Busy | Locked::Gone => return Ok(work.commit().await?),
        };
        let Observed { pool, policy, snapshot } = &look.observed;
        let plan = plan(&pool.config, policy, snapshot, now);
        describe(&plan);
        let later = execute::carry_out(&mut work, pool, &plan).await?;
        let record = record(&work, &look, &plan)?;
        pool::record(work.conn(), &record).await?;
        promotion::tell_neighbours(&mut work, &look, &plan).await?;
        work.commit().await.context("commit the plan")?;
        self.count(&plan);
        for (workspace, build) in later {
            // A transaction each: one that fails leaves the others done.
            if let Err(error) =
                execute::cancel_pending(&self.backbone, pool, workspace, build).await
            {
                tracing::warn!(error = format!("{error:#}"), workspace.id = %workspace, "pending prebuild not cancelled");
            }
        }
        Ok(promotion::look_after(&self.backbone, pool).await?)
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
fn record(work: &Work, look: &Look, plan: &Plan) -> anyhow::Result<Record> {
    let Observed { pool, snapshot, .. } = &look.observed;
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
        claims: look.claims,
        now: work.now(),
    })
}
