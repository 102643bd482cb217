//! What `/metrics` tells of requests.

use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntCounter, Registry};

/// Upper bounds in seconds.
const BUCKETS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// Counters of the edge.
#[derive(Clone)]
pub(crate) struct Metrics {
    requests: HistogramVec,
    limited: IntCounter,
    panics: IntCounter,
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
        };
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.limited.clone()))?;
        registry.register(Box::new(metrics.panics.clone()))?;
        Ok(metrics)
    }

    /// `route` is the pattern, never the path: the label must not grow with ids.
    pub(crate) fn answered(&self, method: &str, route: &str, status: u16, took: Duration) {
        let class = ["1xx", "2xx", "3xx", "4xx", "5xx"];
        let class = class.get(usize::from(status / 100).wrapping_sub(1)).unwrap_or(&"other");
        self.requests.with_label_values(&[method, route, class]).observe(took.as_secs_f64());
    }

    pub(crate) fn limited(&self) {
        self.limited.inc();
    }

    pub(crate) fn panicked(&self) {
        self.panics.inc();
    }
}
