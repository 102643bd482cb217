//! What the broker measures.

use std::time::Duration;

use berth_db::job;
use berth_domain::state::JobClass;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::broker::Broker;

/// How often the gauges are read off the database.
const EVERY: Duration = Duration::from_secs(15);

/// What the broker measures.
pub(crate) struct Metrics {
    pub(crate) waits: HistogramVec,
    pub(crate) ended: IntCounterVec,
    daemons: IntGauge,
    depth: IntGaugeVec,
}

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let waits = HistogramVec::new(
            HistogramOpts::new(
                "coderd_provisioner_job_queue_wait_seconds",
                "Time from a job's queueing to its start.",
            )
            .buckets(vec![
                0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0,
            ]),
            &["provisioner_type", "job_type", "transition", "build_reason"],
        )?;
        let ended = IntCounterVec::new(
            Opts::new("berth_provisioner_jobs_ended_total", "Jobs that ended, by how."),
            &["job_type", "status"],
        )?;
        let daemons = IntGauge::new("coderd_provisionerd_num_daemons", "Daemons heard of lately.")?;
        let depth = IntGaugeVec::new(
            Opts::new("berth_provisioner_queue_depth", "Jobs that wait."),
            &["organization_name", "class"],
        )?;
        registry.register(Box::new(waits.clone()))?;
        registry.register(Box::new(ended.clone()))?;
        registry.register(Box::new(daemons.clone()))?;
        registry.register(Box::new(depth.clone()))?;
        Ok(Self { waits, ended, daemons, depth })
    }
}

/// Reads the gauges off the database until shutdown.
pub(crate) async fn sample(broker: Broker) {
    loop {
        let alive = i64::try_from(broker.registry.alive()).unwrap_or(i64::MAX);
        broker.metrics.daemons.set(alive);
        if let Ok(rows) = job::depth(&broker.backbone.db).await {
            broker.metrics.depth.reset();
            for (organization, rank, count) in rows {
                let class = JobClass::ALL.iter().find(|it| it.rank() == rank);
                let class = class.map_or("other", |it| it.as_str());
                broker.metrics.depth.with_label_values(&[organization.as_str(), class]).set(count);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = broker.stop.cancelled() => return,
        }
    }
}
