//! gRPC for provisioner daemons: jobs, logs, results, files; the reaper.
//!
//! Any number of replicas: what a job's row says decides, and every report carries the lease token
//! of the holding it belongs to. A replica keeps in memory only who is connected to it and who
//! waits for a job there.

mod acquire;
mod auth;
mod broker;
mod certificate;
mod complete;
mod config;
mod effect;
mod error;
mod file;
mod gather;
mod give_up;
mod incoming;
mod listen;
mod metrics;
mod queue;
#[cfg(test)]
mod queue_tests;
mod quota;
mod reaper;
mod register;
mod registry;
mod service;
mod tls;
mod update;

pub use config::{Config, Grpc, Limits, Tls};

use std::time::Duration;

use berth_backbone::Backbone;
use berth_proto::MAX_MESSAGE;
use berth_proto::v1::provisioner_service_server::ProvisionerServiceServer;
use berth_service_kit::Context;
use tokio::net::TcpListener;
use tonic::transport::Server;

use crate::broker::Broker;
use crate::service::Service;
use crate::tls::ServerTls;

/// How long calls in hand, and connections that their clients leave open, may hold up the end.
const FAREWELL: Duration = Duration::from_secs(4);

/// Runs the broker until it is told to stop. Announces `grpc`, the address it listens on.
pub async fn run(ctx: Context<Config>) -> anyhow::Result<()> {
    let backbone = Backbone::open(&ctx).await?;
    let broker = Broker::new(&ctx, backbone)?;
    let tls = ServerTls::open(&ctx.config.grpc.tls).await?;
    let listener = TcpListener::bind(ctx.config.grpc.addr).await?;
    ctx.announce("grpc", listener.local_addr()?)?;
    ctx.spawn("postings", listen::postings(broker.clone()));
    ctx.spawn("cancels", listen::cancels(broker.clone()));
    ctx.spawn("drains", listen::drains(broker.clone()));
    ctx.spawn("reaper", reaper::run(broker.clone()));
    ctx.spawn("gauges", metrics::sample(broker.clone()));
    ctx.spawn("grpc", serve(broker, listener, tls));
    ctx.drain().await
}

/// Serves until shutdown; then streams end, polls answer with nothing, and calls in hand finish.
/// Daemons come again, to this broker or another, and miss nothing: what they report they send until
/// somebody has taken it.
async fn serve(
    broker: Broker,
    listener: TcpListener,
    tls: Option<ServerTls>,
) -> Result<(), tonic::transport::Error> {
    let service = ProvisionerServiceServer::new(Service(broker.clone()))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let incoming = incoming::connections(listener, tls, broker.stop.clone());
    let stop = broker.stop.clone();
    let served = Server::builder()
        .http2_keepalive_interval(Some(config::KEEPALIVE))
        .http2_keepalive_timeout(Some(config::KEEPALIVE))
        .trace_fn(span)
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned());
    let stop = broker.stop.clone();
    let outcome = tokio::select! {
        served = served => served,
        () = async { stop.cancelled().await; tokio::time::sleep(FAREWELL).await } => {
            tracing::warn!("connections still open 4 s after the end of service; they break now");
            Ok(())
        }
    };
    // What callers left behind: jobs to put back, daemons to mark as gone.
    broker.errands.close();
    broker.errands.wait().await;
    outcome
}

/// The span of a call: a part of the daemon's trace.
fn span(request: &http::Request<()>) -> tracing::Span {
    let method = request.uri().path().rsplit('/').next().unwrap_or_default();
    let span = tracing::info_span!("rpc.provisioner", rpc.method = method);
    let headers = request.headers().iter();
    let headers = headers.filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
    berth_bus::trace::continue_from(&span, headers);
    span
}

#[cfg(test)]
mod tests;
