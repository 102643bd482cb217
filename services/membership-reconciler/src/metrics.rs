//! What a pass counts.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Counters of the membership reconciler.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(crate) passes: IntCounterVec,
    pub(crate) pass_seconds: Histogram,
    pub(crate) inserts: IntCounterVec,
    pub(crate) removals: IntCounterVec,
    pub(crate) errors: IntCounter,
    pub(crate) out_of_order: IntGauge,
}

impl Metrics {
    /// Makes the metrics and shows them in `registry`.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            passes: IntCounterVec::new(
                Opts::new("berth_membership_passes_total", "Passes, by what came of them."),
                &["result"],
            )?,
            pass_seconds: Histogram::with_opts(HistogramOpts::new(
                "berth_membership_pass_duration_seconds",
                "How long a pass took.",
            ))?,
            inserts: IntCounterVec::new(
                Opts::new("berth_membership_inserts_total", "Rows that were missing, by kind."),
                &["kind"],
            )?,
            removals: IntCounterVec::new(
                Opts::new(
                    "berth_membership_removals_total",
                    "Rows of the reconciler's own that were removed as unused, by kind.",
                ),
                &["kind"],
            )?,
            errors: IntCounter::new(
                "berth_membership_organization_errors_total",
                "Organizations that could not be set right in a pass.",
            )?,
            out_of_order: IntGauge::new(
                "berth_membership_organizations_out_of_order",
                "Organizations without what prebuilds need: found by the newest sweep, and not set right.",
            )?,
        };
        registry.register(Box::new(metrics.passes.clone()))?;
        registry.register(Box::new(metrics.pass_seconds.clone()))?;
        registry.register(Box::new(metrics.inserts.clone()))?;
        registry.register(Box::new(metrics.removals.clone()))?;
        registry.register(Box::new(metrics.errors.clone()))?;
        registry.register(Box::new(metrics.out_of_order.clone()))?;
        Ok(metrics)
    }
}
