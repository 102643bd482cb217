//! Keeps the prebuilds user in the organizations and groups it needs.
//!
//! A pass is one statement over all organizations, and inserts of what that found missing. It runs
//! at start, at every interval, and for one organization when a hint or a promoted template names
//! it.

mod config;
mod metrics;
mod pass;

use std::sync::Arc;

use anyhow::Context as _;
use berth_backbone::Backbone;
use berth_bus::event::{Sleeper, TemplateChanged, TemplateVerb, Wake};
use berth_bus::subjects::Stream;
use berth_bus::{Consumer, Delivery, HandlerError};
use berth_domain::id::OrganizationId;
use berth_service_kit::Context;
use tokio_util::sync::CancellationToken;

pub use config::{Config, MembershipConfig};
pub use metrics::Metrics;
pub use pass::{Membership, Outcome, UNUSED_FOR};

/// Deliveries handled at once.
const IN_FLIGHT: usize = 4;

/// Runs the service until it is told to stop.
pub async fn run(ctx: Context<Config>) -> anyhow::Result<()> {
    let backbone = Backbone::open(&ctx).await?;
    let keeper = Keeper::new(backbone, &ctx.config.membership, Metrics::register(&ctx.metrics)?);

    let interval = ctx.config.membership.interval.as_duration();
    ctx.spawn("sweep", keeper.clone().sweep(interval, ctx.shutdown.clone()));
    ctx.spawn("wakeups", keeper.clone().listen(Hint::Wake, ctx.shutdown.clone()));
    ctx.spawn("templates", keeper.listen(Hint::Template, ctx.shutdown.clone()));
    ctx.drain().await
}

/// Where hints come from.
#[derive(Debug, Clone, Copy)]
pub enum Hint {
    /// Somebody asks for one organization to be looked at.
    Wake,
    /// A template was promoted or deleted.
    Template,
}

impl Hint {
    fn consumer(self, backbone: &Backbone) -> Consumer {
        let subjects = backbone.bus.subjects();
        let (stream, durable, filter) = match self {
            Self::Wake => {
                let filter = subjects.wakes(Sleeper::MembershipReconciler);
                (Stream::Wake, "membership-reconciler", filter)
            }
            Self::Template => (
                Stream::Templates,
                "membership-reconciler-templates",
                subjects.all(Stream::Templates),
            ),
        };
        Consumer { stream, durable: durable.to_owned(), filter, limit: IN_FLIGHT }
    }

    /// Which organization to look at; `None`: this changes nothing for us.
    fn organization(self, delivery: &Delivery) -> anyhow::Result<Option<OrganizationId>> {
        match self {
            Self::Wake => {
                let key = delivery.key();
                let id = key.parse().with_context(|| {
                    format!("the key {key:?} of a wake-up is no organization's id")
                })?;
                Ok(Some(id))
            }
            Self::Template => {
                let change: TemplateChanged = serde_json::from_slice(&delivery.payload)
                    .with_context(|| {
                        format!("payload on {} is no template event", delivery.subject)
                    })?;
                let matters = matches!(change.what, TemplateVerb::Promoted | TemplateVerb::Deleted);
                Ok(matters.then_some(change.organization_id))
            }
        }
    }
}

/// Asks for passes: when time has come, and when a hint arrives.
#[derive(Clone)]
pub struct Keeper {
    backbone: Backbone,
    membership: Membership,
}

impl Keeper {
    /// Keeps what `config` asks for in the stores of `backbone`.
    #[must_use]
    pub fn new(backbone: Backbone, config: &MembershipConfig, metrics: Metrics) -> Self {
        let membership = Membership {
            db: backbone.db.clone(),
            clock: backbone.clock.clone(),
            ids: backbone.ids,
            concurrency: config.concurrency,
            remove_unused: config.remove_unused,
            metrics,
        };
        Self { backbone, membership }
    }

    /// A pass over all organizations now, and at every interval.
    pub async fn sweep(self, interval: std::time::Duration, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(interval.max(std::time::Duration::from_millis(100)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! { _ = ticks.tick() => {}, () = stop.cancelled() => return }
            if let Err(error) = self.look(None).await {
                let error = format!("{error:#}");
                tracing::warn!(error, "membership not checked; the next sweep tries again");
                // At start the database may not be there yet: waiting a whole interval is too long.
                ticks.reset_after(interval.min(std::time::Duration::from_secs(1)));
            }
        }
    }

    /// A pass over one organization for every hint.
    pub async fn listen(self, hint: Hint, stop: CancellationToken) {
        let consumer = hint.consumer(&self.backbone);
        let handle = |delivery: Arc<Delivery>| {
            let this = self.clone();
            async move { this.answer(hint, &delivery).await }
        };
        self.backbone.consume(&consumer, stop, handle).await;
    }

    #[tracing::instrument(name = "membership.hint", skip_all, fields(subject = %delivery.subject))]
    async fn answer(&self, hint: Hint, delivery: &Delivery) -> Result<(), HandlerError> {
        let headers = delivery.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        berth_bus::trace::link(headers);
        let organization = hint.organization(delivery).map_err(HandlerError::Poison)?;
        match organization {
            Some(organization) => Ok(self.look(Some(organization)).await?),
            None => Ok(()),
        }
    }

    /// A pass, then one hint for the pools that it marked.
    async fn look(&self, only: Option<OrganizationId>) -> anyhow::Result<()> {
        let outcome = self.membership.pass(only).await?;
        if outcome.pools > 0 {
            let mut work = self.backbone.begin().await?;
            work.emit(Wake::sweep());
            work.commit().await?;
        }
        if let (Some(organization), false) = (only, outcome.failed.is_empty()) {
            anyhow::bail!("organization {organization} was not set right; its error is logged");
        }
        Ok(())
    }
}
