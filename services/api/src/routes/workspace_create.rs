//! Creating a workspace: whether a prebuild serves the request is the system's business.

mod choice;
mod miss;
mod order;
mod view;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use berth_db::claim::Preparation;
use berth_db::user::User;
use berth_db::{DbError, claim_attempt, idempotency, workspace};
use berth_domain::authz::Action;
use berth_domain::id::{PresetId, TemplateId, VersionId, WorkspaceId};
use berth_domain::name;
use berth_domain::parameter::Value as ParameterValue;
use berth_domain::state::{ClaimOutcome, MissReason};
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
use crate::routes::workspace_view;

pub(crate) use choice::refused;
use choice::{choose, new_workspace, prepare};
use order::Order;

/// Most characters of an `Idempotency-Key`.
const KEY_MAX: usize = 255;
/// The pauses before a claim is tried again where all that is ready is locked, as shares of
/// `claims.patience`. Nobody waits for a lock: what is locked may be free by then.
const AGAIN: [f64; 2] = [0.2, 0.8];

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
    /// As the path spells it.
    organization: Option<String>,
    body: CreateWorkspace,
}

/// An idempotency key with the hash of what it came with.
struct Key {
    text: String,
    body_hash: Vec<u8>,
}

impl Key {
    /// The constraint that refuses a key that is in use.
    const TAKEN: &str = "idempotency_keys_pkey";

    fn read(headers: &HeaderMap, request: &Request) -> Result<Option<Self>, ApiError> {
        let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
        let text = value.to_str().unwrap_or_default().to_owned();
        // A tab is text to HTTP.
        if text.is_empty() || text.len() > KEY_MAX || text.contains('\t') {
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
        return again(app, caller, id).await;
    }
    let asking = Asking { app, caller, origin, request: &request, key: key.as_ref() };
    // A crowd waits here, in order, instead of each for a connection at each of its statements.
    let _turn = app.creations.acquire().await.map_err(ApiError::internal)?;
    match (asking.make().await, &key) {
        (Ok(made), _) => {
            let told = told(made.outcome, made.reason, &made.detail);
            let mut view = made.view;
            view["prebuild_claim"] = told;
            Ok((StatusCode::OK, Json(view)))
        }
        // The same request may have overtaken this one.
        (Err(error @ ApiError::Conflict { .. }), Some(key)) => {
            match key.earlier(app, caller).await? {
                Some(id) => again(app, caller, id).await,
                None => Err(error),
            }
        }
        (Err(error), _) => Err(error),
    }
}

/// The answer to a request that was carried out before: the same workspace, as it is now.
async fn again(
    app: &App,
    caller: &Caller,
    id: WorkspaceId,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let found = workspace::find(app.db(), id).await?.ok_or(ApiError::NotFound)?;
    caller.authorize(Action::Read, &workspace_view::resource_of(&found))?;
    let mut view = workspace_view::workspace(app, id).await?;
    if let Some(it) = claim_attempt::find_told(app.db(), id).await? {
        view["prebuild_claim"] = told(it.outcome, it.reason, &it.detail);
    }
    Ok((StatusCode::OK, Json(view)))
}

/// What a request made.
struct Made {
    workspace_id: WorkspaceId,
    /// The preset that was named or matched.
    preset: Option<PresetId>,
    outcome: ClaimOutcome,
    /// Why no prebuild served; `None` on a hit.
    reason: Option<MissReason>,
    /// What explains the outcome.
    detail: Value,
    /// The workspace as it is shown.
    view: Value,
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
    /// Checks everything, then writes everything at once. A version that became the active one in
    /// between is no reason to go without a prebuild: everything is checked again, once.
    #[tracing::instrument(
        name = "http.workspace.create",
        skip_all,
        fields(workspace.id = tracing::field::Empty, outcome = tracing::field::Empty)
    )]
    async fn make(&self) -> Result<Made, ApiError> {
        // Whoever names a preset names one of a version, and gets that.
        let may_follow = self.request.body.template_version_id.is_none()
            && self.request.body.template_version_preset_id.is_none();
        let mut made = self.once(may_follow).await?;
        if made.is_none() {
            made = self.once(false).await?;
        }
        made.ok_or_else(|| ApiError::internal(anyhow::anyhow!("no workspace was made")))
    }

    /// `None`, with nothing written, only where `may_follow`: no prebuild was to be had, and another
    /// version is active by now.
    async fn once(&self, may_follow: bool) -> Result<Option<Made>, ApiError> {
        let body = &self.request.body;
        let prepared = prepare(self.app, self.caller, self.request).await?;
        name::workspace(&body.name)?;
        let choice = choose(&prepared, body.requested(), body.template_version_preset_id)?;
        let workspace = new_workspace(self.request, &prepared)?;
        if prepared.name_taken {
            let message = format!("Workspace {:?} already exists.", body.name);
            return Err(ApiError::conflict(message, Some("name")));
        }
        choice
            .affordable(&prepared)
            .map_err(|error| ApiError::conflict(error.to_string(), None))?;

        let order =
            Order { asking: self, prepared: &prepared, choice: &choice, workspace: &workspace };
        let patience = self.app.config.claims.patience.as_duration();
        let mut pauses = AGAIN.iter().map(|share| patience.mul_f64(*share));
        let made = loop {
            if let Some(hit) = order.claim().await? {
                break hit;
            }
            let mut work = self.app.begin().await?;
            let miss = order.miss(&mut work).await?;
            if may_follow && miss.is_outdated {
                return Ok(None);
            }
            match pauses.next().filter(|it| !it.is_zero()) {
                Some(pause) if miss.reason == MissReason::AllLocked => {
                    drop(work);
                    tokio::time::sleep(pause).await;
                }
                _ => break order.build(work, miss).await?,
            }
        };
        self.count(&prepared, &made);
        Ok(Some(made))
    }

    fn count(&self, prepared: &Preparation, made: &Made) {
        let preset = prepared.presets.iter().find(|it| Some(it.id) == made.preset);
        let reason = made.reason.map_or("", MissReason::as_str);
        self.app.metrics.claim_attempted([
            &prepared.organization_name,
            &prepared.template_name,
            preset.map_or("", |it| &it.spec.name),
            made.outcome.as_str(),
            reason,
        ]);
        tracing::Span::current()
            .record("workspace.id", tracing::field::display(made.workspace_id))
            .record("outcome", tracing::field::display(made.outcome));
        tracing::info!(
            workspace.id = %made.workspace_id,
            outcome = %made.outcome,
            reason,
            "workspace created"
        );
    }
}

/// What a failed write means: a key in use is another request's, and that is a conflict.
fn of_write(error: DbError) -> ApiError {
    if error.constraint() == Some(Key::TAKEN) {
        return ApiError::conflict("A request with the same Idempotency-Key is under way.", None);
    }
    error.into()
}

fn told(outcome: ClaimOutcome, reason: Option<MissReason>, detail: &Value) -> Value {
    let mut told = json!({ "outcome": outcome, "reason": reason });
    if let (Some(told), Some(detail)) = (told.as_object_mut(), detail.as_object()) {
        told.extend(detail.clone());
    }
    told
}

#[cfg(test)]
mod tests;
