//! Prebuilds as operators see them: the pause of the deployment, the pools, and the claims.

use std::collections::BTreeSet;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use berth_bus::event::Wake;
use berth_db::prebuild::Pool;
use berth_db::{claim_attempt, pool, prebuild};
use berth_domain::authz::{Action, Resource, ResourceKind};
use berth_domain::id::OrganizationId;
use berth_domain::plan::Reason;
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
use crate::extract::{Json, Paging, Path};
use crate::lookup;
use crate::routes::workspace_change;

/// Routes of prebuilds.
pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/prebuilds/settings", get(settings).put(change))
        .route("/prebuilds/pools", get(pools))
        .route("/organizations/{organization}/claims", get(claims))
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

/// 304 when nothing changes. Resuming marks every pool to be looked at.
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
    if prebuild::is_paused(work.conn(), now).await? == wanted {
        return Ok(StatusCode::NOT_MODIFIED.into_response());
    }
    let id = work.id();
    if wanted {
        prebuild::pause(work.conn(), id, caller.id(), now).await?;
    } else {
        prebuild::resume(work.conn()).await?;
    }
    for preset in pool::mark_all_dirty(work.conn(), now).await? {
        work.emit(Wake::pool(preset));
    }
    let diff = json!({ "old": !wanted, "new": wanted, "secret": false });
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
    let scope = (!everywhere).then_some(organizations.as_slice());
    let now = app.now();
    let pools = prebuild::list_pools(app.db(), scope, now).await?;
    Ok(Json(pools.iter().map(|it| pool_json(it, now)).collect()))
}

fn pool_json(it: &Pool, now: Timestamp) -> Value {
    let desired = if it.active { schedule::desired(&it.prebuilds, now).instances } else { 0 };
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
        "active": it.active,
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

/// The newest claim attempts of an organization.
async fn claims(
    State(app): State<App>,
    caller: Caller,
    Path(organization): Path<String>,
    paging: Paging,
) -> Result<Json<Vec<Value>>, ApiError> {
    let organization = lookup::organization(&app, &caller, &organization).await?.id;
    let template = Resource::new(ResourceKind::Template).in_organization(organization);
    caller.authorize(Action::Update, &template)?;
    let attempts = claim_attempt::list(app.db(), organization, paging.limit, paging.offset).await?;
    Ok(Json(
        attempts
            .iter()
            .map(|it| {
                json!({
                    "id": it.id,
                    "created_at": it.created_at,
                    "template_id": it.template_id,
                    "template_version_id": it.version_id,
                    "preset_id": it.preset_id,
                    "user_id": it.user_id,
                    "workspace_id": it.workspace_id,
                    "build_id": it.build_id,
                    "outcome": it.outcome,
                    "reason": it.reason,
                    "detail": it.detail,
                    "prebuild_created_at": it.prebuild_created_at,
                    "build_status": it.build_status,
                })
            })
            .collect(),
    ))
}
