//! What operators do to pools: invalidate their prebuilds, forget their failures.

use axum::body::Bytes;
use axum::extract::State;
use berth_bus::event::{Event, TemplateChanged, TemplateVerb};
use berth_db::{pool_policy, prebuild};
use berth_domain::authz::Action;
use berth_domain::id::{PresetId, TemplateId};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::wake;
use crate::app::App;
use crate::audit::{self, Change};
use crate::auth::Caller;
use crate::edge::Origin;
use crate::error::ApiError;
use crate::extract::{self, Json, Path};
use crate::routes::template;

/// A body that may be missing.
fn body<T: DeserializeOwned + Default>(bytes: &Bytes) -> Result<T, ApiError> {
    if bytes.is_empty() {
        return Ok(T::default());
    }
    extract::read(bytes)
}

#[derive(Default, Deserialize)]
struct Invalidate {
    preset_id: Option<PresetId>,
}

/// From this commit on no prebuild made so far is handed out.
#[tracing::instrument(name = "http.template.invalidate", skip_all)]
pub(super) async fn invalidate(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(id): Path<TemplateId>,
    bytes: Bytes,
) -> Result<Json<Value>, ApiError> {
    let template = template::find(&app, &caller, id, Action::Update).await?;
    let preset = body::<Invalidate>(&bytes)?.preset_id;
    let mut work = app.begin().await?;
    let now = work.now();
    if !pool_policy::lock_template(work.conn(), id).await? {
        return Err(ApiError::NotFound);
    }
    let invalidated = prebuild::invalidate(work.conn(), id, preset, now).await?;
    if let (Some(preset), true) = (preset, invalidated.is_empty()) {
        let detail = format!("{preset} is no preset of this template with prebuilds");
        return Err(ApiError::field("preset_id", detail));
    }
    let organization_id = template.organization_id;
    let what = TemplateVerb::Invalidated;
    work.emit(Event::Template(TemplateChanged { organization_id, template_id: id, what }));
    let presets: Vec<PresetId> = invalidated.iter().map(|(preset, _)| *preset).collect();
    wake(&mut work, &presets);
    let at = invalidated.iter().map(|(_, at)| *at).max().unwrap_or(now);
    let change = Change::new("write", "template", id.0)
        .of(template.settings.name)
        .within(organization_id)
        .with_diff(json!({ "last_invalidated_at": { "old": null, "new": at, "secret": false } }));
    audit::record(&mut work, caller.id(), &origin, change).await?;
    work.commit().await?;
    Ok(Json(json!({ "invalidated": presets })))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reset {
    preset: Option<String>,
}

/// Forgets failures; an open breaker closes with the next plan. Nothing to forget is no error.
#[tracing::instrument(name = "http.prebuild.reset", skip_all)]
pub(super) async fn reset(
    State(app): State<App>,
    caller: Caller,
    origin: Origin,
    Path(id): Path<TemplateId>,
    bytes: Bytes,
) -> Result<Json<Value>, ApiError> {
    let template = template::find(&app, &caller, id, Action::Update).await?;
    let preset = body::<Reset>(&bytes)?.preset;
    let mut work = app.begin().await?;
    let now = work.now();
    if let Some(name) = &preset
        && !prebuild::has_pool(work.conn(), id, name).await?
    {
        let why = format!("{name:?} is no preset of this template with prebuilds");
        return Err(ApiError::field("preset", why));
    }
    if !pool_policy::lock_template(work.conn(), id).await? {
        return Err(ApiError::NotFound);
    }
    let reset = prebuild::reset(work.conn(), id, preset.as_deref(), now).await?;
    let named = |it: &(PresetId, String)| json!({ "preset_id": it.0, "preset_name": it.1 });
    let answer: Vec<Value> = reset.iter().map(named).collect();
    if reset.is_empty() {
        return Ok(Json(json!({ "reset": answer })));
    }
    let presets: Vec<PresetId> = reset.iter().map(|(preset, _)| *preset).collect();
    wake(&mut work, &presets);
    let change = Change::new("write", "template", id.0)
        .of(template.settings.name)
        .within(template.organization_id)
        .with_diff(json!({ "prebuild_failures": { "old": answer, "new": [], "secret": false } }));
    audit::record(&mut work, caller.id(), &origin, change).await?;
    work.commit().await?;
    Ok(Json(json!({ "reset": answer })))
}
