//! The safety net: pools that were marked or whose time has come, found without NATS.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use berth_db::pool::{self, Patience};
use berth_domain::id::PresetId;
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::pass::Reconciler;

/// Presets taken from the database at once.
const BATCH: u16 = 1_000;
/// Shortest sleep between two sweeps that were not asked for.
const AT_LEAST: Duration = Duration::from_millis(250);
/// Shortest sleep after a sweep in which a preset could not be reconciled: it is still due.
const AFTER_ERRORS: Duration = Duration::from_secs(5);
/// How often it is asked whether NATS is there, and the interval while it is not: no hint can come.
const WITHOUT_HINTS: Duration = Duration::from_secs(2);

/// Sweeps at every interval, when it is asked to, and when time alone makes a pool due.
pub(crate) async fn run(reconciler: Reconciler, stop: CancellationToken) {
    loop {
        let failed = sweep(&reconciler, &stop).await.unwrap_or_else(|error| {
            tracing::warn!(error = format!("{error:#}"), "sweep failed; the next one tries again");
            1
        });
        let at_least = if failed > 0 { AFTER_ERRORS } else { AT_LEAST };
        let pause = pause(&reconciler, at_least).await;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = bus_is_away(&reconciler) => {}
            () = reconciler.sweep.notified() => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Looks at every pool and every warm promotion that needs it, batch by batch, each once. With none,
/// this is two statements. Answers with how many presets could not be reconciled.
///
/// Replicas that sweep at the same time share the work: each begins a batch somewhere else, and what
/// one holds or has done, the others skip.
#[tracing::instrument(name = "reconcile.sweep", skip_all, err)]
pub(crate) async fn sweep(
    reconciler: &Reconciler,
    stop: &CancellationToken,
) -> anyhow::Result<usize> {
    let timer = reconciler.metrics.sweep_seconds.start_timer();
    let backbone = &reconciler.backbone;
    let mut after = None;
    let mut failed = 0;
    while !stop.is_cancelled() {
        let now = backbone.clock.now();
        let mut presets = pool::list_due(&backbone.db, after, now, BATCH.into()).await?;
        after = presets.last().copied();
        let is_last = presets.len() < usize::from(BATCH);
        let anywhere = usize::from(u16::from_le_bytes(backbone.ids.bytes()));
        let begin = anywhere.checked_rem(presets.len()).unwrap_or_default();
        presets.rotate_left(begin);
        failed += reconcile(reconciler, &presets, stop).await;
        if is_last {
            break;
        }
    }
    crate::promotion::sweep(backbone).await?;
    timer.observe_duration();
    Ok(failed)
}

/// Reconciles some presets, a bounded number at once. One preset's error never stops another's.
async fn reconcile(
    reconciler: &Reconciler,
    presets: &[PresetId],
    stop: &CancellationToken,
) -> usize {
    let failed = AtomicUsize::new(0);
    futures_util::stream::iter(presets)
        .take_until(stop.cancelled())
        .for_each_concurrent(reconciler.concurrency, async |preset| {
            if let Err(error) = reconciler.reconcile(*preset, Patience::Skip).await {
                tracing::warn!(error = format!("{error:#}"), preset.id = %preset, "preset not reconciled");
                failed.fetch_add(1, Ordering::Relaxed);
            }
        })
        .await;
    failed.into_inner()
}

/// Until the interval is over or the earliest pool is due.
async fn pause(reconciler: &Reconciler, at_least: Duration) -> Duration {
    let due = pool::next_due(&reconciler.backbone.db).await.ok().flatten();
    let until_due = due.map_or(reconciler.interval, |due| {
        Duration::try_from(due.duration_since(reconciler.backbone.clock.now())).unwrap_or_default()
    });
    until_due.min(reconciler.interval).max(at_least)
}

/// Ends when NATS is away, a little after it was last asked.
async fn bus_is_away(reconciler: &Reconciler) {
    loop {
        tokio::time::sleep(WITHOUT_HINTS).await;
        if !reconciler.backbone.bus.is_connected() {
            return;
        }
    }
}
