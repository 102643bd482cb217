//! Pools as Prometheus sees them: read off the database, so that every replica shows the same.

use std::time::{Duration, Instant};

use berth_backbone::Backbone;
use berth_db::pool::{self, PoolRow};
use berth_db::prebuild;
use prometheus::{Gauge, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use tokio_util::sync::CancellationToken;

/// How often pools are read.
const EVERY: Duration = Duration::from_secs(15);
/// Where a reading takes long, the pause is this many times as long: showing many pools is never what
/// keeps Postgres busy.
const REST: u32 = 20;
const LABELS: [&str; 3] = ["template_name", "preset_name", "organization_name"];

/// The gauges and totals of all pools.
pub(crate) struct Gauges {
    /// In the order of [`GAUGES`].
    levels: Vec<IntGaugeVec>,
    /// In the order of [`TOTALS`].
    totals: Vec<IntCounterVec>,
    /// In the order of [`SICK`].
    sick: Vec<IntGaugeVec>,
    paused: IntGauge,
    updated: Gauge,
    /// Most pools that are shown one by one.
    most: u32,
}

const GAUGES: [(&str, &str); 8] = [
    ("coderd_prebuilt_workspaces_desired", "Prebuilds wanted."),
    ("coderd_prebuilt_workspaces_running", "Prebuilds running."),
    ("coderd_prebuilt_workspaces_eligible", "Prebuilds that a claim would get at this moment."),
    ("berth_pool_starting", "Prebuilds on their way."),
    ("berth_pool_expired", "Prebuilds that run and are expired or invalidated."),
    ("berth_pool_deleting", "Prebuilds on their way out, failed deletes included."),
    ("berth_pool_failed", "Prebuilds whose start failed and that are kept for a look."),
    ("berth_pool_stopped", "Prebuilds that an operator parked."),
];

/// 1 or absent; of an organization, how many.
const SICK: [(&str, &str); 2] = [
    (
        "coderd_prebuilt_workspaces_preset_hard_limited",
        "1 while the preset's breaker is open; absent otherwise.",
    ),
    (
        "coderd_prebuilt_workspaces_preset_validation_failed",
        "1 while the preset's values stand refused; absent otherwise.",
    ),
];

/// Stored in the database, so that they never go down, whoever shows them.
const TOTALS: [(&str, &str); 4] = [
    ("coderd_prebuilt_workspaces_created_total", "Prebuilds created."),
    ("coderd_prebuilt_workspaces_failed_total", "Prebuilds whose start failed."),
    ("coderd_prebuilt_workspaces_claimed_total", "Prebuilds claimed."),
    ("coderd_prebuilt_workspaces_resource_replacements_total", "Claims that replaced a resource."),
];

/// In the order of [`GAUGES`].
fn values(row: &PoolRow) -> [i64; 8] {
    [
        row.desired,
        row.running,
        row.eligible,
        row.starting,
        row.expired,
        row.deleting,
        row.failed,
        row.stopped,
    ]
}

impl Gauges {
    pub(crate) fn register(registry: &Registry, most: u32) -> Result<Self, prometheus::Error> {
        let mut gauges = Vec::new();
        for (name, help) in GAUGES {
            let gauge = IntGaugeVec::new(Opts::new(name, help), &LABELS)?;
            registry.register(Box::new(gauge.clone()))?;
            gauges.push(gauge);
        }
        let mut totals = Vec::new();
        for (name, help) in TOTALS {
            let total = IntCounterVec::new(Opts::new(name, help), &LABELS)?;
            registry.register(Box::new(total.clone()))?;
            totals.push(total);
        }
        let mut sick = Vec::new();
        for (name, help) in SICK {
            let gauge = IntGaugeVec::new(Opts::new(name, help), &LABELS)?;
            registry.register(Box::new(gauge.clone()))?;
            sick.push(gauge);
        }
        let paused = IntGauge::new(
            "coderd_prebuilt_workspaces_reconciliation_paused",
            "1 while reconciliation is paused for the whole deployment.",
        )?;
        registry.register(Box::new(paused.clone()))?;
        let updated = Gauge::new(
            "coderd_prebuilt_workspaces_metrics_last_updated",
            "When these were read, in Unix seconds.",
        )?;
        registry.register(Box::new(updated.clone()))?;
        Ok(Self { levels: gauges, totals, sick, paused, updated, most })
    }

    /// Refreshes the gauges until shutdown.
    pub(crate) async fn run(self, backbone: Backbone, stop: CancellationToken) {
        loop {
            let begun = Instant::now();
            if let Err(error) = self.refresh(&backbone).await {
                tracing::warn!(error = format!("{error:#}"), "pools not measured");
            }
            let pause = EVERY.max(begun.elapsed() * REST);
            tokio::select! { () = tokio::time::sleep(pause) => {}, () = stop.cancelled() => return }
        }
    }

    /// Reads the pools and shows them: two statements.
    pub(crate) async fn refresh(&self, backbone: &Backbone) -> anyhow::Result<()> {
        let now = backbone.clock.now();
        let rows = pool::list_rows(&backbone.db, self.most, now).await?;
        let is_paused = prebuild::is_paused(&backbone.db, now).await?;
        self.show(&rows);
        self.paused.set(is_paused.into());
        self.updated.set(now.as_duration().as_secs_f64());
        Ok(())
    }

    fn show(&self, rows: &[PoolRow]) {
        // A pool that is gone must not stay on show.
        self.levels.iter().for_each(IntGaugeVec::reset);
        self.totals.iter().for_each(IntCounterVec::reset);
        self.sick.iter().for_each(IntGaugeVec::reset);
        for row in rows {
            let labels = [
                row.template_name.as_str(),
                row.preset_name.as_str(),
                row.organization_name.as_str(),
            ];
            for (gauge, value) in self.levels.iter().zip(values(row)) {
                gauge.with_label_values(&labels).set(value);
            }
            for (total, value) in self.totals.iter().zip(row.totals) {
                total.with_label_values(&labels).inc_by(value.try_into().unwrap_or_default());
            }
            for (gauge, sick) in self.sick.iter().zip([row.hard_limited, row.validation_failed]) {
                if sick > 0 {
                    gauge.with_label_values(&labels).set(sick);
                }
            }
        }
    }
}
