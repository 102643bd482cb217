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
use crate::config::Experiment;
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
        "provisioner_api_version": "1.1",
        "upgrade_message": "",
        "webpush_public_key": "",
    })))
}

/// Those that are on: what the contract calls one and Berth always has, and our own flags.
#[tracing::instrument(name = "http.meta.experiments", skip_all)]
async fn experiments(State(app): State<App>, _: Caller) -> Json<Vec<Value>> {
    let is_on = |it: &Experiment| app.config.experiments.contains(*it);
    let ours = Experiment::ALL.into_iter().filter(is_on).map(|it| json!(it));
    Json([json!("notifications")].into_iter().chain(ours).collect())
}

/// Those that could be on.
#[tracing::instrument(name = "http.meta.available_experiments", skip_all)]
async fn available_experiments(_: Caller) -> Json<Vec<Value>> {
    let ours = Experiment::ALL.into_iter().map(|it| json!(it));
    Json([json!("notifications")].into_iter().chain(ours).collect())
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

#[cfg(test)]
mod tests {
    use berth_testkit::TestDatabase;

    use super::*;
    use crate::config::Config;
    use crate::replica::{NOW, Replica};

    #[tokio::test]
    async fn the_experiments_that_are_on_are_listed_and_no_others() {
        let database = TestDatabase::create().await;
        let user = "00000000-0000-0000-0000-000000000001";
        let rows = format!(
            "insert into users (id, username, email, created_at, updated_at)
                 values ('{user}', 'olga', 'olga@example.com', now(), now());
             insert into api_keys (id, secret_hash, user_id, login_type, lifetime_seconds,
                     last_used_at, expires_at, created_at, updated_at)
                 values ('Owner00000', sha256('abcdefghijklmnopqrstuv'), '{user}', 'password',
                         86400, '{NOW}', timestamptz '{NOW}' + interval '1 day', '{NOW}', '{NOW}')"
        );
        database.rows(&rows).await;
        let list = async |config: Config, path: &str| {
            let api = Replica::over(&database.url, 2, config).await;
            let token = Some("Owner00000-abcdefghijklmnopqrstuv");
            api.send(token, Replica::request(path), Body::empty()).await.expect(200)
        };
        let off =
            || Config { experiments: serde_json::from_str("[]").unwrap(), ..Config::default() };
        let both = json!(["notifications", "workspace-build-updates"]);
        assert_eq!(list(Config::default(), "/experiments").await, both);
        assert_eq!(list(off(), "/experiments").await, json!(["notifications"]));
        assert_eq!(list(off(), "/experiments/available").await, both);
    }
}
