//! What `/metrics` tells of requests.

use std::time::Duration;

use berth_domain::state::ClaimOutcome;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

/// Upper bounds in seconds.
const BUCKETS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// Counters of the edge.
#[derive(Clone)]
pub(crate) struct Metrics {
    requests: HistogramVec,
    limited: IntCounter,
    panics: IntCounter,
    claims: IntCounterVec,
    claim_seconds: HistogramVec,
    terminals: IntGauge,
}

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let options = HistogramOpts::new(
            "berth_http_request_seconds",
            "Time until the answer of a request begins.",
        )
        .buckets(BUCKETS.to_vec());
        let metrics = Self {
            requests: HistogramVec::new(options, &["method", "route", "status"])?,
            limited: IntCounter::new(
                "berth_http_rate_limited_total",
                "Requests refused because their caller sent too many.",
            )?,
            panics: IntCounter::new("berth_http_panics_total", "Handlers that panicked.")?,
            claims: IntCounterVec::new(
                Opts::new(
                    "berth_claims_total",
                    "Workspaces created, by whether a prebuild served and why not.",
                ),
                &["organization_name", "template_name", "preset_name", "outcome", "reason"],
            )?,
            claim_seconds: HistogramVec::new(
                HistogramOpts::new(
                    "berth_claim_transaction_seconds",
                    "Time that it takes to write a new workspace.",
                )
                .buckets(BUCKETS.to_vec()),
                &["outcome"],
            )?,
            terminals: IntGauge::new(
                "berth_terminals",
                "Terminals of agents that people have open at this replica.",
            )?,
        };
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.limited.clone()))?;
        registry.register(Box::new(metrics.panics.clone()))?;
        registry.register(Box::new(metrics.claims.clone()))?;
        registry.register(Box::new(metrics.claim_seconds.clone()))?;
        registry.register(Box::new(metrics.terminals.clone()))?;
        Ok(metrics)
    }

    /// `route` is the pattern, never the path: the label must not grow with ids.
    pub(crate) fn answered(&self, method: &str, route: &str, status: u16, took: Duration) {
        let class = ["1xx", "2xx", "3xx", "4xx", "5xx"];
        let class = class.get(usize::from(status / 100).wrapping_sub(1)).unwrap_or(&"other");
        self.requests.with_label_values(&[method, route, class]).observe(took.as_secs_f64());
    }

    /// By organization, template, preset, outcome and reason, in this order.
    pub(crate) fn claim_attempted(&self, labels: [&str; 5]) {
        self.claims.with_label_values(&labels).inc();
    }

    pub(crate) fn claim_written(&self, outcome: ClaimOutcome, took: Duration) {
        self.claim_seconds.with_label_values(&[outcome.as_str()]).observe(took.as_secs_f64());
    }

    /// A terminal is open for as long as the answer lives.
    pub(crate) fn terminal_opened(&self) -> OpenTerminal {
        self.terminals.inc();
        OpenTerminal(self.terminals.clone())
    }

    pub(crate) fn limited(&self) {
        self.limited.inc();
    }

    pub(crate) fn panicked(&self) {
        self.panics.inc();
    }
}

/// A terminal that is counted as open.
pub(crate) struct OpenTerminal(IntGauge);

impl Drop for OpenTerminal {
    fn drop(&mut self) {
        self.0.dec();
    }
}
