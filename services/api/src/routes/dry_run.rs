//! `/templateversions/{version}/dry-run`: a version planned with given values.

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::{get, post};
use berth_backbone::builder;
use berth_db::dry_run::{self, NewDryRun};
use berth_db::version;
use berth_domain::authz::{Action, Resource, ResourceKind};
use berth_domain::id::{JobId, VersionId};
use berth_domain::parameter::{Occasion, Resolution, Value as ParameterValue, validate};
use berth_domain::state::JobStatus;
use http::StatusCode;
use serde::Deserialize;
use serde_json::Value;

use crate::app::App;
use crate::audit::{self, Change};
use crate::auth::Caller;
use crate::edge::Origin;
use crate::error::{ApiError, Validation};
use crate::extract::{Json, Path, Query};
use crate::job_view::{self, ProvisionerJob};
use crate::live::answer::Upgrade;
use crate::routes::build_log::{self, LogQuery};
use crate::routes::{version as versions, workspace_view};

/// What a workspace is called that nobody named.
const WORKSPACE: &str = "dry-run";

pub(crate) fn routes() -> Router<App> {
    let one = "/templateversions/{version}/dry-run/{job}";
    Router::new()
        .route("/templateversions/{version}/dry-run", post(create))
        .route(one, get(show))
        .route(&format!("{one}/logs"), get(logs))
        .route(&format!("{one}/resources"), get(resources))
}

#[derive(Deserialize)]
struct NamedValue {
    name: String,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
struct Create {
    #[serde(default)]
    workspace_name: String,
    #[serde(default)]
    rich_parameter_values: Vec<NamedValue>,
    #[serde(default)]
    user_variable_values: Vec<NamedValue>,
}

/// Queues a plan of the version. For whoever may create a workspace of it.
#[tracing::instrument(name = "http.dry_run.create", skip_all)]
async fn create(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(id): Path<VersionId>,
    Json(body): Json<Create>,
) -> Result<(StatusCode, Json<ProvisionerJob>), ApiError> {
    let found = versions::find(&app, &caller, id, Action::Read).await?;
    let workspace = Resource::new(ResourceKind::Workspace)
        .in_organization(found.organization_id)
        .owned_by(caller.id());
    caller.authorize(Action::Create, &workspace)?;
    if found.job_status != JobStatus::Succeeded {
        let status = found.job_status;
        return Err(ApiError::Precondition(format!(
            "The import of version {:?} is {status}; it must have succeeded.",
            found.name
        )));
    }
    if !body.user_variable_values.is_empty() {
        let why = "belong to the version and are given when it is pushed";
        return Err(ApiError::field("user_variable_values", why));
    }
    let name = match body.workspace_name {
        name if name.is_empty() => WORKSPACE.to_owned(),
        name => name,
    };
    berth_domain::name::workspace(&name)?;
    let parameters = resolve(&app, id, &body.rich_parameter_values).await?;
    let mut work = app.begin().await?;
    let new = NewDryRun {
        job_id: JobId(work.id()),
        version_id: id,
        workspace_name: &name,
        parameters: &parameters,
        initiator_id: caller.id(),
        trace: &work.trace(),
        now: work.now(),
    };
    let queued = dry_run::insert(work.conn(), &new).await?.ok_or(ApiError::NotFound)?;
    builder::post(&mut work, queued.0, queued.1, 1);
    let change = Change::new("create", "template_version_dry_run", new.job_id.0);
    let change = change.of(found.name).within(found.organization_id);
    audit::record(&mut work, caller.id(), &origin, change).await?;
    let job = new.job_id;
    work.commit().await?;
    Ok((StatusCode::CREATED, Json(view(&app, job).await?)))
}

/// A value for each parameter: what is asked for, or the default.
async fn resolve(
    app: &App,
    version: VersionId,
    given: &[NamedValue],
) -> Result<Vec<(String, String)>, ApiError> {
    let parameters = version::list_parameters(app.db(), version).await?;
    let requested: Vec<ParameterValue> =
        given.iter().map(|it| ParameterValue::new(&it.name, &it.value)).collect();
    let values = validate(&Resolution {
        parameters: &parameters,
        requested: &requested,
        previous: &[],
        preset: &[],
        occasion: Occasion::First,
    });
    let values = values.map_err(|errors| {
        let one = |it: berth_domain::parameter::FieldError| Validation {
            field: it.field,
            detail: it.detail,
        };
        ApiError::fields(errors.into_iter().map(one).collect())
    })?;
    Ok(values.into_iter().map(|it| (it.name, it.value)).collect())
}

async fn view(app: &App, job: JobId) -> Result<ProvisionerJob, ApiError> {
    job_view::load(app, [job]).await?.remove(&job).ok_or(ApiError::NotFound)
}

/// A dry run that the caller asked for, or of a template that he may change.
async fn find(
    app: &App,
    caller: &Caller,
    version: VersionId,
    job: JobId,
) -> Result<JobId, ApiError> {
    versions::find(app, caller, version, Action::Read).await?;
    let initiator = dry_run::find_initiator(app.db(), version, job).await?;
    if initiator.ok_or(ApiError::NotFound)? != caller.id() {
        let other = versions::find(app, caller, version, Action::Update).await;
        other.map_err(|_| ApiError::NotFound)?;
    }
    Ok(job)
}

#[tracing::instrument(name = "http.dry_run.get", skip_all)]
async fn show(
    State(app): State<App>,
    caller: Caller,
    Path((version, job)): Path<(VersionId, JobId)>,
) -> Result<Json<ProvisionerJob>, ApiError> {
    let job = find(&app, &caller, version, job).await?;
    Ok(Json(view(&app, job).await?))
}

#[tracing::instrument(name = "http.dry_run.logs", skip_all)]
async fn logs(
    State(app): State<App>,
    caller: Caller,
    Path((version, job)): Path<(VersionId, JobId)>,
    Query(query): Query<LogQuery>,
    upgrade: Upgrade,
) -> Result<Response, ApiError> {
    let job = find(&app, &caller, version, job).await?;
    build_log::of_job(app, &caller, job, (&query, upgrade)).await
}

#[tracing::instrument(name = "http.dry_run.list_resources", skip_all)]
async fn resources(
    State(app): State<App>,
    caller: Caller,
    Path((version, job)): Path<(VersionId, JobId)>,
) -> Result<Json<Vec<Value>>, ApiError> {
    let job = find(&app, &caller, version, job).await?;
    Ok(Json(workspace_view::resources(&app, job).await?))
}
