//! Builds of workspaces.

use axum::Router;
use axum::extract::State;
use axum::routing::{get, patch};
use berth_backbone::Work;
use berth_backbone::builder::{self, BuildRequest};
use berth_bus::event::{BuildChanged, ClaimFinished, Event, JobCanceled, LogsAdded, Wake};
use berth_db::build::read::{self as build_read, Build, Canceled};
use berth_db::claim::{self, Preparation, Wanted};
use berth_db::workspace::Workspace;
use berth_db::{build, build_state, completion, job_log, pool, workspace};
use berth_domain::authz::{Action, Resource, ResourceKind};
use berth_domain::build::job_class;
use berth_domain::id::{BuildId, PresetId, VersionId, WorkspaceId};
use berth_domain::parameter::{Occasion, Resolution, Value as ParameterValue, validate};
use berth_domain::state::{
    BuildReason, BuildStage, JobKind, JobStatus, LogLevel, PoolState, Transition,
};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::App;
use crate::auth::Caller;
use crate::edge::Origin;
use crate::error::{ApiError, Message};
use crate::extract::{Json, Paging, Path};
use crate::routes::build_state::export;
use crate::routes::workspace_create::refused;
use crate::routes::{workspace as workspace_routes, workspace_change, workspace_view};

/// What the log of a build says that no daemon began.
const CANCELED: &str = "The build was canceled before a provisioner daemon took it.";

/// Routes of builds.
pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/workspaces/{workspace}/builds", get(list).post(create))
        .route("/workspacebuilds/{build}", get(one))
        .route("/workspacebuilds/{build}/cancel", patch(cancel))
        .route("/workspacebuilds/{build}/parameters", get(parameters))
        .route("/workspacebuilds/{build}/resources", get(resources))
        .route("/workspacebuilds/{build}/state", get(export))
        .route("/workspacebuilds/{build}/timings", get(timings))
}

#[derive(Debug, Deserialize)]
struct CreateBuild {
    transition: Transition,
    #[serde(default)]
    template_version_id: Option<VersionId>,
    #[serde(default)]
    template_version_preset_id: Option<PresetId>,
    #[serde(default)]
    rich_parameter_values: Option<Vec<ParameterValue>>,
    #[serde(default)]
    orphan: bool,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    reason: Option<BuildReason>,
}

async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<WorkspaceId>,
    paging: Paging,
) -> Result<Json<Vec<Value>>, ApiError> {
    workspace_routes::find(&app, &caller, id, Action::Read).await?;
    let ids = build_read::list_ids(app.db(), id, paging.limit, paging.offset).await?;
    Ok(Json(workspace_view::builds(&app, &ids).await?))
}

/// A build of a workspace that the caller may do `action` to.
pub(crate) async fn find(
    app: &App,
    caller: &Caller,
    id: BuildId,
    action: Action,
) -> Result<Build, ApiError> {
    let build = build_read::find(app.db(), id).await?.ok_or(ApiError::NotFound)?;
    caller.authorize(action, &workspace_view::resource_of_build(&build))?;
    Ok(build)
}

async fn one(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<BuildId>,
) -> Result<Json<Value>, ApiError> {
    find(&app, &caller, id, Action::Read).await?;
    Ok(Json(workspace_view::build(&app, id).await?))
}

/// Queues a start, stop or delete. 409 while another build is under way.
async fn create(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(id): Path<WorkspaceId>,
    Json(body): Json<CreateBuild>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let action = match body.transition {
        Transition::Start => Action::Start,
        Transition::Stop => Action::Stop,
        Transition::Delete => Action::Delete,
    };
    let workspace = workspace_routes::find(&app, &caller, id, action).await?;
    if workspace.deleted {
        return Err(ApiError::NotFound);
    }
    if body.orphan || body.dry_run {
        let field = if body.orphan { "orphan" } else { "dry_run" };
        return Err(ApiError::field(field, "is not supported; leave it out"));
    }
    let request = plan(&app, &caller, &workspace, &body).await?;
    let pool = workspace.pool_preset_id;
    let mut work = app.begin().await?;
    let queued = builder::queue(&mut work, request).await?;
    if let Some(preset) = pool {
        let now = work.now();
        pool::mark_dirty(work.conn(), &[preset], now).await?;
        work.emit(Wake::pool(preset));
    }
    let line = workspace_change::Line {
        organization: workspace.organization_id,
        action: match body.transition {
            Transition::Start => "start",
            Transition::Stop => "stop",
            Transition::Delete => "delete",
        },
        resource_type: "workspace_build",
        id: queued.build_id.0,
        target: &workspace.name,
        diff: json!({}),
    };
    workspace_change::audit(&mut work, &caller, &origin, line).await?;
    work.commit().await?;
    Ok((StatusCode::OK, Json(workspace_view::build(&app, queued.build_id).await?)))
}

/// Decides what the build is: version, preset, parameters, urgency.
async fn plan(
    app: &App,
    caller: &Caller,
    workspace: &Workspace,
    body: &CreateBuild,
) -> Result<BuildRequest, ApiError> {
    let latest = match workspace.latest_build_id {
        Some(id) => build_read::find(app.db(), id).await?,
        None => None,
    };
    let previous = match &latest {
        Some(latest) => build::list_parameters(app.db(), latest.id).await?,
        None => Vec::new(),
    };
    let active = VersionId(workspace.template_active_version_id);
    let follows_active =
        workspace.require_active_version || workspace.automatic_updates == "always";
    let kept = latest.as_ref().map_or(active, |it| it.version_id);
    let version = match body.template_version_id {
        Some(version) => version,
        None if body.transition == Transition::Start && follows_active => active,
        None => kept,
    };
    let wanted = Wanted::Version(version);
    let missing = || ApiError::field("template_version_id", "the template has no such version");
    let prepared = claim::prepare(app.db(), wanted, workspace.owner_id, &workspace.name)
        .await?
        .filter(|it| it.template_id == workspace.template_id)
        .ok_or_else(missing)?;
    if body.transition == Transition::Start {
        startable(caller, &prepared, body)?;
    }
    let carried = latest.as_ref().filter(|it| it.version_id == version).and_then(|it| it.preset_id);
    let preset_id = body.template_version_preset_id.or(carried);
    let preset = prepared.presets.iter().find(|it| Some(it.id) == preset_id);
    if body.template_version_preset_id.is_some() && preset.is_none() {
        let detail = "the version has no such preset";
        return Err(ApiError::field("template_version_preset_id", detail));
    }
    let named = preset.filter(|_| body.template_version_preset_id.is_some());
    let values = validate(&Resolution {
        parameters: &prepared.parameters,
        requested: body.rich_parameter_values.as_deref().unwrap_or_default(),
        previous: &previous
            .iter()
            .map(|(name, value)| ParameterValue::new(name, value))
            .collect::<Vec<_>>(),
        preset: &named.map(|it| it.spec.values()).unwrap_or_default(),
        occasion: match body.transition {
            Transition::Delete => Occasion::Delete,
            Transition::Start | Transition::Stop => Occasion::Later,
        },
    })
    .map_err(refused)?;
    let is_prebuild = workspace.pool_state.is_some();
    let stage = if is_prebuild { BuildStage::Prebuild } else { BuildStage::None };
    Ok(BuildRequest {
        workspace_id: workspace.id,
        version_id: version,
        preset_id: preset.map(|it| it.id),
        transition: body.transition,
        initiator_id: caller.id(),
        reason: body.reason.unwrap_or(BuildReason::Initiator),
        stage,
        class: job_class(JobKind::WorkspaceBuild, Some((body.transition, stage)), caller.id()),
        pool_state: is_prebuild.then_some(match body.transition {
            Transition::Start => PoolState::Starting,
            Transition::Stop => PoolState::Stopping,
            Transition::Delete => PoolState::Deleting,
        }),
        parameters: values.into_iter().map(|it| (it.name, it.value)).collect(),
    })
}

fn startable(caller: &Caller, prepared: &Preparation, body: &CreateBuild) -> Result<(), ApiError> {
    let template = Resource::new(ResourceKind::Template)
        .in_organization(prepared.organization_id)
        .with_acl(prepared.acl.clone());
    if prepared.import_status != JobStatus::Succeeded {
        return Err(ApiError::field(
            "template_version_id",
            format!("the version's import is {}", prepared.import_status),
        ));
    }
    let is_other = prepared.version_id != prepared.active_version_id;
    if prepared.require_active_version
        && is_other
        && body.template_version_id.is_some()
        && !caller.may(Action::Update, &template)
    {
        return Err(ApiError::field(
            "template_version_id",
            "the template requires its active version; leave the version out",
        ));
    }
    Ok(())
}

/// A job that no daemon has taken ends at once; one that runs is asked to.
async fn cancel(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(id): Path<BuildId>,
) -> Result<Json<Message>, ApiError> {
    let build = find(&app, &caller, id, Action::Update).await?;
    let workspace = workspace::find(app.db(), build.workspace_id).await?;
    let workspace = workspace.ok_or(ApiError::NotFound)?;
    let template = Resource::new(ResourceKind::Template).in_organization(build.organization_id);
    if !workspace.allow_user_cancel_workspace_jobs && !caller.may(Action::Update, &template) {
        return Err(ApiError::Forbidden);
    }
    let mut work = app.begin().await?;
    let now = work.now();
    let outcome = build_read::cancel(work.conn(), build.job.id, caller.id(), now).await?;
    match outcome {
        Canceled::TooLate => {
            let message = "The build has ended, or was cancelled before.";
            return Err(ApiError::conflict(message, None));
        }
        Canceled::Asked => {
            let revision = workspace::bump(work.conn(), build.workspace_id).await?;
            tell(&mut work, &build, JobStatus::Canceling, revision.unwrap_or_default());
            work.emit(Event::JobCanceled(JobCanceled { job_id: build.job.id }));
        }
        Canceled::Ended => ended(&mut work, &build).await?,
    }
    let line = workspace_change::Line {
        organization: build.organization_id,
        action: "write",
        resource_type: "workspace_build",
        id: build.id.0,
        target: &build.workspace_name,
        diff: json!({ "canceled": { "old": false, "new": true, "secret": false } }),
    };
    workspace_change::audit(&mut work, &caller, &origin, line).await?;
    work.commit().await?;
    Ok(Json(Message::new("Job has been marked as canceled...")))
}

/// The effects of a build that was cancelled before it began. What the build before it left still is
/// there, and costs what it cost.
async fn ended(work: &mut Work, build: &Build) -> Result<(), ApiError> {
    let now = work.now();
    let job = [build.job.id];
    build_state::carry(work.conn(), &job).await?;
    completion::carry_costs(work.conn(), &job).await?;
    job_log::insert_notes(work.conn(), &job, LogLevel::Warn, CANCELED, now).await?;
    let last_id = job_log::last_ids(work.conn(), &job).await?.remove(&build.job.id);
    let last_id = last_id.unwrap_or_default();
    work.emit(Event::Logs(LogsAdded { job_id: build.job.id, last_id, end: true }));
    let state = match build.transition {
        Transition::Start | Transition::Stop => PoolState::Failed,
        Transition::Delete => PoolState::FailedDelete,
    };
    let (revision, pool) =
        build_read::mark_ended(work.conn(), build.workspace_id, state, now).await?;
    if let Some(preset) = pool {
        pool::mark_dirty(work.conn(), &[preset], now).await?;
        work.emit(Wake::pool(preset));
    }
    build_read::mark_claim_ended(work.conn(), build.id, JobStatus::Canceled).await?;
    tell(work, build, JobStatus::Canceled, revision);
    if build.stage == BuildStage::Claim {
        work.emit(Event::Claim(ClaimFinished {
            workspace_id: build.workspace_id,
            owner_id: build.owner_id,
            build_id: build.id,
            job_status: JobStatus::Canceled,
            reason: "prebuild_claimed".to_owned(),
            error: "canceled before it began".to_owned(),
        }));
    }
    Ok(())
}

fn tell(work: &mut Work, build: &Build, job_status: JobStatus, revision: i64) {
    work.emit(Event::Build(BuildChanged {
        organization_id: build.organization_id,
        workspace_id: build.workspace_id,
        workspace_name: build.workspace_name.clone(),
        owner_id: build.owner_id,
        template_id: build.template_id,
        build_id: build.id,
        build_number: build.number,
        transition: build.transition,
        stage: build.stage,
        job_status,
        revision,
    }));
}

async fn parameters(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<BuildId>,
) -> Result<Json<Vec<ParameterValue>>, ApiError> {
    find(&app, &caller, id, Action::Read).await?;
    let values = build::list_parameters(app.db(), id).await?;
    let values = values.into_iter().map(|(name, value)| ParameterValue { name, value });
    Ok(Json(values.collect()))
}

async fn resources(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<BuildId>,
) -> Result<Json<Vec<Value>>, ApiError> {
    let build = find(&app, &caller, id, Action::Read).await?;
    Ok(Json(workspace_view::resources(&app, build.job.id).await?))
}

async fn timings(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<BuildId>,
) -> Result<Json<Value>, ApiError> {
    let build = find(&app, &caller, id, Action::Read).await?;
    let steps = build_read::list_timings(app.db(), build.job.id).await?;
    let steps: Vec<Value> = steps
        .iter()
        .map(|it| {
            json!({
                "job_id": it.job_id,
                "started_at": it.started_at,
                "ended_at": it.ended_at,
                "stage": it.stage,
                "source": it.source,
                "action": it.action,
                "resource": it.resource,
            })
        })
        .collect();
    Ok(Json(json!({
        "provisioner_timings": steps,
        "agent_script_timings": [],
        "agent_connection_timings": [],
    })))
}
