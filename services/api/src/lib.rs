//! REST, server-sent events and WebSockets under `/api/v2`.

mod app;
mod audit;
mod auth;
mod config;
mod edge;
mod error;
mod extract;
mod identity;
mod job_view;
mod live;
mod lookup;
mod metrics;
mod password;
mod rate_limit;
#[cfg(test)]
mod replica;
mod routes;
mod stream_limit;

use std::net::SocketAddr;

use anyhow::Context as _;
use axum::serve::ListenerExt as _;
use berth_backbone::Backbone;
use berth_service_kit::Context;
use tokio::net::TcpListener;

pub use crate::config::{
    Config, Experiment, Experiments, HttpConfig, RateLimitConfig, SessionConfig, StreamConfig,
    TerminalConfig,
};
pub use crate::identity::{AwsConfig, AzureConfig, GoogleConfig, InstanceIdentityConfig};

/// Serves the API until the process is told to stop. Announces `http`, the address it listens on.
pub async fn run(ctx: Context<Config>) -> anyhow::Result<()> {
    let backbone = Backbone::open(&ctx).await?;
    let app = app::App::new(&ctx, backbone)?;
    let wanted = ctx.config.http.listen;
    let listener =
        TcpListener::bind(wanted).await.with_context(|| format!("listen on {wanted}"))?;
    let address = listener.local_addr().context("read the address that was bound")?;
    // A small update must not wait for the reader's acknowledgement of the one before.
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(error = %error, "small writes may be delayed");
        }
    });
    let router = routes::router(app).into_make_service_with_connect_info::<SocketAddr>();
    let latch = ctx.health.latch("http");
    let stop = ctx.shutdown.clone();
    ctx.spawn("http", async move {
        latch.set_ready();
        axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
    });
    ctx.announce("http", address)?;
    ctx.drain().await
}
