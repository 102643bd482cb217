//! Pools as Prometheus sees them: read off the database, so that every replica shows the same.

use std::time::Duration;

use berth_backbone::Backbone;
use berth_db::pool::{self, PoolRow};
use prometheus::{Gauge, IntCounterVec, IntGaugeVec, Opts, Registry};
use tokio_util::sync::CancellationToken;

const EVERY: Duration = Duration::from_secs(15);
const LABELS: [&str; 3] = ["template_name", "preset_name", "organization_name"];

/// The gauges and totals of all pools.
pub(crate) struct Gauges {
    /// In the order of [`GAUGES`].
    levels: Vec<IntGaugeVec>,
    /// In the order of [`TOTALS`].
    totals: Vec<IntCounterVec>,
    hard_limited: IntGaugeVec,
    updated: Gauge,
}

const GAUGES: [(&str, &str); 5] = [
    ("coderd_prebuilt_workspaces_desired", "Prebuilds wanted."),
    ("coderd_prebuilt_workspaces_running", "Prebuilds running."),
    ("coderd_prebuilt_workspaces_eligible", "Prebuilds that a claim would get at this moment."),
    ("berth_pool_starting", "Prebuilds on their way."),
    ("berth_pool_failed", "Prebuilds whose start failed and that are kept for a look."),
];

/// Stored in the database, so that they never go down, whoever shows them.
const TOTALS: [(&str, &str); 4] = [
    ("coderd_prebuilt_workspaces_created_total", "Prebuilds created."),
    ("coderd_prebuilt_workspaces_failed_total", "Prebuilds whose start failed."),
    ("coderd_prebuilt_workspaces_claimed_total", "Prebuilds claimed."),
    ("coderd_prebuilt_workspaces_resource_replacements_total", "Claims that replaced a resource."),
];

fn values(row: &PoolRow) -> [i64; 5] {
    [row.desired, row.running, row.eligible, row.starting, row.failed]
}

impl Gauges {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
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
        let hard_limited = IntGaugeVec::new(
            Opts::new(
                "coderd_prebuilt_workspaces_preset_hard_limited",
                "1 while the preset's breaker is open; absent otherwise.",
            ),
            &LABELS,
        )?;
        registry.register(Box::new(hard_limited.clone()))?;
        let updated = Gauge::new(
            "coderd_prebuilt_workspaces_metrics_last_updated",
            "When these were read, in Unix seconds.",
        )?;
        registry.register(Box::new(updated.clone()))?;
        Ok(Self { levels: gauges, totals, hard_limited, updated })
    }

    /// Refreshes the gauges until shutdown.
    pub(crate) async fn run(self, backbone: Backbone, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(EVERY);
        loop {
            tokio::select! { _ = ticks.tick() => {}, () = stop.cancelled() => return }
            match pool::list_rows(&backbone.db).await {
                Ok(rows) => {
                    self.show(&rows);
                    let now = backbone.clock.now();
                    self.updated.set(now.as_duration().as_secs_f64());
                }
                Err(error) => tracing::warn!(error = %error, "pools not measured"),
            }
        }
    }

    fn show(&self, rows: &[PoolRow]) {
        // A pool that is gone must not stay on show.
        self.levels.iter().for_each(IntGaugeVec::reset);
        self.totals.iter().for_each(IntCounterVec::reset);
        self.hard_limited.reset();
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
            if row.is_hard_limited {
                self.hard_limited.with_label_values(&labels).set(1);
            }
        }
    }
}
