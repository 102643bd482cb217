//! Prebuilds as operators see them: pools, why they are as they are, pauses and policies.

mod change;
mod explain;
mod pause;
mod plan;
mod policy;
#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeSet;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post};
use berth_backbone::Work;
use berth_bus::event::Wake;
use berth_db::pause::NewPause;
use berth_db::prebuild::{self, Filter, Pool};
use berth_domain::authz::{Action, Resource, ResourceKind};
use berth_domain::id::{OrganizationId, PresetId};
use berth_domain::plan::{PauseScope, Reason, Standing};
use berth_domain::schedule;
use http::StatusCode;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::app::App;
use crate::auth::Caller;
use crate::edge::Origin;
use crate::error::ApiError;
use crate::extract::Json;
use crate::routes::workspace_change;

/// Routes of prebuilds.
pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/prebuilds/settings", get(settings).put(change))
        .route("/prebuilds/pools", get(pools))
        .route("/prebuilds/pauses", get(pause::list).post(pause::create))
        .route("/prebuilds/pauses/{pause}", delete(pause::remove))
        .route("/templates/{template}/pool-policy", get(policy::show).put(policy::replace))
        .route("/templates/{template}/prebuilds/plan", get(plan::show))
        .route("/templates/{template}/prebuilds/explain", get(explain::show))
        .route("/templates/{template}/prebuilds/reset", post(change::reset))
        .route("/templates/{template}/prebuilds/invalidate", post(change::invalidate))
}

/// Wakes the reconciler for pools that were marked.
fn wake(work: &mut Work, presets: &[PresetId]) {
    for event in Wake::pools(presets) {
        work.emit(event);
    }
}

async fn settings(State(app): State<App>, caller: Caller) -> Result<Json<Value>, ApiError> {
    caller.authorize(Action::Read, &Resource::new(ResourceKind::DeploymentConfig))?;
    let paused = prebuild::is_paused(app.db(), app.now()).await?;
    Ok(Json(json!({ "reconciliation_paused": paused })))
}

#[derive(Debug, Deserialize)]
struct Settings {
    #[serde(default)]
    reconciliation_paused: bool,
}

/// 304 when nothing changes. A pause that would end by itself gives way to one that does not.
#[tracing::instrument(name = "http.prebuild.change_settings", skip_all)]
async fn change(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Json(body): Json<Settings>,
) -> Result<Response, ApiError> {
    caller.authorize(Action::Update, &Resource::new(ResourceKind::DeploymentConfig))?;
    let wanted = body.reconciliation_paused;
    let mut work = app.begin().await?;
    let now = work.now();
    let old = pause::find(&mut work, PauseScope::Deployment, None).await?;
    let is_as_wanted =
        if wanted { old.as_ref().is_some_and(|it| it.expires_at.is_none()) } else { old.is_none() };
    if is_as_wanted {
        return Ok(StatusCode::NOT_MODIFIED.into_response());
    }
    let id = old.as_ref().map_or_else(|| work.id(), |it| it.id);
    if wanted {
        let (scope, scope_id, actor) = (PauseScope::Deployment, None, caller.id());
        let new = NewPause { id, scope, scope_id, actor, reason: "", expires_at: None, now };
        berth_db::pause::upsert(work.conn(), &new).await?;
    } else {
        berth_db::pause::delete(work.conn(), id).await?;
    }
    pause::wake(&mut work, PauseScope::Deployment, None).await?;
    let diff = json!({ "old": old.is_some(), "new": wanted, "secret": false });
    let line = workspace_change::Line {
        organization: OrganizationId(Uuid::nil()),
        action: "write",
        resource_type: "prebuilds_settings",
        id,
        target: "prebuilds",
        diff: json!({ "reconciliation_paused": diff }),
    };
    workspace_change::audit(&mut work, &caller, &origin, line).await?;
    work.commit().await?;
    Ok(Json(json!({ "reconciliation_paused": wanted })).into_response())
}

/// Pools of the templates that the caller may change.
async fn pools(State(app): State<App>, caller: Caller) -> Result<Json<Vec<Value>>, ApiError> {
    let may = |resource: Resource| caller.may(Action::Update, &resource);
    let template = || Resource::new(ResourceKind::Template);
    let organizations: BTreeSet<Uuid> = caller
        .person()
        .organizations
        .keys()
        .filter(|id| may(template().in_organization(**id)))
        .map(|id| id.0)
        .collect();
    let organizations: Vec<Uuid> = organizations.into_iter().collect();
    let everywhere = may(template());
    if !everywhere && organizations.is_empty() {
        return Err(ApiError::Forbidden);
    }
    let filter = Filter {
        organizations: (!everywhere).then_some(organizations.as_slice()),
        ..Filter::default()
    };
    let now = app.now();
    let pools = prebuild::list_pools(app.db(), filter, now).await?;
    Ok(Json(pools.iter().map(|it| pool_json(it, now)).collect()))
}

fn pool_json(it: &Pool, now: Timestamp) -> Value {
    let active = it.standing == Standing::Active;
    let desired = if active { schedule::desired(&it.prebuilds, now).instances } else { 0 };
    let reasons: Vec<String> = serde_json::from_value::<Vec<Reason>>(it.reasons.clone())
        .unwrap_or_default()
        .iter()
        .map(ToString::to_string)
        .collect();
    json!({
        "preset_id": it.preset_id,
        "preset_name": it.preset_name,
        "organization_id": it.organization_id,
        "organization_name": it.organization_name,
        "template_id": it.template_id,
        "template_name": it.template_name,
        "template_version_id": it.version_id,
        "template_version_name": it.version_name,
        "standing": it.standing,
        "active": active,
        "desired": desired,
        "claimable": it.claimable,
        "running": it.running,
        "starting": it.starting,
        "unready": it.unready,
        "failed": it.failed,
        "deleting": it.deleting,
        "paused": it.paused,
        "status": it.status,
        "reasons": reasons,
        "last_reconciled_at": it.last_reconciled_at,
    })
}
