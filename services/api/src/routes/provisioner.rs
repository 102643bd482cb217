//! Provisioner keys and the queue of an organization.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::State;
use axum::routing::{delete, get};
use berth_db::job_view::{self, Filter};
use berth_db::provisioner_key::{self, NewProvisionerKey, ProvisionerKey};
use berth_domain::authz::{Action, Resource, ResourceKind};
use berth_domain::id::{JobId, OrganizationId, ProvisionerKeyId};
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::app::App;
use crate::audit::{self, Change};
use crate::auth::{self, Caller};
use crate::edge::Origin;
use crate::error::ApiError;
use crate::extract::{Json, Paging, Path, Query};
use crate::job_view::ProvisionerJob;
use crate::lookup;

/// Characters of a key's secret.
const SECRET_LENGTH: usize = 32;
/// Most tags of a key, and the longest name or value of one, in characters.
const TAGS_MAX: (usize, usize) = (32, 128);

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/organizations/{organization}/provisionerkeys", get(list_keys).post(create_key))
        .route("/organizations/{organization}/provisionerkeys/{key}", delete(revoke_key))
        .route("/organizations/{organization}/provisionerjobs", get(list_jobs))
        .route("/organizations/{organization}/provisionerjobs/{job}", get(show_job))
}

/// The daemons of an organization, with what admits them.
pub(crate) fn daemons_of(id: OrganizationId) -> Resource {
    Resource::new(ResourceKind::ProvisionerDaemon).in_organization(id)
}

fn jobs_of(id: OrganizationId) -> Resource {
    Resource::new(ResourceKind::ProvisionerJobs).in_organization(id)
}

#[derive(Serialize)]
struct KeyView {
    id: ProvisionerKeyId,
    name: String,
    organization: OrganizationId,
    tags: BTreeMap<String, String>,
    created_at: Timestamp,
}

impl From<ProvisionerKey> for KeyView {
    fn from(key: ProvisionerKey) -> Self {
        Self {
            id: key.id,
            name: key.name,
            organization: key.organization_id,
            tags: key.tags,
            created_at: key.created_at,
        }
    }
}

#[tracing::instrument(name = "http.provisioner_key.list", skip_all)]
async fn list_keys(
    State(app): State<App>,
    caller: Caller,
    Path(organization): Path<String>,
) -> Result<Json<Vec<KeyView>>, ApiError> {
    let organization = lookup::organization(&app, &caller, &organization).await?;
    caller.authorize(Action::Read, &daemons_of(organization.id))?;
    let keys = provisioner_key::list(app.db(), organization.id).await?;
    Ok(Json(keys.into_iter().map(KeyView::from).collect()))
}

#[derive(Deserialize)]
struct CreateKey {
    name: String,
    #[serde(default)]
    tags: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct CreatedKey {
    key: String,
}

fn check_tags(tags: &BTreeMap<String, String>) -> Result<(), ApiError> {
    let (most, longest) = TAGS_MAX;
    if tags.len() > most {
        let text = format!("There are {} tags; a key has at most {most}.", tags.len());
        return Err(ApiError::field("tags", text));
    }
    let is_bad = |text: &str| text.chars().count() > longest || text.contains('\0');
    match tags.iter().find(|(name, value)| name.is_empty() || is_bad(name) || is_bad(value)) {
        None => Ok(()),
        Some((name, _)) => Err(ApiError::field(
            "tags",
            format!(
                "Tag {name:?}: name and value have at most {longest} characters, the name one."
            ),
        )),
    }
}

/// Makes a key. This answer is the only place where its secret ever is.
#[tracing::instrument(name = "http.provisioner_key.create", skip_all)]
async fn create_key(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(organization): Path<String>,
    Json(body): Json<CreateKey>,
) -> Result<(StatusCode, Json<CreatedKey>), ApiError> {
    let organization = lookup::organization(&app, &caller, &organization).await?;
    caller.authorize(Action::Create, &daemons_of(organization.id))?;
    berth_domain::name::template_version(&body.name)?;
    check_tags(&body.tags)?;
    let secret = auth::random_text::<SECRET_LENGTH>(&app);
    let mut work = app.begin().await?;
    let id = ProvisionerKeyId(work.id());
    let new = NewProvisionerKey {
        id,
        organization_id: organization.id,
        name: &body.name,
        secret_hash: &Sha256::digest(secret.as_bytes()),
        tags: &body.tags,
        now: work.now(),
    };
    provisioner_key::insert(work.conn(), &new).await?;
    let change = Change::new("create", "provisioner_key", id.0);
    let change = change.of(&body.name).within(organization.id);
    audit::record(&mut work, caller.id(), &origin, change).await?;
    work.commit().await?;
    let key = provisioner_key::token(id, &secret);
    Ok((StatusCode::CREATED, Json(CreatedKey { key })))
}

#[tracing::instrument(name = "http.provisioner_key.delete", skip_all)]
async fn revoke_key(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path((organization, name)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let organization = lookup::organization(&app, &caller, &organization).await?;
    caller.authorize(Action::Delete, &daemons_of(organization.id))?;
    let mut work = app.begin().await?;
    let now = work.now();
    let revoked = provisioner_key::revoke(work.conn(), organization.id, &name, now).await?;
    let id = revoked.ok_or(ApiError::NotFound)?;
    let change = Change::new("delete", "provisioner_key", id.0).of(name).within(organization.id);
    audit::record(&mut work, caller.id(), &origin, change).await?;
    work.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct JobsQuery {
    #[serde(default)]
    status: String,
    #[serde(default)]
    ids: String,
}

/// A list in a query: comma-separated.
fn items<T: std::str::FromStr>(text: &str, field: &str) -> Result<Option<Vec<T>>, ApiError>
where
    T::Err: std::fmt::Display,
{
    if text.is_empty() {
        return Ok(None);
    }
    let all = text.split(',').map(|it| it.trim().parse());
    let all: Result<Vec<T>, _> = all.collect();
    all.map(Some).map_err(|error| ApiError::field(field, error.to_string()))
}

#[tracing::instrument(name = "http.provisioner_job.list", skip_all)]
async fn list_jobs(
    State(app): State<App>,
    caller: Caller,
    paging: Paging,
    Path(organization): Path<String>,
    Query(query): Query<JobsQuery>,
) -> Result<Json<Vec<ProvisionerJob>>, ApiError> {
    let organization = lookup::organization(&app, &caller, &organization).await?;
    caller.authorize(Action::Read, &jobs_of(organization.id))?;
    let filter = Filter {
        ids: items::<Uuid>(&query.ids, "ids")?,
        organization: Some(organization.id),
        statuses: items(&query.status, "status")?,
        limit: paging.limit,
    };
    let jobs = job_view::list(app.db(), &filter).await?;
    Ok(Json(jobs.into_iter().map(ProvisionerJob::from).collect()))
}

#[tracing::instrument(name = "http.provisioner_job.get", skip_all)]
async fn show_job(
    State(app): State<App>,
    caller: Caller,
    Path((organization, id)): Path<(String, JobId)>,
) -> Result<Json<ProvisionerJob>, ApiError> {
    let organization = lookup::organization(&app, &caller, &organization).await?;
    caller.authorize(Action::Read, &jobs_of(organization.id))?;
    let filter = Filter { organization: Some(organization.id), ..Filter::by_ids(vec![id.0]) };
    let job = job_view::list(app.db(), &filter).await?.pop().ok_or(ApiError::NotFound)?;
    Ok(Json(job.into()))
}

#[cfg(test)]
mod tests;
