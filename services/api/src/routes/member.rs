//! Members of an organization and their roles.

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post, put};
use berth_db::member::{self, Member};
use berth_domain::authz::{
    Action, OrganizationRole, Resource, ResourceKind, assignable_organization_roles,
};
use berth_domain::id::{OrganizationId, UserId};
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::role::{AssignableRole, SlimRole};
use crate::app::App;
use crate::audit::{self, Change};
use crate::auth::Caller;
use crate::edge::Origin;
use crate::error::ApiError;
use crate::extract::{Json, MOST_ROWS, Paging, Path};
use crate::lookup;

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/organizations/{organization}/members", get(list))
        .route("/organizations/{organization}/paginated-members", get(list_page))
        .route("/organizations/{organization}/members/roles", get(list_roles))
        .route("/organizations/{organization}/members/{user}", post(add).delete(remove))
        .route("/organizations/{organization}/members/{user}/roles", put(set_roles))
}

#[derive(Serialize)]
struct MemberView {
    user_id: UserId,
    organization_id: OrganizationId,
    username: String,
    name: String,
    email: String,
    avatar_url: String,
    roles: Vec<SlimRole>,
    global_roles: Vec<SlimRole>,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl From<Member> for MemberView {
    fn from(it: Member) -> Self {
        let organization = it.organization_id;
        let roles = it.roles.iter().map(|role| SlimRole::new(role, Some(organization)));
        Self {
            roles: roles.collect(),
            global_roles: it.site_roles.iter().map(|role| SlimRole::new(role, None)).collect(),
            user_id: it.user_id,
            organization_id: organization,
            username: it.username,
            name: it.name,
            email: it.email,
            avatar_url: it.avatar_url,
            created_at: it.created_at,
            updated_at: it.updated_at,
        }
    }
}

fn members_of(id: OrganizationId) -> Resource {
    Resource::new(ResourceKind::OrganizationMember).in_organization(id)
}

async fn page(
    app: &App,
    caller: &Caller,
    organization: &str,
    page: (i64, i64),
) -> Result<(Vec<MemberView>, i64), ApiError> {
    let organization = lookup::organization(app, caller, organization).await?;
    // Whoever may not see the others sees himself.
    let sees_all = caller.may(Action::Read, &members_of(organization.id));
    let only = (!sees_all).then(|| caller.id());
    let (members, count) = member::list(app.db(), organization.id, only, page).await?;
    Ok((members.into_iter().map(MemberView::from).collect(), count))
}

#[tracing::instrument(name = "http.member.list", skip_all)]
async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(organization): Path<String>,
) -> Result<Json<Vec<MemberView>>, ApiError> {
    Ok(Json(page(&app, &caller, &organization, (MOST_ROWS, 0)).await?.0))
}

#[derive(Serialize)]
struct Page {
    members: Vec<MemberView>,
    count: i64,
}

/// The contract has one page in a list of its own.
#[tracing::instrument(name = "http.member.list_page", skip_all)]
async fn list_page(
    State(app): State<App>,
    caller: Caller,
    paging: Paging,
    Path(organization): Path<String>,
) -> Result<Json<[Page; 1]>, ApiError> {
    let bounds = (paging.limit, paging.offset);
    let (members, count) = page(&app, &caller, &organization, bounds).await?;
    Ok(Json([Page { members, count }]))
}

#[tracing::instrument(name = "http.member.list_roles", skip_all)]
async fn list_roles(
    State(app): State<App>,
    caller: Caller,
    Path(organization): Path<String>,
) -> Result<Json<Vec<AssignableRole>>, ApiError> {
    let organization = lookup::organization(&app, &caller, &organization).await?;
    let kind = Resource::new(ResourceKind::AssignOrgRole).in_organization(organization.id);
    caller.authorize(Action::Read, &kind)?;
    let mine = assignable_organization_roles(caller.person(), organization.id);
    let roles = OrganizationRole::ALL
        .iter()
        .map(|it| AssignableRole::new(it.as_str(), Some(organization.id), mine.contains(it)));
    Ok(Json(roles.collect()))
}

#[derive(Serialize)]
struct Membership {
    user_id: UserId,
    organization_id: OrganizationId,
    created_at: Timestamp,
    updated_at: Timestamp,
    roles: Vec<SlimRole>,
}

async fn membership(
    app: &App,
    organization: OrganizationId,
    user: UserId,
) -> Result<Json<Membership>, ApiError> {
    let (mut members, _) = member::list(app.db(), organization, Some(user), (1, 0)).await?;
    let it = members.pop().ok_or(ApiError::NotFound)?;
    Ok(Json(Membership {
        roles: it.roles.iter().map(|role| SlimRole::new(role, Some(organization))).collect(),
        user_id: it.user_id,
        organization_id: it.organization_id,
        created_at: it.created_at,
        updated_at: it.updated_at,
    }))
}

#[tracing::instrument(name = "http.member.create", skip_all)]
async fn add(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path((organization, user)): Path<(String, String)>,
) -> Result<Json<Membership>, ApiError> {
    let organization = lookup::organization(&app, &caller, &organization).await?;
    caller.authorize(Action::Create, &members_of(organization.id))?;
    let user = lookup::user(&app, &caller, &user).await?;
    if user.is_system {
        return Err(ApiError::invalid("Memberships of system users are Berth's own business."));
    }
    let mut work = app.begin().await?;
    let now = work.now();
    member::insert(work.conn(), organization.id, user.id, &[], now).await?;
    let change = Change::new("create", "organization_member", user.id.0);
    let change = change.of(user.username).within(organization.id);
    audit::record(&mut work, caller.id(), &origin, change).await?;
    work.commit().await?;
    membership(&app, organization.id, user.id).await
}

#[tracing::instrument(name = "http.member.delete", skip_all)]
async fn remove(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path((organization, user)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let organization = lookup::organization(&app, &caller, &organization).await?;
    caller.authorize(Action::Delete, &members_of(organization.id))?;
    let user = lookup::user(&app, &caller, &user).await?;
    if user.is_system {
        return Err(ApiError::invalid("Memberships of system users are Berth's own business."));
    }
    let mut work = app.begin().await?;
    if !member::delete(work.conn(), organization.id, user.id).await? {
        return Err(ApiError::NotFound);
    }
    let change = Change::new("delete", "organization_member", user.id.0);
    let change = change.of(user.username).within(organization.id);
    audit::record(&mut work, caller.id(), &origin, change).await?;
    work.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct SetRoles {
    roles: Vec<String>,
}

#[tracing::instrument(name = "http.member.set_roles", skip_all)]
async fn set_roles(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path((organization, user)): Path<(String, String)>,
    Json(body): Json<SetRoles>,
) -> Result<Json<Membership>, ApiError> {
    let organization = lookup::organization(&app, &caller, &organization).await?;
    let kind = Resource::new(ResourceKind::AssignOrgRole).in_organization(organization.id);
    caller.authorize(Action::Assign, &kind)?;
    caller.authorize(Action::Unassign, &kind)?;
    let user = lookup::user(&app, &caller, &user).await?;
    if user.id == caller.id() {
        return Err(ApiError::invalid("You cannot change your own roles."));
    }
    let wanted = body.roles.iter().map(|role| role.parse::<OrganizationRole>());
    let wanted: Vec<OrganizationRole> = wanted
        .collect::<Result<_, _>>()
        .map_err(|error| ApiError::field("roles", error.to_string()))?;
    let (mut old, _) = member::list(app.db(), organization.id, Some(user.id), (1, 0)).await?;
    let old = old.pop().ok_or(ApiError::NotFound)?.roles;
    let mine = assignable_organization_roles(caller.person(), organization.id);
    let has: Vec<OrganizationRole> = old.iter().filter_map(|it| it.parse().ok()).collect();
    let given = wanted.iter().filter(|it| !has.contains(it));
    let taken = has.iter().filter(|it| !wanted.contains(it));
    if !given.chain(taken).all(|role| mine.contains(role)) {
        return Err(ApiError::Forbidden);
    }
    let roles: Vec<String> = wanted
        .iter()
        .filter(|it| **it != OrganizationRole::Member)
        .map(ToString::to_string)
        .collect();
    let mut work = app.begin().await?;
    let now = work.now();
    member::set_roles(work.conn(), organization.id, user.id, &roles, now).await?;
    let change = Change::new("write", "organization_member", user.id.0)
        .of(user.username)
        .within(organization.id)
        .with_diff(audit::diff(&json!({ "roles": old }), &json!({ "roles": roles })));
    audit::record(&mut work, caller.id(), &origin, change).await?;
    work.commit().await?;
    membership(&app, organization.id, user.id).await
}
