//! What all calls share.

use std::sync::Arc;

use berth_backbone::{Backbone, Vault};
use berth_service_kit::Context;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, Limits};
use crate::metrics::Metrics;
use crate::queue::Queue;
use crate::registry::Registry;

/// What all calls share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Broker {
    pub(crate) backbone: Backbone,
    /// Seals and opens provisioner state.
    pub(crate) vault: Vault,
    pub(crate) limits: Limits,
    pub(crate) access_url: String,
    /// Who is connected to this replica.
    pub(crate) registry: Arc<Registry>,
    /// Who waits for a job at this replica.
    pub(crate) queue: Arc<Queue>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) uploads: Arc<Semaphore>,
    /// Cancelled when the process has to stop.
    pub(crate) stop: CancellationToken,
    /// What outlives the call that began it; waited for at the end.
    pub(crate) errands: TaskTracker,
}

impl Broker {
    pub(crate) fn new(ctx: &Context<Config>, backbone: Backbone) -> anyhow::Result<Self> {
        let broker = Self::over(&ctx.config, backbone, &ctx.metrics, ctx.shutdown.clone())?;
        broker.vault.watch(ctx, broker.backbone.db.clone(), broker.backbone.clock.clone());
        Ok(broker)
    }

    /// A broker over stores that are open already.
    pub(crate) fn over(
        config: &Config,
        backbone: Backbone,
        metrics: &prometheus::Registry,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            backbone,
            vault: config.encryption.vault()?,
            limits: config.limits.clone(),
            access_url: config.access_url.clone(),
            registry: Arc::default(),
            queue: Arc::default(),
            metrics: Arc::new(Metrics::register(metrics)?),
            uploads: Arc::new(Semaphore::new(config.limits.uploads)),
            stop,
            errands: TaskTracker::new(),
        })
    }
}
