//! Looks for pools that changed without a mark, slice by slice, so that a mistake anywhere costs
//! minutes and not for ever.

use std::time::Duration;

use berth_db::pool;
use berth_domain::id::PresetId;
use tokio_util::sync::CancellationToken;

use crate::pass::Reconciler;

/// Pools in one slice: one statement of a few milliseconds.
const SLICE: i64 = 1_000;
/// The whole estate is audited in this time.
const ROUND: Duration = Duration::from_mins(10);
/// Longest and shortest time between two slices.
const LONGEST: Duration = Duration::from_mins(1);
const SHORTEST: Duration = Duration::from_millis(100);

/// Where the audit is.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    after: Option<PresetId>,
    round: i32,
    /// Slices of this round so far, and of the one before.
    slices: u32,
    slices_before: u32,
}

impl Audit {
    /// Audits the next slice. What it finds is marked, counted, and told with its ids.
    #[tracing::instrument(name = "reconcile.audit", level = "debug", skip_all, err)]
    pub(crate) async fn step(&mut self, reconciler: &Reconciler) -> anyhow::Result<()> {
        let backbone = &reconciler.backbone;
        let now = backbone.clock.now();
        let slice = pool::audit(&backbone.db, self.after, SLICE, self.round, now).await?;
        for it in &slice.drift {
            let workspace = it.workspace_id.map(|id| id.to_string()).unwrap_or_default();
            tracing::warn!(
                preset.id = %it.preset_id, workspace.id = workspace, found = it.found,
                expected = it.expected, "changed without a mark; set right"
            );
            reconciler.metrics.drift.inc();
        }
        if slice.marked > 0 {
            reconciler.sweep.notify_one();
        }
        self.after = slice.last;
        self.slices += 1;
        if slice.last.is_none() {
            self.slices_before = std::mem::take(&mut self.slices);
            self.round = self.round.wrapping_add(1) & i32::MAX;
        }
        Ok(())
    }

    /// Time to the next slice: the estate is as large as it was in the round before, as far as is
    /// known.
    fn pause(&self) -> Duration {
        let slices = self.slices.max(self.slices_before).max(1);
        (ROUND / slices).clamp(SHORTEST, LONGEST)
    }
}

/// Audits until shutdown.
pub(crate) async fn run(reconciler: Reconciler, stop: CancellationToken) {
    let mut audit = Audit::default();
    loop {
        tokio::select! {
            () = tokio::time::sleep(audit.pause()) => {}
            () = stop.cancelled() => return,
        }
        if let Err(error) = audit.step(&reconciler).await {
            tracing::warn!(
                error = format!("{error:#}"),
                "slice not audited; the next try repeats it"
            );
        }
    }
}
