//! `/notifications/inbox`: the caller's own.

use axum::Router;
use axum::extract::State;
use axum::routing::{get, put};
use berth_db::inbox::{self, Filter, Notification};
use berth_domain::authz::{Action, Resource, ResourceKind};
use berth_domain::id::{InboxId, NotificationTemplateId, UserId};
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::{Json, Path, Query};

/// Notifications in one answer; `starting_before` gives the next ones.
const PAGE: i64 = 25;

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/notifications/inbox", get(list))
        .route("/notifications/inbox/mark-all-as-read", put(mark_all))
        .route("/notifications/inbox/{id}/read-status", put(mark))
}

#[derive(Serialize)]
struct View {
    id: InboxId,
    user_id: UserId,
    template_id: NotificationTemplateId,
    targets: Vec<Uuid>,
    title: String,
    content: String,
    icon: String,
    actions: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    read_at: Option<Timestamp>,
    created_at: Timestamp,
}

impl From<Notification> for View {
    fn from(it: Notification) -> Self {
        Self {
            id: it.id,
            user_id: it.user_id,
            template_id: it.template_id,
            targets: it.targets,
            title: it.title,
            content: it.content,
            icon: it.icon,
            actions: it.actions,
            read_at: it.read_at,
            created_at: it.created_at,
        }
    }
}

fn check(caller: &Caller, action: Action) -> Result<(), ApiError> {
    let resource = Resource::new(ResourceKind::InboxNotification).owned_by(caller.id());
    caller.authorize(action, &resource)
}

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default)]
    targets: String,
    #[serde(default)]
    templates: String,
    #[serde(default)]
    read_status: String,
    #[serde(default)]
    starting_before: String,
}

fn ids(field: &str, text: &str) -> Result<Option<Vec<Uuid>>, ApiError> {
    if text.is_empty() {
        return Ok(None);
    }
    let all: Result<Vec<Uuid>, _> = text.split(',').map(|it| it.trim().parse()).collect();
    all.map(Some).map_err(|error: uuid::Error| ApiError::field(field, error.to_string()))
}

#[derive(Serialize)]
struct Listed {
    notifications: Vec<View>,
    unread_count: i64,
}

#[tracing::instrument(name = "http.inbox.list", skip_all)]
async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<Json<Listed>, ApiError> {
    check(&caller, Action::Read)?;
    let filter = Filter {
        id: None,
        targets: ids("targets", &query.targets)?,
        templates: ids("templates", &query.templates)?,
        read: match query.read_status.as_str() {
            "" | "all" => None,
            "read" => Some(true),
            "unread" => Some(false),
            other => {
                let detail = format!("{other:?} is unknown; use all, read or unread");
                return Err(ApiError::field("read_status", detail));
            }
        },
        before: ids("starting_before", &query.starting_before)?
            .and_then(|all| all.first().copied()),
        limit: PAGE,
    };
    let notifications = inbox::list(app.db(), caller.id(), &filter).await?;
    let unread_count = inbox::count_unread(app.db(), caller.id()).await?;
    let notifications = notifications.into_iter().map(View::from).collect();
    Ok(Json(Listed { notifications, unread_count }))
}

#[derive(Deserialize)]
struct Mark {
    is_read: bool,
}

#[derive(Serialize)]
struct Marked {
    /// What the contract promises.
    message: &'static str,
    /// What clients read.
    notification: View,
    unread_count: i64,
}

#[tracing::instrument(name = "http.inbox.mark", skip_all)]
async fn mark(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<InboxId>,
    Json(body): Json<Mark>,
) -> Result<Json<Marked>, ApiError> {
    check(&caller, Action::Update)?;
    let read_at = body.is_read.then(|| app.now());
    if !inbox::mark_read(app.db(), caller.id(), id, read_at).await? {
        return Err(ApiError::NotFound);
    }
    let filter = Filter { id: Some(id), limit: 1, ..Filter::default() };
    let notification = inbox::list(app.db(), caller.id(), &filter).await?.pop();
    let notification = notification.ok_or(ApiError::NotFound)?.into();
    let unread_count = inbox::count_unread(app.db(), caller.id()).await?;
    Ok(Json(Marked { message: "Read status updated.", notification, unread_count }))
}

#[tracing::instrument(name = "http.inbox.mark_all", skip_all)]
async fn mark_all(State(app): State<App>, caller: Caller) -> Result<StatusCode, ApiError> {
    check(&caller, Action::Update)?;
    inbox::mark_all_read(app.db(), caller.id(), app.now()).await?;
    Ok(StatusCode::NO_CONTENT)
}
