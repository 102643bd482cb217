//! Workspaces: lists, one, and what people change about them.

use axum::Router;
use axum::extract::State;
use axum::routing::{get, put};
use berth_bus::event::{Event, WorkspaceChanged, WorkspaceVerb};
use berth_db::build::read as build_read;
use berth_db::workspace::{self, Change, Filter, Page, Visibility, Workspace};
use berth_domain::authz::{Action, Resource, ResourceKind};
use berth_domain::id::{OrganizationId, UserId, WorkspaceId};
use berth_domain::name;
use berth_domain::state::{JobStatus, Transition};
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::app::App;
use crate::auth::Caller;
use crate::edge::Origin;
use crate::error::{ApiError, Message};
use crate::extract::{Json, Paging, Path, Query};
use crate::lookup;
use crate::routes::{workspace_change, workspace_view};

/// Routes of workspaces.
pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/workspaces", get(list))
        .route("/workspaces/{workspace}", get(one).patch(rename))
        .route("/workspaces/{workspace}/autostart", put(autostart))
        .route("/workspaces/{workspace}/ttl", put(ttl))
        .route("/workspaces/{workspace}/dormant", put(dormant))
        .route("/workspaces/{workspace}/extend", put(extend))
        .route("/workspaces/{workspace}/autoupdates", put(autoupdates))
        .route("/workspaces/{workspace}/favorite", put(favor).delete(unfavor))
        .route("/users/{user}/workspace/{workspace}", get(by_name))
        .route("/users/{user}/workspace/{workspace}/builds/{number}", get(build_by_number))
        .route("/organizations/{organization}/members/{user}/workspace-quota", get(quota))
}

/// Which workspaces the caller may read, by the same rules as one workspace.
fn visibility(caller: &Caller) -> Visibility {
    let of = |organization: Option<OrganizationId>, owner: UserId| {
        let resource = Resource::new(ResourceKind::Workspace).owned_by(owner);
        match organization {
            Some(id) => resource.in_organization(id),
            None => resource,
        }
    };
    let somebody = UserId(Uuid::nil());
    let member_of = || caller.person().organizations.keys().copied();
    let readable = |owner: UserId| {
        member_of()
            .filter(|id| caller.may(Action::Read, &of(Some(*id), owner)))
            .map(|id| id.0)
            .collect()
    };
    Visibility {
        user_id: caller.id().0,
        all: caller.may(Action::Read, &of(None, somebody)),
        organizations: readable(somebody),
        own_in: readable(caller.id()),
    }
}

#[derive(Debug, Deserialize)]
struct ListQuery {
    #[serde(default)]
    q: String,
}

/// Reads `owner:… template:… name:… organization:… status:… deleted:… is_prebuild:…`, and
/// `owner/name` or a bare name.
fn parse(q: &str, me: &str) -> Result<Filter, ApiError> {
    let mut filter = Filter::default();
    let flag = |key: &str, value: &str| {
        value
            .parse::<bool>()
            .map_err(|_| ApiError::field("q", format!("{key}:{value} must be true or false")))
    };
    for term in q.split_whitespace() {
        let Some((key, value)) = term.split_once(':') else {
            match term.split_once('/') {
                Some((owner, name)) => {
                    filter.owner = Some(if owner == "me" { me } else { owner }.to_owned());
                    filter.name = Some(name.to_owned());
                }
                None => filter.name = Some(term.to_owned()),
            }
            continue;
        };
        let value = value.trim_matches('"');
        match key {
            "owner" if value == "me" => filter.owner = Some(me.to_owned()),
            "owner" => filter.owner = Some(value.to_owned()),
            "template" => filter.template = Some(value.to_owned()),
            "name" => filter.name = Some(value.to_owned()),
            "organization" => filter.organization = Some(value.to_owned()),
            "status" => {
                for status in value.split(',') {
                    if !workspace_view::is_status(status) {
                        let detail = format!("{status:?} is not a workspace status");
                        return Err(ApiError::field("q", detail));
                    }
                    filter.statuses.push(status.to_owned());
                }
            }
            "deleted" => filter.deleted = flag(key, value)?,
            "is_prebuild" => filter.prebuilds = Some(flag(key, value)?),
            _ => {
                return Err(ApiError::field(
                    "q",
                    format!(
                        "{key:?} is not known; use owner, template, name, organization, status, \
                         deleted or is_prebuild"
                    ),
                ));
            }
        }
    }
    Ok(filter)
}

async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<ListQuery>,
    paging: Paging,
) -> Result<Json<Value>, ApiError> {
    let filter = parse(&query.q, &caller.user.username)?;
    let page = Page { limit: paging.limit, offset: paging.offset };
    let reader = visibility(&caller);
    let (ids, count) = workspace::list_ids(app.db(), &reader, &filter, page).await?;
    let workspaces = workspace_view::workspaces(&app, &ids).await?;
    Ok(Json(json!({ "workspaces": workspaces, "count": count })))
}

/// A workspace that the caller may do `action` to.
pub(crate) async fn find(
    app: &App,
    caller: &Caller,
    id: WorkspaceId,
    action: Action,
) -> Result<Workspace, ApiError> {
    let workspace = workspace::find(app.db(), id).await?.ok_or(ApiError::NotFound)?;
    caller.authorize(action, &workspace_view::resource_of(&workspace))?;
    Ok(workspace)
}

#[derive(Debug, Deserialize)]
struct OneQuery {
    #[serde(default)]
    include_deleted: bool,
}

async fn one(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<WorkspaceId>,
    Query(query): Query<OneQuery>,
) -> Result<Json<Value>, ApiError> {
    let workspace = find(&app, &caller, id, Action::Read).await?;
    if workspace.deleted && !query.include_deleted {
        return Err(ApiError::NotFound);
    }
    Ok(Json(workspace_view::workspace(&app, id).await?))
}

/// The workspace of this owner and name, which the caller may read.
async fn named(
    app: &App,
    caller: &Caller,
    user: &str,
    name: &str,
    deleted: bool,
) -> Result<WorkspaceId, ApiError> {
    let owner = lookup::user(app, caller, user).await?;
    let id = workspace::find_id_by_name(app.db(), owner.id, name, deleted).await?;
    let id = id.ok_or(ApiError::NotFound)?;
    Ok(find(app, caller, id, Action::Read).await?.id)
}

async fn by_name(
    State(app): State<App>,
    caller: Caller,
    Path((user, name)): Path<(String, String)>,
    Query(query): Query<OneQuery>,
) -> Result<Json<Value>, ApiError> {
    let id = named(&app, &caller, &user, &name, query.include_deleted).await?;
    Ok(Json(workspace_view::workspace(&app, id).await?))
}

async fn build_by_number(
    State(app): State<App>,
    caller: Caller,
    Path((user, name, number)): Path<(String, String, i32)>,
) -> Result<Json<Value>, ApiError> {
    let id = named(&app, &caller, &user, &name, false).await?;
    let build = build_read::find_id_by_number(app.db(), id, number).await?;
    Ok(Json(workspace_view::build(&app, build.ok_or(ApiError::NotFound)?).await?))
}

/// One change of a workspace: checked, written, audited and told in one transaction.
struct Edit<'a> {
    caller: &'a Caller,
    origin: &'a Origin,
    workspace: &'a Workspace,
    change: Change,
    diff: Value,
}

async fn edit(app: &App, edit: Edit<'_>) -> Result<(), ApiError> {
    let Edit { caller, origin, workspace, change, diff } = edit;
    let prebuild =
        || ApiError::conflict("This is a prebuild: its pool decides about its life.", None);
    if workspace.pool_state.is_some() {
        return Err(prebuild());
    }
    let mut work = app.begin().await?;
    let now = work.now();
    let revision =
        workspace::update(work.conn(), workspace.id, &change, now).await?.ok_or_else(prebuild)?;
    let line = workspace_change::Line {
        organization: workspace.organization_id,
        action: "write",
        resource_type: "workspace",
        id: workspace.id.0,
        target: &workspace.name,
        diff,
    };
    workspace_change::audit(&mut work, caller, origin, line).await?;
    work.emit(Event::Workspace(WorkspaceChanged {
        organization_id: workspace.organization_id,
        workspace_id: workspace.id,
        owner_id: workspace.owner_id,
        what: WorkspaceVerb::Updated,
        revision,
    }));
    Ok(work.commit().await?)
}

fn diff(field: &str, old: impl serde::Serialize, new: impl serde::Serialize) -> Value {
    json!({ field: { "old": old, "new": new, "secret": false } })
}

#[derive(Debug, Deserialize)]
struct Rename {
    name: Option<String>,
}

async fn rename(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(id): Path<WorkspaceId>,
    Json(body): Json<Rename>,
) -> Result<StatusCode, ApiError> {
    let workspace = find(&app, &caller, id, Action::Update).await?;
    let Some(name) = body.name.filter(|it| *it != workspace.name) else {
        return Ok(StatusCode::NO_CONTENT);
    };
    name::workspace(&name)?;
    let diff = diff("name", &workspace.name, &name);
    let change = Change { name: Some(name), ..Change::default() };
    let edited = Edit { caller: &caller, origin: &origin, workspace: &workspace, change, diff };
    edit(&app, edited).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
struct Autostart {
    schedule: Option<String>,
}

async fn autostart(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(id): Path<WorkspaceId>,
    Json(body): Json<Autostart>,
) -> Result<StatusCode, ApiError> {
    let workspace = find(&app, &caller, id, Action::Update).await?;
    let schedule = body.schedule.filter(|it| !it.trim().is_empty());
    if let Some(schedule) = &schedule {
        workspace_change::check_schedule(schedule)?;
        if !workspace.allow_user_autostart {
            let detail = "the template does not let owners choose a schedule";
            return Err(ApiError::field("autostart_schedule", detail));
        }
    }
    let diff = diff("autostart_schedule", &workspace.autostart_schedule, &schedule);
    let change = Change { autostart_schedule: Some(schedule), ..Change::default() };
    let edited = Edit { caller: &caller, origin: &origin, workspace: &workspace, change, diff };
    edit(&app, edited).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
struct Ttl {
    ttl_ms: Option<i64>,
}

async fn ttl(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(id): Path<WorkspaceId>,
    Json(body): Json<Ttl>,
) -> Result<StatusCode, ApiError> {
    let workspace = find(&app, &caller, id, Action::Update).await?;
    let ttl = body.ttl_ms.map(workspace_change::check_ttl).transpose()?.flatten();
    if !workspace.allow_user_autostop {
        let detail = "the template does not let owners choose a TTL";
        return Err(ApiError::field("ttl_ms", detail));
    }
    let diff = diff("ttl_ms", workspace.ttl_ms, ttl);
    let change = Change { ttl_ms: Some(ttl), ..Change::default() };
    let edited = Edit { caller: &caller, origin: &origin, workspace: &workspace, change, diff };
    edit(&app, edited).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
struct Dormant {
    #[serde(default)]
    dormant: bool,
}

async fn dormant(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(id): Path<WorkspaceId>,
    Json(body): Json<Dormant>,
) -> Result<Json<Value>, ApiError> {
    let workspace = find(&app, &caller, id, Action::Update).await?;
    if workspace.dormant_at.is_some() != body.dormant || workspace.pool_state.is_some() {
        let since = body.dormant.then(|| app.now());
        let diff = diff("dormant_at", workspace.dormant_at, since);
        let change = Change {
            dormant_at: Some(since),
            deleting_at: (!body.dormant).then_some(None),
            ..Change::default()
        };
        let edited = Edit { caller: &caller, origin: &origin, workspace: &workspace, change, diff };
        edit(&app, edited).await?;
    }
    Ok(Json(workspace_view::workspace(&app, id).await?))
}

#[derive(Debug, Deserialize)]
struct Autoupdates {
    automatic_updates: String,
}

async fn autoupdates(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(id): Path<WorkspaceId>,
    Json(body): Json<Autoupdates>,
) -> Result<StatusCode, ApiError> {
    let workspace = find(&app, &caller, id, Action::Update).await?;
    let updates = workspace_change::check_updates(Some(&body.automatic_updates))?;
    let diff = diff("automatic_updates", &workspace.automatic_updates, &updates);
    let change = Change { automatic_updates: Some(updates), ..Change::default() };
    let edited = Edit { caller: &caller, origin: &origin, workspace: &workspace, change, diff };
    edit(&app, edited).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn mark(
    app: &App,
    caller: &Caller,
    origin: &Origin,
    id: WorkspaceId,
    favorite: bool,
) -> Result<StatusCode, ApiError> {
    let workspace = find(app, caller, id, Action::Update).await?;
    if workspace.owner_id != caller.id() {
        return Err(ApiError::Forbidden);
    }
    let diff = diff("favorite", workspace.favorite, favorite);
    let change = Change { favorite: Some(favorite), ..Change::default() };
    edit(app, Edit { caller, origin, workspace: &workspace, change, diff }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn favor(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(id): Path<WorkspaceId>,
) -> Result<StatusCode, ApiError> {
    mark(&app, &caller, &origin, id, true).await
}

async fn unfavor(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(id): Path<WorkspaceId>,
) -> Result<StatusCode, ApiError> {
    mark(&app, &caller, &origin, id, false).await
}

#[derive(Debug, Deserialize)]
struct Extend {
    deadline: Timestamp,
}

/// Moves the deadline of the running build: at least 30 min from now, at most its max deadline.
async fn extend(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(id): Path<WorkspaceId>,
    Json(body): Json<Extend>,
) -> Result<Json<Message>, ApiError> {
    const LEAST: SignedDuration = SignedDuration::from_mins(30);
    let workspace = find(&app, &caller, id, Action::Update).await?;
    if workspace.pool_state.is_some() {
        return Err(ApiError::conflict("Prebuilds have no deadline.", None));
    }
    let latest = workspace.latest_build_id.ok_or(ApiError::NotFound)?;
    let build = build_read::find(app.db(), latest).await?.ok_or(ApiError::NotFound)?;
    if build.transition != Transition::Start || build.job.status != JobStatus::Succeeded {
        return Err(ApiError::conflict("Only a running workspace has a deadline.", None));
    }
    if build.deadline.is_none() {
        return Err(ApiError::conflict("The workspace has no deadline to extend.", None));
    }
    let now = app.now();
    if body.deadline.duration_since(now) < LEAST {
        return Err(ApiError::field("deadline", "must be at least 30 minutes from now"));
    }
    if build.max_deadline.is_some_and(|max| body.deadline > max) {
        return Err(ApiError::field("deadline", "is later than the build's max deadline"));
    }
    let mut work = app.begin().await?;
    build_read::mark_deadline(work.conn(), latest, body.deadline, now).await?;
    let revision = workspace::bump(work.conn(), id).await?.unwrap_or_default();
    let line = workspace_change::Line {
        organization: workspace.organization_id,
        action: "write",
        resource_type: "workspace_build",
        id: latest.0,
        target: &workspace.name,
        diff: diff("deadline", build.deadline, body.deadline),
    };
    workspace_change::audit(&mut work, &caller, &origin, line).await?;
    work.emit(Event::Workspace(WorkspaceChanged {
        organization_id: workspace.organization_id,
        workspace_id: id,
        owner_id: workspace.owner_id,
        what: WorkspaceVerb::Updated,
        revision,
    }));
    work.commit().await?;
    Ok(Json(Message::new(format!("Deadline updated to {}.", body.deadline))))
}

async fn quota(
    State(app): State<App>,
    caller: Caller,
    Path((organization, user)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let organization = lookup::organization(&app, &caller, &organization).await?.id;
    let user = lookup::user(&app, &caller, &user).await?.id;
    let member = Resource::new(ResourceKind::OrganizationMember)
        .in_organization(organization)
        .owned_by(user);
    caller.authorize(Action::Read, &member)?;
    let quota = workspace::quota(app.db(), organization, user).await?;
    Ok(Json(json!({ "credits_consumed": quota.consumed, "budget": quota.budget })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_what_it_filters_by() {
        let filter = parse("owner:me template:docker status:running,failed dev", "alice").unwrap();
        assert_eq!(filter.owner.as_deref(), Some("alice"));
        assert_eq!(filter.template.as_deref(), Some("docker"));
        assert_eq!(filter.statuses, ["running", "failed"]);
        assert_eq!(filter.name.as_deref(), Some("dev"));
        let filter = parse("bob/dev", "alice").unwrap();
        assert_eq!((filter.owner.as_deref(), filter.name.as_deref()), (Some("bob"), Some("dev")));
    }

    #[test]
    fn an_unknown_filter_is_refused() {
        assert!(parse("colour:red", "alice").is_err());
        assert!(parse("status:asleep", "alice").is_err());
    }
}
