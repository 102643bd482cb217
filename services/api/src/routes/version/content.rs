//! `/templateversions/{version}/…`: what the import of a version found.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use berth_db::variable::{self, Variable};
use berth_db::{preset, version};
use berth_domain::authz::Action;
use berth_domain::id::{PresetId, VersionId};
use berth_domain::parameter::Parameter;
use serde::Serialize;
use serde_json::{Value, json};

use super::find;
use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::{Json, Path};
use crate::routes::workspace_view;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/templateversions/{version}/presets", get(list_presets))
        .route("/templateversions/{version}/rich-parameters", get(list_parameters))
        .route("/templateversions/{version}/variables", get(list_variables))
        .route("/templateversions/{version}/resources", get(list_resources))
        .route("/templateversions/{version}/external-auth", get(list_external_auth))
}

#[derive(Serialize)]
struct PresetView {
    id: PresetId,
    name: String,
    description: String,
    icon: String,
    default: bool,
    #[serde(rename = "desiredPrebuildInstances", skip_serializing_if = "Option::is_none")]
    desired_prebuild_instances: Option<i32>,
    parameters: Vec<NamedValue>,
}

#[derive(Serialize)]
struct NamedValue {
    name: String,
    value: String,
}

#[tracing::instrument(name = "http.version.list_presets", skip_all)]
async fn list_presets(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<VersionId>,
) -> Result<Json<Vec<PresetView>>, ApiError> {
    find(&app, &caller, id, Action::Read).await?;
    let presets = preset::list(app.db(), id).await?;
    let view = |it: preset::Preset| PresetView {
        id: it.id,
        name: it.name,
        description: it.description,
        icon: it.icon,
        default: it.is_default,
        desired_prebuild_instances: it.desired_instances,
        parameters: it
            .parameters
            .into_iter()
            .map(|(name, value)| NamedValue { name, value })
            .collect(),
    };
    Ok(Json(presets.into_iter().map(view).collect()))
}

fn parameter_json(it: &Parameter) -> Value {
    let rules = &it.validation;
    let mut json = json!({
        "name": it.name,
        "display_name": it.display_name,
        "description": it.description,
        "description_plaintext": it.description,
        "type": it.kind,
        "form_type": it.form_type,
        "mutable": it.mutable,
        "default_value": it.default_value,
        "icon": it.icon,
        "options": it.options,
        "required": it.required,
        "ephemeral": it.ephemeral,
        "validation_error": rules.error,
        "validation_regex": rules.regex.as_deref().unwrap_or_default(),
    });
    let rest = [
        ("validation_min", rules.min.map(Value::from)),
        ("validation_max", rules.max.map(Value::from)),
        ("validation_monotonic", rules.monotonic.map(|it| it.as_str().into())),
    ];
    for (key, value) in rest {
        if let Some(value) = value {
            json[key] = value;
        }
    }
    json
}

#[tracing::instrument(name = "http.version.list_parameters", skip_all)]
async fn list_parameters(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<VersionId>,
) -> Result<Json<Vec<Value>>, ApiError> {
    find(&app, &caller, id, Action::Read).await?;
    let parameters = version::list_parameters(app.db(), id).await?;
    Ok(Json(parameters.iter().map(parameter_json).collect()))
}

#[derive(Serialize)]
struct VariableView {
    name: String,
    description: String,
    #[serde(rename = "type")]
    kind: &'static str,
    value: String,
    default_value: String,
    required: bool,
    sensitive: bool,
}

#[tracing::instrument(name = "http.version.list_variables", skip_all)]
async fn list_variables(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<VersionId>,
) -> Result<Json<Vec<VariableView>>, ApiError> {
    find(&app, &caller, id, Action::Update).await?;
    let view = |it: Variable| {
        let opened =
            it.value.map(|(stored, given_in)| app.vault.open_variable(given_in, &it.name, stored));
        let value = opened.transpose().map_err(|error| ApiError::Unavailable(error.into()))?;
        Ok::<_, ApiError>(VariableView {
            name: it.name,
            description: it.description,
            // Clients know these three; anything richer is written as text.
            kind: match it.kind.as_str() {
                "number" => "number",
                "bool" => "bool",
                _ => "string",
            },
            // A secret's are empty already.
            value: value.unwrap_or_default(),
            default_value: it.default_value,
            required: it.required,
            sensitive: it.sensitive,
        })
    };
    let variables = variable::list(app.db(), id).await?;
    let views: Result<_, _> = variables.into_iter().map(view).collect();
    Ok(Json(views?))
}

#[tracing::instrument(name = "http.version.list_resources", skip_all)]
async fn list_resources(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<VersionId>,
) -> Result<Json<Vec<Value>>, ApiError> {
    let version = find(&app, &caller, id, Action::Read).await?;
    Ok(Json(workspace_view::resources(&app, version.job_id).await?))
}

/// Templates cannot ask for external accounts yet, so none is ever needed.
#[tracing::instrument(name = "http.version.list_external_auth", skip_all)]
async fn list_external_auth(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<VersionId>,
) -> Result<Json<[Value; 0]>, ApiError> {
    find(&app, &caller, id, Action::Read).await?;
    Ok(Json([]))
}
