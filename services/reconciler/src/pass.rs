//! One pass over one preset: lock, read, decide once, write, commit. Nothing here retries; the next
//! pass starts again from what is stored.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use berth_backbone::{Backbone, Work};
use berth_bus::event::Wake;
use berth_db::pool::{self, Locked, LockedPool, Look, Observed, Patience, Record};
use berth_domain::id::{BuildId, PresetId, WorkspaceId};
use berth_domain::plan::{Plan, PrebuildSettings, plan};
use tokio::sync::{Notify, Semaphore};
use tracing::Span;

use crate::config::Config;
use crate::execute;
use crate::metrics::Metrics;
use crate::promotion;
use crate::rehearsal;

/// Passes over one preset that follow each other at once. What is left then is due, and others have
/// their turn first.
const IN_A_ROW: usize = 8;
/// Most pools that one pass wakes because it left something they wait for.
const ROOM_MAX: u32 = 1_000;

/// Names of the reasons that hold creation for want of what an organization's pools share
/// ([`berth_domain::plan::Reason::name`]).
const IN_FLIGHT_CAP: &str = "in_flight_cap";
const QUOTA: &str = "quota";

/// Reconciles presets. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Reconciler {
    pub(crate) backbone: Backbone,
    pub(crate) metrics: Metrics,
    /// Presets looked at at once by one sweep, or from wake-ups.
    pub(crate) concurrency: usize,
    pub(crate) interval: Duration,
    /// Asks for a sweep at once.
    pub(crate) sweep: Arc<Notify>,
    settings: PrebuildSettings,
    /// Sweep and wake-ups together use no more of the connection pool than either may.
    turns: Arc<Semaphore>,
}

/// What came of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing is left to do now.
    Done,
    /// The pool needs another look at once.
    Again,
    /// Another replica is looking at the pool.
    Busy,
}

impl Reconciler {
    pub(crate) fn new(backbone: Backbone, config: &Config, metrics: Metrics) -> Self {
        let settings = config.prebuilds.clone();
        let interval =
            Duration::try_from(settings.reconciliation_interval).unwrap_or(Duration::from_mins(1));
        let concurrency = config.concurrency();
        Self {
            backbone,
            metrics,
            concurrency,
            interval,
            sweep: Arc::default(),
            settings,
            turns: Arc::new(Semaphore::new(concurrency)),
        }
    }

    /// Looks at a preset until nothing is left to do now, or somebody else does.
    pub(crate) async fn reconcile(
        &self,
        preset: PresetId,
        patience: Patience,
    ) -> anyhow::Result<Outcome> {
        let _turn = self.turns.acquire().await.context("wait for a turn")?;
        let mut outcome = Outcome::Again;
        for _ in 0..IN_A_ROW {
            if outcome != Outcome::Again {
                break;
            }
            outcome = self.pass(preset, patience).await?;
        }
        Ok(outcome)
    }

    /// One pass. The pool's row is locked for the length of it, so two replicas on one preset come
    /// one after the other, and the second sees what the first has ordered.
    #[tracing::instrument(
        name = "reconcile.preset", skip_all,
        fields(preset.id = %preset, desired, claimable, actions, reasons), err
    )]
    async fn pass(&self, preset: PresetId, patience: Patience) -> anyhow::Result<Outcome> {
        self.metrics.count("looked_at", "");
        let mut work = self.backbone.begin().await?;
        let now = work.now();
        let look = match pool::lock(work.conn(), preset, patience, &self.settings, now).await? {
            Locked::Ours(look) => look,
            Locked::Busy => return Ok(Outcome::Busy),
            Locked::Quiet => return Ok(Outcome::Done),
            Locked::Gone => {
                // The version was removed; the marks go with this.
                work.commit().await?;
                return Ok(Outcome::Done);
            }
        };
        let Observed { pool, policy, snapshot } = &look.observed;
        let plan = plan(&pool.config, policy, snapshot, now);
        describe(&plan);
        let rest = execute::carry_out(&mut work, pool, &plan).await?;
        rehearsal::order(&mut work, &look.observed, &plan).await?;
        // The cancels follow this commit: should they not be carried out, the pool is still due.
        let is_open = rest.is_stale || !rest.pending.is_empty();
        self.record(&mut work, &look, &plan, is_open).await?;
        work.commit().await.context("commit the plan")?;
        let ended = self.backbone.clock.now();
        self.metrics.count_plan(&plan, look.marked_at.map(|at| ended.duration_since(at)));
        let canceled = self.cancel(pool, &rest.pending).await;
        promotion::look_after(&self.backbone, pool).await?;
        let is_due = plan.next_look.is_some_and(|at| at <= now);
        let again = rest.is_stale || is_due || canceled > 0;
        Ok(if again { Outcome::Again } else { Outcome::Done })
    }

    /// Cancels pending prebuilds, in a transaction each: one that fails leaves the others done.
    async fn cancel(&self, pool: &LockedPool, pending: &[(WorkspaceId, BuildId)]) -> usize {
        let mut canceled = 0;
        for (workspace, build) in pending {
            match execute::cancel_pending(&self.backbone, pool, *workspace, *build).await {
                Ok(is_canceled) => canceled += usize::from(is_canceled),
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), workspace.id = %workspace, "pending prebuild not cancelled");
                }
            }
        }
        canceled
    }

    /// Keeps the plan's outcome in the pool's row and, when something is done or the reasons have
    /// changed, in the decision log. Wakes the pools that it concerns.
    async fn record(
        &self,
        work: &mut Work,
        look: &Look,
        plan: &Plan,
        is_open: bool,
    ) -> anyhow::Result<()> {
        let Observed { pool, snapshot, .. } = &look.observed;
        let reasons = serde_json::to_value(&plan.reasons)?;
        let trace = work.trace();
        let (spare, room) = self.spare(&look.observed, plan);
        let now = work.now();
        let record = Record {
            id: work.id(),
            preset_id: pool.config.preset_id,
            desired: plan.desired,
            state: &serde_json::json!({ "counts": plan.counts, "snapshot": snapshot }),
            actions: &serde_json::to_value(&plan.actions)?,
            is_logged: !plan.actions.is_empty() || reasons != pool.last_reasons,
            reasons: &reasons,
            holds: &plan.holds(),
            trace_id: trace.get("traceparent").and_then(|it| it.as_str()?.split('-').nth(1)),
            due_at: if is_open { Some(now) } else { plan.next_look },
            claims: look.claims,
            spare: &spare,
            room,
            now,
        };
        let concerned = pool::record(work.conn(), &record).await?;
        for event in Wake::pools(&concerned) {
            work.emit(event);
        }
        Ok(())
    }

    /// What the plan leaves of what the organization's pools share, and for how many prebuilds.
    fn spare(&self, observed: &Observed, plan: &Plan) -> (Vec<&'static str>, u32) {
        let snapshot = &observed.snapshot;
        let (creates, cap) = (plan.creates(), self.settings.max_in_flight);
        let taken = snapshot.in_flight.saturating_add(creates);
        let places = cap.saturating_sub(taken);
        // With nothing known to cost anything here, nothing is known of the others' room either.
        let credits = snapshot
            .quota
            .filter(|_| snapshot.cost > 0)
            .map_or(0, |quota| quota.room_for(snapshot.cost, ROOM_MAX).saturating_sub(creates));
        let left = [(IN_FLIGHT_CAP, places), (QUOTA, credits)].into_iter().filter(|it| it.1 > 0);
        let (names, rooms): (Vec<_>, Vec<_>) = left.unzip();
        (names, rooms.into_iter().max().unwrap_or_default().min(ROOM_MAX))
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
