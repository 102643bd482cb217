//! What a pass counts.

use berth_domain::plan::Plan;
use jiff::SignedDuration;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry};

/// Seconds from a change to the plan that heeds it.
const LATENCY_BUCKETS: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 120.0];

/// Counters of the reconciler.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    /// Presets by what came of looking at them, and what held creation.
    presets: IntCounterVec,
    /// Seconds from the oldest mark that a pass took away to its commit.
    latency: Histogram,
    /// Seconds that a whole sweep took.
    pub(crate) sweep_seconds: Histogram,
    /// Pools that no mark told of although they had changed, and members that were not what their
    /// build says.
    pub(crate) drift: IntCounter,
}

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let presets = IntCounterVec::new(
            Opts::new(
                "berth_reconcile_presets_total",
                "Presets looked at, planned, acted on, and held back, by what held them.",
            ),
            &["result", "reason"],
        )?;
        let latency = Histogram::with_opts(
            HistogramOpts::new(
                "berth_reconcile_trigger_latency_seconds",
                "From the change that marked a pool to the plan that heeds it.",
            )
            .buckets(LATENCY_BUCKETS.to_vec()),
        )?;
        let sweep_seconds = Histogram::with_opts(HistogramOpts::new(
            "coderd_prebuilds_reconciliation_duration_seconds",
            "How long a sweep over all pools that need a look took.",
        ))?;
        let drift = IntCounter::new(
            "berth_pool_drift_total",
            "Pools and prebuilds that had changed without a mark, as the audit found them.",
        )?;
        registry.register(Box::new(presets.clone()))?;
        registry.register(Box::new(latency.clone()))?;
        registry.register(Box::new(sweep_seconds.clone()))?;
        registry.register(Box::new(drift.clone()))?;
        Ok(Self { presets, latency, sweep_seconds, drift })
    }

    /// Counts one preset. Reasons are names of [`berth_domain::plan::Reason`].
    pub(crate) fn count(&self, result: &str, reason: &str) {
        self.presets.with_label_values(&[result, reason]).inc();
    }

    /// Counts a plan that was committed, `after` the oldest change that it heeds.
    pub(crate) fn count_plan(&self, plan: &Plan, after: Option<SignedDuration>) {
        self.count("planned", "");
        if !plan.is_settled() {
            self.count("acted", "");
        }
        for reason in plan.holds() {
            self.count("held", reason);
        }
        if let Some(after) = after {
            self.latency.observe(after.as_secs_f64().max(0.0));
        }
    }
}
