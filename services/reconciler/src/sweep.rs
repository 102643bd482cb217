//! The safety net: pools that were marked or whose time has come, found without NATS.

use std::time::Duration;

use berth_db::pool::{self, Patience};
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::pass::Reconciler;

/// Presets taken from the database at once.
const BATCH: i64 = 1_000;
/// Shortest sleep between two sweeps that were not asked for by the interval.
const AT_LEAST: Duration = Duration::from_millis(250);
/// The interval while NATS is away and no hint can come.
const WITHOUT_HINTS: Duration = Duration::from_secs(2);

/// Sweeps at every interval, and earlier when time alone makes a pool due.
pub(crate) async fn run(reconciler: Reconciler, stop: CancellationToken) {
    loop {
        if let Err(error) = sweep(&reconciler, &stop).await {
            tracing::warn!(error = format!("{error:#}"), "sweep failed; the next one tries again");
        }
        let pause = pause(&reconciler).await;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = reconciler.sweep.notified() => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Looks at every pool and every warm promotion that needs it. With none, this is two statements.
#[tracing::instrument(name = "reconcile.sweep", skip_all, err)]
async fn sweep(reconciler: &Reconciler, stop: &CancellationToken) -> anyhow::Result<()> {
    let timer = reconciler.metrics.sweep_seconds.start_timer();
    let presets = pool::list_due(&reconciler.backbone.db, BATCH).await?;
    futures_util::stream::iter(presets)
        .take_until(stop.cancelled())
        .for_each_concurrent(reconciler.concurrency, |preset| async move {
            // One preset's error never stops another's.
            if let Err(error) = reconciler.reconcile(preset, Patience::Skip).await {
                tracing::warn!(error = format!("{error:#}"), preset.id = %preset, "preset not reconciled");
            }
        })
        .await;
    crate::promotion::sweep(&reconciler.backbone).await?;
    timer.observe_duration();
    Ok(())
}

/// Until the interval is over or the earliest pool is due.
async fn pause(reconciler: &Reconciler) -> Duration {
    let interval = if reconciler.backbone.bus.is_connected() {
        reconciler.interval
    } else {
        reconciler.interval.min(WITHOUT_HINTS)
    };
    let due = pool::next_due(&reconciler.backbone.db).await.ok().flatten();
    let until_due = due.map_or(interval, |due| {
        Duration::try_from(due.duration_since(reconciler.backbone.clock.now())).unwrap_or_default()
    });
    until_due.min(interval).max(AT_LEAST)
}
