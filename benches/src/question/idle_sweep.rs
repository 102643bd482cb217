//! The reconciler's sweep with nothing to do.

use super::{idle, settled};
use crate::data::{self, Base, Pools};
use crate::report::{Report, Table};
use crate::stage::{Stage, settle_statistics};

/// The metric that times a sweep.
pub(super) const SWEEP: &str = "coderd_prebuilds_reconciliation_duration_seconds";
/// Pools that are looked at to see that they are in order.
const LOOKED_AT: u64 = 2_000;

pub(super) async fn answer(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let (sizes, measured): (&[u64], _) = if stage.quick {
        (&[100, 1_000], (2, 10))
    } else {
        (&[100, 1_000, 10_000, 100_000], (3, 40))
    };
    let mut estate = stage.estate("idle_sweep").await?;
    let base = Base::of(stage.quick);
    base.load(&mut estate.sql).await?;
    let mut table = Table::new("A sweep with nothing to do (figures are of one)", &idle::COLUMNS);
    let mut besides = idle::besides_table();
    let mut loaded = 0;
    for &size in sizes {
        let pools =
            Pools { set: "idle", from: loaded, to: size, per_template: 10, ..Pools::none() };
        pools.load(&mut estate.sql, base.organizations).await?;
        loaded = size;
        settle_statistics(&mut estate.sql).await?;
        report.data(data::size(&mut estate.sql).await?);
        let before = settled::mark(&mut estate.sql, LOOKED_AT).await?;
        // 250 ms is the least that the service allows itself.
        let often = [("BERTH_PREBUILDS__RECONCILIATION_INTERVAL", "250ms")];
        let service = stage.start(("reconciler", 0), &estate, &estate.counted_url, &often).await?;
        settled::check(&mut estate.sql, report, before).await?;
        let idle = idle::measure(stage, &estate, (&service, SWEEP), measured).await?;
        eprintln!("bench: {size} measured");
        table.row(idle.row(size));
        idle.besides(size, &mut besides);
        idle.detail(size, report);
        if size == sizes[0] {
            report.note(idle.yardstick() + ", through the same proxy");
        }
        // The figures are there; that it does not end well is a fault all the same.
        if let Err(error) = service.stop().await {
            report.check(false, || format!("{size}: {error:#}"));
        }
    }
    report.table(table);
    report.table(besides);
    report.note(
        "the field at 500 presets and 51-55 k workspaces (replay): 1.3-1.6 s and 0.3-1 MB a sweep; \
         aim: <= 3 statements, <= 3 ms, <= 4 KiB at any size",
    );
    report.note(
        "grows with what is marked or due, not with presets: each statement reads one index, and what \
         it reads of it is empty here; it cannot be less than asking for marks (a hint may be lost), \
         for warm promotions whose time has come, and for the next due time, which is how it sleeps \
         until then instead of polling",
    );
    report.note(
        "what grows with pools is not the sweep but the gauges beside it: every 15 s one statement reads \
         every pool, and each pool has a series in each family, which is what the memory and /metrics \
         are full of",
    );
    report.note(format!(
        "process as in production, behind the counting proxy; up to {LOOKED_AT} pools were looked at \
         beforehand and found in order; wall is the service's own metric"
    ));
    stage.remove(estate).await
}
