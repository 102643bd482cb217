//! What agents ask and report.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::State;
use axum::routing::{get, patch, post};
use berth_bus::event::{Event, Wake, WorkspaceChanged, WorkspaceVerb};
use berth_db::agent::{self, AgentIdentity, Moved, view};
use berth_db::agent_log::{self, Line};
use berth_db::workspace;
use berth_domain::id::{AppId, LogSourceId};
use berth_domain::state::{AgentLifecycle, LogLevel};
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::App;
use crate::auth::AgentCaller;
use crate::error::{ApiError, Message};
use crate::extract::Json;
use crate::routes::workspace_view;

/// Heartbeats are written down at most this often.
const NOTE_EVERY: SignedDuration = SignedDuration::from_secs(60);
/// Most characters kept of one metadata value or error.
const METADATA_MAX: usize = 2048;
/// Most lines in one report.
const LINES_MAX: usize = 10_000;
/// Most characters kept of a log source's name and of its icon's address.
const SOURCE_MAX: usize = 1024;

/// Routes of agents.
pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/workspaceagents/me/manifest", get(manifest))
        .route("/workspaceagents/me/startup", post(startup))
        .route("/workspaceagents/me/report-lifecycle", post(lifecycle))
        .route("/workspaceagents/me/heartbeat", post(heartbeat))
        .route("/workspaceagents/me/log-source", post(log_source))
        .route("/workspaceagents/me/logs", patch(logs))
        .route("/workspaceagents/me/app-health", post(app_health))
        .route("/workspaceagents/me/metadata", post(metadata))
        .route("/workspaceagents/me/gitsshkey", get(gitsshkey))
}

/// Writes down that an agent was heard of, if that is news, and tells of the first time.
async fn heard(app: &App, agent: &AgentIdentity) -> Result<(), ApiError> {
    let now = app.now();
    let is_fresh = agent.last_connected_at.is_some_and(|at| now.duration_since(at) < NOTE_EVERY);
    if is_fresh && !agent.is_disconnected {
        return Ok(());
    }
    if agent.last_connected_at.is_some() && !agent.is_disconnected {
        agent::mark_connected(app.db(), agent.id, now).await?;
        return Ok(());
    }
    let mut work = app.begin().await?;
    agent::lock_workspace(work.conn(), agent.workspace_id).await?;
    agent::mark_connected(work.conn(), agent.id, now).await?;
    // A prebuild left the claimable ones when its agent was lost; ready as it was, it comes back.
    let revision = match agent::mark_pool_ready(work.conn(), agent.workspace_id, now).await? {
        Some(moved) => {
            work.emit(Wake::pool(moved.preset_id));
            Some(moved.revision)
        }
        None => workspace::bump(work.conn(), agent.workspace_id).await?,
    };
    work.emit(changed(agent, WorkspaceVerb::AgentConnected, revision.unwrap_or_default()));
    Ok(work.commit().await?)
}

fn changed(agent: &AgentIdentity, what: WorkspaceVerb, revision: i64) -> Event {
    Event::Workspace(WorkspaceChanged {
        organization_id: agent.organization_id,
        workspace_id: agent.workspace_id,
        owner_id: agent.owner_id,
        what,
        revision,
    })
}

async fn manifest(State(app): State<App>, caller: AgentCaller) -> Result<Json<Value>, ApiError> {
    let agent = caller.agent;
    heard(&app, &agent).await?;
    let it = agent::find_manifest(app.db(), agent.id).await?.ok_or(ApiError::NotFound)?;
    let scripts = view::list_scripts(app.db(), &[agent.id]).await?;
    let apps = view::list_apps(app.db(), &[agent.id]).await?;
    let apps: Vec<Value> = apps
        .iter()
        .map(|app| {
            json!({
                "id": app.id,
                "slug": app.slug,
                "url": app.url,
                "healthcheck": {
                    "url": app.healthcheck_url,
                    "interval": app.healthcheck_interval,
                    "threshold": app.healthcheck_threshold,
                },
                "health": app.health,
            })
        })
        .collect();
    Ok(Json(json!({
        "agent_id": agent.id,
        "agent_name": it.name,
        "workspace_id": agent.workspace_id,
        "workspace_name": it.workspace_name,
        "owner_id": it.owner_id,
        "owner_name": it.owner_name,
        "directory": it.directory,
        "environment_variables": it.environment_variables,
        "motd_file": it.motd_file,
        "scripts": scripts.iter().map(workspace_view::script_json).collect::<Vec<_>>(),
        "apps": apps,
        "metadata": it.metadata,
    })))
}

#[derive(Debug, Deserialize)]
struct Startup {
    #[serde(default)]
    version: String,
    #[serde(default)]
    expanded_directory: String,
    #[serde(default)]
    subsystems: Option<Vec<String>>,
}

async fn startup(
    State(app): State<App>,
    caller: AgentCaller,
    Json(body): Json<Startup>,
) -> Result<StatusCode, ApiError> {
    heard(&app, &caller.agent).await?;
    let startup = agent::Startup {
        version: body.version,
        expanded_directory: body.expanded_directory,
        subsystems: body.subsystems.unwrap_or_default(),
    };
    agent::mark_startup(app.db(), caller.agent.id, &startup, app.now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
struct Lifecycle {
    state: AgentLifecycle,
    #[serde(default)]
    changed_at: Option<Timestamp>,
}

/// Ready makes a prebuild claimable, in the same transaction; a failed start takes it out.
async fn lifecycle(
    State(app): State<App>,
    caller: AgentCaller,
    Json(body): Json<Lifecycle>,
) -> Result<StatusCode, ApiError> {
    let agent = caller.agent;
    heard(&app, &agent).await?;
    let mut work = app.begin().await?;
    let now = work.now();
    let at = body.changed_at.unwrap_or(now);
    agent::lock_workspace(work.conn(), agent.workspace_id).await?;
    agent::mark_lifecycle(work.conn(), agent.id, body.state, at, now).await?;
    let moved: Option<Moved> = match body.state {
        _ if agent.is_sub_agent => None,
        AgentLifecycle::Ready => {
            agent::mark_pool_ready(work.conn(), agent.workspace_id, now).await?
        }
        AgentLifecycle::StartError | AgentLifecycle::StartTimeout => {
            agent::mark_pool_failed(work.conn(), agent.workspace_id, now).await?
        }
        _ => None,
    };
    let revision = match moved {
        Some(moved) => {
            work.emit(Wake::pool(moved.preset_id));
            Some(moved.revision)
        }
        None => workspace::bump(work.conn(), agent.workspace_id).await?,
    };
    let what = match body.state {
        AgentLifecycle::Ready => WorkspaceVerb::AgentReady,
        _ => WorkspaceVerb::Updated,
    };
    work.emit(changed(&agent, what, revision.unwrap_or_default()));
    work.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn heartbeat(State(app): State<App>, caller: AgentCaller) -> Result<StatusCode, ApiError> {
    heard(&app, &caller.agent).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
struct NewLogSource {
    id: LogSourceId,
    display_name: String,
    #[serde(default)]
    icon: String,
}

async fn log_source(
    State(app): State<App>,
    caller: AgentCaller,
    Json(body): Json<NewLogSource>,
) -> Result<Json<Value>, ApiError> {
    let source = view::LogSource {
        id: body.id,
        agent_id: caller.agent.id,
        display_name: kept(&body.display_name, SOURCE_MAX),
        icon: kept(&body.icon, SOURCE_MAX),
        created_at: app.now(),
    };
    if !agent::insert_log_source(app.db(), &source).await? {
        let most = agent::MAX_LOG_SOURCES;
        return Err(ApiError::field("id", format!("is one more than the {most} of an agent")));
    }
    Ok(Json(workspace_view::log_source_json(&source)))
}

#[derive(Debug, Deserialize)]
struct PatchLogs {
    log_source_id: LogSourceId,
    #[serde(default)]
    logs: Vec<LogEntry>,
}

#[derive(Debug, Deserialize)]
struct LogEntry {
    created_at: Timestamp,
    #[serde(default)]
    level: Option<LogLevel>,
    output: String,
}

/// Stores lines up to what an agent keeps. Past that the answer is 413, whose text says how many of
/// these were stored: the agent need not send any more.
async fn logs(
    State(app): State<App>,
    caller: AgentCaller,
    Json(body): Json<PatchLogs>,
) -> Result<(StatusCode, Json<Message>), ApiError> {
    if body.logs.len() > LINES_MAX {
        return Err(ApiError::field(
            "logs",
            format!("has {} lines; send at most {LINES_MAX} at once", body.logs.len()),
        ));
    }
    if body.logs.is_empty() {
        return Ok((StatusCode::OK, Json(Message::new("No lines were sent."))));
    }
    let agent = caller.agent;
    let lines: Vec<Line> = body
        .logs
        .into_iter()
        .map(|it| Line {
            id: 0,
            source_id: body.log_source_id,
            created_at: it.created_at,
            level: it.level.unwrap_or(LogLevel::Info).to_string(),
            // Postgres keeps no NUL in texts.
            output: it.output.replace('\0', ""),
        })
        .collect();
    let mut work = app.begin().await?;
    let now = work.now();
    let stored = agent_log::insert(work.conn(), agent.id, &lines, now).await?;
    if stored.has_filled {
        let revision = workspace::bump(work.conn(), agent.workspace_id).await?;
        work.emit(changed(&agent, WorkspaceVerb::Updated, revision.unwrap_or_default()));
    }
    work.commit().await?;
    let (of, kept) = (lines.len(), stored.lines);
    if !stored.is_full {
        return Ok((StatusCode::OK, Json(Message::new(format!("{kept} lines were stored.")))));
    }
    let most = agent_log::MAX_BYTES;
    let said = format!("{kept} of {of} lines were stored: an agent keeps {most} bytes of logs.");
    Ok((StatusCode::PAYLOAD_TOO_LARGE, Json(Message::new(said))))
}

#[derive(Debug, Deserialize)]
struct AppHealth {
    apps: BTreeMap<AppId, Health>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Health {
    Disabled,
    Initializing,
    Healthy,
    Unhealthy,
}

impl Health {
    fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Initializing => "initializing",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

async fn app_health(
    State(app): State<App>,
    caller: AgentCaller,
    Json(body): Json<AppHealth>,
) -> Result<StatusCode, ApiError> {
    let health: Vec<(AppId, String)> =
        body.apps.into_iter().map(|(id, health)| (id, health.as_str().to_owned())).collect();
    let agent = caller.agent;
    let mut work = app.begin().await?;
    if agent::mark_app_health(work.conn(), agent.id, &health).await? > 0 {
        let revision = workspace::bump(work.conn(), agent.workspace_id).await?;
        work.emit(changed(&agent, WorkspaceVerb::Updated, revision.unwrap_or_default()));
    }
    work.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
struct Metadata {
    metadata: Vec<MetadataValue>,
}

#[derive(Debug, Deserialize)]
struct MetadataValue {
    key: String,
    #[serde(default)]
    value: String,
    #[serde(default)]
    error: String,
    #[serde(default)]
    collected_at: Option<Timestamp>,
    #[serde(default)]
    age: i64,
}

async fn metadata(
    State(app): State<App>,
    caller: AgentCaller,
    Json(body): Json<Metadata>,
) -> Result<StatusCode, ApiError> {
    let now = app.now();
    let values: serde_json::Map<String, Value> = body
        .metadata
        .iter()
        .map(|it| {
            let value = json!({
                "value": kept(&it.value, METADATA_MAX),
                "error": kept(&it.error, METADATA_MAX),
                // An agent's clock may be ahead of ours.
                "collected_at": it.collected_at.map(|at| at.min(now)),
                "age": it.age,
            });
            (kept(&it.key, METADATA_MAX), value)
        })
        .collect();
    agent::mark_metadata(app.db(), caller.agent.id, &Value::Object(values)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What is kept of a text: its first characters, without those that Postgres does not take.
fn kept(text: &str, most: usize) -> String {
    text.replace('\0', "").chars().take(most).collect()
}

/// Berth keeps no SSH keys for people.
async fn gitsshkey(_: AgentCaller) -> ApiError {
    ApiError::NotFound
}
