//! Watching one workspace, or every build the caller may read.

use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use berth_domain::authz::Action;
use berth_domain::id::WorkspaceId;
use http::HeaderMap;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::app::App;
use crate::auth::Caller;
use crate::config::Experiment;
use crate::error::ApiError;
use crate::extract::{Path, Query};
use crate::live::answer::{Source, Upgrade, answer_from};
use crate::live::encoded::Encoded;
use crate::live::event_id::EventId;
use crate::live::session::Kept;
use crate::live::workspace::{LOOK_EVERY, Watched};
use crate::routes::workspace as workspace_routes;
use crate::stream_limit::{Holder, Place};

mod all;
#[cfg(test)]
mod tests;

use all::All;

/// Pause before a workspace that could not be read is read again.
const RETRY: Duration = Duration::from_secs(1);

/// Routes of watching.
pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/workspaces/{workspace}/watch", get(one_sse))
        .route("/workspaces/{workspace}/watch-ws", get(one))
        .route("/watch-all-workspaces", get(all))
}

async fn watched(app: &App, caller: &Caller, id: WorkspaceId) -> Result<One, ApiError> {
    workspace_routes::find(app, caller, id, Action::Read).await?;
    let place = app.streams.take(Holder::User(caller.id()))?;
    let watched = app.live.workspaces.watch(id);
    Ok(One {
        app: app.clone(),
        kept: app.live.sessions.keep(caller),
        notices: watched.notices(),
        watched,
        revision: None,
        is_over: false,
        _place: place,
    })
}

async fn one_sse(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<WorkspaceId>,
) -> Result<Response, ApiError> {
    let one = watched(&app, &caller, id).await?;
    Ok(answer_from(None, one, app.live.stop.clone()))
}

async fn one(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<WorkspaceId>,
    upgrade: Upgrade,
) -> Result<Response, ApiError> {
    let one = watched(&app, &caller, id).await?;
    Ok(answer_from(upgrade.ok(), one, app.live.stop.clone()))
}

/// The state of one workspace, at once and on each change.
struct One {
    app: App,
    kept: Kept,
    watched: Arc<Watched>,
    notices: watch::Receiver<u64>,
    /// What was told last.
    revision: Option<i64>,
    is_over: bool,
    _place: Place,
}

impl One {
    /// Waits until there may be something to tell. `false`: it is time for a sign of life.
    async fn notice(&mut self, look: Duration, ping: Instant) -> bool {
        tokio::select! {
            changed = self.notices.changed() => {
                if changed.is_err() {
                    // The sender lives as long as this does.
                    std::future::pending::<()>().await;
                }
                true
            }
            () = self.kept.changed() => true,
            () = tokio::time::sleep(look) => true,
            () = tokio::time::sleep_until(ping) => false,
        }
    }
}

impl Source for One {
    async fn next(&mut self) -> Option<Vec<Encoded>> {
        let ping = Instant::now() + Duration::from(self.app.config.streams.ping);
        while !self.is_over {
            // Before the look: what is told meanwhile may be of something later.
            self.notices.borrow_and_update();
            let mut look = LOOK_EVERY;
            // Boxed, so that a watcher who waits is small.
            match Box::pin(self.watched.look(&self.app)).await {
                // It may have changed hands, and so may the reader's roles.
                Ok(Some(shown)) => match self.kept.may_read(&shown.resource) {
                    Ok(true) if self.revision.is_none_or(|it| it < shown.revision) => {
                        self.revision = Some(shown.revision);
                        return Some(vec![shown.encoded.clone()]);
                    }
                    Ok(true) => {}
                    Ok(false) => return None,
                    Err(why) => {
                        self.is_over = true;
                        return Some(vec![Encoded::error(why)]);
                    }
                },
                Ok(None) => return None,
                Err(error) => {
                    tracing::debug!(error = %error, "workspace is looked at again");
                    look = RETRY;
                }
            }
            if !self.notice(look, ping).await {
                return Some(vec![Encoded::ping(None)]);
            }
        }
        None
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct Resume {
    /// The same as the header `Last-Event-ID`, for WebSockets.
    last_event_id: Option<String>,
}

/// Every build update that the caller may read.
pub(crate) async fn all(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    Query(resume): Query<Resume>,
    upgrade: Upgrade,
) -> Result<Response, ApiError> {
    if !app.config.experiments.contains(Experiment::WorkspaceBuildUpdates) {
        return Err(ApiError::Off(
            "Watching all workspaces is off: the experiment workspace-build-updates is not in the \
             deployment's experiments.",
        ));
    }
    let header = headers.get("last-event-id").map(|it| it.to_str().unwrap_or("?").to_owned());
    let after = header
        .or(resume.last_event_id)
        .filter(|it| !it.is_empty())
        .map(|it| EventId::from_str(&it).map_err(|why| ApiError::field("last_event_id", why)))
        .transpose()?;
    let place = app.streams.take(Holder::User(caller.id()))?;
    let stop = app.live.stop.clone();
    let all = All::new(app, &caller, after, place);
    Ok(answer_from(upgrade.ok(), all, stop))
}
