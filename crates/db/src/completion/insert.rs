//! What a build made: resources, agents, scripts, apps. One statement per table.

use berth_domain::id::{AgentId, AppId, BuildId, JobId, ResourceId, ScriptId, WorkspaceId};
use berth_domain::state::Transition;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::{DbError, Executor, Stored, at};

/// A resource to be stored.
#[derive(Debug, Clone, Serialize)]
pub struct NewResource {
    /// The job that reports it.
    pub job_id: JobId,
    /// Its id.
    pub id: ResourceId,
    /// Its type.
    pub r#type: String,
    /// Its name.
    pub name: String,
    /// Path or URL of an icon.
    pub icon: String,
    /// Not to be shown.
    pub hide: bool,
    /// Credits a day.
    pub daily_cost: i32,
    /// Size of the machine, if it is one.
    pub instance_type: String,
    /// The module it is in; empty: the root.
    pub module_path: String,
    /// `[{key, value, sensitive, is_null}]`
    pub metadata: Value,
}

/// An agent to be stored.
#[derive(Clone, Serialize)]
pub struct NewAgent {
    /// The job that reports it.
    pub job_id: JobId,
    /// Its id.
    pub id: AgentId,
    /// Its id in the provisioner state.
    pub state_id: String,
    /// The resource it belongs to.
    pub resource_id: ResourceId,
    /// Its name, unique in the build, ignoring case.
    pub name: String,
    /// Its token.
    pub auth_token: Uuid,
    /// The cloud instance whose identity it shows instead.
    pub auth_instance_id: Option<String>,
    /// Its processor.
    pub architecture: String,
    /// Its system.
    pub operating_system: String,
    /// Where its shells start.
    pub directory: String,
    /// Merged environment: an object of texts.
    pub environment_variables: Value,
    /// A file shown at login.
    pub motd_file: String,
    /// What helps when it does not connect.
    pub troubleshooting_url: String,
    /// Seconds after which it counts as not connecting.
    pub connection_timeout_seconds: i32,
    /// `blocking` or `non-blocking`.
    pub startup_script_behavior: String,
    /// Built-in apps to show.
    pub display_apps: Vec<String>,
    /// Place among the agents.
    pub display_order: i32,
    /// What its owner's session in it may do.
    pub api_key_scope: String,
    /// `[{key, display_name, script, interval, timeout, order}]`
    pub metadata: Value,
}

/// A script to be stored, with its log source.
#[derive(Debug, Clone, Serialize)]
pub struct NewScript {
    /// Its id.
    pub id: ScriptId,
    /// The agent that runs it.
    pub agent_id: AgentId,
    /// Where its log lines come from.
    pub log_source_id: Uuid,
    /// What people see.
    pub display_name: String,
    /// Path or URL of an icon.
    pub icon: String,
    /// The text.
    pub script: String,
    /// Where it logs to.
    pub log_path: String,
    /// When it runs.
    pub cron: String,
    /// Runs on start.
    pub run_on_start: bool,
    /// Runs on stop.
    pub run_on_stop: bool,
    /// Holds `ready` until it is done.
    pub start_blocks_login: bool,
    /// Seconds it may take; 0: any.
    pub timeout_seconds: i32,
    /// Place among the agent's scripts.
    pub position: i32,
}

/// An app to be stored.
#[derive(Debug, Clone, Serialize)]
pub struct NewApp {
    /// Its id.
    pub id: AppId,
    /// The agent it belongs to.
    pub agent_id: AgentId,
    /// Its name in addresses.
    pub slug: String,
    /// What people see.
    pub display_name: String,
    /// What a terminal app runs.
    pub command: String,
    /// Where it listens.
    pub url: String,
    /// Path or URL of an icon.
    pub icon: String,
    /// Has a host name of its own.
    pub subdomain: bool,
    /// A link to somewhere else.
    pub external: bool,
    /// Not to be shown.
    pub hidden: bool,
    /// Who may use it.
    pub sharing_level: String,
    /// How a browser opens it.
    pub open_in: String,
    /// The group it is shown in.
    pub display_group: String,
    /// Place among the apps.
    pub display_order: i32,
    /// Shown on hover.
    pub tooltip: String,
    /// Where its health is asked; empty: nowhere.
    pub healthcheck_url: String,
    /// Seconds between two checks.
    pub healthcheck_interval: i32,
    /// Failures after which it is unhealthy.
    pub healthcheck_threshold: i32,
    /// What is known of it: `initializing` or `disabled`.
    pub health: &'static str,
}

/// Where the rows of a job's report belong.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// The job.
    pub job_id: JobId,
    /// What its resources are there for.
    pub transition: Transition,
    /// Whose the agents are: nobody's for imports and dry runs.
    pub owner: Option<Owner>,
}

/// Whose agents are stored.
#[derive(Debug, Clone, Copy)]
pub struct Owner {
    /// The workspace.
    pub workspace_id: WorkspaceId,
    /// The build.
    pub build_id: BuildId,
    /// The agents run already: what they told of themselves stays true.
    pub is_claim: bool,
}

fn json<T: Serialize>(rows: &[T]) -> Result<Value, DbError> {
    serde_json::to_value(rows).map_err(|source| DbError::Json { what: "a report's rows", source })
}

/// A build that its tool ended.
#[derive(Debug, Clone)]
pub struct Settled {
    /// The build.
    pub build_id: BuildId,
    /// Its workspace.
    pub workspace_id: WorkspaceId,
    /// Credits a day that it costs from now on.
    pub daily_cost: i32,
    /// The state that it left.
    pub state: Stored,
}

/// Stores of builds that ended what they left and what they cost, sets the deadlines of started
/// workspaces that have a time to live, and retires the agents of the workspaces' other builds: their
/// tokens are no credentials any more. Called before agents are inserted.
#[tracing::instrument(name = "db.completion.settle", skip_all, fields(builds = builds.len()), err)]
pub async fn settle(
    db: impl Executor<'_>,
    builds: &[Settled],
    now: Timestamp,
) -> Result<(), DbError> {
    let ids: Vec<Uuid> = builds.iter().map(|it| it.build_id.0).collect();
    let workspaces: Vec<Uuid> = builds.iter().map(|it| it.workspace_id.0).collect();
    let costs: Vec<i32> = builds.iter().map(|it| it.daily_cost).collect();
    let states: Vec<&[u8]> = builds.iter().map(|it| it.state.bytes.as_slice()).collect();
    let keys: Vec<Option<&str>> = builds.iter().map(|it| it.state.key_id()).collect();
    let data_keys: Vec<Option<&[u8]>> = builds.iter().map(|it| it.state.data_key()).collect();
    sqlx::query!(
        "
        with build as materialized (
            select * from unnest(
                $1::uuid[], $2::uuid[], $3::int[], $4::bytea[], $5::text[], $6::bytea[]
            ) as b (id, workspace_id, daily_cost, state, key_id, data_key)
        ), stored as (
            insert into workspace_build_states (build_id, state, key_id, data_key)
            select id, state, key_id, data_key from build
            on conflict (build_id) do update
                set state = excluded.state, key_id = excluded.key_id, data_key = excluded.data_key
        ), retired as (
            update workspace_agents a set retired = true, updated_at = $7::timestamptz
            from build n
            where a.workspace_id = n.workspace_id and a.build_id <> n.id and not a.retired
        )
        update workspace_builds b
        set daily_cost = n.daily_cost, updated_at = $7::timestamptz,
            deadline = case
                when b.transition = 'start' and w.pool_preset_id is null and w.ttl_ms > 0
                then $7::timestamptz + w.ttl_ms * interval '1 millisecond'
            end
        from build n join workspaces w on w.id = n.workspace_id
        where b.id = n.id",
        &ids,
        &workspaces,
        &costs,
        &states as &[&[u8]],
        &keys as &[Option<&str>],
        &data_keys as &[Option<&[u8]>],
        at(now)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Stores resources of jobs.
#[tracing::instrument(name = "db.completion.insert_resources", skip_all, fields(rows = rows.len()), err)]
pub async fn insert_resources(
    db: impl Executor<'_>,
    places: &[Place],
    rows: &[&NewResource],
    now: Timestamp,
) -> Result<(), DbError> {
    let jobs: Vec<Uuid> = places.iter().map(|it| it.job_id.0).collect();
    let transitions: Vec<String> = places.iter().map(|it| it.transition.to_string()).collect();
    sqlx::query!(
        "
        insert into workspace_resources (
            id, job_id, transition, type, name, icon, hide, daily_cost, instance_type, module_path,
            metadata, created_at
        )
        select r.id, r.job_id, p.transition, r.type, r.name, r.icon, r.hide, r.daily_cost, r.instance_type,
               r.module_path, r.metadata, $4
        from jsonb_to_recordset($3) as r (
            id uuid, job_id uuid, type text, name text, icon text, hide boolean, daily_cost integer,
            instance_type text, module_path text, metadata jsonb
        )
        join unnest($1::uuid[], $2::text[]) as p (job_id, transition) on p.job_id = r.job_id",
        &jobs,
        &transitions,
        json(rows)?,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Stores agents. Each takes over what the retired agent with its token told of itself where the process
/// runs on: on a claim, which it will reinitialise for, and on a start of what was not stopped before,
/// where nobody would tell it again. An agent that shows an instance's identity takes over
/// the token, too: the report has none, and the process holds the one that it was given.
#[tracing::instrument(name = "db.completion.insert_agents", skip_all, fields(rows = rows.len()), err)]
pub async fn insert_agents(
    db: impl Executor<'_>,
    places: &[Place],
    rows: &[&NewAgent],
    now: Timestamp,
) -> Result<(), DbError> {
    let jobs: Vec<Uuid> = places.iter().map(|it| it.job_id.0).collect();
    let workspaces: Vec<Option<Uuid>> =
        places.iter().map(|it| Some(it.owner?.workspace_id.0)).collect();
    let builds: Vec<Option<Uuid>> = places.iter().map(|it| Some(it.owner?.build_id.0)).collect();
    let claims: Vec<bool> =
        places.iter().map(|it| it.owner.is_some_and(|it| it.is_claim)).collect();
    sqlx::query!(
        "
        insert into workspace_agents (
            id, state_id, resource_id, workspace_id, build_id, name, auth_token, auth_instance_id,
            architecture, operating_system, directory, environment_variables, motd_file,
            troubleshooting_url, connection_timeout_seconds, startup_script_behavior, display_apps,
            display_order, api_key_scope, metadata, created_at, updated_at, lifecycle_state,
            first_connected_at, last_connected_at, disconnected_at, started_at, ready_at, version,
            api_version, subsystems, expanded_directory
        )
        select r.id, r.state_id, r.resource_id, p.workspace_id, p.build_id, r.name,
               coalesce(o.auth_token, r.auth_token), r.auth_instance_id, r.architecture,
               r.operating_system, r.directory, r.environment_variables, r.motd_file,
               r.troubleshooting_url, r.connection_timeout_seconds, r.startup_script_behavior, r.display_apps, r.display_order, r.api_key_scope,
               r.metadata, $5, $5, coalesce(o.lifecycle_state, 'created'), o.first_connected_at,
               o.last_connected_at, o.disconnected_at, o.started_at, o.ready_at,
               coalesce(o.version, ''), coalesce(o.api_version, ''), coalesce(o.subsystems, '{}'),
               coalesce(o.expanded_directory, '')
        from jsonb_to_recordset($1) as r (
            id uuid, job_id uuid, state_id text, resource_id uuid, name text, auth_token uuid,
            auth_instance_id text, architecture text, operating_system text, directory text,
            environment_variables jsonb, motd_file text, troubleshooting_url text,
            connection_timeout_seconds integer, startup_script_behavior text, display_apps text[],
            display_order integer, api_key_scope text, metadata jsonb
        )
        join unnest($2::uuid[], $3::uuid[], $4::uuid[], $6::boolean[])
            as p (job_id, workspace_id, build_id, is_claim) on p.job_id = r.job_id
        left join lateral (
            select a.* from workspace_builds b
            join workspace_agents a on a.build_id = b.id
            where b.workspace_id = p.workspace_id and b.id <> p.build_id and a.parent_id is null
              and (a.auth_token = r.auth_token
                   or (a.auth_instance_id = r.auth_instance_id and lower(a.name) = lower(r.name)))
              and (p.is_claim or (
                  a.first_connected_at is not null and a.disconnected_at is null
                  and a.lifecycle_state in ('starting', 'ready', 'start_error', 'start_timeout')))
              and b.build_number > coalesce((
                  select s.build_number from workspace_builds s
                  where s.workspace_id = p.workspace_id and s.transition <> 'start'
                  order by s.build_number desc limit 1
              ), 0)
            order by a.created_at desc limit 1
        ) o on true",
        json(rows)?,
        &jobs,
        &workspaces as &[Option<Uuid>],
        &builds as &[Option<Uuid>],
        at(now),
        &claims
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Stores scripts and the sources of their log lines.
#[tracing::instrument(name = "db.completion.insert_scripts", skip_all, fields(rows = rows.len()), err)]
pub async fn insert_scripts(
    db: impl Executor<'_>,
    rows: &[&NewScript],
    now: Timestamp,
) -> Result<(), DbError> {
    sqlx::query!(
        "
        with script as (
            select * from jsonb_to_recordset($1) as r (
                id uuid, agent_id uuid, log_source_id uuid, display_name text, icon text,
                script text, log_path text, cron text, run_on_start boolean, run_on_stop boolean,
                start_blocks_login boolean, timeout_seconds integer, position integer
            )
        ), sources as (
            insert into workspace_agent_log_sources (id, agent_id, display_name, icon, created_at)
            select log_source_id, agent_id, display_name, icon, $2 from script
        )
        insert into workspace_agent_scripts (
            id, agent_id, log_source_id, display_name, icon, script, log_path, cron, run_on_start,
            run_on_stop, start_blocks_login, timeout_seconds, position
        )
        select id, agent_id, log_source_id, display_name, icon, script, log_path, cron,
               run_on_start, run_on_stop, start_blocks_login, timeout_seconds, position
        from script",
        json(rows)?,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Stores apps.
#[tracing::instrument(name = "db.completion.insert_apps", skip_all, fields(rows = rows.len()), err)]
pub async fn insert_apps(
    db: impl Executor<'_>,
    rows: &[&NewApp],
    now: Timestamp,
) -> Result<(), DbError> {
    sqlx::query!(
        "
        insert into workspace_apps (
            id, agent_id, slug, display_name, command, url, icon, subdomain, external, hidden,
            sharing_level, open_in, display_group, display_order, tooltip, healthcheck_url,
            healthcheck_interval, healthcheck_threshold, health, created_at
        )
        select r.id, r.agent_id, r.slug, r.display_name, r.command, r.url, r.icon, r.subdomain,
               r.external, r.hidden, r.sharing_level, r.open_in, r.display_group, r.display_order,
               r.tooltip, r.healthcheck_url, r.healthcheck_interval, r.healthcheck_threshold,
               r.health, $2
        from jsonb_to_recordset($1) as r (
            id uuid, agent_id uuid, slug text, display_name text, command text, url text, icon text,
            subdomain boolean, external boolean, hidden boolean, sharing_level text, open_in text,
            display_group text, display_order integer, tooltip text, healthcheck_url text,
            healthcheck_interval integer, healthcheck_threshold integer, health text
        )",
        json(rows)?,
        at(now)
    )
    .execute(db)
    .await?;
    Ok(())
}
