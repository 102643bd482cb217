//! Subscriptions that all requests of this replica share, and how streams are answered.

use std::sync::Arc;

use berth_backbone::Backbone;
use berth_bus::subjects::Stream;
use berth_domain::id::WorkspaceId;
use berth_service_kit::Context;
use tokio::sync::{Semaphore, broadcast};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::live::hub::Hub;
use crate::live::session::Sessions;
use crate::live::workspace::Workspaces;

pub(crate) mod answer;
pub(crate) mod encoded;
pub(crate) mod event_id;
pub(crate) mod follow;
pub(crate) mod hub;
pub(crate) mod session;
pub(crate) mod sight;
pub(crate) mod workspace;

/// Claims that a slow listener may be behind before it has to look for itself.
const BUFFER: usize = 4096;

/// Streams at once that read the past from NATS; others wait for their turn. Whoever was away for a
/// short time finds it in the hub.
const READERS: usize = 16;

/// What streams listen to. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Live {
    /// Build updates, for watchers of all of them.
    pub(crate) hub: Hub,
    /// Workspaces that are watched one by one.
    pub(crate) workspaces: Workspaces,
    /// Sessions of open streams.
    pub(crate) sessions: Sessions,
    /// Turns to read the past from NATS.
    pub(crate) readers: Arc<Semaphore>,
    claims: broadcast::Sender<WorkspaceId>,
    /// The process ends: so do all streams.
    pub(crate) stop: CancellationToken,
}

impl Live {
    /// Starts the shared subscriptions as tasks of `ctx`.
    pub(crate) fn start(ctx: &Context<Config>, backbone: &Backbone) -> anyhow::Result<Self> {
        let live = Self::silent(ctx.shutdown.clone());
        live.hub.register(&ctx.metrics)?;
        live.workspaces.register(&ctx.metrics)?;
        let bus = || backbone.bus.clone();
        ctx.spawn("live-builds", follow::builds(live.clone(), bus()));
        ctx.spawn("live-claims", follow::notices(live.clone(), bus(), Stream::Claims));
        ctx.spawn("live-workspaces", follow::notices(live.clone(), bus(), Stream::Workspaces));
        ctx.spawn("live-sessions", live.clone().look_after_sessions(backbone.clone()));
        Ok(live)
    }

    /// Streams that nothing feeds.
    pub(crate) fn silent(stop: CancellationToken) -> Self {
        Self {
            hub: Hub::new(),
            workspaces: Workspaces::new(),
            sessions: Sessions::default(),
            readers: Arc::new(Semaphore::new(READERS)),
            claims: broadcast::channel(BUFFER).0,
            stop,
        }
    }

    /// Workspaces whose claim build ends from now on.
    pub(crate) fn claims(&self) -> broadcast::Receiver<WorkspaceId> {
        self.claims.subscribe()
    }

    fn claimed(&self, workspace: WorkspaceId) {
        // Nobody listening is no failure.
        let _ = self.claims.send(workspace);
    }

    /// Has the sessions of open streams looked at again and again.
    pub(crate) async fn look_after_sessions(self, backbone: Backbone) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(session::TICK) => {}
                () = self.stop.cancelled() => return,
            }
            self.sessions.look(&backbone.db, backbone.clock.now()).await;
        }
    }
}
