//! `/organizations` and where a user is a member.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use berth_bus::event::Wake;
use berth_db::organization::{self, Organization};
use berth_db::template::{self, Reader};
use berth_domain::authz::{Action, Resource, ResourceKind};
use berth_domain::id::OrganizationId;
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::app::App;
use crate::audit::{self, Change};
use crate::auth::Caller;
use crate::edge::Origin;
use crate::error::{ApiError, Message};
use crate::extract::{Json, Path};
use crate::lookup;

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/organizations", get(list).post(create))
        .route("/organizations/{organization}", get(show).patch(update).delete(remove))
        .route("/users/{user}/organizations", get(list_of_user))
        .route("/users/{user}/organizations/{organization}", get(show_of_user))
}

#[derive(Serialize)]
struct OrganizationView {
    id: OrganizationId,
    name: String,
    display_name: String,
    description: String,
    icon: String,
    is_default: bool,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl From<Organization> for OrganizationView {
    fn from(it: Organization) -> Self {
        Self {
            id: it.id,
            name: it.name,
            display_name: it.display_name,
            description: it.description,
            icon: it.icon,
            is_default: it.is_default,
            created_at: it.created_at,
            updated_at: it.updated_at,
        }
    }
}

fn resource(id: OrganizationId) -> Resource {
    Resource::new(ResourceKind::Organization).in_organization(id)
}

#[tracing::instrument(name = "http.organization.list", skip_all)]
async fn list(
    State(app): State<App>,
    caller: Caller,
) -> Result<Json<Vec<OrganizationView>>, ApiError> {
    let sees_all = caller.may(Action::Read, &Resource::new(ResourceKind::Organization));
    let member = (!sees_all).then(|| caller.id());
    let all = organization::list(app.db(), member).await?;
    Ok(Json(all.into_iter().map(OrganizationView::from).collect()))
}

#[tracing::instrument(name = "http.organization.list_of_user", skip_all)]
async fn list_of_user(
    State(app): State<App>,
    caller: Caller,
    Path(user): Path<String>,
) -> Result<Json<Vec<OrganizationView>>, ApiError> {
    let user = lookup::user_for(&app, &caller, &user, Action::Read).await?;
    let all = organization::list(app.db(), Some(user.id)).await?;
    let seen = all.into_iter().filter(|it| caller.may(Action::Read, &resource(it.id)));
    Ok(Json(seen.map(OrganizationView::from).collect()))
}

#[tracing::instrument(name = "http.organization.get_of_user", skip_all)]
async fn show_of_user(
    State(app): State<App>,
    caller: Caller,
    Path((user, name)): Path<(String, String)>,
) -> Result<Json<OrganizationView>, ApiError> {
    let user = lookup::user_for(&app, &caller, &user, Action::Read).await?;
    let organization = lookup::organization(&app, &caller, &name).await?;
    if !user.organization_ids.contains(&organization.id) {
        return Err(ApiError::NotFound);
    }
    Ok(Json(organization.into()))
}

#[tracing::instrument(name = "http.organization.get", skip_all)]
async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(organization): Path<String>,
) -> Result<Json<OrganizationView>, ApiError> {
    Ok(Json(lookup::organization(&app, &caller, &organization).await?.into()))
}

#[derive(Deserialize)]
struct Body {
    name: Option<String>,
    display_name: Option<String>,
    description: Option<String>,
    icon: Option<String>,
}

fn check(organization: &Organization) -> Result<(), ApiError> {
    if !organization.is_default {
        berth_domain::name::organization(&organization.name)?;
    }
    berth_domain::name::display(&organization.display_name)
        .map_err(|error| ApiError::field("display_name", error.to_string()))
}

#[tracing::instrument(name = "http.organization.create", skip_all)]
async fn create(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Json(body): Json<Body>,
) -> Result<(StatusCode, Json<OrganizationView>), ApiError> {
    caller.authorize(Action::Create, &Resource::new(ResourceKind::Organization))?;
    let mut work = app.begin().await?;
    let name = body.name.unwrap_or_default();
    let new = Organization {
        id: OrganizationId(work.id()),
        display_name: body.display_name.unwrap_or_else(|| name.clone()),
        name,
        description: body.description.unwrap_or_default(),
        icon: body.icon.unwrap_or_default(),
        is_default: false,
        created_at: work.now(),
        updated_at: work.now(),
    };
    check(&new)?;
    organization::insert(work.conn(), &new).await?;
    work.emit(Wake::membership(new.id));
    let change = Change::new("create", "organization", new.id.0).of(&new.name).within(new.id);
    audit::record(&mut work, caller.id(), &origin, change).await?;
    work.commit().await?;
    Ok((StatusCode::CREATED, Json(new.into())))
}

#[tracing::instrument(name = "http.organization.update", skip_all)]
async fn update(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(organization): Path<String>,
    Json(body): Json<Body>,
) -> Result<Json<OrganizationView>, ApiError> {
    let old = lookup::organization(&app, &caller, &organization).await?;
    caller.authorize(Action::Update, &resource(old.id))?;
    let mut work = app.begin().await?;
    let text = |new: Option<String>, old: &str| new.unwrap_or_else(|| old.to_owned());
    let new = Organization {
        name: body.name.filter(|it| !it.is_empty()).unwrap_or_else(|| old.name.clone()),
        display_name: text(body.display_name, &old.display_name),
        description: text(body.description, &old.description),
        icon: text(body.icon, &old.icon),
        updated_at: work.now(),
        ..old.clone()
    };
    check(&new)?;
    if !organization::update(work.conn(), &new).await? {
        return Err(ApiError::NotFound);
    }
    let shown = |it: &Organization| json!({ "name": it.name, "display_name": it.display_name, "description": it.description });
    let change = Change::new("write", "organization", new.id.0)
        .of(&new.name)
        .within(new.id)
        .with_diff(audit::diff(&shown(&old), &shown(&new)));
    audit::record(&mut work, caller.id(), &origin, change).await?;
    work.commit().await?;
    Ok(Json(new.into()))
}

#[tracing::instrument(name = "http.organization.delete", skip_all)]
async fn remove(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(organization): Path<String>,
) -> Result<Json<Message>, ApiError> {
    let old = lookup::organization(&app, &caller, &organization).await?;
    caller.authorize(Action::Delete, &resource(old.id))?;
    let mut work = app.begin().await?;
    let now = work.now();
    if !organization::mark_deleted(work.conn(), old.id, now).await? {
        let why = "The organization is the default one, or has templates or workspaces; \
                   delete those first.";
        return Err(ApiError::invalid(why));
    }
    let change = Change::new("delete", "organization", old.id.0).of(old.name).within(old.id);
    audit::record(&mut work, caller.id(), &origin, change).await?;
    work.commit().await?;
    Ok(Json(Message::new("Organization deleted.")))
}

/// How `db` filters templates for a caller; `None`: he reads all of them.
pub(crate) fn template_reader(caller: &Caller) -> Option<Reader> {
    let kind = Resource::new(ResourceKind::Template);
    if caller.may(Action::Read, &kind) {
        return None;
    }
    let person = caller.person();
    let memberships: Vec<_> = person.organizations.keys().copied().collect();
    let reads_all =
        |id: &&OrganizationId| caller.may(Action::Read, &kind.clone().in_organization(**id));
    Some(template::Reader {
        organizations: memberships.iter().filter(reads_all).map(|id| id.0).collect(),
        memberships: memberships.iter().map(|id| id.0).collect(),
        user: caller.id().0,
        groups: person.groups.iter().map(|id| id.0).collect(),
    })
}
