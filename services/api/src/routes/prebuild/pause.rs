//! Pauses: nothing is created or deleted where one holds; claims go on.

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use berth_backbone::Work;
use berth_db::pause::{self as stored, Filter, NewPause, Pause, Viewer};
use berth_db::template as stored_template;
use berth_domain::authz::{Action, Resource, ResourceKind};
use berth_domain::id::{OrganizationId, PresetId, TemplateId};
use berth_domain::plan::PauseScope;
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::app::App;
use crate::audit::{self, Change};
use crate::auth::Caller;
use crate::edge::Origin;
use crate::error::{ApiError, Validation};
use crate::extract::{Json, Paging, Path};
use crate::lookup;

/// Most characters of a pause's reason.
const REASON_MAX: usize = 500;
/// Shortest pause that ends by itself.
const SHORTEST: SignedDuration = SignedDuration::from_secs(60);
/// Longest pause that ends by itself.
const LONGEST: SignedDuration = SignedDuration::from_hours(365 * 24);

/// More than are ever woken one by one.
const WAKES_MAX: i64 = 100;

/// The pause of this scope and thing that holds, if there is one.
pub(super) async fn find(
    work: &mut Work,
    scope: PauseScope,
    scope_id: Option<Uuid>,
) -> Result<Option<Pause>, ApiError> {
    let filter = Filter { of: Some((scope, scope_id)), limit: 1, ..Filter::default() };
    let now = work.now();
    Ok(stored::list(work.conn(), &filter, now).await?.pop())
}

/// Has the pools concerned looked at. One statement marks them all, and where they are many, one
/// event tells of them.
pub(super) async fn wake(
    work: &mut Work,
    scope: PauseScope,
    scope_id: Option<Uuid>,
) -> Result<(), ApiError> {
    let now = work.now();
    let marked = stored::mark_pools(work.conn(), scope, scope_id, WAKES_MAX, now).await?;
    super::wake(work, &marked);
    Ok(())
}

/// What the caller sees without seeing all.
fn viewer(caller: &Caller) -> Option<Viewer> {
    let template = Resource::new(ResourceKind::Template);
    let changes_all = caller.may(Action::Update, &template);
    let deployment = caller.may(Action::Read, &Resource::new(ResourceKind::DeploymentConfig));
    if changes_all && deployment {
        return None;
    }
    let person = caller.person();
    let memberships: Vec<OrganizationId> = person.organizations.keys().copied().collect();
    let may = |id: &&OrganizationId| {
        changes_all || caller.may(Action::Update, &template.clone().in_organization(**id))
    };
    let organizations: Vec<Uuid> = memberships.iter().filter(may).map(|id| id.0).collect();
    Some(Viewer {
        // Whoever runs pools sees why they stand still.
        deployment: deployment || !organizations.is_empty(),
        organizations,
        memberships: memberships.iter().map(|id| id.0).collect(),
        user: caller.id().0,
        groups: person.groups.iter().map(|id| id.0).collect(),
    })
}

/// The pauses that hold and that the caller may see.
#[tracing::instrument(name = "http.pause.list", skip_all)]
pub(super) async fn list(
    State(app): State<App>,
    caller: Caller,
    paging: Paging,
) -> Result<Json<Vec<Value>>, ApiError> {
    let visible_to = viewer(&caller);
    let (limit, offset) = (paging.limit, paging.offset);
    let filter = Filter { visible_to, limit, offset, ..Filter::default() };
    let pauses = stored::list(app.db(), &filter, app.now()).await?;
    Ok(Json(pauses.iter().map(view).collect()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Create {
    scope: String,
    scope_id: Option<Uuid>,
    #[serde(default)]
    reason: String,
    expires_at: Option<Timestamp>,
    duration_seconds: Option<i64>,
}

impl Create {
    /// The scope and the end; every complaint at once.
    fn check(&self, now: Timestamp) -> Result<(PauseScope, Option<Timestamp>), ApiError> {
        let mut wrong = Vec::new();
        let mut complain = |field: &str, detail: String| {
            wrong.push(Validation { field: field.to_owned(), detail });
        };
        let scope = self.scope.parse::<PauseScope>();
        match (&scope, self.scope_id) {
            (Err(error), _) => complain("scope", error.to_string()),
            (Ok(PauseScope::Deployment), Some(_)) => {
                complain("scope_id", "is given; a pause of the deployment has none".to_owned());
            }
            (Ok(scope), None) if *scope != PauseScope::Deployment => {
                complain("scope_id", format!("is missing; give the id of the {scope}"));
            }
            _ => {}
        }
        let length = self.reason.chars().count();
        if length > REASON_MAX {
            complain("reason", format!("has {length} characters; give at most {REASON_MAX}"));
        }
        let end = self.end(now, &mut complain);
        match scope {
            Ok(scope) if wrong.is_empty() => Ok((scope, end)),
            _ => Err(ApiError::fields(wrong)),
        }
    }
}

impl Create {
    fn end(&self, now: Timestamp, mut complain: impl FnMut(&str, String)) -> Option<Timestamp> {
        match (self.expires_at, self.duration_seconds) {
            (Some(_), Some(_)) => {
                let why = "is given beside expires_at; give one of them, or none".to_owned();
                complain("duration_seconds", why);
                None
            }
            (None, Some(seconds)) => {
                let length = SignedDuration::from_secs(seconds);
                if !(SHORTEST..=LONGEST).contains(&length) {
                    let (least, most) = (SHORTEST.as_secs(), LONGEST.as_secs());
                    complain("duration_seconds", format!("is {seconds}; give {least} to {most}"));
                }
                now.checked_add(length).ok()
            }
            (Some(at), None) => {
                if !(SHORTEST..=LONGEST).contains(&at.duration_since(now)) {
                    let why = format!("is {at}; give a time 60 s to 365 days from now");
                    complain("expires_at", why);
                }
                Some(at)
            }
            (None, None) => None,
        }
    }
}

/// What a pause is about, once the caller may pause it.
struct Target {
    organization: Option<OrganizationId>,
    name: String,
}

/// Pausing the deployment is a change of its configuration; pausing anything else is a change of
/// the templates concerned.
async fn authorized(
    app: &App,
    caller: &Caller,
    scope: PauseScope,
    scope_id: Option<Uuid>,
) -> Result<Target, ApiError> {
    let template = Resource::new(ResourceKind::Template);
    let Some(id) = scope_id else {
        let deployment = Resource::new(ResourceKind::DeploymentConfig);
        caller.authorize(Action::Update, &deployment)?;
        return Ok(Target { organization: None, name: "deployment".to_owned() });
    };
    if scope == PauseScope::Organization {
        let found = lookup::organization(app, caller, &id.to_string()).await?;
        // The organization is seen, so there is nothing to hide.
        if !caller.may(Action::Update, &template.in_organization(found.id)) {
            return Err(ApiError::Forbidden);
        }
        return Ok(Target { organization: Some(found.id), name: found.name });
    }
    let (template_id, name) = if scope == PauseScope::Preset {
        let found = stored::find_preset(app.db(), PresetId(id)).await?;
        let (organization, template_id, name) = found.ok_or(ApiError::NotFound)?;
        let Some(template_id) = template_id else {
            caller.authorize(Action::Update, &template.in_organization(organization))?;
            return Ok(Target { organization: Some(organization), name });
        };
        (template_id, Some(name))
    } else {
        (TemplateId(id), None)
    };
    let found = stored_template::find(app.db(), template_id).await?.ok_or(ApiError::NotFound)?;
    let resource = template.in_organization(found.organization_id).with_acl(found.acl);
    caller.authorize(Action::Update, &resource)?;
    let name = name.unwrap_or(found.settings.name);
    Ok(Target { organization: Some(found.organization_id), name })
}

/// 201, or 200 where it takes the place of one that holds.
#[tracing::instrument(name = "http.pause.create", skip_all)]
pub(super) async fn create(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Json(body): Json<Create>,
) -> Result<Response, ApiError> {
    let (scope, expires_at) = body.check(app.now())?;
    let target = authorized(&app, &caller, scope, body.scope_id).await?;
    let mut work = app.begin().await?;
    let now = work.now();
    let old = find(&mut work, scope, body.scope_id).await?;
    let new = NewPause {
        id: work.id(),
        scope,
        scope_id: body.scope_id,
        actor: caller.id(),
        reason: &body.reason,
        expires_at,
        now,
    };
    let id = stored::upsert(work.conn(), &new).await?;
    wake(&mut work, scope, body.scope_id).await?;
    let made = find(&mut work, scope, body.scope_id).await?.ok_or(ApiError::NotFound)?;
    let action = if old.is_some() { "write" } else { "create" };
    let before = old.as_ref().map(audited).unwrap_or_default();
    record(&mut work, &caller, &origin, (action, id, &target), (&before, &audited(&made))).await?;
    work.commit().await?;
    let status = if old.is_some() { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(view(&made))).into_response())
}

#[tracing::instrument(name = "http.pause.delete", skip_all)]
pub(super) async fn remove(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, ApiError> {
    let filter = Filter { id: Some(id), limit: 1, ..Filter::default() };
    let found = stored::list(app.db(), &filter, app.now()).await?.pop();
    let found = found.ok_or(ApiError::NotFound)?;
    // Whoever may pause everything may end any pause, also that of something that is gone.
    let ends_all = caller.may(Action::Update, &Resource::new(ResourceKind::DeploymentConfig));
    let target = if ends_all {
        Target { organization: found.organization_id, name: found.name.clone() }
    } else {
        authorized(&app, &caller, found.scope, found.scope_id).await?
    };
    let mut work = app.begin().await?;
    if !stored::delete(work.conn(), id).await? {
        return Err(ApiError::NotFound);
    }
    wake(&mut work, found.scope, found.scope_id).await?;
    let gone = (&audited(&found), &json!({ "scope": null, "reason": null, "expires_at": null }));
    record(&mut work, &caller, &origin, ("delete", id, &target), gone).await?;
    work.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn record(
    work: &mut Work,
    caller: &Caller,
    origin: &Origin,
    (action, id, target): (&'static str, Uuid, &Target),
    (old, new): (&Value, &Value),
) -> Result<(), ApiError> {
    let mut change = Change::new(action, "prebuild_pause", id)
        .of(target.name.clone())
        .with_diff(audit::diff(old, new));
    change.organization = target.organization;
    Ok(audit::record(work, caller.id(), origin, change).await?)
}

/// As the audit log compares them.
fn audited(pause: &Pause) -> Value {
    json!({
        "scope": pause.scope,
        "scope_id": pause.scope_id,
        "reason": pause.reason,
        "expires_at": pause.expires_at,
    })
}

fn view(it: &Pause) -> Value {
    json!({
        "id": it.id,
        "scope": it.scope,
        "scope_id": it.scope_id,
        "name": it.name,
        "organization_id": it.organization_id,
        "template_id": it.template_id,
        "actor_id": it.actor_id,
        "actor_name": it.actor_name,
        "reason": it.reason,
        "created_at": it.created_at,
        "expires_at": it.expires_at,
    })
}
