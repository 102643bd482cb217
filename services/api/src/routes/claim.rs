//! What came of each request for a workspace, for those who look after templates.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use berth_db::claim_attempt::{self, Filter, Named};
use berth_domain::authz::{Action, Resource, ResourceKind};
use berth_domain::id::OrganizationId;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::{Json, Path, Query};
use crate::lookup;

/// Most attempts on one page.
const MOST: i64 = 1000;
/// Attempts on a page whose size nobody names.
const USUAL: i64 = 100;

/// The routes of claims.
pub(crate) fn routes() -> Router<App> {
    Router::new().route("/organizations/{organization}/claims", get(list))
}

#[derive(Debug, Default, Deserialize)]
struct Asked {
    /// Name or id of a template.
    template: Option<String>,
    outcome: Option<String>,
    reason: Option<String>,
    /// A time, or how long ago.
    since: Option<String>,
    /// `next` of the page before.
    before: Option<String>,
    limit: Option<i64>,
}

impl Asked {
    fn filter(self, organization: OrganizationId, now: Timestamp) -> Result<Filter, ApiError> {
        let limit = self.limit.unwrap_or(USUAL);
        if !(1..=MOST).contains(&limit) {
            return Err(ApiError::field("limit", format!("is {limit}; use 1 to {MOST}")));
        }
        Ok(Filter {
            organization,
            template: self.template.filter(|it| !it.is_empty()),
            outcome: one_of("outcome", self.outcome)?,
            reason: one_of("reason", self.reason)?,
            since: self.since.map(|it| since(&it, now)).transpose()?,
            before: self.before.map(|it| cursor(&it)).transpose()?,
            limit,
        })
    }
}

/// A word of a closed set.
fn one_of<T: std::str::FromStr<Err: std::fmt::Display>>(
    field: &str,
    text: Option<String>,
) -> Result<Option<T>, ApiError> {
    let refuse = |error: T::Err| ApiError::field(field, error.to_string());
    text.filter(|it| !it.is_empty()).map(|it| it.parse().map_err(refuse)).transpose()
}

fn since(text: &str, now: Timestamp) -> Result<Timestamp, ApiError> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let ago: Option<SignedDuration> = text.parse().ok();
    ago.and_then(|ago| now.checked_sub(ago.abs()).ok()).ok_or_else(|| {
        let how = "use how long ago, such as 90m or 2h, or a time such as 2026-01-31T12:00:00Z";
        ApiError::field("since", format!("{text:?} is no time; {how}"))
    })
}

/// Where a page ended: time and id of its last attempt.
fn cursor(text: &str) -> Result<(Timestamp, Uuid), ApiError> {
    let parts = text
        .split_once('_')
        .and_then(|(time, id)| Some((time.parse().ok()?, Uuid::try_parse(id).ok()?)));
    parts.ok_or_else(|| ApiError::field("before", "is not the `next` of a page"))
}

/// Attempts of an organization, newest first, page by page.
async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(organization): Path<String>,
    Query(asked): Query<Asked>,
) -> Result<Json<Value>, ApiError> {
    let organization = lookup::organization(&app, &caller, &organization).await?.id;
    let template = Resource::new(ResourceKind::Template).in_organization(organization);
    caller.authorize(Action::Update, &template)?;
    let filter = asked.filter(organization, app.now())?;
    let attempts = claim_attempt::list(app.db(), &filter).await?;
    let is_full = i64::try_from(attempts.len()).is_ok_and(|it| it == filter.limit);
    let last = attempts.last().filter(|_| is_full).map(|it| &it.attempt);
    let next = last.map(|it| format!("{}_{}", it.created_at, it.id));
    let claims: Vec<Value> = attempts.iter().map(shown).collect();
    Ok(Json(json!({ "claims": claims, "next": next })))
}

fn shown(named: &Named) -> Value {
    let it = &named.attempt;
    json!({
        "id": it.id,
        "created_at": it.created_at,
        "template_id": it.template_id,
        "template_name": named.template_name,
        "template_version_id": it.version_id,
        "preset_id": it.preset_id,
        "preset_name": named.preset_name,
        "user_id": it.user_id,
        "username": named.username,
        "workspace_id": it.workspace_id,
        "workspace_name": named.workspace_name,
        "build_id": it.build_id,
        "outcome": it.outcome,
        "reason": it.reason,
        "detail": it.detail,
        "prebuild_created_at": it.prebuild_created_at,
        "build_status": it.build_status,
    })
}
