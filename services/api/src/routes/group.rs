//! Groups.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use berth_backbone::Work;
use berth_bus::event::Wake;
use berth_db::group::{self, Filter, Group, GroupMember};
use berth_db::membership;
use berth_domain::authz::{Action, Resource, ResourceKind};
use berth_domain::id::{GroupId, OrganizationId, PREBUILDS_USER, UserId};
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::app::App;
use crate::audit::{self, Change};
use crate::auth::Caller;
use crate::edge::Origin;
use crate::error::ApiError;
use crate::extract::{Json, Path};
use crate::lookup;

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/groups", get(list))
        .route("/groups/{group}", get(show).patch(update).delete(remove))
        .route("/organizations/{organization}/groups", get(list_of).post(create))
        .route("/organizations/{organization}/groups/{group}", get(show_by_name))
}

#[derive(Serialize)]
struct MemberView {
    id: UserId,
    username: String,
    email: String,
    name: String,
    avatar_url: String,
    status: String,
    login_type: String,
    theme_preference: &'static str,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl From<GroupMember> for MemberView {
    fn from(it: GroupMember) -> Self {
        Self {
            id: it.id,
            username: it.username,
            email: it.email,
            name: it.name,
            avatar_url: it.avatar_url,
            status: it.status,
            login_type: it.login_type,
            theme_preference: "",
            created_at: it.created_at,
            updated_at: it.updated_at,
        }
    }
}

#[derive(Serialize)]
struct GroupView {
    id: GroupId,
    organization_id: OrganizationId,
    organization_name: String,
    organization_display_name: String,
    name: String,
    display_name: String,
    avatar_url: String,
    quota_allowance: i32,
    source: String,
    total_member_count: usize,
    members: Vec<MemberView>,
}

impl From<Group> for GroupView {
    fn from(it: Group) -> Self {
        Self {
            id: it.id,
            organization_id: it.organization_id,
            organization_name: it.organization_name,
            organization_display_name: it.organization_display_name,
            name: it.name,
            display_name: it.display_name,
            avatar_url: it.avatar_url,
            quota_allowance: it.quota_allowance,
            source: it.source,
            total_member_count: it.members.len(),
            members: it.members.into_iter().map(MemberView::from).collect(),
        }
    }
}

/// A group, whose access list lets its own members see it.
fn groups_of(id: OrganizationId) -> Resource {
    Resource::new(ResourceKind::Group).in_organization(id)
}

/// Whether the caller may see a group: by role, or because he is in it.
fn is_seen(caller: &Caller, group: &Group) -> bool {
    caller.may(Action::Read, &groups_of(group.organization_id))
        || caller.person().groups.contains(&group.id)
}

async fn find(app: &App, caller: &Caller, id: GroupId, action: Action) -> Result<Group, ApiError> {
    let filter = Filter { id: Some(id), ..Filter::default() };
    let group = group::list(app.db(), &filter).await?.pop().ok_or(ApiError::NotFound)?;
    if !is_seen(caller, &group) {
        return Err(ApiError::NotFound);
    }
    if action != Action::Read && !caller.may(action, &groups_of(group.organization_id)) {
        return Err(ApiError::Forbidden);
    }
    Ok(group)
}

#[tracing::instrument(name = "http.group.list", skip_all)]
async fn list(State(app): State<App>, caller: Caller) -> Result<Json<Vec<GroupView>>, ApiError> {
    let sees_all = caller.may(Action::Read, &Resource::new(ResourceKind::Group));
    let mine = caller.person().organizations.keys().map(|id| id.0).collect();
    let filter = Filter { organizations: (!sees_all).then_some(mine), ..Filter::default() };
    let groups = group::list(app.db(), &filter).await?;
    let seen = groups.into_iter().filter(|it| is_seen(&caller, it));
    Ok(Json(seen.map(GroupView::from).collect()))
}

#[tracing::instrument(name = "http.group.list_of", skip_all)]
async fn list_of(
    State(app): State<App>,
    caller: Caller,
    Path(organization): Path<String>,
) -> Result<Json<Vec<GroupView>>, ApiError> {
    let organization = lookup::organization(&app, &caller, &organization).await?;
    let filter = Filter { organizations: Some(vec![organization.id.0]), ..Filter::default() };
    let groups = group::list(app.db(), &filter).await?;
    let seen = groups.into_iter().filter(|it| is_seen(&caller, it));
    Ok(Json(seen.map(GroupView::from).collect()))
}

#[tracing::instrument(name = "http.group.get_by_name", skip_all)]
async fn show_by_name(
    State(app): State<App>,
    caller: Caller,
    Path((organization, name)): Path<(String, String)>,
) -> Result<Json<GroupView>, ApiError> {
    let organization = lookup::organization(&app, &caller, &organization).await?;
    let organizations = Some(vec![organization.id.0]);
    let filter = Filter { organizations, name: Some(name), ..Filter::default() };
    let group = group::list(app.db(), &filter).await?.pop().ok_or(ApiError::NotFound)?;
    if is_seen(&caller, &group) { Ok(Json(group.into())) } else { Err(ApiError::NotFound) }
}

#[tracing::instrument(name = "http.group.get", skip_all)]
async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<GroupId>,
) -> Result<Json<GroupView>, ApiError> {
    Ok(Json(find(&app, &caller, id, Action::Read).await?.into()))
}

#[derive(Deserialize)]
struct Body {
    name: Option<String>,
    display_name: Option<String>,
    avatar_url: Option<String>,
    quota_allowance: Option<i32>,
    #[serde(default)]
    add_users: Vec<Uuid>,
    #[serde(default)]
    remove_users: Vec<Uuid>,
}

fn check(group: &Group) -> Result<(), ApiError> {
    berth_domain::name::group(&group.name)?;
    berth_domain::name::display(&group.display_name)
        .map_err(|error| ApiError::field("display_name", error.to_string()))?;
    if group.quota_allowance < 0 {
        let detail = format!("is {}; use 0 or more", group.quota_allowance);
        return Err(ApiError::field("quota_allowance", detail));
    }
    Ok(())
}

/// After a change of what the prebuilds user may spend, or of where it is: pools that its quota held
/// back are looked at again, and what it needs is put back.
async fn seat_changed(work: &mut Work, organization: OrganizationId) -> Result<(), ApiError> {
    let now = work.now();
    if membership::mark_held_by_quota(work.conn(), organization, now).await? > 0 {
        work.emit(Wake::sweep());
    }
    work.emit(Wake::membership(organization));
    Ok(())
}

#[tracing::instrument(name = "http.group.create", skip_all)]
async fn create(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(organization): Path<String>,
    Json(body): Json<Body>,
) -> Result<(StatusCode, Json<GroupView>), ApiError> {
    let organization = lookup::organization(&app, &caller, &organization).await?;
    caller.authorize(Action::Create, &groups_of(organization.id))?;
    let mut work = app.begin().await?;
    let new = Group {
        id: GroupId(work.id()),
        organization_id: organization.id,
        organization_name: organization.name,
        organization_display_name: organization.display_name,
        name: body.name.unwrap_or_default(),
        display_name: body.display_name.unwrap_or_default(),
        avatar_url: body.avatar_url.unwrap_or_default(),
        quota_allowance: body.quota_allowance.unwrap_or(0),
        source: "user".to_owned(),
        members: Vec::new(),
    };
    check(&new)?;
    let now = work.now();
    group::insert(work.conn(), &new, now).await?;
    work.emit(Wake::membership(organization.id));
    let change = Change::new("create", "group", new.id.0).of(&new.name).within(organization.id);
    audit::record(&mut work, caller.id(), &origin, change).await?;
    work.commit().await?;
    Ok((StatusCode::CREATED, Json(new.into())))
}

#[tracing::instrument(name = "http.group.update", skip_all)]
async fn update(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(id): Path<GroupId>,
    Json(body): Json<Body>,
) -> Result<Json<GroupView>, ApiError> {
    let old = find(&app, &caller, id, Action::Update).await?;
    let is_everyone = old.id.0 == old.organization_id.0;
    let renamed = body.name.as_ref().is_some_and(|name| !name.is_empty() && *name != old.name);
    if is_everyone && (renamed || !body.add_users.is_empty() || !body.remove_users.is_empty()) {
        return Err(ApiError::invalid(
            "Everyone has its name and all members of the organization.",
        ));
    }
    let new = Group {
        name: body.name.filter(|it| !it.is_empty()).unwrap_or_else(|| old.name.clone()),
        display_name: body.display_name.unwrap_or_else(|| old.display_name.clone()),
        avatar_url: body.avatar_url.unwrap_or_else(|| old.avatar_url.clone()),
        quota_allowance: body.quota_allowance.unwrap_or(old.quota_allowance),
        ..old.clone()
    };
    check(&new)?;
    let mut work = app.begin().await?;
    group::update(work.conn(), &new).await?;
    group::add_members(work.conn(), id, &body.add_users).await?;
    group::remove_members(work.conn(), id, &body.remove_users).await?;
    let moved = body.add_users.iter().chain(&body.remove_users).any(|it| *it == PREBUILDS_USER.0);
    if moved || renamed || new.quota_allowance != old.quota_allowance {
        seat_changed(&mut work, new.organization_id).await?;
    }
    let shown = |it: &Group| json!({ "name": it.name, "quota_allowance": it.quota_allowance });
    let mut diff = audit::diff(&shown(&old), &shown(&new));
    if !body.add_users.is_empty() || !body.remove_users.is_empty() {
        diff["members"] =
            json!({ "old": body.remove_users, "new": body.add_users, "secret": false });
    }
    let change = Change::new("write", "group", id.0).of(&new.name).within(new.organization_id);
    audit::record(&mut work, caller.id(), &origin, change.with_diff(diff)).await?;
    work.commit().await?;
    Ok(Json(find(&app, &caller, id, Action::Read).await?.into()))
}

#[tracing::instrument(name = "http.group.delete", skip_all)]
async fn remove(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(id): Path<GroupId>,
) -> Result<Json<GroupView>, ApiError> {
    let old = find(&app, &caller, id, Action::Delete).await?;
    let mut work = app.begin().await?;
    if !group::delete(work.conn(), id).await? {
        return Err(ApiError::invalid("Everyone cannot be deleted."));
    }
    seat_changed(&mut work, old.organization_id).await?;
    let change = Change::new("delete", "group", id.0).of(&old.name).within(old.organization_id);
    audit::record(&mut work, caller.id(), &origin, change).await?;
    work.commit().await?;
    Ok(Json(old.into()))
}
