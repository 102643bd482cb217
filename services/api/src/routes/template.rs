//! `/templates`: making, changing, promoting, invalidating.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use berth_backbone::{Work, promotion};
use berth_bus::event::{Event, TemplateChanged, TemplateVerb, Wake};
use berth_db::template::{self, Filter, NewTemplate, Settings, Template};
use berth_db::{pool, version};
use berth_domain::authz::{Action, Resource, ResourceKind};
use berth_domain::id::{OrganizationId, TemplateId, VersionId};
use berth_domain::state::{JobStatus, PromotionOutcome};
use serde::Deserialize;

use super::organization::template_reader;
use super::template_view::{TemplateView, settings_json};
use super::version::{VersionView, views};
use crate::app::App;
use crate::audit::{self, Change};
use crate::auth::Caller;
use crate::edge::Origin;
use crate::error::{ApiError, Message};
use crate::extract::{Json, Paging, Path, Query};
use crate::lookup;

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/templates", get(list))
        .route("/organizations/{organization}/templates", get(list_of).post(create))
        .route("/organizations/{organization}/templates/{template}", get(show_by_name))
        .route(
            "/organizations/{organization}/templates/{template}/versions/{version}",
            get(show_version_by_names),
        )
        .route("/templates/{template}", get(show).patch(update).delete(remove))
        .route("/templates/{template}/versions", get(list_versions))
        .route("/templates/{template}/versions/{version}", get(list_versions_by_name))
}

fn resource(template: &Template) -> Resource {
    Resource::new(ResourceKind::Template)
        .in_organization(template.organization_id)
        .with_acl(template.acl.clone())
}

/// A template that the caller may do this to.
pub(crate) async fn find(
    app: &App,
    caller: &Caller,
    id: TemplateId,
    action: Action,
) -> Result<Template, ApiError> {
    let template = template::find(app.db(), id).await?.ok_or(ApiError::NotFound)?;
    caller.authorize(action, &resource(&template))?;
    Ok(template)
}

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default)]
    q: String,
}

#[tracing::instrument(name = "http.template.list", skip_all)]
async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<Json<Vec<TemplateView>>, ApiError> {
    let word = |key: &str| {
        let found = query.q.split_whitespace().find_map(|it| it.strip_prefix(key));
        found.map(ToOwned::to_owned)
    };
    let organization = match word("organization:") {
        Some(name) => Some(lookup::organization(&app, &caller, &name).await?.id),
        None => None,
    };
    let plain: Vec<&str> = query.q.split_whitespace().filter(|it| !it.contains(':')).collect();
    let filter = Filter {
        organization,
        name: word("exact_name:"),
        search: word("name:").or_else(|| (!plain.is_empty()).then(|| plain.join(" "))),
        readable_by: template_reader(&caller),
        ..Filter::default()
    };
    let templates = template::list(app.db(), &filter).await?;
    Ok(Json(templates.into_iter().map(TemplateView::from).collect()))
}

#[tracing::instrument(name = "http.template.list_of", skip_all)]
async fn list_of(
    State(app): State<App>,
    caller: Caller,
    Path(organization): Path<String>,
) -> Result<Json<Vec<TemplateView>>, ApiError> {
    let organization = lookup::organization(&app, &caller, &organization).await?;
    let filter = Filter {
        organization: Some(organization.id),
        readable_by: template_reader(&caller),
        ..Filter::default()
    };
    let templates = template::list(app.db(), &filter).await?;
    Ok(Json(templates.into_iter().map(TemplateView::from).collect()))
}

async fn find_by_name(
    app: &App,
    caller: &Caller,
    organization: &str,
    name: &str,
) -> Result<Template, ApiError> {
    let organization = lookup::organization(app, caller, organization).await?;
    let filter = Filter {
        organization: Some(organization.id),
        name: Some(name.to_owned()),
        ..Filter::default()
    };
    let found = template::list(app.db(), &filter).await?.pop().ok_or(ApiError::NotFound)?;
    caller.authorize(Action::Read, &resource(&found))?;
    Ok(found)
}

#[tracing::instrument(name = "http.template.get_by_name", skip_all)]
async fn show_by_name(
    State(app): State<App>,
    caller: Caller,
    Path((organization, name)): Path<(String, String)>,
) -> Result<Json<TemplateView>, ApiError> {
    Ok(Json(find_by_name(&app, &caller, &organization, &name).await?.into()))
}

#[tracing::instrument(name = "http.template.get", skip_all)]
async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<TemplateId>,
) -> Result<Json<TemplateView>, ApiError> {
    Ok(Json(find(&app, &caller, id, Action::Read).await?.into()))
}

/// What can be set, as it is sent: what is not there stays as it is.
#[derive(Deserialize)]
struct SettingsBody {
    name: Option<String>,
    display_name: Option<String>,
    description: Option<String>,
    icon: Option<String>,
    deprecation_message: Option<String>,
    default_ttl_ms: Option<i64>,
    activity_bump_ms: Option<i64>,
    failure_ttl_ms: Option<i64>,
    #[serde(alias = "dormant_ttl_ms")]
    time_til_dormant_ms: Option<i64>,
    #[serde(alias = "delete_ttl_ms")]
    time_til_dormant_autodelete_ms: Option<i64>,
    allow_user_autostart: Option<bool>,
    allow_user_autostop: Option<bool>,
    allow_user_cancel_workspace_jobs: Option<bool>,
    require_active_version: Option<bool>,
    reuse_terraform_workspace: Option<bool>,
    disable_everyone_group_access: Option<bool>,
}

impl SettingsBody {
    fn over(self, old: Settings) -> Result<Settings, ApiError> {
        let new = Settings {
            name: self.name.filter(|it| !it.is_empty()).unwrap_or(old.name),
            display_name: self.display_name.unwrap_or(old.display_name),
            description: self.description.unwrap_or(old.description),
            icon: self.icon.unwrap_or(old.icon),
            deprecation_message: self.deprecation_message.unwrap_or(old.deprecation_message),
            default_ttl_ms: self.default_ttl_ms.unwrap_or(old.default_ttl_ms),
            activity_bump_ms: self.activity_bump_ms.unwrap_or(old.activity_bump_ms),
            failure_ttl_ms: self.failure_ttl_ms.unwrap_or(old.failure_ttl_ms),
            time_til_dormant_ms: self.time_til_dormant_ms.unwrap_or(old.time_til_dormant_ms),
            time_til_dormant_autodelete_ms: self
                .time_til_dormant_autodelete_ms
                .unwrap_or(old.time_til_dormant_autodelete_ms),
            allow_user_autostart: self.allow_user_autostart.unwrap_or(old.allow_user_autostart),
            allow_user_autostop: self.allow_user_autostop.unwrap_or(old.allow_user_autostop),
            allow_user_cancel_workspace_jobs: self
                .allow_user_cancel_workspace_jobs
                .unwrap_or(old.allow_user_cancel_workspace_jobs),
            require_active_version: self
                .require_active_version
                .unwrap_or(old.require_active_version),
            reuse_terraform_workspace: self
                .reuse_terraform_workspace
                .unwrap_or(old.reuse_terraform_workspace),
        };
        check(&new)?;
        Ok(new)
    }
}

fn check(settings: &Settings) -> Result<(), ApiError> {
    berth_domain::name::template(&settings.name)?;
    berth_domain::name::display(&settings.display_name)
        .map_err(|error| ApiError::field("display_name", error.to_string()))?;
    let times = [
        ("default_ttl_ms", settings.default_ttl_ms),
        ("activity_bump_ms", settings.activity_bump_ms),
        ("failure_ttl_ms", settings.failure_ttl_ms),
        ("time_til_dormant_ms", settings.time_til_dormant_ms),
        ("time_til_dormant_autodelete_ms", settings.time_til_dormant_autodelete_ms),
    ];
    match times.into_iter().find(|(_, value)| *value < 0) {
        Some((field, value)) => Err(ApiError::field(field, format!("is {value}; use 0 or more"))),
        None => Ok(()),
    }
}

fn defaults() -> Settings {
    Settings {
        name: String::new(),
        display_name: String::new(),
        description: String::new(),
        icon: String::new(),
        deprecation_message: String::new(),
        default_ttl_ms: 0,
        activity_bump_ms: 3_600_000,
        failure_ttl_ms: 0,
        time_til_dormant_ms: 0,
        time_til_dormant_autodelete_ms: 0,
        allow_user_autostart: true,
        allow_user_autostop: true,
        allow_user_cancel_workspace_jobs: true,
        require_active_version: false,
        reuse_terraform_workspace: false,
    }
}

#[derive(Deserialize)]
struct Create {
    template_version_id: VersionId,
    #[serde(flatten)]
    settings: SettingsBody,
}

#[tracing::instrument(name = "http.template.create", skip_all)]
async fn create(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(organization): Path<String>,
    Json(body): Json<Create>,
) -> Result<Json<TemplateView>, ApiError> {
    let organization = lookup::organization(&app, &caller, &organization).await?;
    let kind = Resource::new(ResourceKind::Template).in_organization(organization.id);
    caller.authorize(Action::Create, &kind)?;
    let first = version::find(app.db(), body.template_version_id).await?;
    let first = first.filter(|it| it.organization_id == organization.id);
    let refuse = |detail: String| ApiError::field("template_version_id", detail);
    let first = first.ok_or_else(|| refuse("is no version of this organization".to_owned()))?;
    if first.job_status != JobStatus::Succeeded {
        return Err(refuse(format!("its import is {}; it must have succeeded", first.job_status)));
    }
    let open_to_everyone = !body.settings.disable_everyone_group_access.unwrap_or(false);
    let settings = body.settings.over(defaults())?;
    let mut work = app.begin().await?;
    let new = NewTemplate {
        id: TemplateId(work.id()),
        organization_id: organization.id,
        version_id: first.id,
        settings,
        open_to_everyone,
        created_by: caller.id(),
        now: work.now(),
    };
    if !template::insert(work.conn(), &new).await? {
        return Err(refuse("belongs to a template already".to_owned()));
    }
    template::adopt_version(work.conn(), new.id, first.id, new.now).await?;
    changed(&mut work, new.organization_id, new.id, TemplateVerb::Promoted).await?;
    let change = Change::new("create", "template", new.id.0);
    let change = change.of(&new.settings.name).within(new.organization_id);
    audit::record(&mut work, caller.id(), &origin, change).await?;
    work.commit().await?;
    Ok(Json(template::find(app.db(), new.id).await?.ok_or(ApiError::NotFound)?.into()))
}

/// Tells of a change, and has the template's pools and the organization looked at.
async fn changed(
    work: &mut Work,
    organization_id: OrganizationId,
    template_id: TemplateId,
    what: TemplateVerb,
) -> Result<(), ApiError> {
    let now = work.now();
    let presets = pool::mark_template_dirty(work.conn(), template_id, now).await?;
    work.emit(Event::Template(TemplateChanged { organization_id, template_id, what }));
    for preset in presets {
        work.emit(Wake::pool(preset));
    }
    work.emit(Wake::membership(organization_id));
    Ok(())
}

async fn end_promotion(work: &mut Work, id: TemplateId, why: &str) -> Result<(), ApiError> {
    promotion::stop(work, id, PromotionOutcome::CalledOff, why).await?;
    Ok(())
}

#[tracing::instrument(name = "http.template.update", skip_all)]
async fn update(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(id): Path<TemplateId>,
    Json(body): Json<SettingsBody>,
) -> Result<Json<TemplateView>, ApiError> {
    let old = find(&app, &caller, id, Action::Update).await?;
    let closed = body.disable_everyone_group_access;
    let settings = body.over(old.settings.clone())?;
    let mut work = app.begin().await?;
    let now = work.now();
    if !template::update(work.conn(), id, &settings, now).await? {
        return Err(ApiError::NotFound);
    }
    if let Some(closed) = closed {
        template::set_open_to_everyone(work.conn(), id, !closed).await?;
    }
    // Deprecation ends pools, and what was to become one.
    if old.settings.deprecation_message != settings.deprecation_message {
        if !settings.deprecation_message.is_empty() {
            end_promotion(&mut work, id, "the template was deprecated").await?;
        }
        changed(&mut work, old.organization_id, id, TemplateVerb::PolicyChanged).await?;
    }
    let change = Change::new("write", "template", id.0)
        .of(&settings.name)
        .within(old.organization_id)
        .with_diff(audit::diff(&settings_json(&old.settings), &settings_json(&settings)));
    audit::record(&mut work, caller.id(), &origin, change).await?;
    work.commit().await?;
    Ok(Json(template::find(app.db(), id).await?.ok_or(ApiError::NotFound)?.into()))
}

#[tracing::instrument(name = "http.template.delete", skip_all)]
async fn remove(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(id): Path<TemplateId>,
) -> Result<Json<Message>, ApiError> {
    let old = find(&app, &caller, id, Action::Delete).await?;
    let mut work = app.begin().await?;
    let now = work.now();
    end_promotion(&mut work, id, "the template was deleted").await?;
    if !template::mark_deleted(work.conn(), id, now).await? {
        let why = "There are workspaces of this template; delete them first.";
        return Err(ApiError::invalid(why));
    }
    changed(&mut work, old.organization_id, id, TemplateVerb::Deleted).await?;
    let change = Change::new("delete", "template", id.0);
    let change = change.of(old.settings.name).within(old.organization_id);
    audit::record(&mut work, caller.id(), &origin, change).await?;
    work.commit().await?;
    Ok(Json(Message::new("Template has been deleted!")))
}

#[derive(Deserialize)]
struct VersionsQuery {
    #[serde(default)]
    include_archived: bool,
}

#[tracing::instrument(name = "http.template.list_versions", skip_all)]
async fn list_versions(
    State(app): State<App>,
    caller: Caller,
    paging: Paging,
    Path(id): Path<TemplateId>,
    Query(query): Query<VersionsQuery>,
) -> Result<Json<Vec<VersionView>>, ApiError> {
    find(&app, &caller, id, Action::Read).await?;
    let filter = version::Filter {
        template: Some(id),
        archived: query.include_archived,
        after_id: paging.after_id,
        limit: paging.limit,
        offset: paging.offset,
        ..version::Filter::default()
    };
    let versions = version::list(app.db(), &filter).await?;
    Ok(Json(views(&app, versions).await?))
}

async fn versions_named(
    app: &App,
    id: TemplateId,
    name: String,
) -> Result<Vec<VersionView>, ApiError> {
    let filter = version::Filter {
        template: Some(id),
        name: Some(name),
        archived: true,
        limit: 1,
        ..version::Filter::default()
    };
    views(app, version::list(app.db(), &filter).await?).await
}

#[tracing::instrument(name = "http.template.list_versions_by_name", skip_all)]
async fn list_versions_by_name(
    State(app): State<App>,
    caller: Caller,
    Path((id, name)): Path<(TemplateId, String)>,
) -> Result<Json<Vec<VersionView>>, ApiError> {
    find(&app, &caller, id, Action::Read).await?;
    let versions = versions_named(&app, id, name).await?;
    if versions.is_empty() { Err(ApiError::NotFound) } else { Ok(Json(versions)) }
}

#[tracing::instrument(name = "http.template.get_version_by_names", skip_all)]
async fn show_version_by_names(
    State(app): State<App>,
    caller: Caller,
    Path((organization, template, name)): Path<(String, String, String)>,
) -> Result<Json<VersionView>, ApiError> {
    let template = find_by_name(&app, &caller, &organization, &template).await?;
    let version = versions_named(&app, template.id, name).await?.pop();
    version.map(Json).ok_or(ApiError::NotFound)
}
