//! What a pass counts.

use prometheus::{Histogram, HistogramOpts, IntCounterVec, Opts, Registry};

/// Counters of the reconciler.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    /// Presets by what came of looking at them.
    pub(crate) presets: IntCounterVec,
    /// Seconds that a whole sweep took.
    pub(crate) sweep_seconds: Histogram,
}

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let presets = IntCounterVec::new(
            Opts::new("berth_reconcile_presets_total", "Presets looked at, by what came of it."),
            &["result"],
        )?;
        let sweep_seconds = Histogram::with_opts(HistogramOpts::new(
            "coderd_prebuilds_reconciliation_duration_seconds",
            "How long a sweep over all pools that need a look took.",
        ))?;
        registry.register(Box::new(presets.clone()))?;
        registry.register(Box::new(sweep_seconds.clone()))?;
        Ok(Self { presets, sweep_seconds })
    }
}
