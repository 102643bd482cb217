//! What all calls share.

use std::sync::Arc;

use berth_backbone::{Backbone, Vault};
use berth_service_kit::Context;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::acquire::Versions;
use crate::auth::Keys;
use crate::complete::Results;
use crate::config::{Config, Limits};
use crate::gather::Gather;
use crate::metrics::Metrics;
use crate::queue::Queue;
use crate::register::Silence;
use crate::registry::Registry;

/// Most calls that one statement answers.
const BATCH: usize = 256;
/// Most results that are stored in one transaction.
const RESULTS: usize = 32;
/// Such transactions at once: while one commits another is written.
const LANES: usize = 2;

/// What all calls share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Broker {
    pub(crate) backbone: Backbone,
    /// Seals and opens provisioner state.
    pub(crate) vault: Vault,
    pub(crate) limits: Limits,
    pub(crate) access_url: String,
    /// Whether daemons may enter with a certificate.
    pub(crate) takes_certificates: bool,
    /// Who is connected to this replica.
    pub(crate) registry: Arc<Registry>,
    /// Who waits for a job at this replica.
    pub(crate) queue: Arc<Queue>,
    pub(crate) metrics: Arc<Metrics>,
    /// Keys that are being looked up.
    pub(crate) keys: Arc<Keys>,
    /// Versions whose dry runs and imports are being started.
    pub(crate) versions: Arc<Versions>,
    /// Results that are being stored together.
    pub(crate) results: Arc<Results>,
    pub(crate) uploads: Arc<Semaphore>,
    /// How long nothing may be heard of a daemon.
    pub(crate) silence: Silence,
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
            takes_certificates: config.grpc.tls.client_ca_file.is_some(),
            registry: Arc::default(),
            queue: Arc::default(),
            metrics: Arc::new(Metrics::register(metrics)?),
            keys: Gather::new(BATCH, 1),
            versions: Gather::new(BATCH, 1),
            results: Gather::new(RESULTS, LANES),
            silence: Silence::default(),
            uploads: Arc::new(Semaphore::new(config.limits.uploads)),
            stop,
            errands: TaskTracker::new(),
        })
    }
}
