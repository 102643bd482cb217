//! Agents: what they are, and what they report.

use berth_domain::id::{
    AgentId, AppId, BuildId, LogSourceId, OrganizationId, PresetId, UserId, WorkspaceId,
};
use berth_domain::state::{AgentLifecycle, JobStatus};
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use crate::{DbError, Executor, at, maybe_time};

pub mod instance;
pub mod terminal;
pub mod view;

/// The agent that a token belongs to, and where it runs.
#[derive(Debug, Clone, Copy)]
pub struct AgentIdentity {
    /// The agent.
    pub id: AgentId,
    /// Started by another agent.
    pub is_sub_agent: bool,
    /// Where it is in its life.
    pub lifecycle: AgentLifecycle,
    /// When it was last heard of, as far as it was written down.
    pub last_connected_at: Option<Timestamp>,
    /// Whether it was found lost since.
    pub is_disconnected: bool,
    /// The workspace.
    pub workspace_id: WorkspaceId,
    /// The workspace's owner.
    pub owner_id: UserId,
    /// The workspace's organization.
    pub organization_id: OrganizationId,
    /// The build that made the agent.
    pub build_id: Option<BuildId>,
}

/// The agent of a token. `None`: no agent of a live workspace has it.
#[tracing::instrument(name = "db.agent.find_by_token", level = "debug", skip_all, err)]
pub async fn find_by_token(
    db: impl Executor<'_>,
    token: Uuid,
) -> Result<Option<AgentIdentity>, DbError> {
    let row = sqlx::query!(
        "
        select a.id, a.parent_id, a.lifecycle_state, a.last_connected_at, a.disconnected_at,
               w.id as workspace_id, w.owner_id, w.organization_id, a.build_id
        from workspace_agents a
        join workspaces w on w.id = a.workspace_id
        where a.auth_token = $1 and not a.retired and not w.deleted",
        token
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        Ok(AgentIdentity {
            id: AgentId(row.id),
            is_sub_agent: row.parent_id.is_some(),
            lifecycle: row.lifecycle_state.parse()?,
            last_connected_at: maybe_time(row.last_connected_at),
            is_disconnected: row.disconnected_at.is_some(),
            workspace_id: WorkspaceId(row.workspace_id),
            owner_id: UserId(row.owner_id),
            organization_id: OrganizationId(row.organization_id),
            build_id: row.build_id.map(BuildId),
        })
    })
    .transpose()
}

/// What an agent needs to know about its workspace, beside scripts and apps.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The agent's name.
    pub name: String,
    /// The workspace's name.
    pub workspace_name: String,
    /// The workspace's owner.
    pub owner_id: UserId,
    /// The owner's user name.
    pub owner_name: String,
    /// Working directory of scripts.
    pub directory: String,
    /// Variables for everything it starts.
    pub environment_variables: Value,
    /// File shown at login.
    pub motd_file: String,
    /// `[{key, display_name, script, interval, timeout, order}]`
    pub metadata: Value,
}

/// The manifest of an agent.
#[tracing::instrument(name = "db.agent.find_manifest", skip_all, fields(agent.id = %agent), err)]
pub async fn find_manifest(
    db: impl Executor<'_>,
    agent: AgentId,
) -> Result<Option<Manifest>, DbError> {
    let row = sqlx::query!(
        "
        select a.name, w.name as workspace_name, w.owner_id, u.username, a.directory,
               a.environment_variables, a.motd_file, a.metadata
        from workspace_agents a
        join workspaces w on w.id = a.workspace_id
        join users u on u.id = w.owner_id
        where a.id = $1",
        agent.0
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| Manifest {
        name: row.name,
        workspace_name: row.workspace_name,
        owner_id: UserId(row.owner_id),
        owner_name: row.username,
        directory: row.directory,
        environment_variables: row.environment_variables,
        motd_file: row.motd_file,
        metadata: row.metadata,
    }))
}

/// What an agent says when it starts.
#[derive(Debug, Clone)]
pub struct Startup {
    /// Its version.
    pub version: String,
    /// Its directory, with variables filled in.
    pub expanded_directory: String,
    /// What it runs in.
    pub subsystems: Vec<String>,
}

/// Writes down what an agent says when it starts.
#[tracing::instrument(name = "db.agent.mark_startup", skip_all, fields(agent.id = %id), err)]
pub async fn mark_startup(
    db: impl Executor<'_>,
    id: AgentId,
    startup: &Startup,
    now: Timestamp,
) -> Result<(), DbError> {
    sqlx::query!(
        "
        update workspace_agents
        set version = $2, expanded_directory = $3, subsystems = $4, updated_at = $5
        where id = $1",
        id.0,
        startup.version,
        startup.expanded_directory,
        &startup.subsystems,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Writes down where an agent is in its life. Starting again clears when it was ready. An agent's
/// clock may be off: nothing happens before the agent was made, after `now`, or before what came
/// first.
#[tracing::instrument(name = "db.agent.mark_lifecycle", skip_all, fields(agent.id = %id, %state), err)]
pub async fn mark_lifecycle(
    db: impl Executor<'_>,
    id: AgentId,
    state: AgentLifecycle,
    changed_at: Timestamp,
    now: Timestamp,
) -> Result<(), DbError> {
    sqlx::query!(
        "
        update workspace_agents
        set lifecycle_state = $2, updated_at = $4,
            started_at = case when $2 = 'starting' then greatest(created_at, least($3::timestamptz, $4))
                              else started_at end,
            ready_at = case when $2 = 'starting' then null
                            when $2 in ('ready', 'start_error', 'start_timeout')
                                then greatest(created_at, started_at, least($3, $4))
                            else ready_at end
        where id = $1",
        id.0,
        state.as_str(),
        at(changed_at),
        at(now)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Writes down that an agent was heard of. `true`: for the first time.
#[tracing::instrument(name = "db.agent.mark_connected", level = "debug", skip_all, fields(agent.id = %id), err)]
pub async fn mark_connected(
    db: impl Executor<'_>,
    id: AgentId,
    now: Timestamp,
) -> Result<bool, DbError> {
    let first = sqlx::query_scalar!(
        r#"
        update workspace_agents
        set last_connected_at = $2, first_connected_at = coalesce(first_connected_at, $2),
            disconnected_at = null
        where id = $1
        returning first_connected_at = $2 as "first!""#,
        id.0,
        at(now)
    )
    .fetch_optional(db)
    .await?;
    Ok(first.unwrap_or_default())
}

/// A prebuild whose place in its pool changed.
#[derive(Debug, Clone, Copy)]
pub struct Moved {
    /// Its pool.
    pub preset_id: PresetId,
    /// The workspace's revision from now on.
    pub revision: i64,
}

/// Locks a workspace row until the transaction ends, so that agents that report at the same time
/// see each other's report.
#[tracing::instrument(name = "db.agent.lock_workspace", level = "debug", skip_all, err)]
pub async fn lock_workspace(db: impl Executor<'_>, workspace: WorkspaceId) -> Result<(), DbError> {
    sqlx::query!("select id from workspaces where id = $1 for no key update", workspace.0)
        .fetch_optional(db)
        .await?;
    Ok(())
}

/// Makes a prebuild ready when every agent of its latest build that counts is. `None`: it is no
/// prebuild that waits for agents, or some are not ready. Call [`lock_workspace`] first.
#[tracing::instrument(name = "db.agent.mark_pool_ready", skip_all, fields(workspace.id = %workspace), err)]
pub async fn mark_pool_ready(
    db: impl Executor<'_>,
    workspace: WorkspaceId,
    now: Timestamp,
) -> Result<Option<Moved>, DbError> {
    let row = sqlx::query!(
        r#"
        with workspace as (
            update workspaces w
            set pool_state = 'ready', pool_ready_at = $2, revision = w.revision + 1,
                updated_at = $2
            where w.id = $1 and w.pool_state = 'unready' and not w.deleted
              and not exists (
                  select from workspace_agents a
                  where a.build_id = w.latest_build_id and a.parent_id is null and not a.retired
                    and (a.lifecycle_state <> 'ready' or a.disconnected_at is not null)
              )
            returning w.revision, w.pool_preset_id
        ), pool as (
            update prebuild_pools p set consecutive_failures = 0
            from workspace w
            where p.preset_id = w.pool_preset_id and p.consecutive_failures <> 0
        ), marked as (
            insert into prebuild_pool_marks (preset_id, created_at)
            select pool_preset_id, $2 from workspace
        )
        select revision, pool_preset_id as "preset_id!" from workspace"#,
        workspace.0,
        at(now)
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| Moved { preset_id: PresetId(row.preset_id), revision: row.revision }))
}

/// Takes a prebuild whose agent failed to start out of the claimable ones and counts the failure as
/// the pool's own, once per build. `None`: it is no prebuild that runs.
#[tracing::instrument(name = "db.agent.mark_pool_failed", skip_all, fields(workspace.id = %workspace), err)]
pub async fn mark_pool_failed(
    db: impl Executor<'_>,
    workspace: WorkspaceId,
    now: Timestamp,
) -> Result<Option<Moved>, DbError> {
    let row = sqlx::query!(
        r#"
        with workspace as (
            update workspaces
            set pool_state = 'failed', pool_ready_at = null, revision = revision + 1,
                updated_at = $2
            where id = $1 and pool_state in ('unready', 'ready') and not deleted
            returning revision, pool_preset_id, latest_build_id
        ), failure as (
            insert into prebuild_failures (build_id, preset_id, failed_at, kind)
            select latest_build_id, pool_preset_id, $2, 'agent' from workspace
            on conflict do nothing
            returning preset_id
        ), pool as (
            update prebuild_pools p
            set consecutive_failures = p.consecutive_failures + 1, last_failure_at = $2,
                failed_total = p.failed_total + 1
            from failure f where p.preset_id = f.preset_id
        ), marked as (
            insert into prebuild_pool_marks (preset_id, created_at)
            select pool_preset_id, $2 from workspace
        )
        select revision, pool_preset_id as "preset_id!" from workspace"#,
        workspace.0,
        at(now)
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| Moved { preset_id: PresetId(row.preset_id), revision: row.revision }))
}

/// Writes down the health of an agent's apps.
#[tracing::instrument(name = "db.agent.mark_app_health", skip_all, fields(agent.id = %agent), err)]
pub async fn mark_app_health(
    db: impl Executor<'_>,
    agent: AgentId,
    health: &[(AppId, String)],
) -> Result<u64, DbError> {
    let (ids, states): (Vec<Uuid>, Vec<String>) =
        health.iter().map(|(id, state)| (id.0, state.clone())).unzip();
    let done = sqlx::query!(
        "
        update workspace_apps p set health = h.health
        from unnest($2::uuid[], $3::text[]) as h (id, health)
        where p.id = h.id and p.agent_id = $1 and p.health <> h.health",
        agent.0,
        &ids,
        &states
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Adds values of an agent's metadata; `values` is an object by key. Keys that the template does not
/// name are left out.
#[tracing::instrument(name = "db.agent.mark_metadata", skip_all, fields(agent.id = %agent), err)]
pub async fn mark_metadata(
    db: impl Executor<'_>,
    agent: AgentId,
    values: &Value,
) -> Result<(), DbError> {
    sqlx::query!(
        "
        update workspace_agents a
        set metadata_values = a.metadata_values || coalesce((
            select jsonb_object_agg(it.key, it.value) from jsonb_each($2) it
            where exists (
                select from jsonb_array_elements(a.metadata) named where named->>'key' = it.key
            )
        ), '{}')
        where a.id = $1",
        agent.0,
        values
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Most sources of log lines that an agent may have.
pub const MAX_LOG_SOURCES: i64 = 256;

/// Inserts where log lines of an agent come from; a known one gets its new name. `false`: there are
/// [`MAX_LOG_SOURCES`] already.
#[tracing::instrument(name = "db.agent.insert_log_source", skip_all, fields(agent.id = %source.agent_id), err)]
pub async fn insert_log_source(
    db: impl Executor<'_>,
    source: &view::LogSource,
) -> Result<bool, DbError> {
    let done = sqlx::query!(
        "
        insert into workspace_agent_log_sources (id, agent_id, display_name, icon, created_at)
        select $1, $2, $3, $4, $5
        where (select count(*) from workspace_agent_log_sources where agent_id = $2 and id <> $1)
              < $6
        on conflict (agent_id, id) do update
        set display_name = excluded.display_name, icon = excluded.icon",
        source.id.0,
        source.agent_id.0,
        source.display_name,
        source.icon,
        at(source.created_at),
        MAX_LOG_SOURCES
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Whether a log source of the agent is known.
#[tracing::instrument(name = "db.agent.has_log_source", level = "debug", skip_all, err)]
pub async fn has_log_source(
    db: impl Executor<'_>,
    agent: AgentId,
    source: LogSourceId,
) -> Result<bool, DbError> {
    Ok(sqlx::query_scalar!(
        r#"
        select exists (
            select from workspace_agent_log_sources where agent_id = $1 and id = $2
            union all
            select from workspace_agent_scripts where agent_id = $1 and log_source_id = $2
        ) as "known!""#,
        agent.0,
        source.0
    )
    .fetch_one(db)
    .await?)
}

/// What decides whether an agent reinitialises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimState {
    /// The workspace's owner.
    pub owner_id: UserId,
    /// Whether it still belongs to a pool.
    pub is_prebuild: bool,
    /// Who asked for its first build.
    pub first_initiator: Option<UserId>,
    /// Number of its newest build.
    pub latest_number: i32,
    /// Its newest claim build.
    pub claim: Option<ClaimBuild>,
}

/// A claim build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimBuild {
    /// Its number.
    pub number: i32,
    /// Where its job stands.
    pub status: JobStatus,
    /// Why it failed.
    pub error: String,
}

/// Reads what decides whether agents of the workspace reinitialise. `None`: it is gone.
#[tracing::instrument(name = "db.agent.find_claim_state", level = "debug", skip_all, fields(workspace.id = %workspace), err)]
pub async fn find_claim_state(
    db: impl Executor<'_>,
    workspace: WorkspaceId,
) -> Result<Option<ClaimState>, DbError> {
    let row = sqlx::query!(
        r#"
        select w.owner_id, w.pool_state is not null as "is_prebuild!", w.latest_build_number,
               f.initiator_id as "first_initiator?", c.build_number as "number?",
               c.status as "status?", c.error as "error?"
        from workspaces w
        left join workspace_builds f on f.workspace_id = w.id and f.build_number = 1
        left join lateral (
            select b.build_number, j.status, j.error
            from workspace_builds b join provisioner_jobs j on j.id = b.job_id
            where b.workspace_id = w.id and b.stage = 'claim'
            order by b.build_number desc limit 1
        ) c on true
        where w.id = $1 and not w.deleted"#,
        workspace.0
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        let claim = match (row.number, row.status) {
            (Some(number), Some(status)) => Some(ClaimBuild {
                number,
                status: status.parse()?,
                error: row.error.unwrap_or_default(),
            }),
            _ => None,
        };
        Ok(ClaimState {
            owner_id: UserId(row.owner_id),
            is_prebuild: row.is_prebuild,
            first_initiator: row.first_initiator.map(UserId),
            latest_number: row.latest_build_number,
            claim,
        })
    })
    .transpose()
}
