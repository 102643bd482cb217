//! `/audit`: who changed what.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use berth_db::audit::{self, Filter, Line};
use berth_db::{organization, user};
use berth_domain::authz::{Action, Resource, ResourceKind};
use berth_domain::id::UserId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::user::UserView;
use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::{Json, Paging, Query};

/// Resource types that clients of the contract know; the others are left without a type.
const KNOWN_TYPES: &[&str] = &[
    "template",
    "template_version",
    "user",
    "workspace",
    "workspace_build",
    "api_key",
    "group",
    "prebuilds_settings",
    "organization",
    "custom_role",
    "organization_member",
    "workspace_agent",
    "workspace_app",
];

pub(crate) fn routes() -> Router<App> {
    Router::new().route("/audit", get(list))
}

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default)]
    q: String,
}

#[derive(Serialize)]
struct Listed {
    audit_logs: Vec<Value>,
    count: i64,
}

#[tracing::instrument(name = "http.audit.list", skip_all)]
async fn list(
    State(app): State<App>,
    caller: Caller,
    paging: Paging,
    Query(query): Query<ListQuery>,
) -> Result<Json<Listed>, ApiError> {
    let kind = Resource::new(ResourceKind::AuditLog);
    let organizations = if caller.may(Action::Read, &kind) {
        None
    } else {
        let of = |id| caller.may(Action::Read, &kind.clone().in_organization(id));
        let readable = caller.person().organizations.keys().copied().filter(|id| of(*id));
        let readable: Vec<Uuid> = readable.map(|id| id.0).collect();
        if readable.is_empty() {
            return Err(ApiError::Forbidden);
        }
        Some(readable)
    };
    let word = |key: &str| {
        let found = query.q.split_whitespace().find_map(|it| it.strip_prefix(key));
        found.map(ToOwned::to_owned)
    };
    let resource_id = word("resource_id:").map(|it| it.parse()).transpose();
    let filter = Filter {
        organizations,
        action: word("action:"),
        resource_type: word("resource_type:"),
        resource_id: resource_id
            .map_err(|error: uuid::Error| ApiError::field("q", error.to_string()))?,
        username: word("username:"),
        limit: paging.limit,
        offset: paging.offset,
    };
    let (lines, count) = audit::list(app.db(), &filter).await?;
    let actors: Vec<UserId> = lines.iter().filter_map(|it| it.actor_id).collect();
    let wanted = user::Filter { ids: Some(actors), limit: 1000, ..user::Filter::default() };
    let (users, _) = user::list(app.db(), &wanted).await?;
    let users: BTreeMap<UserId, Value> =
        users.into_iter().map(|it| (it.id, json!(UserView::from(it)))).collect();
    let all = organization::list(app.db(), None).await?;
    let organizations: BTreeMap<_, Value> = all
        .into_iter()
        .map(|it| {
            let shown = json!({
                "id": it.id, "name": it.name, "display_name": it.display_name, "icon": it.icon,
            });
            (it.id, shown)
        })
        .collect();
    let shown = lines.iter().map(|line| {
        let user = line.actor_id.and_then(|id| users.get(&id));
        let organization = line.organization_id.and_then(|id| organizations.get(&id));
        line_json(line, user, organization)
    });
    Ok(Json(Listed { audit_logs: shown.collect(), count }))
}

fn line_json(line: &Line, user: Option<&Value>, organization: Option<&Value>) -> Value {
    let who = user.and_then(|it| it["username"].as_str()).unwrap_or("Berth");
    let mut json = json!({
        "id": line.id,
        "time": line.time,
        "action": line.action,
        "diff": line.diff,
        "description": format!("{who}: {} {} {}", line.action, line.resource_type, line.target),
        "resource_id": line.resource_id,
        "resource_target": line.target,
        "resource_icon": "",
        "resource_link": "",
        "is_deleted": false,
        "ip": line.ip,
        "user_agent": line.user_agent,
        "status_code": line.status_code,
        "additional_fields": {},
    });
    if KNOWN_TYPES.contains(&line.resource_type.as_str()) {
        json["resource_type"] = json!(line.resource_type);
    }
    let rest = [
        ("request_id", line.request_id.map(|it| json!(it))),
        ("organization_id", line.organization_id.map(|it| json!(it))),
        ("organization", organization.cloned()),
        ("user", user.cloned()),
    ];
    for (key, value) in rest {
        if let Some(value) = value {
            json[key] = value;
        }
    }
    json
}
