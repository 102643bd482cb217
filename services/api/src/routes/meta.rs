//! What the deployment says of itself, and its own binary for remote agents.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use berth_db::site_setting;
use http::{HeaderMap, HeaderValue, header};
use serde_json::{Value, json};
use tokio_util::io::ReaderStream;

use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::Json;

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/buildinfo", get(build_info))
        .route("/experiments", get(experiments))
        .route("/experiments/available", get(available_experiments))
}

/// Routes outside `/api/v2`.
pub(crate) fn outside() -> Router<App> {
    Router::new().route("/bin/berth-linux-amd64", get(binary))
}

#[tracing::instrument(name = "http.meta.build_info", skip_all)]
async fn build_info(State(app): State<App>, headers: HeaderMap) -> Result<Json<Value>, ApiError> {
    let id = site_setting::find(app.db(), "deployment_id").await?.unwrap_or_default();
    let host = headers.get(header::HOST).and_then(|it| it.to_str().ok()).unwrap_or_default();
    let url = match app.config.http.access_url.as_str() {
        "" => format!("http://{host}"),
        url => url.to_owned(),
    };
    Ok(Json(json!({
        "version": concat!("v", env!("CARGO_PKG_VERSION")),
        "external_url": url,
        "dashboard_url": url,
        "deployment_id": id,
        "telemetry": false,
        "workspace_proxy": false,
        "agent_api_version": "2.0",
        "provisioner_api_version": "1.0",
        "upgrade_message": "",
        "webpush_public_key": "",
    })))
}

/// Those that the contract knows and that are on. Our own flags are none of its values.
#[tracing::instrument(name = "http.meta.experiments", skip_all)]
async fn experiments(_: Caller) -> Json<[&'static str; 1]> {
    Json(["notifications"])
}

#[tracing::instrument(name = "http.meta.available_experiments", skip_all)]
async fn available_experiments(_: Caller) -> Json<Value> {
    Json(json!(["notifications"]))
}

/// The binary that serves this, for machines that run an agent.
#[tracing::instrument(name = "http.meta.binary", skip_all)]
async fn binary() -> Result<Response, ApiError> {
    let path = std::env::current_exe().map_err(ApiError::internal)?;
    let file = tokio::fs::File::open(path).await.map_err(ApiError::internal)?;
    let length = file.metadata().await.map_err(ApiError::internal)?.len();
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (header::CONTENT_LENGTH, HeaderValue::from(length)),
    ];
    Ok((headers, Body::from_stream(ReaderStream::new(file))).into_response())
}
