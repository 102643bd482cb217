//! Watching one workspace, or every build the caller may read.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use berth_bus::event::BuildChanged;
use berth_bus::subjects::Stream as BusStream;
use berth_db::workspace;
use berth_domain::authz::{Action, Resource, ResourceKind};
use berth_domain::id::WorkspaceId;
use futures_util::StreamExt as _;
use http::HeaderMap;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::{Path, Query};
use crate::live::BuildUpdate;
use crate::live::answer::{Feed, Frame, Out, Upgrade, answer, sse, stream_of};
use crate::routes::{workspace as workspace_routes, workspace_view};

/// How often a watched workspace's revision is looked at: agents' changes come no other way.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long reading what happened meanwhile may take before the reader is told of a gap.
const REPLAY: Duration = Duration::from_secs(20);

/// Routes of watching.
pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/workspaces/{workspace}/watch", get(one_sse))
        .route("/workspaces/{workspace}/watch-ws", get(one))
        .route("/watch-all-workspaces", get(all))
}

async fn watched(app: App, caller: Caller, id: WorkspaceId) -> Result<One, ApiError> {
    let builds = app.live.builds();
    workspace_routes::find(&app, &caller, id, Action::Read).await?;
    Ok(One { app, caller, id, builds, revision: 0 })
}

async fn one_sse(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<WorkspaceId>,
) -> Result<Response, ApiError> {
    let stop = app.live.stop.clone();
    Ok(sse(stream_of(watched(app, caller, id).await?, stop)))
}

async fn one(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<WorkspaceId>,
    upgrade: Upgrade,
) -> Result<Response, ApiError> {
    let stop = app.live.stop.clone();
    Ok(answer(upgrade, Frame::Typed, stream_of(watched(app, caller, id).await?, stop)))
}

/// The state of one workspace, at once and on each change.
struct One {
    app: App,
    caller: Caller,
    id: WorkspaceId,
    builds: Receiver<Arc<BuildUpdate>>,
    /// What was told last; 0: nothing.
    revision: i64,
}

impl One {
    async fn look(&mut self) -> Result<Option<Out>, ApiError> {
        let row = workspace::find(self.app.db(), self.id).await?.ok_or(ApiError::NotFound)?;
        // It may have changed hands.
        self.caller.authorize(Action::Read, &workspace_view::resource_of(&row))?;
        if row.revision == self.revision {
            return Ok(None);
        }
        let view = workspace_view::workspace(&self.app, self.id).await?;
        self.revision = row.revision;
        Ok(Some(Out::data(view)))
    }

    async fn notice(&mut self) {
        let told = async {
            loop {
                match self.builds.recv().await {
                    Ok(update) if update.change.workspace_id == self.id => return,
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => return,
                    Err(RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        // Time being up is the other way to have waited long enough.
        let _ = tokio::time::timeout(LOOK_EVERY, told).await;
    }
}

impl Feed for One {
    async fn next(&mut self) -> Option<Out> {
        loop {
            match self.look().await {
                Ok(Some(out)) => return Some(out),
                Ok(None) => {}
                Err(ApiError::NotFound | ApiError::Forbidden) => return None,
                Err(error) => tracing::debug!(error = %error, "workspace is looked at again"),
            }
            self.notice().await;
        }
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct Resume {
    /// The same as the header `Last-Event-ID`, for WebSockets.
    last_event_id: Option<u64>,
}

/// Every build update that the caller may read.
pub(crate) async fn all(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    Query(resume): Query<Resume>,
    upgrade: Upgrade,
) -> Result<Response, ApiError> {
    // Subscribed before the stream is read: an update is in one of the two.
    let updates = app.live.builds();
    let header = headers.get("last-event-id").and_then(|it| it.to_str().ok());
    let after = header.and_then(|it| it.parse().ok()).or(resume.last_event_id);
    let mut all = All { caller, updates, seen: after.unwrap_or_default(), ready: VecDeque::new() };
    if let Some(after) = after {
        all.replay(&app, after).await;
    }
    let stop = app.live.stop.clone();
    Ok(answer(upgrade, Frame::Typed, stream_of(all, stop)))
}

struct All {
    caller: Caller,
    updates: Receiver<Arc<BuildUpdate>>,
    /// The newest update that was passed on or left out.
    seen: u64,
    ready: VecDeque<Out>,
}

impl All {
    /// Queues what the stream holds after `after`, or a gap where it holds it no more.
    async fn replay(&mut self, app: &App, after: u64) {
        let read = tokio::time::timeout(REPLAY, self.read(app, after)).await;
        match read {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(error = %error, "updates cannot be read from the stream");
                self.gap(self.seen + 1);
            }
            Err(_) => self.gap(self.seen + 1),
        }
    }

    async fn read(&mut self, app: &App, after: u64) -> Result<(), berth_bus::BusError> {
        let bus = &app.backbone.bus;
        let (first, last) = bus.bounds(BusStream::Builds).await?;
        if first > after + 1 || last < after {
            // Too old, or numbers of a stream that was made anew.
            self.gap(after + 1);
        }
        let from = if last < after { 0 } else { after.max(first.saturating_sub(1)) };
        self.seen = from;
        if from >= last {
            return Ok(());
        }
        let filter = bus.subjects().all(BusStream::Builds);
        let stored = bus.follow(BusStream::Builds, filter, Some(from)).await?;
        let mut stored = std::pin::pin!(stored);
        while self.seen < last {
            let Some(delivery) = stored.next().await else { break };
            let delivery = delivery?;
            if let Ok(change) = serde_json::from_slice(&delivery.payload) {
                self.pass_on(&BuildUpdate { sequence: delivery.sequence, change });
            }
            self.seen = delivery.sequence;
        }
        Ok(())
    }

    fn gap(&mut self, missing: u64) {
        let data = json!({ "first_missing_id": missing });
        self.ready.push_back(Out { event: "gap", id: None, data });
    }

    fn pass_on(&mut self, update: &BuildUpdate) {
        if update.sequence <= self.seen {
            return;
        }
        self.seen = update.sequence;
        let it = &update.change;
        let workspace = Resource::new(ResourceKind::Workspace)
            .in_organization(it.organization_id)
            .owned_by(it.owner_id);
        if self.caller.may(Action::Read, &workspace) {
            self.ready.push_back(Out { event: "data", id: Some(update.sequence), data: told(it) });
        }
    }
}

fn told(it: &BuildChanged) -> serde_json::Value {
    json!({
        "workspace_id": it.workspace_id,
        "workspace_name": it.workspace_name,
        "owner_id": it.owner_id,
        "build_id": it.build_id,
        "transition": it.transition,
        "job_status": it.job_status,
        "build_number": it.build_number,
        "revision": it.revision,
    })
}

impl Feed for All {
    async fn next(&mut self) -> Option<Out> {
        loop {
            if let Some(out) = self.ready.pop_front() {
                return Some(out);
            }
            match self.updates.recv().await {
                Ok(update) => {
                    // Live updates come in order: a lower number after the replay is one of a
                    // stream that was made anew, or one that the replay passed on already.
                    self.pass_on(&update);
                }
                Err(RecvError::Lagged(_)) => {
                    self.gap(self.seen + 1);
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }
}
