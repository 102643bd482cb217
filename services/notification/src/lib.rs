//! Turns events into messages. So far to inboxes; each message is stored once per recipient,
//! whatever the number of deliveries.

mod config;
mod expand;
mod render;

use std::sync::Arc;
use std::time::Duration;

use berth_backbone::Backbone;
use berth_bus::subjects::Stream;
use berth_bus::{Consumer, Delivery};
use berth_db::notification;
use berth_service_kit::Context;
use tokio_util::sync::CancellationToken;

pub use config::{Config, NotificationConfig};
pub use expand::Expander;
pub use render::{Rendered, render};

/// Shortest time between two looks at whether notifications are switched off.
const AT_LEAST: Duration = Duration::from_millis(100);

/// Runs the service until it is told to stop.
pub async fn run(ctx: Context<Config>) -> anyhow::Result<()> {
    let backbone = Backbone::open(&ctx).await?;
    let expander = Expander::new(backbone.db.clone(), backbone.clock.clone(), &ctx.metrics)?;
    let config = ctx.config.notifications.clone();
    ctx.spawn("messages", serve(backbone, expander, config, ctx.shutdown.clone()));
    ctx.drain().await
}

/// Consumes messages except while notifications are switched off; what is sent meanwhile waits in
/// the stream.
async fn serve(
    backbone: Backbone,
    expander: Expander,
    config: NotificationConfig,
    stop: CancellationToken,
) {
    let consumer = Consumer {
        stream: Stream::Notify,
        durable: "notification".to_owned(),
        filter: backbone.bus.subjects().all(Stream::Notify),
        limit: config.concurrency.max(1),
    };
    let poll = config.pause_poll.as_duration().max(AT_LEAST);
    while !stop.is_cancelled() {
        wait_for(false, &backbone, poll, &stop).await;
        let pause = stop.child_token();
        let consume = backbone.consume(&consumer, pause.clone(), |delivery: Arc<Delivery>| {
            let expander = expander.clone();
            async move { expander.expand(&delivery).await.map(drop) }
        });
        let watch = async {
            wait_for(true, &backbone, poll, &stop).await;
            pause.cancel();
        };
        tokio::join!(consume, watch);
    }
}

/// Waits until notifications are switched off (`paused`) or on. While the database does not say,
/// nothing changes.
async fn wait_for(paused: bool, backbone: &Backbone, poll: Duration, stop: &CancellationToken) {
    let mut ticks = tokio::time::interval(poll);
    loop {
        tokio::select! { _ = ticks.tick() => {}, () = stop.cancelled() => return }
        match notification::is_paused(&backbone.db).await {
            Ok(now) if now == paused => {
                tracing::info!(paused, "notifications switched");
                return;
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(error = %error, "not known whether notifications are on"),
        }
    }
}
