//! Workspaces and builds as clients see them. A list costs the same number of statements as one
//! workspace.

use std::collections::BTreeMap;

use berth_db::agent::view::{self as agent_view, Agent, App as AgentApp, LogSource, Of, Script};
use berth_db::build::read::{self as build_read, Build, Job};
use berth_db::resource::{self, Resource};
use berth_db::workspace::{self, Workspace};
use berth_domain::authz::{self, ResourceKind};
use berth_domain::build::{WorkspaceStatus, workspace_status};
use berth_domain::id::{AgentId, BuildId, WorkspaceId};
use berth_domain::state::AgentLifecycle;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::app::App;
use crate::error::ApiError;

/// Heartbeats are written down once a minute; one that is older by this much is lost.
const LOST_AFTER: SignedDuration = SignedDuration::from_secs(120);

/// A workspace as authorization sees it.
pub(crate) fn resource_of(workspace: &Workspace) -> authz::Resource {
    authz::Resource::new(ResourceKind::Workspace)
        .in_organization(workspace.organization_id)
        .owned_by(workspace.owner_id)
}

/// The workspace of a build as authorization sees it.
pub(crate) fn resource_of_build(build: &Build) -> authz::Resource {
    authz::Resource::new(ResourceKind::Workspace)
        .in_organization(build.organization_id)
        .owned_by(build.owner_id)
}

/// Workspaces with their latest builds, in the order of `ids`.
pub(crate) async fn workspaces(app: &App, ids: &[WorkspaceId]) -> Result<Vec<Value>, ApiError> {
    let rows = workspace::list(app.db(), ids).await?;
    let latest: Vec<BuildId> = rows.iter().filter_map(|it| it.latest_build_id).collect();
    let mut shown: BTreeMap<BuildId, Shown> = builds_shown(app, &latest).await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let build = row.latest_build_id.and_then(|id| shown.remove(&id));
            workspace_json(&row, build)
        })
        .collect())
}

/// One workspace.
pub(crate) async fn workspace(app: &App, id: WorkspaceId) -> Result<Value, ApiError> {
    workspaces(app, &[id]).await?.pop().ok_or(ApiError::NotFound)
}

/// A workspace whose newest build has just been queued, so that there is nothing of it to be read.
pub(crate) fn queued(row: &Workspace, build: &Build) -> Value {
    let json = build_json(build, &[]);
    let shown = Shown { json, version_id: build.version_id.0, failing_agents: Vec::new() };
    workspace_json(row, Some(shown))
}

/// Builds, in the order of `ids`.
pub(crate) async fn builds(app: &App, ids: &[BuildId]) -> Result<Vec<Value>, ApiError> {
    let mut shown = builds_shown(app, ids).await?;
    Ok(ids.iter().filter_map(|id| shown.remove(id)).map(|it| it.json).collect())
}

/// One build.
pub(crate) async fn build(app: &App, id: BuildId) -> Result<Value, ApiError> {
    builds(app, &[id]).await?.pop().ok_or(ApiError::NotFound)
}

/// A build as it is shown, and what the workspace's health follows from.
struct Shown {
    json: Value,
    version_id: uuid::Uuid,
    failing_agents: Vec<AgentId>,
}

async fn builds_shown(app: &App, ids: &[BuildId]) -> Result<BTreeMap<BuildId, Shown>, ApiError> {
    let builds = build_read::list(app.db(), ids).await?;
    let jobs: Vec<_> = builds.iter().map(|it| it.job.id).collect();
    let resources = resource::list(app.db(), &jobs).await?;
    let resource_ids: Vec<_> = resources.iter().map(|it| it.id).collect();
    let agents = agent_view::list(app.db(), Of::Resources(&resource_ids)).await?;
    let parts = Parts::read(app, &agents).await?;
    let now = app.now();
    Ok(builds
        .iter()
        .map(|build| {
            let mine: Vec<&Resource> =
                resources.iter().filter(|it| it.job_id == build.job.id).collect();
            let is_mine = |agent: &&Agent| mine.iter().any(|it| it.id == agent.resource_id);
            let failing_agents = agents
                .iter()
                .filter(is_mine)
                .filter(|agent| unhealthy(agent, now).is_some())
                .map(|agent| agent.id)
                .collect();
            let resources =
                mine.iter().map(|it| resource_json(it, &agents, &parts, now)).collect::<Vec<_>>();
            let shown = Shown {
                json: build_json(build, &resources),
                version_id: build.version_id.0,
                failing_agents,
            };
            (build.id, shown)
        })
        .collect())
}

/// Resources of a job with their agents.
pub(crate) async fn resources(
    app: &App,
    job: berth_domain::id::JobId,
) -> Result<Vec<Value>, ApiError> {
    let resources = resource::list(app.db(), &[job]).await?;
    let ids: Vec<_> = resources.iter().map(|it| it.id).collect();
    let agents = agent_view::list(app.db(), Of::Resources(&ids)).await?;
    let parts = Parts::read(app, &agents).await?;
    let now = app.now();
    Ok(resources.iter().map(|it| resource_json(it, &agents, &parts, now)).collect())
}

/// One agent.
pub(crate) async fn agent(app: &App, agent: &Agent) -> Result<Value, ApiError> {
    let parts = Parts::read(app, std::slice::from_ref(agent)).await?;
    Ok(agent_json(agent, &parts, app.now()))
}

/// What belongs to agents.
struct Parts {
    apps: Vec<AgentApp>,
    scripts: Vec<Script>,
    sources: Vec<LogSource>,
}

impl Parts {
    async fn read(app: &App, agents: &[Agent]) -> Result<Self, ApiError> {
        if agents.is_empty() {
            return Ok(Self { apps: Vec::new(), scripts: Vec::new(), sources: Vec::new() });
        }
        let ids: Vec<_> = agents.iter().map(|it| it.id).collect();
        Ok(Self {
            apps: agent_view::list_apps(app.db(), &ids).await?,
            scripts: agent_view::list_scripts(app.db(), &ids).await?,
            sources: agent_view::list_log_sources(app.db(), &ids).await?,
        })
    }
}

fn workspace_json(row: &Workspace, build: Option<Shown>) -> Value {
    let active = row.template_active_version_id;
    let outdated = build.as_ref().is_some_and(|it| it.version_id != active);
    let failing = build.as_ref().map(|it| it.failing_agents.clone()).unwrap_or_default();
    json!({
        "id": row.id,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "owner_id": row.owner_id,
        "owner_name": row.owner_name,
        "owner_avatar_url": row.owner_avatar_url,
        "organization_id": row.organization_id,
        "organization_name": row.organization_name,
        "template_id": row.template_id,
        "template_name": row.template_name,
        "template_display_name": row.template_display_name,
        "template_icon": row.template_icon,
        "template_allow_user_cancel_workspace_jobs": row.allow_user_cancel_workspace_jobs,
        "template_active_version_id": row.template_active_version_id,
        "template_require_active_version": row.require_active_version,
        "template_use_classic_parameter_flow": true,
        "latest_build": build.map(|it| it.json),
        "latest_app_status": null,
        "outdated": outdated,
        "name": row.name,
        "autostart_schedule": row.autostart_schedule,
        "ttl_ms": row.ttl_ms,
        "last_used_at": row.last_used_at,
        "deleting_at": row.deleting_at,
        "dormant_at": row.dormant_at,
        "health": { "healthy": failing.is_empty(), "failing_agents": failing },
        "automatic_updates": row.automatic_updates,
        "allow_renames": true,
        "favorite": row.favorite,
        "next_start_at": null,
        "is_prebuild": row.pool_state.is_some(),
    })
}

/// A job as clients see it.
pub(crate) fn job_json(job: &Job, input: &Value, metadata: &Value) -> Value {
    json!({
        "id": job.id,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "completed_at": job.completed_at,
        "canceled_at": job.canceled_at,
        "error": job.error,
        "status": job.status,
        "worker_id": job.worker_id,
        "worker_name": job.worker_name,
        "file_id": job.file_id,
        "tags": job.tags,
        "queue_position": job.queue_position,
        "queue_size": job.queue_size,
        "organization_id": job.organization_id,
        "input": input,
        "type": job.kind,
        "available_workers": [],
        "metadata": metadata,
        "logs_overflowed": job.logs_overflowed,
    })
}

fn build_json(build: &Build, resources: &[Value]) -> Value {
    let status = workspace_status(build.transition, build.job.status);
    let job = job_json(
        &build.job,
        &json!({ "workspace_build_id": build.id }),
        &json!({
            "template_id": build.template_id,
            "template_name": build.template_name,
            "template_display_name": build.template_display_name,
            "template_icon": build.template_icon,
            "template_version_name": build.version_name,
            "workspace_id": build.workspace_id,
            "workspace_name": build.workspace_name,
        }),
    );
    json!({
        "id": build.id,
        "created_at": build.created_at,
        "updated_at": build.updated_at,
        "workspace_id": build.workspace_id,
        "workspace_name": build.workspace_name,
        "workspace_owner_id": build.owner_id,
        "workspace_owner_name": build.owner_name,
        "workspace_owner_avatar_url": build.owner_avatar_url,
        "template_version_id": build.version_id,
        "template_version_name": build.version_name,
        "template_version_preset_id": build.preset_id,
        "build_number": build.number,
        "transition": build.transition,
        "initiator_id": build.initiator_id,
        "initiator_name": build.initiator_name,
        "job": job,
        "error_class": build.job.error_code,
        "stage": build.stage,
        "reason": build.reason,
        "resources": resources,
        "deadline": build.deadline,
        "max_deadline": build.max_deadline,
        "status": status,
        "daily_cost": build.daily_cost,
        "matched_provisioners": { "count": 0, "available": 0, "most_recently_seen": null },
        "has_ai_task": false,
        "has_external_agent": false,
    })
}

fn resource_json(it: &Resource, agents: &[Agent], parts: &Parts, now: Timestamp) -> Value {
    let metadata: Vec<Value> = it
        .metadata
        .iter()
        .map(|line| {
            json!({
                "key": line.key,
                "value": line.value.clone().unwrap_or_default(),
                "sensitive": line.sensitive,
            })
        })
        .collect();
    let agents: Vec<Value> = agents
        .iter()
        .filter(|agent| agent.resource_id == it.id)
        .map(|agent| agent_json(agent, parts, now))
        .collect();
    json!({
        "id": it.id,
        "created_at": it.created_at,
        "job_id": it.job_id,
        "workspace_transition": it.transition,
        "type": it.kind,
        "name": it.name,
        "hide": it.hide,
        "icon": it.icon,
        "agents": agents,
        "metadata": metadata,
        "daily_cost": it.daily_cost,
    })
}

/// Whether an agent can be reached, as the contract spells it.
pub(crate) fn agent_status(agent: &Agent, now: Timestamp) -> &'static str {
    let Some(last) = agent.last_connected_at else {
        let timeout = SignedDuration::from_secs(agent.connection_timeout_seconds.into());
        let late = timeout.is_positive() && now.duration_since(agent.created_at) > timeout;
        return if late { "timeout" } else { "connecting" };
    };
    let is_lost = agent.disconnected_at.is_some() || now.duration_since(last) > LOST_AFTER;
    if is_lost { "disconnected" } else { "connected" }
}

/// Since when its status is what it is. As agents' lives are noted once a minute, one that went silent
/// may have done so up to a minute later.
fn status_since(agent: &Agent, now: Timestamp) -> Timestamp {
    match agent_status(agent, now) {
        "timeout" => {
            let timeout = SignedDuration::from_secs(agent.connection_timeout_seconds.into());
            agent.created_at.checked_add(timeout).unwrap_or(now)
        }
        "disconnected" => agent.last_connected_at.unwrap_or(agent.created_at),
        "connected" => agent.first_connected_at.unwrap_or(agent.created_at),
        _ => agent.created_at,
    }
}

/// Why an agent is not healthy, if it is not.
fn unhealthy(agent: &Agent, now: Timestamp) -> Option<&'static str> {
    match (agent_status(agent, now), agent.lifecycle) {
        ("timeout", _) => Some("agent has not connected in time"),
        ("disconnected", _) => Some("agent has lost connection"),
        (_, AgentLifecycle::StartTimeout) => Some("agent startup script timed out"),
        (_, AgentLifecycle::StartError) => Some("agent startup script exited with an error"),
        (
            _,
            AgentLifecycle::ShuttingDown
            | AgentLifecycle::ShutdownTimeout
            | AgentLifecycle::ShutdownError,
        ) => Some("agent is shutting down"),
        _ => None,
    }
}

fn agent_json(agent: &Agent, parts: &Parts, now: Timestamp) -> Value {
    let apps: Vec<Value> =
        parts.apps.iter().filter(|it| it.agent_id == agent.id).map(app_json).collect();
    let scripts: Vec<Value> =
        parts.scripts.iter().filter(|it| it.agent_id == agent.id).map(script_json).collect();
    let sources: Vec<Value> =
        parts.sources.iter().filter(|it| it.agent_id == agent.id).map(log_source_json).collect();
    let reason = unhealthy(agent, now);
    json!({
        "id": agent.id,
        "parent_id": agent.parent_id,
        "created_at": agent.created_at,
        "updated_at": agent.updated_at,
        "first_connected_at": agent.first_connected_at,
        "last_connected_at": agent.last_connected_at,
        "disconnected_at": agent.disconnected_at,
        "started_at": agent.started_at,
        "ready_at": agent.ready_at,
        "status": agent_status(agent, now),
        "status_since": status_since(agent, now),
        "lifecycle_state": agent.lifecycle,
        "name": agent.name,
        "resource_id": agent.resource_id,
        "instance_id": agent.instance_id.clone().unwrap_or_default(),
        "architecture": agent.architecture,
        "environment_variables": agent.environment_variables,
        "operating_system": agent.operating_system,
        "logs_length": agent.logs_length,
        "logs_overflowed": agent.logs_overflowed,
        "directory": agent.directory,
        "expanded_directory": agent.expanded_directory,
        "version": agent.version,
        "api_version": agent.api_version,
        "apps": apps,
        "latency": {},
        "connection_timeout_seconds": agent.connection_timeout_seconds,
        "troubleshooting_url": agent.troubleshooting_url,
        "subsystems": agent.subsystems,
        "health": { "healthy": reason.is_none(), "reason": reason.unwrap_or_default() },
        "display_apps": agent.display_apps,
        "log_sources": sources,
        "scripts": scripts,
        "startup_script_behavior": agent.startup_script_behavior,
    })
}

fn app_json(it: &AgentApp) -> Value {
    json!({
        "id": it.id,
        "url": it.url,
        "external": it.external,
        "slug": it.slug,
        "display_name": it.display_name,
        "command": it.command,
        "icon": it.icon,
        "subdomain": it.subdomain,
        "subdomain_name": "",
        "sharing_level": it.sharing_level,
        "healthcheck": {
            "url": it.healthcheck_url,
            "interval": it.healthcheck_interval,
            "threshold": it.healthcheck_threshold,
        },
        "health": it.health,
        "group": it.group,
        "hidden": it.hidden,
        "open_in": it.open_in,
        "statuses": [],
        "tooltip": it.tooltip,
    })
}

/// A script as clients and agents see it.
pub(crate) fn script_json(it: &Script) -> Value {
    json!({
        "id": it.id,
        "log_source_id": it.log_source_id,
        "log_path": it.log_path,
        "script": it.script,
        "cron": it.cron,
        "run_on_start": it.run_on_start,
        "run_on_stop": it.run_on_stop,
        "start_blocks_login": it.start_blocks_login,
        "timeout": it.timeout_seconds,
        "display_name": it.display_name,
    })
}

/// A log source as clients see it.
pub(crate) fn log_source_json(it: &LogSource) -> Value {
    json!({
        "id": it.id,
        "workspace_agent_id": it.agent_id,
        "created_at": it.created_at,
        "display_name": it.display_name,
        "icon": it.icon,
    })
}

/// The status that a list may be filtered by.
pub(crate) fn is_status(text: &str) -> bool {
    text.parse::<WorkspaceStatus>().is_ok()
}
