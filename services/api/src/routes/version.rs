//! `/templateversions`: what is imported, and what the import read.

mod content;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use axum::Router;
use axum::extract::State;
use axum::routing::{get, patch, post};
use berth_bus::event::{Event, JobCanceled, JobPosted};
use berth_db::rehearsal::{self, Rehearsal};
use berth_db::variable::NewValue;
use berth_db::version::{self, Archived, NewVersion, Version};
use berth_domain::authz::{Action, Resource, ResourceKind};
use berth_domain::build::normalize_tags;
use berth_domain::id::{FileId, JobId, OrganizationId, TemplateId, UserId, VersionId};
use berth_domain::state::ProvisionerType;
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::template;
use crate::app::App;
use crate::audit::{self, Change};
use crate::auth::{self, Caller};
use crate::edge::Origin;
use crate::error::{ApiError, Message};
use crate::extract::{Json, Path};
use crate::job_view::{self, ProvisionerJob};
use crate::lookup;

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/organizations/{organization}/templateversions", post(create))
        .route("/templateversions/{version}", get(show).patch(rename))
        .route("/templateversions/{version}/cancel", patch(cancel))
        .route("/templateversions/{version}/archive", post(archive))
        .route("/templateversions/{version}/unarchive", post(unarchive))
        .merge(content::routes())
}

#[derive(Debug, Serialize)]
struct CreatedBy {
    id: UserId,
    username: String,
    avatar_url: String,
}

/// A version with its import job.
#[derive(Debug, Serialize)]
pub(crate) struct VersionView {
    id: VersionId,
    #[serde(skip_serializing_if = "Option::is_none")]
    template_id: Option<TemplateId>,
    organization_id: OrganizationId,
    name: String,
    message: String,
    readme: String,
    archived: bool,
    has_external_agent: bool,
    warnings: [&'static str; 0],
    /// Ours: what claims of its pools would replace.
    rehearsals: Vec<Value>,
    job: ProvisionerJob,
    created_by: CreatedBy,
    created_at: Timestamp,
    updated_at: Timestamp,
}

/// Versions as they are shown, in the order given.
pub(crate) async fn views(app: &App, versions: Vec<Version>) -> Result<Vec<VersionView>, ApiError> {
    let mut jobs = job_view::load(app, versions.iter().map(|it| it.job_id)).await?;
    let mut rehearsals = rehearsals(app, &versions).await?;
    let view = |it: Version| {
        let job = jobs.remove(&it.job_id)?;
        Some(VersionView {
            id: it.id,
            template_id: it.template_id,
            organization_id: it.organization_id,
            name: it.name,
            message: it.message,
            readme: it.readme,
            archived: it.archived,
            has_external_agent: false,
            warnings: [],
            rehearsals: rehearsals.remove(&it.id).unwrap_or_default(),
            job,
            created_by: CreatedBy {
                id: it.created_by,
                username: it.created_by_name,
                avatar_url: it.created_by_avatar,
            },
            created_at: it.created_at,
            updated_at: it.updated_at,
        })
    };
    Ok(versions.into_iter().filter_map(view).collect())
}

async fn rehearsals(
    app: &App,
    versions: &[Version],
) -> Result<HashMap<VersionId, Vec<Value>>, ApiError> {
    let ids: Vec<VersionId> = versions.iter().map(|it| it.id).collect();
    let mut all: HashMap<_, Vec<_>> = HashMap::new();
    for it in rehearsal::list(app.db(), &ids).await? {
        all.entry(it.version_id).or_default().push(rehearsal_json(&it));
    }
    Ok(all)
}

/// What a claim of a pool would replace, as far as it is known.
pub(crate) fn rehearsal_json(it: &Rehearsal) -> Value {
    json!({
        "preset_id": it.preset_id,
        "preset_name": it.preset_name,
        "job_id": it.job_id,
        "ordered_at": it.ordered_at,
        "ended_at": it.ended_at,
        "outcome": it.outcome,
        "replacements": it.replacements,
        "error": it.error,
    })
}

async fn view(app: &App, version: Version) -> Result<VersionView, ApiError> {
    views(app, vec![version]).await?.pop().ok_or(ApiError::NotFound)
}

/// A version that the caller may do this to: what holds for its template holds for it.
pub(crate) async fn find(
    app: &App,
    caller: &Caller,
    id: VersionId,
    action: Action,
) -> Result<Version, ApiError> {
    let version = version::find(app.db(), id).await?.ok_or(ApiError::NotFound)?;
    match version.template_id {
        Some(template) => {
            template::find(app, caller, template, action).await?;
        }
        None => caller.authorize(action, &orphans_of(version.organization_id))?,
    }
    Ok(version)
}

/// Versions without a template are for those who manage the organization's templates.
fn orphans_of(organization: OrganizationId) -> Resource {
    Resource::new(ResourceKind::Template).in_organization(organization)
}

/// Most values of variables that come with a version.
const VARIABLES_MAX: usize = 500;
/// Longest name of a variable, in bytes.
const VARIABLE_NAME_MAX: usize = 256;

#[derive(Deserialize)]
struct VariableValue {
    name: String,
    value: String,
}

#[derive(Deserialize)]
struct Create {
    #[serde(default)]
    name: String,
    #[serde(default)]
    message: String,
    template_id: Option<TemplateId>,
    storage_method: String,
    file_id: Option<FileId>,
    provisioner: ProvisionerType,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    #[serde(default)]
    user_variable_values: Vec<VariableValue>,
}

/// Records a version and its import job; a daemon does the rest.
#[tracing::instrument(name = "http.version.create", skip_all)]
async fn create(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(organization): Path<String>,
    Json(body): Json<Create>,
) -> Result<(StatusCode, Json<VersionView>), ApiError> {
    let organization = lookup::organization(&app, &caller, &organization).await?;
    match body.template_id {
        Some(id) => {
            let template = template::find(&app, &caller, id, Action::Update).await?;
            if template.organization_id != organization.id {
                return Err(ApiError::field("template_id", "belongs to another organization"));
            }
        }
        None => caller.authorize(Action::Create, &orphans_of(organization.id))?,
    }
    if body.storage_method != "file" {
        let detail = format!("{:?} is unknown; use \"file\"", body.storage_method);
        return Err(ApiError::field("storage_method", detail));
    }
    let variables = checked(body.user_variable_values)?;
    let file_id = archive_file(&app, &caller, body.file_id).await?;
    let name = match body.name {
        name if name.is_empty() => format!("v-{}", auth::random_text::<10>(&app).to_lowercase()),
        name => name,
    };
    berth_domain::name::template_version(&name)?;
    let mut work = app.begin().await?;
    let id = VersionId(work.id());
    let new = NewVersion {
        id,
        job_id: JobId(work.id()),
        organization_id: organization.id,
        template_id: body.template_id,
        name,
        message: body.message,
        provisioner: body.provisioner,
        file_id,
        variables: sealed(&app, id, variables)?,
        tags: normalize_tags(body.tags, caller.id()),
        created_by: caller.id(),
        trace: work.trace(),
        now: work.now(),
    };
    version::insert(work.conn(), &new).await?;
    work.emit(Event::JobPosted(JobPosted {
        organization_id: new.organization_id,
        provisioner: new.provisioner,
        count: 1,
    }));
    let change = Change::new("create", "template_version", new.id.0);
    let change = change.of(&new.name).within(new.organization_id);
    audit::record(&mut work, caller.id(), &origin, change).await?;
    work.commit().await?;
    let version = version::find(app.db(), new.id).await?.ok_or(ApiError::NotFound)?;
    Ok((StatusCode::CREATED, Json(view(&app, version).await?)))
}

/// Values of template variables. Whether the template declares them, and which are secret, is known
/// once it is imported.
fn checked(given: Vec<VariableValue>) -> Result<Vec<VariableValue>, ApiError> {
    let refuse = |detail: String| Err(ApiError::field("user_variable_values", detail));
    if given.len() > VARIABLES_MAX {
        return refuse(format!("has {} values; at most {VARIABLES_MAX} are allowed", given.len()));
    }
    let mut names = BTreeSet::new();
    for VariableValue { name, value } in &given {
        let is_name = |it: char| it.is_alphanumeric() || it == '_' || it == '-';
        if name.is_empty() || name.len() > VARIABLE_NAME_MAX || !name.chars().all(is_name) {
            return refuse(format!("{name:?} is no name of a variable"));
        }
        if value.contains('\0') {
            return refuse(format!("the value of {name:?} contains a zero byte"));
        }
        if !names.insert(name) {
            return refuse(format!("{name:?} is given more than once"));
        }
    }
    Ok(given)
}

fn sealed(
    app: &App,
    version: VersionId,
    given: Vec<VariableValue>,
) -> Result<Vec<NewValue>, ApiError> {
    let seal = |VariableValue { name, value }| {
        let value = app.vault.seal_variable(version, &name, value);
        let value = value.map_err(|error| ApiError::Unavailable(error.into()))?;
        Ok(NewValue { name, value })
    };
    given.into_iter().map(seal).collect()
}

/// The archive that is named, if the caller may read it.
async fn archive_file(app: &App, caller: &Caller, id: Option<FileId>) -> Result<FileId, ApiError> {
    let id = id.ok_or_else(|| ApiError::field("file_id", "is missing; upload an archive first"))?;
    let unknown = || ApiError::field("file_id", format!("no file {id}; upload an archive first"));
    let file = berth_db::file::find(app.db(), id).await?.ok_or_else(unknown)?;
    let resource = Resource::new(ResourceKind::File).owned_by(file.created_by);
    if caller.may(Action::Read, &resource) { Ok(id) } else { Err(unknown()) }
}

#[tracing::instrument(name = "http.version.get", skip_all)]
async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<VersionId>,
) -> Result<Json<VersionView>, ApiError> {
    let version = find(&app, &caller, id, Action::Read).await?;
    Ok(Json(view(&app, version).await?))
}

#[derive(Deserialize)]
struct Rename {
    #[serde(default)]
    name: String,
    message: Option<String>,
}

#[tracing::instrument(name = "http.version.update", skip_all)]
async fn rename(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(id): Path<VersionId>,
    Json(body): Json<Rename>,
) -> Result<Json<VersionView>, ApiError> {
    let old = find(&app, &caller, id, Action::Update).await?;
    let name = if body.name.is_empty() { old.name.clone() } else { body.name };
    berth_domain::name::template_version(&name)?;
    let message = body.message.unwrap_or_else(|| old.message.clone());
    let mut work = app.begin().await?;
    let now = work.now();
    version::rename(work.conn(), id, (&name, &message), now).await?;
    let before = json!({ "name": old.name, "message": old.message });
    let after = json!({ "name": name, "message": message });
    let change = Change::new("write", "template_version", id.0)
        .of(&name)
        .within(old.organization_id)
        .with_diff(audit::diff(&before, &after));
    audit::record(&mut work, caller.id(), &origin, change).await?;
    work.commit().await?;
    let version = version::find(app.db(), id).await?.ok_or(ApiError::NotFound)?;
    Ok(Json(view(&app, version).await?))
}

#[tracing::instrument(name = "http.version.archive", skip_all)]
async fn archive(
    state: State<App>,
    caller: Caller,
    origin: Origin,
    id: Path<VersionId>,
) -> Result<Json<Message>, ApiError> {
    set_archived(state.0, &caller, &origin, id.0, true).await
}

#[tracing::instrument(name = "http.version.unarchive", skip_all)]
async fn unarchive(
    state: State<App>,
    caller: Caller,
    origin: Origin,
    id: Path<VersionId>,
) -> Result<Json<Message>, ApiError> {
    set_archived(state.0, &caller, &origin, id.0, false).await
}

/// Puts a version away, so that nothing new is made of it, or takes it out again.
async fn set_archived(
    app: App,
    caller: &Caller,
    origin: &Origin,
    id: VersionId,
    archived: bool,
) -> Result<Json<Message>, ApiError> {
    let version = find(&app, caller, id, Action::Update).await?;
    let mut work = app.begin().await?;
    let now = work.now();
    if version::set_archived(work.conn(), id, archived, now).await? == Archived::InUse {
        return Err(ApiError::Precondition(format!(
            "Version {:?} is the active one, or is being promoted; promote another one first.",
            version.name
        )));
    }
    let diff =
        audit::diff(&json!({ "archived": version.archived }), &json!({ "archived": archived }));
    let change = Change::new("write", "template_version", id.0)
        .of(version.name)
        .within(version.organization_id)
        .with_diff(diff);
    audit::record(&mut work, caller.id(), origin, change).await?;
    work.commit().await?;
    let done = if archived { "archived" } else { "unarchived" };
    Ok(Json(Message::new(format!("Version has been {done}."))))
}

#[tracing::instrument(name = "http.version.cancel", skip_all)]
async fn cancel(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(id): Path<VersionId>,
) -> Result<Json<Message>, ApiError> {
    let version = find(&app, &caller, id, Action::Update).await?;
    let mut work = app.begin().await?;
    let now = work.now();
    let canceled = version::cancel_import(work.conn(), version.job_id, caller.id(), now).await?;
    let Some(_) = canceled else {
        return Err(ApiError::Precondition(
            "The import has ended, or its cancellation was asked before.".to_owned(),
        ));
    };
    work.emit(Event::JobCanceled(JobCanceled { job_id: version.job_id }));
    let change = Change::new("write", "template_version", id.0);
    let change = change.of(version.name).within(version.organization_id);
    audit::record(&mut work, caller.id(), &origin, change).await?;
    work.commit().await?;
    Ok(Json(Message::new("Job has been marked as canceled.")))
}
