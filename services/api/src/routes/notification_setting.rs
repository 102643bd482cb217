//! `/notifications/settings`: whether notifications are sent at all.

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use berth_db::{notification, site_setting};
use berth_domain::authz::{Action, Resource, ResourceKind};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::app::App;
use crate::audit::{self, Change};
use crate::auth::Caller;
use crate::edge::Origin;
use crate::error::ApiError;
use crate::extract::Json;

/// The setting that the notification service reads before it sends.
const KEY: &str = "notifier_paused";

pub(crate) fn routes() -> Router<App> {
    Router::new().route("/notifications/settings", get(show).put(change))
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Settings {
    #[serde(default)]
    notifier_paused: bool,
}

#[tracing::instrument(name = "http.notification_setting.get", skip_all)]
async fn show(State(app): State<App>, caller: Caller) -> Result<Json<Settings>, ApiError> {
    caller.authorize(Action::Read, &Resource::new(ResourceKind::DeploymentConfig))?;
    let notifier_paused = notification::is_paused(app.db()).await?;
    Ok(Json(Settings { notifier_paused }))
}

/// 304 when nothing changes.
#[tracing::instrument(name = "http.notification_setting.update", skip_all)]
async fn change(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Json(wanted): Json<Settings>,
) -> Result<Response, ApiError> {
    caller.authorize(Action::Update, &Resource::new(ResourceKind::DeploymentConfig))?;
    let mut work = app.begin().await?;
    let paused = notification::is_paused(work.conn()).await?;
    if paused == wanted.notifier_paused {
        return Ok(StatusCode::NOT_MODIFIED.into_response());
    }
    let now = work.now();
    let value = Value::Bool(wanted.notifier_paused);
    site_setting::upsert(work.conn(), KEY, &value, now).await?;
    let diff = audit::diff(&json!({ KEY: paused }), &json!({ KEY: value }));
    let id = work.id();
    let change = Change::new("write", "notifications_settings", id).of(KEY).with_diff(diff);
    audit::record(&mut work, caller.id(), &origin, change).await?;
    work.commit().await?;
    Ok(Json(wanted).into_response())
}
