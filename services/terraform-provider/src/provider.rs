//! Terraform's plugin protocol: each call is answered from the tables.

use std::sync::{Arc, PoisonError, RwLock};

use tonic::{Request, Response, Status};

use crate::check;
use crate::data_source::{Context, DATA_SOURCES, DataSource};
use crate::diagnostic::{Diagnostic, Path, any_error};
use crate::env::Environment;
use crate::resource::{RESOURCES, Resource};
use crate::schema::{Attribute, Block, Type};
use crate::value::{Malformed, Object, Value};
use crate::wire::tfplugin6 as wire;
use crate::wire::tfplugin6::DynamicValue;
use crate::wire::tfplugin6::provider_server;

/// Where a template that no deployment runs believes the deployment to be.
const STAND_IN_URL: &str = "https://mydeployment.coder.com";

const CONFIG: Block = Block {
    attributes: &[Attribute::optional(
        "url",
        Type::Text,
        "Where the deployment is reached; `CODER_AGENT_URL` by default.",
    )
    .check(check_url)],
    blocks: &[],
};

fn check_url(value: &Value) -> Result<(), String> {
    match value.as_text() {
        Some(text) if text.parse::<http::Uri>().is_err() => Err(format!("{text:?} is not a URL.")),
        Some(text) if !text.is_empty() => check::external_url(text),
        _ => Ok(()),
    }
}

/// The provider `coder/coder`.
#[derive(Clone)]
pub(crate) struct Provider {
    context: Arc<RwLock<Context>>,
}

type Diagnostics = Vec<Diagnostic>;
type Answer<T> = Result<Response<T>, Status>;

impl Provider {
    /// A provider for the build that `env` describes.
    pub(crate) fn new(env: Environment) -> Self {
        let access_url = env.filled("CODER_AGENT_URL").unwrap_or(STAND_IN_URL).to_owned();
        Self { context: Arc::new(RwLock::new(Context { env, access_url })) }
    }

    fn context(&self) -> Context {
        self.context.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn configure(&self, config: &Object) -> Diagnostics {
        let mut found = Vec::new();
        CONFIG.check(config, &Path::default(), &mut found);
        let url = config.get("url").and_then(Value::as_text).filter(|url| !url.is_empty());
        if let (Some(url), []) = (url, &found[..]) {
            let mut context = self.context.write().unwrap_or_else(PoisonError::into_inner);
            url.clone_into(&mut context.access_url);
        }
        found
    }

    fn apply(&self, request: &wire::ApplyResourceChangeRequest) -> Result<Value, Diagnostics> {
        let resource = resource(&request.type_name)?;
        let Some(planned) = object(request.planned_state.as_ref())? else {
            return Ok(Value::Null);
        };
        let state = if object(request.prior_state.as_ref())?.is_some() {
            resource.update(planned)?
        } else {
            let config = object(request.config.as_ref())?.unwrap_or_default();
            resource.create(&self.context(), &config, planned)?
        };
        Ok(Value::Object(state))
    }

    fn read(&self, request: &wire::ReadResourceRequest) -> Result<Value, Diagnostics> {
        let resource = resource(&request.type_name)?;
        let state = object(request.current_state.as_ref())?;
        Ok(state
            .map_or(Value::Null, |state| Value::Object(resource.refresh(&self.context(), state))))
    }

    fn read_data(&self, request: &wire::ReadDataSourceRequest) -> Result<Value, Diagnostics> {
        let source = data_source(&request.type_name)?;
        let config = object(request.config.as_ref())?.unwrap_or_default();
        source.read(&self.context(), &config).map(Value::Object)
    }
}

/// A planned state, with the arguments that make it a new resource.
struct Change {
    state: Value,
    replaced_by: Vec<Path>,
}

fn plan(request: &wire::PlanResourceChangeRequest) -> Result<Change, Diagnostics> {
    let resource = resource(&request.type_name)?;
    let Some(config) = object(request.config.as_ref())? else {
        return Ok(Change { state: Value::Null, replaced_by: Vec::new() });
    };
    let prior = object(request.prior_state.as_ref())?;
    let planned = resource.plan(&config, prior.as_ref());
    Ok(Change { state: Value::Object(planned.state), replaced_by: planned.replaced_by })
}

fn upgrade(request: &wire::UpgradeResourceStateRequest) -> Result<Value, Diagnostics> {
    let resource = resource(&request.type_name)?;
    let json = request.raw_state.as_ref().map_or(&[][..], |raw| &raw.json);
    if json.is_empty() {
        return Err(vec![Diagnostic::error(
            "The state is too old",
            "It is from before Terraform 0.12. Apply it once with the public provider.",
        )]);
    }
    match Value::from_json(json).map_err(|error| malformed(&error))? {
        Value::Null => Ok(Value::Null),
        Value::Object(state) => Ok(Value::Object(resource.upgrade(&state))),
        _ => Err(vec![Diagnostic::error("The state is malformed", "It is not a JSON object.")]),
    }
}

fn resource(name: &str) -> Result<&'static Resource, Diagnostics> {
    let found = RESOURCES.iter().find(|resource| resource.name == name);
    found.copied().ok_or_else(|| unknown("resource", name))
}

fn data_source(name: &str) -> Result<&'static DataSource, Diagnostics> {
    let found = DATA_SOURCES.iter().find(|source| source.name == name);
    found.copied().ok_or_else(|| unknown("data source", name))
}

fn unknown(what: &str, name: &str) -> Diagnostics {
    vec![Diagnostic::error(format!("Unknown {what}"), format!("There is no {what} {name:?}."))]
}

fn malformed(error: &Malformed) -> Diagnostics {
    vec![Diagnostic::error("Malformed value", format!("{error}."))]
}

/// The object a value is; none for null.
fn object(value: Option<&DynamicValue>) -> Result<Option<Object>, Diagnostics> {
    match Value::from_wire(value).map_err(|error| malformed(&error))? {
        Value::Null => Ok(None),
        Value::Object(object) => Ok(Some(object)),
        _ => Err(vec![Diagnostic::error("Malformed value", "An object is expected.")]),
    }
}

/// Runs a check on a configuration and gives what it finds.
fn found(
    config: Option<&DynamicValue>,
    check: impl FnOnce(&Object) -> Diagnostics,
) -> Vec<wire::Diagnostic> {
    let found = match object(config) {
        Ok(config) => check(&config.unwrap_or_default()),
        Err(found) => found,
    };
    to_wire(&found)
}

fn to_wire(found: &[Diagnostic]) -> Vec<wire::Diagnostic> {
    found.iter().map(Diagnostic::to_wire).collect()
}

/// Splits an outcome into what the protocol carries side by side.
fn parts(outcome: Result<Value, Diagnostics>) -> (Option<DynamicValue>, Vec<wire::Diagnostic>) {
    match outcome {
        Ok(state) => (Some(state.to_wire()), Vec::new()),
        Err(found) => {
            debug_assert!(any_error(&found), "a refusal says why");
            (None, to_wire(&found))
        }
    }
}

/// Terraform may keep the schema for as long as it runs; destroying needs no plan of ours.
fn capabilities() -> wire::ServerCapabilities {
    wire::ServerCapabilities {
        get_provider_schema_optional: true,
        ..wire::ServerCapabilities::default()
    }
}

#[tonic::async_trait]
impl provider_server::Provider for Provider {
    async fn get_metadata(
        &self,
        _: Request<wire::GetMetadataRequest>,
    ) -> Answer<wire::GetMetadataResponse> {
        use wire::{DataSourceMetadata, ResourceMetadata};
        let data_source = |it: &&DataSource| DataSourceMetadata { type_name: it.name.to_owned() };
        let resource = |it: &&Resource| ResourceMetadata { type_name: it.name.to_owned() };
        Ok(Response::new(wire::GetMetadataResponse {
            server_capabilities: Some(capabilities()),
            data_sources: DATA_SOURCES.iter().map(data_source).collect(),
            resources: RESOURCES.iter().map(resource).collect(),
            ..Default::default()
        }))
    }

    async fn get_provider_schema(
        &self,
        _: Request<wire::GetProviderSchemaRequest>,
    ) -> Answer<wire::GetProviderSchemaResponse> {
        let resources = RESOURCES.iter().map(|it| (it.name.to_owned(), it.schema()));
        let sources = DATA_SOURCES.iter().map(|it| (it.name.to_owned(), it.schema()));
        Ok(Response::new(wire::GetProviderSchemaResponse {
            provider: Some(CONFIG.to_schema(0, "")),
            resource_schemas: resources.collect(),
            data_source_schemas: sources.collect(),
            server_capabilities: Some(capabilities()),
            ..Default::default()
        }))
    }

    async fn validate_provider_config(
        &self,
        request: Request<wire::ValidateProviderConfigRequest>,
    ) -> Answer<wire::ValidateProviderConfigResponse> {
        let diagnostics = found(request.get_ref().config.as_ref(), |config| {
            let mut found = Vec::new();
            CONFIG.check(config, &Path::default(), &mut found);
            found
        });
        Ok(Response::new(wire::ValidateProviderConfigResponse { diagnostics }))
    }

    async fn validate_resource_config(
        &self,
        request: Request<wire::ValidateResourceConfigRequest>,
    ) -> Answer<wire::ValidateResourceConfigResponse> {
        let request = request.get_ref();
        let diagnostics = match resource(&request.type_name) {
            Ok(resource) => found(request.config.as_ref(), |config| resource.validate(config)),
            Err(unknown) => to_wire(&unknown),
        };
        Ok(Response::new(wire::ValidateResourceConfigResponse { diagnostics }))
    }

    async fn validate_data_resource_config(
        &self,
        request: Request<wire::ValidateDataResourceConfigRequest>,
    ) -> Answer<wire::ValidateDataResourceConfigResponse> {
        let request = request.get_ref();
        let diagnostics = match data_source(&request.type_name) {
            Ok(source) => found(request.config.as_ref(), |config| source.validate(config)),
            Err(unknown) => to_wire(&unknown),
        };
        Ok(Response::new(wire::ValidateDataResourceConfigResponse { diagnostics }))
    }

    async fn upgrade_resource_state(
        &self,
        request: Request<wire::UpgradeResourceStateRequest>,
    ) -> Answer<wire::UpgradeResourceStateResponse> {
        let (upgraded_state, diagnostics) = parts(upgrade(request.get_ref()));
        let response = wire::UpgradeResourceStateResponse { upgraded_state, diagnostics };
        Ok(Response::new(response))
    }

    async fn configure_provider(
        &self,
        request: Request<wire::ConfigureProviderRequest>,
    ) -> Answer<wire::ConfigureProviderResponse> {
        let diagnostics = found(request.get_ref().config.as_ref(), |config| self.configure(config));
        Ok(Response::new(wire::ConfigureProviderResponse { diagnostics }))
    }

    async fn read_resource(
        &self,
        request: Request<wire::ReadResourceRequest>,
    ) -> Answer<wire::ReadResourceResponse> {
        let (new_state, diagnostics) = parts(self.read(request.get_ref()));
        let private = request.into_inner().private;
        Ok(Response::new(wire::ReadResourceResponse { new_state, diagnostics, private }))
    }

    async fn plan_resource_change(
        &self,
        request: Request<wire::PlanResourceChangeRequest>,
    ) -> Answer<wire::PlanResourceChangeResponse> {
        let (change, replaced_by) = match plan(request.get_ref()) {
            Ok(Change { state, replaced_by }) => (Ok(state), replaced_by),
            Err(found) => (Err(found), Vec::new()),
        };
        let (planned_state, diagnostics) = parts(change);
        Ok(Response::new(wire::PlanResourceChangeResponse {
            planned_state,
            requires_replace: replaced_by.iter().map(Path::to_wire).collect(),
            planned_private: request.into_inner().prior_private,
            diagnostics,
            legacy_type_system: LEGACY_TYPE_SYSTEM,
        }))
    }

    async fn apply_resource_change(
        &self,
        request: Request<wire::ApplyResourceChangeRequest>,
    ) -> Answer<wire::ApplyResourceChangeResponse> {
        let (new_state, diagnostics) = parts(self.apply(request.get_ref()));
        Ok(Response::new(wire::ApplyResourceChangeResponse {
            new_state,
            private: request.into_inner().planned_private,
            diagnostics,
            legacy_type_system: LEGACY_TYPE_SYSTEM,
        }))
    }

    async fn import_resource_state(
        &self,
        request: Request<wire::ImportResourceStateRequest>,
    ) -> Answer<wire::ImportResourceStateResponse> {
        let name = &request.get_ref().type_name;
        let detail = format!(
            "A {name} exists in Terraform's state only, so there is no other \
                              place to import it from. Let Terraform create it."
        );
        let error = Diagnostic::error("Nothing to import", detail);
        Ok(Response::new(wire::ImportResourceStateResponse {
            diagnostics: to_wire(&[error]),
            ..Default::default()
        }))
    }

    async fn move_resource_state(
        &self,
        request: Request<wire::MoveResourceStateRequest>,
    ) -> Answer<wire::MoveResourceStateResponse> {
        let request = request.get_ref();
        let detail = format!(
            "A {:?} cannot become a {:?}. Remove the \"moved\" block.",
            request.source_type_name, request.target_type_name
        );
        let error = Diagnostic::error("Resources of one type cannot become another", detail);
        Ok(Response::new(wire::MoveResourceStateResponse {
            diagnostics: to_wire(&[error]),
            ..Default::default()
        }))
    }

    async fn read_data_source(
        &self,
        request: Request<wire::ReadDataSourceRequest>,
    ) -> Answer<wire::ReadDataSourceResponse> {
        let (state, diagnostics) = parts(self.read_data(request.get_ref()));
        Ok(Response::new(wire::ReadDataSourceResponse { state, diagnostics }))
    }

    async fn get_functions(
        &self,
        _: Request<wire::GetFunctionsRequest>,
    ) -> Answer<wire::GetFunctionsResponse> {
        Ok(Response::new(wire::GetFunctionsResponse::default()))
    }

    async fn stop_provider(
        &self,
        _: Request<wire::StopProviderRequest>,
    ) -> Answer<wire::StopProviderResponse> {
        // No call takes long enough to be stopped.
        Ok(Response::new(wire::StopProviderResponse::default()))
    }
}

/// The public schema has arguments that are optional, not computed, and yet have defaults in the
/// state. Terraform allows that only to providers of the older SDK, and we have to write the same
/// states as the one that is.
const LEGACY_TYPE_SYSTEM: bool = true;

#[cfg(test)]
mod tests;
