//! Logs of builds, imports and agents: lists, and streams without a gap between what is stored and
//! what is written meanwhile.

use std::collections::VecDeque;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use berth_bus::Delivery;
use berth_db::agent::view::{self as agent_view, Of};
use berth_db::agent_log;
use berth_db::build::read::{self as build_read, LogLine};
use berth_domain::authz::{Acl, Action, Resource, ResourceKind};
use berth_domain::id::{AgentId, BuildId, JobId, VersionId};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::{Json, Path, Query};
use crate::live::answer::{Feed, Out, Upgrade, answer, stream_of};
use crate::routes::{build, workspace, workspace_view};
use crate::stream_limit::{Holder, Place};

/// How often the stored lines are looked at while nothing is told: notices may be lost.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a subscription may take; without one, the looks alone follow the log.
const SUBSCRIBE: Duration = Duration::from_secs(1);
/// Lines read at once.
const BATCH: i64 = 1000;
/// Most lines of an answer that does not follow.
const MOST: i64 = 100_000;

/// Routes of logs.
pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/workspacebuilds/{build}/logs", get(of_build))
        .route("/templateversions/{version}/logs", get(of_import))
        .route("/workspaceagents/{agent}", get(agent))
        .route("/workspaceagents/{agent}/logs", get(of_agent))
}

/// Which lines, and whether those to come too.
#[derive(Debug, Deserialize)]
pub(crate) struct LogQuery {
    follow: Option<String>,
    #[serde(default)]
    after: i64,
}

impl LogQuery {
    /// `?follow`, `?follow=true`
    fn follows(&self) -> bool {
        self.follow.as_deref().is_some_and(|it| !matches!(it, "false" | "0"))
    }
}

async fn of_build(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<BuildId>,
    Query(query): Query<LogQuery>,
    upgrade: Upgrade,
) -> Result<Response, ApiError> {
    let build = build::find(&app, &caller, id, Action::Read).await?;
    of_job(app, &caller, build.job.id, (&query, upgrade)).await
}

async fn of_import(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<VersionId>,
    Query(query): Query<LogQuery>,
    upgrade: Upgrade,
) -> Result<Response, ApiError> {
    let import = build_read::find_import(app.db(), id).await?.ok_or(ApiError::NotFound)?;
    let acl = Acl {
        users: serde_json::from_value(import.user_acl).map_err(ApiError::internal)?,
        groups: serde_json::from_value(import.group_acl).map_err(ApiError::internal)?,
    };
    let template =
        Resource::new(ResourceKind::Template).in_organization(import.organization_id).with_acl(acl);
    caller.authorize(Action::Read, &template)?;
    of_job(app, &caller, import.job_id, (&query, upgrade)).await
}

/// The log of a job, for whoever was allowed to read it.
pub(crate) async fn of_job(
    app: App,
    caller: &Caller,
    job: JobId,
    (query, upgrade): (&LogQuery, Upgrade),
) -> Result<Response, ApiError> {
    if !query.follows() {
        let lines = build_read::list_logs(app.db(), job, query.after, MOST).await?;
        return Ok(Json(lines.iter().map(line_json).collect::<Vec<_>>()).into_response());
    }
    let place = app.streams.take(Holder::User(caller.id()))?;
    // Subscribed before the stored lines are read: a line is in one of the two.
    let notices = notices(&app, job).await;
    let (stop, ping) = (app.live.stop.clone(), app.config.streams.ping);
    let lines = VecDeque::new();
    let follow = JobFollow { app, job, after: query.after, notices, lines, _place: place };
    Ok(answer(upgrade, stream_of(follow, stop), ping))
}

async fn notices(app: &App, job: JobId) -> Option<BoxStream<'static, Delivery>> {
    let bus = &app.backbone.bus;
    let subscribed = tokio::time::timeout(SUBSCRIBE, bus.subscribe(bus.subjects().logs(job))).await;
    match subscribed {
        Ok(Ok(notices)) => Some(notices.boxed()),
        Ok(Err(error)) => {
            tracing::debug!(error = %error, "log followed by looking alone");
            None
        }
        Err(_) => None,
    }
}

struct JobFollow {
    app: App,
    job: JobId,
    after: i64,
    notices: Option<BoxStream<'static, Delivery>>,
    lines: VecDeque<LogLine>,
    _place: Place,
}

impl JobFollow {
    /// Reads on. `true`: the job has ended and everything was read.
    async fn read(&mut self) -> Result<bool, berth_db::DbError> {
        // In this order: a line written between the two is read.
        let ended = build_read::is_ended(self.app.db(), self.job).await?;
        let lines = build_read::list_logs(self.app.db(), self.job, self.after, BATCH).await?;
        let is_over = ended && lines.is_empty();
        self.after = lines.last().map_or(self.after, |it| it.id);
        self.lines.extend(lines);
        Ok(is_over)
    }

    async fn notice(&mut self) {
        let told = async {
            match &mut self.notices {
                Some(notices) => {
                    if notices.next().await.is_none() {
                        std::future::pending::<()>().await;
                    }
                }
                None => std::future::pending().await,
            }
        };
        // Time being up is the other way to have waited long enough.
        let _ = tokio::time::timeout(LOOK_EVERY, told).await;
    }
}

impl Feed for JobFollow {
    async fn next(&mut self) -> Option<Out> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                let id = u64::try_from(line.id).ok();
                return Some(Out { id, ..Out::data(line_json(&line)) });
            }
            match self.read().await {
                Ok(true) => return None,
                Ok(false) => {}
                Err(error) => tracing::debug!(error = %error, "log is read again"),
            }
            if self.lines.is_empty() {
                self.notice().await;
            }
        }
    }
}

fn line_json(line: &LogLine) -> Value {
    json!({
        "id": line.id,
        "created_at": line.created_at,
        "log_source": line.source,
        "log_level": line.level,
        "stage": line.stage,
        "output": line.output,
    })
}

/// An agent of a workspace that the caller may read.
async fn find_agent(
    app: &App,
    caller: &Caller,
    id: AgentId,
) -> Result<agent_view::Agent, ApiError> {
    let agent = agent_view::list(app.db(), Of::Agent(id)).await?.pop().ok_or(ApiError::NotFound)?;
    let workspace = agent.workspace_id.ok_or(ApiError::NotFound)?;
    workspace::find(app, caller, workspace, Action::Read).await?;
    Ok(agent)
}

async fn agent(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<AgentId>,
) -> Result<Json<Value>, ApiError> {
    let agent = find_agent(&app, &caller, id).await?;
    Ok(Json(workspace_view::agent(&app, &agent).await?))
}

async fn of_agent(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<AgentId>,
    Query(query): Query<LogQuery>,
    upgrade: Upgrade,
) -> Result<Response, ApiError> {
    find_agent(&app, &caller, id).await?;
    if !query.follows() {
        let lines = agent_log::list(app.db(), id, query.after, MOST).await?;
        return Ok(Json(lines.iter().map(agent_line_json).collect::<Vec<_>>()).into_response());
    }
    let place = app.streams.take(Holder::User(caller.id()))?;
    let (stop, ping) = (app.live.stop.clone(), app.config.streams.ping);
    let follow = AgentFollow { app, agent: id, after: query.after, begun: false, _place: place };
    Ok(answer(upgrade, stream_of(follow, stop), ping))
}

/// Gives the lines of an agent in batches, for as long as the client listens.
struct AgentFollow {
    app: App,
    agent: AgentId,
    after: i64,
    begun: bool,
    _place: Place,
}

impl Feed for AgentFollow {
    async fn next(&mut self) -> Option<Out> {
        loop {
            if std::mem::replace(&mut self.begun, true) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            let lines = agent_log::list(self.app.db(), self.agent, self.after, BATCH).await;
            match lines {
                Ok(lines) if lines.is_empty() => {}
                Ok(lines) => {
                    self.after = lines.last().map_or(self.after, |it| it.id);
                    self.begun = i64::try_from(lines.len()).is_ok_and(|it| it < BATCH);
                    return Some(Out::data(lines.iter().map(agent_line_json).collect()));
                }
                Err(error) => tracing::debug!(error = %error, "agent log is read again"),
            }
        }
    }
}

fn agent_line_json(line: &agent_log::Line) -> Value {
    json!({
        "id": line.id,
        "created_at": line.created_at,
        "output": line.output,
        "level": line.level,
        "source_id": line.source_id,
    })
}

#[cfg(test)]
mod tests;
