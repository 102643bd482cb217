//! The admin port: `/livez`, `/readyz`, `/metrics`, `/log-level`.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use prometheus::{Registry, TextEncoder};
use tokio::net::TcpListener;

use crate::Health;
use crate::telemetry::LogLevel;

/// The largest log directive that is read, in bytes; more is answered with 413.
const MAX_DIRECTIVE: usize = 4096;

/// What the admin port shows and changes.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) health: Health,
    pub(crate) metrics: Registry,
    pub(crate) log_level: LogLevel,
}

/// The admin port could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr} (process.admin_addr); use a free port or port 0")]
pub(crate) struct BindError {
    addr: SocketAddr,
    source: std::io::Error,
}

/// Binds `addr` and serves there until the runtime ends, which is after the drain: readiness must
/// be seen to be off while the process drains. Returns the address it got.
pub(crate) async fn serve(addr: SocketAddr, admin: Admin) -> Result<SocketAddr, BindError> {
    let bound = async {
        let listener = TcpListener::bind(addr).await?;
        let local = listener.local_addr()?;
        Ok((listener, local))
    };
    let (listener, local) = bound.await.map_err(|source| BindError { addr, source })?;
    // It never ends by itself: axum retries failed accepts.
    tokio::spawn(axum::serve(listener, router(admin)).into_future());
    Ok(local)
}

fn router(admin: Admin) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/log-level", put(log_level))
        .layer(DefaultBodyLimit::max(MAX_DIRECTIVE))
        .with_state(admin)
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let report = admin.health.report();
    let status = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::to_string(&report).expect("a report has only strings and booleans");
    (status, [(header::CONTENT_TYPE, "application/json")], body + "\n").into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    match TextEncoder::new().encode_to_string(&admin.metrics.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "cannot encode metrics");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn log_level(State(admin): State<Admin>, directive: String) -> Response {
    match admin.log_level.set(directive.trim()) {
        Ok(()) => {
            tracing::info!(level = directive.trim(), "log level changed");
            StatusCode::NO_CONTENT.into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error:#}\n")).into_response(),
    }
}
