//! Agents, their apps, scripts and log sources as they are shown.

use berth_domain::id::{AgentId, AppId, BuildId, LogSourceId, ResourceId, ScriptId, WorkspaceId};
use berth_domain::state::AgentLifecycle;
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use crate::{DbError, Executor, maybe_time};

/// An agent.
#[derive(Debug, Clone)]
pub struct Agent {
    /// Its id.
    pub id: AgentId,
    /// The agent that started it.
    pub parent_id: Option<AgentId>,
    /// The resource it runs in.
    pub resource_id: ResourceId,
    /// The workspace; `None` for agents of imports.
    pub workspace_id: Option<WorkspaceId>,
    /// The build that made it.
    pub build_id: Option<BuildId>,
    /// Its name.
    pub name: String,
    /// Instance of a cloud that identifies it.
    pub instance_id: Option<String>,
    /// Processor.
    pub architecture: String,
    /// Operating system.
    pub operating_system: String,
    /// Working directory of scripts.
    pub directory: String,
    /// The same with variables filled in.
    pub expanded_directory: String,
    /// Variables for everything it starts.
    pub environment_variables: Value,
    /// Where help is found.
    pub troubleshooting_url: String,
    /// Seconds after which one that was never heard of counts as lost; 0: never.
    pub connection_timeout_seconds: i32,
    /// `blocking` or `non-blocking`.
    pub startup_script_behavior: String,
    /// Buttons that are shown.
    pub display_apps: Vec<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Where it is in its life.
    pub lifecycle: AgentLifecycle,
    /// When it was first heard of.
    pub first_connected_at: Option<Timestamp>,
    /// When it was last heard of.
    pub last_connected_at: Option<Timestamp>,
    /// When it was found lost.
    pub disconnected_at: Option<Timestamp>,
    /// When its scripts began.
    pub started_at: Option<Timestamp>,
    /// When they ended.
    pub ready_at: Option<Timestamp>,
    /// Its version.
    pub version: String,
    /// The protocol it speaks.
    pub api_version: String,
    /// What it runs in.
    pub subsystems: Vec<String>,
    /// Bytes of log kept.
    pub logs_length: i32,
    /// Whether lines were dropped.
    pub logs_overflowed: bool,
}

/// Which agents are asked for.
#[derive(Debug, Clone, Copy)]
pub enum Of<'a> {
    /// This one.
    Agent(AgentId),
    /// Those of these resources.
    Resources(&'a [ResourceId]),
}

/// Agents by resource, in the template's order.
#[tracing::instrument(name = "db.agent.list", skip_all, err)]
pub async fn list(db: impl Executor<'_>, of: Of<'_>) -> Result<Vec<Agent>, DbError> {
    let (agent, resources): (Option<Uuid>, Vec<Uuid>) = match of {
        Of::Agent(id) => (Some(id.0), Vec::new()),
        Of::Resources(ids) => (None, ids.iter().map(|id| id.0).collect()),
    };
    let rows = sqlx::query!(
        "
        select id, parent_id, resource_id, workspace_id, build_id, name, auth_instance_id,
               architecture, operating_system, directory, expanded_directory,
               environment_variables, troubleshooting_url, connection_timeout_seconds,
               startup_script_behavior, display_apps, created_at, updated_at, lifecycle_state,
               first_connected_at, last_connected_at, disconnected_at, started_at, ready_at,
               version, api_version, subsystems, logs_length, logs_overflowed
        from workspace_agents
        where id = $1 or resource_id = any($2)
        order by resource_id, display_order, name",
        agent,
        &resources
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Agent {
                id: AgentId(row.id),
                parent_id: row.parent_id.map(AgentId),
                resource_id: ResourceId(row.resource_id),
                workspace_id: row.workspace_id.map(WorkspaceId),
                build_id: row.build_id.map(BuildId),
                name: row.name,
                instance_id: row.auth_instance_id,
                architecture: row.architecture,
                operating_system: row.operating_system,
                directory: row.directory,
                expanded_directory: row.expanded_directory,
                environment_variables: row.environment_variables,
                troubleshooting_url: row.troubleshooting_url,
                connection_timeout_seconds: row.connection_timeout_seconds,
                startup_script_behavior: row.startup_script_behavior,
                display_apps: row.display_apps,
                created_at: row.created_at.to_jiff(),
                updated_at: row.updated_at.to_jiff(),
                lifecycle: row.lifecycle_state.parse()?,
                first_connected_at: maybe_time(row.first_connected_at),
                last_connected_at: maybe_time(row.last_connected_at),
                disconnected_at: maybe_time(row.disconnected_at),
                started_at: maybe_time(row.started_at),
                ready_at: maybe_time(row.ready_at),
                version: row.version,
                api_version: row.api_version,
                subsystems: row.subsystems,
                logs_length: row.logs_length,
                logs_overflowed: row.logs_overflowed,
            })
        })
        .collect()
}

/// An app of an agent.
#[derive(Debug, Clone)]
pub struct App {
    /// Its id.
    pub id: AppId,
    /// Its agent.
    pub agent_id: AgentId,
    /// Its name in addresses.
    pub slug: String,
    /// What people see.
    pub display_name: String,
    /// Command run in a terminal.
    pub command: String,
    /// Address inside the workspace.
    pub url: String,
    /// Path or URL of an icon.
    pub icon: String,
    /// Reached by a host name of its own.
    pub subdomain: bool,
    /// A link to somewhere else.
    pub external: bool,
    /// Not to be shown.
    pub hidden: bool,
    /// Who may open it.
    pub sharing_level: String,
    /// Where it opens.
    pub open_in: String,
    /// Heading it is shown under.
    pub group: String,
    /// What is shown on hover.
    pub tooltip: String,
    /// Address asked for health.
    pub healthcheck_url: String,
    /// Seconds between two questions.
    pub healthcheck_interval: i32,
    /// Failures that make it unhealthy.
    pub healthcheck_threshold: i32,
    /// What is known of its health.
    pub health: String,
}

/// Apps of agents, in the template's order.
#[tracing::instrument(name = "db.agent.list_apps", skip_all, err)]
pub async fn list_apps(db: impl Executor<'_>, agents: &[AgentId]) -> Result<Vec<App>, DbError> {
    let agents: Vec<Uuid> = agents.iter().map(|id| id.0).collect();
    let rows = sqlx::query!(
        "
        select id, agent_id, slug, display_name, command, url, icon, subdomain, external, hidden,
               sharing_level, open_in, display_group, tooltip, healthcheck_url,
               healthcheck_interval, healthcheck_threshold, health
        from workspace_apps where agent_id = any($1) order by agent_id, display_order, slug",
        &agents
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| App {
            id: AppId(row.id),
            agent_id: AgentId(row.agent_id),
            slug: row.slug,
            display_name: row.display_name,
            command: row.command,
            url: row.url,
            icon: row.icon,
            subdomain: row.subdomain,
            external: row.external,
            hidden: row.hidden,
            sharing_level: row.sharing_level,
            open_in: row.open_in,
            group: row.display_group,
            tooltip: row.tooltip,
            healthcheck_url: row.healthcheck_url,
            healthcheck_interval: row.healthcheck_interval,
            healthcheck_threshold: row.healthcheck_threshold,
            health: row.health,
        })
        .collect())
}

/// A script of an agent.
#[derive(Debug, Clone)]
pub struct Script {
    /// Its id.
    pub id: ScriptId,
    /// Its agent.
    pub agent_id: AgentId,
    /// Where its lines go.
    pub log_source_id: LogSourceId,
    /// What people see.
    pub display_name: String,
    /// Its text.
    pub script: String,
    /// File its output is copied to.
    pub log_path: String,
    /// When it runs by itself; empty: never.
    pub cron: String,
    /// Runs at start.
    pub run_on_start: bool,
    /// Runs at stop.
    pub run_on_stop: bool,
    /// Login waits for it.
    pub start_blocks_login: bool,
    /// Seconds it may take; 0: any.
    pub timeout_seconds: i32,
}

/// Scripts of agents, in the template's order.
#[tracing::instrument(name = "db.agent.list_scripts", skip_all, err)]
pub async fn list_scripts(
    db: impl Executor<'_>,
    agents: &[AgentId],
) -> Result<Vec<Script>, DbError> {
    let agents: Vec<Uuid> = agents.iter().map(|id| id.0).collect();
    let rows = sqlx::query!(
        "
        select id, agent_id, log_source_id, display_name, script, log_path, cron, run_on_start,
               run_on_stop, start_blocks_login, timeout_seconds
        from workspace_agent_scripts where agent_id = any($1) order by agent_id, position, id",
        &agents
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Script {
            id: ScriptId(row.id),
            agent_id: AgentId(row.agent_id),
            log_source_id: LogSourceId(row.log_source_id),
            display_name: row.display_name,
            script: row.script,
            log_path: row.log_path,
            cron: row.cron,
            run_on_start: row.run_on_start,
            run_on_stop: row.run_on_stop,
            start_blocks_login: row.start_blocks_login,
            timeout_seconds: row.timeout_seconds,
        })
        .collect())
}

/// Where log lines of an agent come from.
#[derive(Debug, Clone)]
pub struct LogSource {
    /// Its id, given by the agent.
    pub id: LogSourceId,
    /// Its agent.
    pub agent_id: AgentId,
    /// What people see.
    pub display_name: String,
    /// Path or URL of an icon.
    pub icon: String,
    /// When it was made known.
    pub created_at: Timestamp,
}

/// Log sources of agents, oldest first.
#[tracing::instrument(name = "db.agent.list_log_sources", skip_all, err)]
pub async fn list_log_sources(
    db: impl Executor<'_>,
    agents: &[AgentId],
) -> Result<Vec<LogSource>, DbError> {
    let agents: Vec<Uuid> = agents.iter().map(|id| id.0).collect();
    let rows = sqlx::query!(
        "
        select id, agent_id, display_name, icon, created_at
        from workspace_agent_log_sources where agent_id = any($1) order by agent_id, created_at, id",
        &agents
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| LogSource {
            id: LogSourceId(row.id),
            agent_id: AgentId(row.agent_id),
            display_name: row.display_name,
            icon: row.icon,
            created_at: row.created_at.to_jiff(),
        })
        .collect())
}
