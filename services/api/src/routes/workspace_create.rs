//! Creating a workspace: whether a prebuild serves the request is the system's business.

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use berth_backbone::Work;
use berth_backbone::builder::{self, BuildRequest};
use berth_bus::event::{Event, Wake, WorkspaceChanged, WorkspaceVerb};
use berth_db::build::NewBuild;
use berth_db::claim::{self, PoolFacts, Preparation, Wanted};
use berth_db::claim_attempt::{self, Attempt};
use berth_db::idempotency;
use berth_db::user::User;
use berth_db::workspace::{self, NewWorkspace};
use berth_domain::authz::{Action, Resource, ResourceKind};
use berth_domain::id::{
    BuildId, JobId, OrganizationId, PresetId, TemplateId, VersionId, WorkspaceId,
};
use berth_domain::name;
use berth_domain::parameter::{Occasion, Resolution, Value as ParameterValue, validate};
use berth_domain::plan::Reason;
use berth_domain::preset::{Match, Preset, matching};
use berth_domain::state::{
    BuildReason, BuildStage, ClaimOutcome, JobClass, JobStatus, MissReason, PrebuildStatus,
    Transition,
};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::app::App;
use crate::auth::Caller;
use crate::edge::Origin;
use crate::error::{ApiError, Validation};
use crate::extract::{Json, Path};
use crate::lookup;
use crate::routes::{workspace_change, workspace_view};

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

/// Checks everything, then writes everything in one transaction.
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
    let body = &request.body;
    name::workspace(&body.name)?;
    let prepared = prepare(app, caller, request).await?;
    let choice = choose(&prepared, body)?;
    let workspace = new_workspace(request, &prepared)?;
    if prepared.name_taken {
        let message = format!("Workspace {:?} already exists.", body.name);
        return Err(ApiError::conflict(message, Some("name")));
    }
    if let Some(pool) = choice.pool
        && let Some(cost) = prepared.pools.iter().find(|it| it.preset_id == pool)
    {
        prepared
            .quota
            .check(cost.daily_cost, 0)
            .map_err(|error| ApiError::conflict(error.to_string(), None))?;
    }

    let mut work = app.begin().await?;
    let order = Order { caller, prepared: &prepared, choice: &choice, workspace: &workspace };
    let attempt = match order.claim(&mut work).await? {
        Some(attempt) => attempt,
        None => order.build(&mut work).await?,
    };
    if let Some(pool) = choice.pool {
        work.emit(Wake::pool(pool));
    }
    if let Some(key) = key {
        let stored = idempotency::Stored {
            body_hash: key.body_hash.clone(),
            workspace_id: attempt.workspace_id,
        };
        let now = work.now();
        if !idempotency::insert(work.conn(), caller.id(), &key.text, &stored, now).await? {
            return Err(ApiError::conflict("The same request is under way.", None));
        }
    }
    claim_attempt::insert(work.conn(), &attempt).await?;
    let line = workspace_change::Line {
        organization: prepared.organization_id,
        action: "create",
        resource_type: "workspace",
        id: attempt.workspace_id.0,
        target: &workspace.name,
        diff: json!({ "name": { "old": "", "new": workspace.name, "secret": false } }),
    };
    workspace_change::audit(&mut work, caller, origin, line).await?;
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
    Ok((attempt.workspace_id, told(&attempt)))
}

fn told(attempt: &Attempt) -> Value {
    let mut told = json!({ "outcome": attempt.outcome, "reason": attempt.reason });
    if let (Some(told), Some(detail)) = (told.as_object_mut(), attempt.detail.as_object()) {
        told.extend(detail.clone());
    }
    told
}

/// Reads what decides, and decides whether the caller may.
async fn prepare(app: &App, caller: &Caller, request: &Request) -> Result<Preparation, ApiError> {
    let body = &request.body;
    let (wanted, field) = match (body.template_version_id, body.template_id) {
        (Some(version), _) => (Wanted::Version(version), "template_version_id"),
        (None, Some(template)) => (Wanted::Template(template), "template_id"),
        (None, None) => {
            return Err(ApiError::field(
                "template_id",
                "name a template, or a version in template_version_id",
            ));
        }
    };
    let missing = || ApiError::field(field, "there is no such template, or you may not see it");
    let prepared = claim::prepare(app.db(), wanted, request.owner.id, &body.name)
        .await?
        .ok_or_else(missing)?;
    let in_organization = |kind| Resource::new(kind).in_organization(prepared.organization_id);
    let template = in_organization(ResourceKind::Template).with_acl(prepared.acl.clone());
    let elsewhere = request.organization.is_some_and(|it| it != prepared.organization_id)
        || body.template_id.is_some_and(|it| it != prepared.template_id);
    if prepared.template_deleted || elsewhere || !caller.may(Action::Read, &template) {
        return Err(missing());
    }
    caller.authorize(Action::Use, &template)?;
    let workspace = in_organization(ResourceKind::Workspace).owned_by(request.owner.id);
    caller.authorize(Action::Create, &workspace)?;
    if request.owner.is_system || !prepared.owner_is_member {
        return Err(ApiError::invalid(format!(
            "{} is no member of the organization that the template belongs to.",
            request.owner.username
        )));
    }
    usable(&prepared, field)?;
    let may_choose_version = caller.may(Action::Update, &template);
    if prepared.require_active_version
        && prepared.version_id != prepared.active_version_id
        && !may_choose_version
    {
        return Err(ApiError::field(
            "template_version_id",
            "the template requires its active version; leave the version out",
        ));
    }
    Ok(prepared)
}

fn usable(prepared: &Preparation, field: &str) -> Result<(), ApiError> {
    if !prepared.deprecation_message.is_empty() {
        return Err(ApiError::field(
            field,
            format!(
                "template {:?} is deprecated: {}",
                prepared.template_name, prepared.deprecation_message
            ),
        ));
    }
    if prepared.version_archived {
        return Err(ApiError::field(field, "the version is archived; name another one"));
    }
    if prepared.import_status != JobStatus::Succeeded {
        return Err(ApiError::field(
            field,
            format!(
                "the import of the version is {}; only versions whose import succeeded can be built",
                prepared.import_status
            ),
        ));
    }
    Ok(())
}

/// What will be built, and the pool that may have it ready.
struct Choice {
    preset: Option<PresetId>,
    pool: Option<PresetId>,
    /// Why no pool is asked at all.
    miss: Option<(MissReason, Value)>,
    parameters: Vec<(String, String)>,
}

fn choose(prepared: &Preparation, body: &CreateWorkspace) -> Result<Choice, ApiError> {
    let requested = body.rich_parameter_values.clone().unwrap_or_default();
    let (preset, miss) = match body.template_version_preset_id {
        Some(id) => (Some(named(prepared, id)?), None),
        None => match matching(&prepared.presets, &requested, &prepared.parameters) {
            Match::Preset(preset) => (Some(preset), None),
            Match::Miss(nearest) => {
                let detail = json!({ "nearest_preset": nearest });
                (None, Some((MissReason::NoMatchingPreset, detail)))
            }
        },
    };
    let values = validate(&Resolution {
        parameters: &prepared.parameters,
        requested: &requested,
        previous: &[],
        preset: &preset.map(|it| it.spec.values()).unwrap_or_default(),
        occasion: Occasion::First,
    })
    .map_err(refused)?;
    let pool = preset.filter(|it| it.spec.prebuilds.is_some()).map(|it| it.id);
    let miss = match (preset, pool) {
        (Some(_), None) => Some((MissReason::NotAPool, json!({}))),
        _ => miss,
    };
    Ok(Choice {
        preset: preset.map(|it| it.id),
        pool,
        miss,
        parameters: values.into_iter().map(|it| (it.name, it.value)).collect(),
    })
}

fn named(prepared: &Preparation, id: PresetId) -> Result<&Preset, ApiError> {
    prepared.presets.iter().find(|it| it.id == id).ok_or_else(|| {
        let known: Vec<String> =
            prepared.presets.iter().map(|it| format!("{} ({})", it.spec.name, it.id)).collect();
        ApiError::field(
            "template_version_preset_id",
            format!(
                "version {} has no preset {id}; it has: {}",
                prepared.version_id,
                if known.is_empty() { "none".to_owned() } else { known.join(", ") }
            ),
        )
    })
}

/// Refused parameters, by name.
pub(crate) fn refused(errors: Vec<berth_domain::parameter::FieldError>) -> ApiError {
    let validations =
        errors.into_iter().map(|it| Validation { field: it.field, detail: it.detail }).collect();
    ApiError::fields(validations)
}

fn new_workspace(request: &Request, prepared: &Preparation) -> Result<NewWorkspace, ApiError> {
    let body = &request.body;
    let schedule = body.autostart_schedule.as_deref().filter(|it| !it.trim().is_empty());
    if let Some(schedule) = schedule {
        workspace_change::check_schedule(schedule)?;
    }
    let asked = body.ttl_ms.map(workspace_change::check_ttl).transpose()?;
    let default = (prepared.default_ttl_ms > 0).then_some(prepared.default_ttl_ms);
    let ttl_ms = match asked {
        Some(ttl) if prepared.allow_user_autostop => ttl,
        _ => default,
    };
    Ok(NewWorkspace {
        owner_id: request.owner.id,
        organization_id: prepared.organization_id,
        template_id: prepared.template_id,
        name: body.name.clone(),
        autostart_schedule: schedule
            .filter(|_| prepared.allow_user_autostart)
            .map(ToOwned::to_owned),
        ttl_ms,
        automatic_updates: workspace_change::check_updates(body.automatic_updates.as_deref())?,
    })
}

/// A request that passed every check.
struct Order<'a> {
    caller: &'a Caller,
    prepared: &'a Preparation,
    choice: &'a Choice,
    workspace: &'a NewWorkspace,
}

impl Order<'_> {
    /// Hands a prebuild over. `None`: there is none to be had.
    async fn claim(&self, work: &mut Work) -> Result<Option<Attempt>, ApiError> {
        let Some(pool) = self.choice.pool else { return Ok(None) };
        let mut new = NewBuild {
            id: BuildId(work.id()),
            job_id: JobId(work.id()),
            // The statement finds the workspace.
            workspace_id: WorkspaceId(uuid::Uuid::nil()),
            version_id: self.prepared.version_id,
            preset_id: Some(pool),
            transition: Transition::Start,
            initiator_id: self.caller.id(),
            reason: BuildReason::Initiator,
            stage: BuildStage::Claim,
            class: JobClass::Claim,
            pool_state: None,
            parameters: self.choice.parameters.clone(),
            trace: work.trace(),
            now: work.now(),
        };
        let taken = claim::take(work.conn(), pool, self.workspace, &new).await?;
        let Some(taken) = taken else { return Ok(None) };
        new.workspace_id = taken.workspace_id;
        // So that one can walk from a claim to the pass that ordered the prebuild, and to its build.
        let ordered = taken.prebuild_trace.as_object().into_iter().flatten();
        berth_bus::trace::link(ordered.filter_map(|(k, v)| Some((k.as_str(), v.as_str()?))));
        builder::announce(work, &new, &taken.build);
        work.emit(Event::Workspace(WorkspaceChanged {
            organization_id: taken.build.organization_id,
            workspace_id: taken.workspace_id,
            owner_id: self.workspace.owner_id,
            what: WorkspaceVerb::Claimed,
            revision: taken.build.revision,
        }));
        let attempt = self.attempt(work, taken.workspace_id, new.id);
        Ok(Some(Attempt { prebuild_created_at: Some(taken.prebuild_created_at), ..attempt }))
    }

    /// Makes an ordinary workspace, and finds out why no prebuild served.
    async fn build(&self, work: &mut Work) -> Result<Attempt, ApiError> {
        let (reason, detail) = self.miss(work).await?;
        let id = WorkspaceId(work.id());
        let now = work.now();
        workspace::insert(work.conn(), id, self.workspace, now).await?;
        let request = BuildRequest {
            workspace_id: id,
            version_id: self.prepared.version_id,
            preset_id: self.choice.preset,
            transition: Transition::Start,
            initiator_id: self.caller.id(),
            reason: BuildReason::Initiator,
            stage: BuildStage::None,
            class: JobClass::Human,
            pool_state: None,
            parameters: self.choice.parameters.clone(),
        };
        let queued = builder::queue(work, request).await?;
        work.emit(Event::Workspace(WorkspaceChanged {
            organization_id: self.prepared.organization_id,
            workspace_id: id,
            owner_id: self.workspace.owner_id,
            what: WorkspaceVerb::Created,
            revision: queued.build.revision,
        }));
        let attempt = self.attempt(work, id, queued.build_id);
        Ok(Attempt { outcome: ClaimOutcome::Miss, reason: Some(reason), detail, ..attempt })
    }

    async fn miss(&self, work: &mut Work) -> Result<(MissReason, Value), ApiError> {
        if let Some((reason, detail)) = &self.choice.miss {
            return Ok((*reason, detail.clone()));
        }
        let Some(pool) = self.choice.pool else { return Ok((MissReason::NotAPool, json!({}))) };
        let now = work.now();
        let facts = claim::diagnose(work.conn(), pool, now).await?;
        Ok(facts.map_or((MissReason::NotAPool, json!({})), |facts| miss_reason(&facts)))
    }

    fn attempt(&self, work: &Work, workspace: WorkspaceId, build: BuildId) -> Attempt {
        Attempt {
            id: work.id(),
            created_at: work.now(),
            organization_id: self.prepared.organization_id,
            template_id: self.prepared.template_id,
            version_id: self.prepared.version_id,
            preset_id: self.choice.preset,
            user_id: self.workspace.owner_id,
            workspace_id: workspace,
            build_id: build,
            outcome: ClaimOutcome::Hit,
            reason: None,
            detail: json!({}),
            prebuild_created_at: None,
            build_status: None,
        }
    }
}

/// Why a pool that looks like this handed nothing out.
fn miss_reason(facts: &PoolFacts) -> (MissReason, Value) {
    let live = facts.ready - facts.ready_expired;
    if !facts.active {
        let detail = json!({ "explanation": "the version is not the template's active one" });
        return (MissReason::Empty, detail);
    }
    if live > 0 {
        return (MissReason::AllLocked, json!({ "ready": live }));
    }
    if facts.ready_expired > 0 && facts.unready + facts.starting == 0 {
        return (MissReason::Expired, json!({ "expired": facts.ready_expired }));
    }
    if facts.unready + facts.starting > 0 {
        let detail = json!({
            "unready": facts.unready,
            "starting": facts.starting,
            "agents_waited_for": facts.waiting_for,
        });
        return (MissReason::NoneReady, detail);
    }
    let reason = match facts.status {
        _ if facts.paused => MissReason::Paused,
        PrebuildStatus::HardLimited => MissReason::HardLimited,
        PrebuildStatus::ValidationFailed => MissReason::ValidationFailed,
        PrebuildStatus::Healthy => serde_json::from_value::<Vec<Reason>>(facts.reasons.clone())
            .unwrap_or_default()
            .iter()
            .find_map(Reason::miss_reason)
            .unwrap_or(MissReason::Empty),
    };
    (reason, json!({}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> PoolFacts {
        PoolFacts {
            members: 0,
            ready: 0,
            ready_expired: 0,
            unready: 0,
            starting: 0,
            waiting_for: Vec::new(),
            status: PrebuildStatus::Healthy,
            paused: false,
            active: true,
            reasons: json!([]),
        }
    }

    #[track_caller]
    fn check(facts: &PoolFacts, expected: MissReason) {
        assert_eq!(miss_reason(facts).0, expected);
    }

    #[test]
    fn a_miss_names_what_the_pool_lacks() {
        check(&pool(), MissReason::Empty);
        check(&PoolFacts { ready: 2, ..pool() }, MissReason::AllLocked);
        check(&PoolFacts { ready: 2, ready_expired: 2, ..pool() }, MissReason::Expired);
        check(
            &PoolFacts { ready: 2, ready_expired: 2, starting: 1, ..pool() },
            MissReason::NoneReady,
        );
        check(&PoolFacts { unready: 1, ..pool() }, MissReason::NoneReady);
    }

    #[test]
    fn an_empty_pool_says_what_holds_its_creation() {
        check(&PoolFacts { paused: true, ..pool() }, MissReason::Paused);
        let held = |status| PoolFacts { status, ..pool() };
        check(&held(PrebuildStatus::HardLimited), MissReason::HardLimited);
        check(&held(PrebuildStatus::ValidationFailed), MissReason::ValidationFailed);
        let reasons = serde_json::to_value([Reason::Capacity]).unwrap();
        check(&PoolFacts { reasons, ..pool() }, MissReason::Capacity);
    }
}
