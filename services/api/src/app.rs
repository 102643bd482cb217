//! What every handler works with.

use std::sync::Arc;

use berth_backbone::{Backbone, Vault, Work};
use berth_db::DbError;
use berth_service_kit::Context;
use jiff::Timestamp;
use prometheus::Registry;
use tokio::sync::Semaphore;

use crate::config::Config;
use crate::identity::Identities;
use crate::live::Live;
use crate::metrics::Metrics;
use crate::password::Passwords;
use crate::rate_limit::RateLimits;
use crate::stream_limit::StreamLimits;

/// Archives received at once.
const UPLOADS: usize = 2;

/// What every handler works with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct App {
    /// Stores, clock and ids.
    pub(crate) backbone: Backbone,
    /// Seals and opens secrets.
    pub(crate) vault: Vault,
    /// The configuration.
    pub(crate) config: Arc<Config>,
    /// What `/metrics` tells of requests.
    pub(crate) metrics: Metrics,
    /// What streams listen to.
    pub(crate) live: Live,
    /// Hashes passwords.
    pub(crate) passwords: Passwords,
    /// Archives received at once: each is held in memory whole.
    pub(crate) uploads: Arc<Semaphore>,
    /// People's terminals served at once.
    pub(crate) terminals: Arc<Semaphore>,
    /// Workspaces created at once: as many as there are connections.
    pub(crate) creations: Arc<Semaphore>,
    /// Open streams by caller.
    pub(crate) streams: StreamLimits,
    /// Counts requests by caller.
    pub(crate) rate_limits: Arc<RateLimits>,
    /// Checks what clouds sign about their instances.
    pub(crate) identities: Arc<Identities>,
}

impl App {
    pub(crate) fn new(ctx: &Context<Config>, backbone: Backbone) -> anyhow::Result<Self> {
        let live = Live::start(ctx, &backbone)?;
        let app = Self::over(ctx.config.clone(), backbone, live, &ctx.metrics)?;
        app.vault.watch(ctx, app.backbone.db.clone(), app.backbone.clock.clone());
        Ok(app)
    }

    /// The same of parts, for tests.
    pub(crate) fn over(
        config: Config,
        backbone: Backbone,
        live: Live,
        metrics: &Registry,
    ) -> anyhow::Result<Self> {
        let config = Arc::new(config);
        let identities = Identities::load(&config.instance_identity, &config.http.access_url)?;
        let connections = usize::try_from(backbone.db.options().get_max_connections())?;
        Ok(Self {
            vault: config.encryption.vault()?,
            metrics: Metrics::register(metrics)?,
            live,
            passwords: Passwords::new(config.session.password_hashes)?,
            uploads: Arc::new(Semaphore::new(UPLOADS)),
            terminals: Arc::new(Semaphore::new(config.terminals.most)),
            creations: Arc::new(Semaphore::new(connections)),
            streams: StreamLimits::register(config.streams, metrics)?,
            rate_limits: Arc::new(RateLimits::new(config.rate_limit)),
            identities: Arc::new(identities),
            backbone,
            config,
        })
    }

    /// The pool, for single statements.
    pub(crate) fn db(&self) -> &berth_db::Pool {
        &self.backbone.db
    }

    /// The time.
    pub(crate) fn now(&self) -> Timestamp {
        self.backbone.clock.now()
    }

    /// Begins a unit of work.
    pub(crate) async fn begin(&self) -> Result<Work, DbError> {
        self.backbone.begin().await
    }
}
