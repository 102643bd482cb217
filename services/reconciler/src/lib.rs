//! Brings every pool to its desired size.
//!
//! Woken by a hint on NATS within milliseconds, by the clock when time alone changes a plan, and by
//! a sweep that needs neither. Every way leads to the same pass over one preset: lock, read, decide
//! once ([`berth_domain::plan::plan`]), write, commit.

mod audit;
mod config;
mod execute;
mod gauges;
mod metrics;
mod pass;
mod promotion;
mod rehearsal;
mod sweep;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use berth_backbone::Backbone;
use berth_bus::event::{Sleeper, Wake};
use berth_bus::subjects::Stream;
use berth_bus::{Consumer, Delivery, HandlerError};
use berth_db::pool::Patience;
use berth_domain::id::PresetId;
use berth_service_kit::Context;

pub use config::Config;
use pass::Reconciler;

/// Runs the service until it is told to stop.
pub async fn run(ctx: Context<Config>) -> anyhow::Result<()> {
    let backbone = Backbone::open(&ctx).await?;
    let metrics = metrics::Metrics::register(&ctx.metrics)?;
    let reconciler = Reconciler::new(backbone.clone(), &ctx.config, metrics);

    ctx.spawn("sweep", sweep::run(reconciler.clone(), ctx.shutdown.clone()));
    ctx.spawn("audit", audit::run(reconciler.clone(), ctx.shutdown.clone()));
    let gauges = gauges::Gauges::register(&ctx.metrics, ctx.config.pool_series)?;
    ctx.spawn("gauges", gauges.run(backbone.clone(), ctx.shutdown.clone()));
    let consumer = Consumer {
        stream: Stream::Wake,
        durable: "reconciler".to_owned(),
        filter: backbone.bus.subjects().wakes(Sleeper::Reconciler),
        limit: ctx.config.concurrency(),
    };
    let stop = ctx.shutdown.clone();
    ctx.spawn("wakeups", async move {
        let handle = |delivery: Arc<Delivery>| wake(reconciler.clone(), delivery);
        backbone.consume(&consumer, stop, handle).await;
    });
    ctx.drain().await
}

/// One hint: look at this preset now, or at all that are marked.
#[tracing::instrument(name = "reconcile.wakeup", skip_all, fields(preset.id = delivery.key()))]
async fn wake(reconciler: Reconciler, delivery: Arc<Delivery>) -> Result<(), HandlerError> {
    let headers = delivery.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    berth_bus::trace::link(headers);
    if delivery.key() == Wake::SWEEP {
        reconciler.sweep.notify_one();
        return Ok(());
    }
    let preset: PresetId =
        delivery.key().parse().map_err(|error| HandlerError::Poison(anyhow::Error::new(error)))?;
    let outcome = reconciler.reconcile(preset, Patience::Wait).await;
    outcome.map(|_| ()).map_err(HandlerError::Transient)
}
