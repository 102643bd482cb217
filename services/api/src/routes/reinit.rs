//! Tells agents that their prebuild was claimed: once per claim, whatever restarts in between.

#[cfg(test)]
mod tests;

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use berth_db::agent::{self, ClaimState};
use berth_domain::id::{PREBUILDS_USER, UserId, WorkspaceId};
use berth_domain::state::JobStatus;
use serde_json::json;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use crate::app::App;
use crate::auth::AgentCaller;
use crate::error::ApiError;
use crate::live::answer::{Feed, Out, sse, stream_of};
use crate::stream_limit::{Holder, Place};

/// Routes of reinitialisation.
pub(crate) fn routes() -> Router<App> {
    Router::new().route("/workspaceagents/me/reinit", get(reinit))
}

/// What an agent that asks is told.
#[derive(Debug, Clone, PartialEq, Eq)]
enum ReinitAnswer {
    /// Nothing yet: it may come.
    Wait,
    /// Reinitialise for this owner.
    Reinitialize(UserId),
    /// Nothing will come: stop asking.
    Terminal(String),
}

/// Decides from the stored state alone (20-claims, "Reinitialisation of agents").
fn decide(state: &ClaimState) -> ReinitAnswer {
    let terminal = |why: &str| ReinitAnswer::Terminal(why.to_owned());
    if state.is_prebuild {
        return ReinitAnswer::Wait;
    }
    if state.first_initiator != Some(PREBUILDS_USER) {
        return terminal("This workspace never was a prebuild.");
    }
    let Some(claim) = &state.claim else {
        return terminal("This workspace has no claim build.");
    };
    if state.latest_number > claim.number {
        return terminal("The claim was already handled by an earlier build.");
    }
    match claim.status {
        JobStatus::Succeeded => ReinitAnswer::Reinitialize(state.owner_id),
        JobStatus::Failed | JobStatus::Canceled => {
            let why = if claim.error.is_empty() { "no reason was given" } else { &claim.error };
            ReinitAnswer::Terminal(format!("The claim build {}: {why}", claim.status))
        }
        JobStatus::Pending | JobStatus::Running | JobStatus::Canceling => ReinitAnswer::Wait,
    }
}

async fn look(app: &App, workspace: WorkspaceId) -> Result<ReinitAnswer, ApiError> {
    let state = agent::find_claim_state(app.db(), workspace).await?;
    Ok(match state {
        Some(state) => decide(&state),
        None => ReinitAnswer::Terminal("The workspace is gone.".to_owned()),
    })
}

/// The order matters: the workspace of the token, then the subscription, then the stored state. A
/// claim that ends in between is in one of the two.
async fn reinit(State(app): State<App>, caller: AgentCaller) -> Result<Response, ApiError> {
    let workspace = caller.agent.workspace_id;
    let claims = app.live.claims();
    let step = match look(&app, workspace).await? {
        ReinitAnswer::Terminal(why) => return Err(ApiError::conflict(why, None)),
        ReinitAnswer::Reinitialize(owner) => Step::Tell(owner),
        ReinitAnswer::Wait => Step::Listen,
    };
    // Whoever asks in vain needs no place: an agent that is told to stop has to hear it.
    let place = app.streams.take(Holder::Agent(caller.agent.id))?;
    let (ends, ping) = (app.live.stop.clone(), app.config.streams.ping);
    let waiting = Waiting { app, workspace, claims, step, _place: place };
    Ok(sse(stream_of(waiting, ends), ping).into_response())
}

enum Step {
    Listen,
    Tell(UserId),
    End,
}

struct Waiting {
    app: App,
    workspace: WorkspaceId,
    claims: Receiver<WorkspaceId>,
    step: Step,
    _place: Place,
}

impl Waiting {
    /// Waits until the stored state may have changed.
    async fn notice(&mut self) {
        let heard = async {
            loop {
                match self.claims.recv().await {
                    Ok(workspace) if workspace == self.workspace => return,
                    Ok(_) => {}
                    // What was missed may have been ours.
                    Err(RecvError::Lagged(_)) => return,
                    Err(RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        // Time being up is the other way to have waited long enough.
        let look = Duration::from(self.app.config.streams.look);
        let _ = tokio::time::timeout(look, heard).await;
    }
}

impl Feed for Waiting {
    async fn next(&mut self) -> Option<Out> {
        loop {
            match self.step {
                Step::End => return None,
                Step::Tell(owner) => {
                    self.step = Step::End;
                    return Some(Out::data(json!({
                        "workspace_id": self.workspace,
                        "workspaceID": self.workspace,
                        "reason": "prebuild_claimed",
                        "owner_id": owner,
                    })));
                }
                Step::Listen => {}
            }
            self.notice().await;
            match look(&self.app, self.workspace).await {
                Ok(ReinitAnswer::Wait) => {}
                Ok(ReinitAnswer::Reinitialize(owner)) => self.step = Step::Tell(owner),
                Ok(ReinitAnswer::Terminal(why)) => {
                    self.step = Step::End;
                    return Some(Out::error(&why));
                }
                // The database is away for a moment; the stream goes on.
                Err(error) => tracing::debug!(error = %error, "reinit looks again"),
            }
        }
    }
}
