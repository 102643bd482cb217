//! Creating a workspace: whether a prebuild serves the request is the system's business.

mod choice;
mod order;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use berth_backbone::Work;
use berth_bus::event::Wake;
use berth_db::claim_attempt::{self, Attempt};
use berth_db::idempotency;
use berth_db::user::User;
use berth_domain::id::{OrganizationId, PresetId, TemplateId, VersionId, WorkspaceId};
use berth_domain::name;
use berth_domain::parameter::Value as ParameterValue;
use berth_domain::state::MissReason;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::app::App;
use crate::auth::Caller;
use crate::edge::Origin;
use crate::error::ApiError;
use crate::extract::{Json, Path};
use crate::lookup;
use crate::routes::{workspace_change, workspace_view};

pub(crate) use choice::refused;
use choice::{choose, new_workspace, prepare};
use order::Order;

/// Most characters of an `Idempotency-Key`.
const KEY_MAX: usize = 255;

/// Routes that create workspaces.
pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/organizations/{organization}/members/{user}/workspaces", post(create_in))
        .route("/users/{user}/workspaces", post(create))
}

/// A request for a workspace.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct CreateWorkspace {
    name: String,
    #[serde(default)]
    template_id: Option<TemplateId>,
    #[serde(default)]
    template_version_id: Option<VersionId>,
    #[serde(default)]
    template_version_preset_id: Option<PresetId>,
    #[serde(default)]
    autostart_schedule: Option<String>,
    #[serde(default)]
    ttl_ms: Option<i64>,
    #[serde(default)]
    automatic_updates: Option<String>,
    #[serde(default)]
    rich_parameter_values: Option<Vec<ParameterValue>>,
}

impl CreateWorkspace {
    fn requested(&self) -> &[ParameterValue] {
        self.rich_parameter_values.as_deref().unwrap_or_default()
    }
}

async fn create_in(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path((organization, user)): Path<(String, String)>,
    headers: HeaderMap,
    Json(body): Json<CreateWorkspace>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let organization = lookup::organization(&app, &caller, &organization).await?.id;
    let owner = lookup::user(&app, &caller, &user).await?;
    let request = Request { owner, organization: Some(organization), body };
    answer(&app, &caller, &origin, &headers, request).await
}

async fn create(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(user): Path<String>,
    headers: HeaderMap,
    Json(body): Json<CreateWorkspace>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let owner = lookup::user(&app, &caller, &user).await?;
    answer(&app, &caller, &origin, &headers, Request { owner, organization: None, body }).await
}

struct Request {
    owner: User,
    organization: Option<OrganizationId>,
    body: CreateWorkspace,
}

/// An idempotency key with the hash of what it came with.
struct Key {
    text: String,
    body_hash: Vec<u8>,
}

impl Key {
    fn read(headers: &HeaderMap, request: &Request) -> Result<Option<Self>, ApiError> {
        let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
        let text = value.to_str().unwrap_or_default().to_owned();
        if text.is_empty() || text.len() > KEY_MAX {
            return Err(ApiError::invalid(format!(
                "Idempotency-Key must be 1 to {KEY_MAX} printable ASCII characters."
            )));
        }
        let body =
            serde_json::to_vec(&(request.owner.id, &request.body)).map_err(ApiError::internal)?;
        Ok(Some(Self { text, body_hash: Sha256::digest(body).to_vec() }))
    }

    /// The workspace that an earlier request with this key made.
    async fn earlier(&self, app: &App, caller: &Caller) -> Result<Option<WorkspaceId>, ApiError> {
        let stored = idempotency::find(app.db(), caller.id(), &self.text, app.now()).await?;
        match stored {
            Some(stored) if stored.body_hash != self.body_hash => {
                Err(ApiError::Unprocessable(format!(
                    "Idempotency-Key {:?} came with another request within the last 24 hours; use \
                     a new key for a new request.",
                    self.text
                )))
            }
            stored => Ok(stored.map(|it| it.workspace_id)),
        }
    }
}

async fn answer(
    app: &App,
    caller: &Caller,
    origin: &Origin,
    headers: &HeaderMap,
    request: Request,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let key = Key::read(headers, &request)?;
    if let Some(key) = &key
        && let Some(id) = key.earlier(app, caller).await?
    {
        return Ok((StatusCode::OK, Json(workspace_view::workspace(app, id).await?)));
    }
    let made = make(app, caller, origin, &request, key.as_ref()).await;
    let (id, told) = match (made, &key) {
        (Ok(made), _) => made,
        // The same request may have overtaken this one.
        (Err(error @ ApiError::Conflict { .. }), Some(key)) => {
            let Some(id) = key.earlier(app, caller).await? else { return Err(error) };
            (id, Value::Null)
        }
        (Err(error), _) => return Err(error),
    };
    let mut view = workspace_view::workspace(app, id).await?;
    view["prebuild_claim"] = told;
    Ok((StatusCode::OK, Json(view)))
}

/// Checks everything, then writes everything in one transaction. A version that became the active
/// one in between is no reason to go without a prebuild: everything is checked again, once.
#[tracing::instrument(
    name = "http.workspace.create",
    skip_all,
    fields(workspace.id = tracing::field::Empty, outcome = tracing::field::Empty)
)]
async fn make(
    app: &App,
    caller: &Caller,
    origin: &Origin,
    request: &Request,
    key: Option<&Key>,
) -> Result<(WorkspaceId, Value), ApiError> {
    let asking = Asking { app, caller, origin, request, key };
    // Whoever names a preset names one of a version, and gets that.
    let may_follow = request.body.template_version_id.is_none()
        && request.body.template_version_preset_id.is_none();
    let mut made = asking.once(may_follow).await?;
    if made.is_none() {
        made = asking.once(false).await?;
    }
    made.ok_or_else(|| ApiError::internal(anyhow::anyhow!("no workspace was made")))
}

/// A request with what it came with.
struct Asking<'a> {
    app: &'a App,
    caller: &'a Caller,
    origin: &'a Origin,
    request: &'a Request,
    key: Option<&'a Key>,
}

impl Asking<'_> {
    /// `None`, with nothing written, only where `may_follow`: no prebuild was to be had, and another
    /// version is active by now.
    async fn once(&self, may_follow: bool) -> Result<Option<(WorkspaceId, Value)>, ApiError> {
        let body = &self.request.body;
        name::workspace(&body.name)?;
        let prepared = prepare(self.app, self.caller, self.request).await?;
        let choice = choose(&prepared, body.requested(), body.template_version_preset_id)?;
        let workspace = new_workspace(self.request, &prepared)?;
        if prepared.name_taken {
            let message = format!("Workspace {:?} already exists.", body.name);
            return Err(ApiError::conflict(message, Some("name")));
        }
        choice
            .affordable(&prepared)
            .map_err(|error| ApiError::conflict(error.to_string(), None))?;

        let mut work = self.app.begin().await?;
        let order = Order {
            caller: self.caller,
            prepared: &prepared,
            choice: &choice,
            body,
            workspace: &workspace,
        };
        let attempt = if let Some(hit) = order.claim(&mut work).await? {
            hit
        } else {
            let miss = order.miss(&mut work).await?;
            if may_follow && miss.is_outdated {
                return Ok(None);
            }
            order.build(&mut work, miss).await?
        };
        if let Some(pool) = choice.pool {
            work.emit(Wake::pool(pool));
        }
        self.record(&mut work, &attempt, &workspace.name).await?;
        work.commit().await?;
        tracing::Span::current()
            .record("workspace.id", tracing::field::display(attempt.workspace_id))
            .record("outcome", tracing::field::display(attempt.outcome));
        tracing::info!(
            workspace.id = %attempt.workspace_id,
            outcome = %attempt.outcome,
            reason = attempt.reason.map(MissReason::as_str),
            "workspace created"
        );
        Ok(Some((attempt.workspace_id, told(&attempt))))
    }

    async fn record(&self, work: &mut Work, attempt: &Attempt, name: &str) -> Result<(), ApiError> {
        if let Some(key) = self.key {
            let stored = idempotency::Stored {
                body_hash: key.body_hash.clone(),
                workspace_id: attempt.workspace_id,
            };
            let (now, caller) = (work.now(), self.caller.id());
            if !idempotency::insert(work.conn(), caller, &key.text, &stored, now).await? {
                return Err(ApiError::conflict("The same request is under way.", None));
            }
        }
        claim_attempt::insert(work.conn(), attempt).await?;
        let line = workspace_change::Line {
            organization: attempt.organization_id,
            action: "create",
            resource_type: "workspace",
            id: attempt.workspace_id.0,
            target: name,
            diff: json!({ "name": { "old": "", "new": name, "secret": false } }),
        };
        workspace_change::audit(work, self.caller, self.origin, line).await?;
        Ok(())
    }
}

fn told(attempt: &Attempt) -> Value {
    let mut told = json!({ "outcome": attempt.outcome, "reason": attempt.reason });
    if let (Some(told), Some(detail)) = (told.as_object_mut(), attempt.detail.as_object()) {
        told.extend(detail.clone());
    }
    told
}
