//! Agents that have no token show which cloud instance they run on, and are given theirs.
//!
//! Nothing is written: the same document, shown again, brings the same token for as long as the
//! agent's build is the workspace's. Who can read the document is on the instance, where the token
//! is too.

#[cfg(test)]
mod tests;

use axum::Router;
use axum::extract::{FromRequest, Request, State};
use axum::routing::post;
use berth_db::agent::instance::{InstanceAgent, list_of_instance};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::app::App;
use crate::error::ApiError;
use crate::extract::{self, Json};

/// Most bytes of a request: a document, its signature, and certificates.
const BODY_MAX: usize = 64 << 10;

/// Routes of agents that have no token.
pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/workspaceagents/aws-instance-identity", post(aws))
        .route("/workspaceagents/azure-instance-identity", post(azure))
        .route("/workspaceagents/google-instance-identity", post(google))
}

/// A JSON body of at most [`BODY_MAX`] bytes. What is wrong with it is told without quoting it.
struct Shown<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Shown<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let body = extract::bytes(request, BODY_MAX).await?;
        serde_json::from_slice(&body).map(Self).map_err(|error| {
            ApiError::invalid(format!(
                "The body is not the JSON that is expected, at line {} column {}.",
                error.line(),
                error.column()
            ))
        })
    }
}

#[derive(Deserialize)]
struct AwsToken {
    document: String,
    signature: String,
    #[serde(default)]
    agent_name: Option<String>,
}

#[derive(Deserialize)]
struct AzureToken {
    encoding: String,
    signature: String,
    #[serde(default)]
    agent_name: Option<String>,
}

#[derive(Deserialize)]
struct GoogleToken {
    json_web_token: String,
    #[serde(default)]
    agent_name: Option<String>,
}

#[tracing::instrument(name = "http.instance_identity.aws", skip_all)]
async fn aws(
    State(app): State<App>,
    Shown(body): Shown<AwsToken>,
) -> Result<Json<Value>, ApiError> {
    let aws = app.identities.aws.as_ref().ok_or(ApiError::Off(
        "AWS instance identity is not configured: set instance_identity.aws.certificates or \
         certificates_file.",
    ))?;
    let instance = aws.instance(&body.document, &body.signature, app.now())?;
    exchange(&app, "aws", &instance, body.agent_name.as_deref()).await
}

#[tracing::instrument(name = "http.instance_identity.azure", skip_all)]
async fn azure(
    State(app): State<App>,
    Shown(body): Shown<AzureToken>,
) -> Result<Json<Value>, ApiError> {
    let azure = app.identities.azure.as_ref().ok_or(ApiError::Off(
        "Azure instance identity is not configured: set instance_identity.azure.roots or \
         roots_file.",
    ))?;
    if body.encoding != "pkcs7" {
        return Err(ApiError::field("encoding", "must be \"pkcs7\""));
    }
    let instance = azure.instance(&body.signature, app.now())?;
    exchange(&app, "azure", &instance, body.agent_name.as_deref()).await
}

#[tracing::instrument(name = "http.instance_identity.google", skip_all)]
async fn google(
    State(app): State<App>,
    Shown(body): Shown<GoogleToken>,
) -> Result<Json<Value>, ApiError> {
    let google = app.identities.google.as_ref().ok_or(ApiError::Off(
        "Google instance identity is not configured: set instance_identity.google.keys or \
         keys_file.",
    ))?;
    let instance = google.instance(&body.json_web_token, app.now())?;
    exchange(&app, "google", &instance, body.agent_name.as_deref()).await
}

/// The token of the agent that runs on a proven instance.
async fn exchange(
    app: &App,
    cloud: &'static str,
    instance: &str,
    name: Option<&str>,
) -> Result<Json<Value>, ApiError> {
    let agents = list_of_instance(app.db(), instance).await?;
    let agent = chosen(&agents, name)?;
    tracing::info!(
        cloud,
        instance,
        agent.id = %agent.id,
        workspace.id = %agent.workspace_id,
        "an instance's identity was exchanged for its agent's token"
    );
    Ok(Json(json!({ "session_token": agent.token })))
}

/// The agent of a name; without one the only agent there is. A blank name is none.
fn chosen<'a>(
    agents: &'a [InstanceAgent],
    name: Option<&str>,
) -> Result<&'a InstanceAgent, ApiError> {
    let name = name.map(str::trim).filter(|it| !it.is_empty());
    let named: Vec<&InstanceAgent> =
        agents.iter().filter(|it| name.is_none_or(|name| it.name == name)).collect();
    match (named.as_slice(), name) {
        ([agent], _) => Ok(agent),
        ([], None) => Err(ApiError::Unknown(
            "No agent of a running workspace is on this instance; its build may not be done yet."
                .to_owned(),
        )),
        ([], Some(_)) if agents.is_empty() => chosen(agents, None),
        ([], Some(_)) => Err(ApiError::Unknown(format!(
            "No agent on this instance has the name that was asked for. Set CODER_AGENT_NAME to \
             one of: {}.",
            names(agents)
        ))),
        (_, None) => Err(ApiError::conflict(
            format!(
                "Several agents are on this instance. Set CODER_AGENT_NAME to one of: {}.",
                names(agents)
            ),
            Some("agent_name"),
        )),
        (_, Some(name)) => Err(ApiError::conflict(
            format!(
                "Several workspaces have an agent {name} on this instance: their templates give \
                 the same instance id."
            ),
            Some("agent_name"),
        )),
    }
}

fn names(agents: &[InstanceAgent]) -> String {
    let mut names: Vec<&str> = agents.iter().map(|it| it.name.as_str()).collect();
    names.dedup();
    names.join(", ")
}
