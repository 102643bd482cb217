//! Pools as Prometheus sees them: read off the database, so that every replica shows the same.

use std::time::Duration;

use berth_backbone::Backbone;
use berth_db::pool::{self, PoolRow};
use prometheus::{Gauge, IntGaugeVec, Opts, Registry};
use tokio_util::sync::CancellationToken;

const EVERY: Duration = Duration::from_secs(15);
const LABELS: [&str; 3] = ["template_name", "preset_name", "organization_name"];

/// The gauges and totals of all pools.
pub(crate) struct Gauges {
    /// Name and value of each series, in the order of [`values`].
    series: Vec<IntGaugeVec>,
    hard_limited: IntGaugeVec,
    updated: Gauge,
}

/// Monotonic totals are stored in the database and only shown here, so they are gauges to this
/// process although they never go down.
const SERIES: [(&str, &str); 9] = [
    ("coderd_prebuilt_workspaces_desired", "Prebuilds wanted."),
    ("coderd_prebuilt_workspaces_running", "Prebuilds running."),
    ("coderd_prebuilt_workspaces_eligible", "Prebuilds that a claim would get at this moment."),
    ("berth_pool_starting", "Prebuilds on their way."),
    ("berth_pool_failed", "Prebuilds whose start failed and that are kept for a look."),
    ("coderd_prebuilt_workspaces_created_total", "Prebuilds created."),
    ("coderd_prebuilt_workspaces_failed_total", "Prebuilds whose start failed."),
    ("coderd_prebuilt_workspaces_claimed_total", "Prebuilds claimed."),
    ("coderd_prebuilt_workspaces_resource_replacements_total", "Claims that replaced a resource."),
];

fn values(row: &PoolRow) -> [i64; 9] {
    let [created, failed, claimed, replaced] = row.totals;
    [
        row.desired,
        row.running,
        row.eligible,
        row.starting,
        row.failed,
        created,
        failed,
        claimed,
        replaced,
    ]
}

impl Gauges {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let mut series = Vec::new();
        for (name, help) in SERIES {
            let gauge = IntGaugeVec::new(Opts::new(name, help), &LABELS)?;
            registry.register(Box::new(gauge.clone()))?;
            series.push(gauge);
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
        Ok(Self { series, hard_limited, updated })
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
        self.series.iter().for_each(IntGaugeVec::reset);
        self.hard_limited.reset();
        for row in rows {
            let labels = [
                row.template_name.as_str(),
                row.preset_name.as_str(),
                row.organization_name.as_str(),
            ];
            for (gauge, value) in self.series.iter().zip(values(row)) {
                gauge.with_label_values(&labels).set(value);
            }
            if row.is_hard_limited {
                self.hard_limited.with_label_values(&labels).set(1);
            }
        }
    }
}
