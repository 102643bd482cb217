//! Subscriptions that all requests of this replica share, and how streams are answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use berth_backbone::Backbone;
use berth_bus::Bus;
use berth_bus::event::{BuildChanged, ClaimFinished};
use berth_bus::subjects::Stream as BusStream;
use berth_domain::id::WorkspaceId;
use berth_service_kit::Context;
use futures_util::StreamExt as _;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::config::Config;

pub(crate) mod answer;

/// Updates that a slow reader may be behind before it is told of a gap.
const BUFFER: usize = 4096;
/// Pause before a lost subscription is made again.
const RETRY: Duration = Duration::from_millis(500);

/// An update of a workspace build, with its place in the stream.
#[derive(Debug, Clone)]
pub(crate) struct BuildUpdate {
    /// Grows from update to update; what `Last-Event-ID` resumes from.
    pub(crate) sequence: u64,
    /// The update.
    pub(crate) change: BuildChanged,
}

/// What streams listen to. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Live {
    builds: broadcast::Sender<Arc<BuildUpdate>>,
    claims: broadcast::Sender<WorkspaceId>,
    /// Sequence of the newest update that was handed to readers.
    newest: Arc<AtomicU64>,
    /// The process ends: so do all streams.
    pub(crate) stop: CancellationToken,
}

impl Live {
    /// Starts the shared subscriptions as tasks of `ctx`.
    pub(crate) fn start(ctx: &Context<Config>, backbone: &Backbone) -> Self {
        let live = Self::silent(ctx.shutdown.clone());
        ctx.spawn("live-builds", live.clone().follow_builds(backbone.bus.clone()));
        ctx.spawn("live-claims", live.clone().follow_claims(backbone.bus.clone()));
        live
    }

    /// Streams that nothing feeds.
    pub(crate) fn silent(stop: CancellationToken) -> Self {
        Self {
            builds: broadcast::channel(BUFFER).0,
            claims: broadcast::channel(BUFFER).0,
            newest: Arc::default(),
            stop,
        }
    }

    /// Everything that happens to workspace builds from now on.
    pub(crate) fn builds(&self) -> broadcast::Receiver<Arc<BuildUpdate>> {
        self.builds.subscribe()
    }

    /// Workspaces whose claim build ends from now on.
    pub(crate) fn claims(&self) -> broadcast::Receiver<WorkspaceId> {
        self.claims.subscribe()
    }

    /// One follow of the stream, for all watchers of this replica, made again for ever.
    async fn follow_builds(self, bus: Bus) {
        while !self.stop.is_cancelled() {
            if let Err(error) = self.pass_builds_on(&bus).await {
                tracing::debug!(error = %error, "stream of builds lost; followed again");
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    async fn pass_builds_on(&self, bus: &Bus) -> Result<(), berth_bus::BusError> {
        let (_, last) = bus.bounds(BusStream::Builds).await?;
        let seen = self.newest.load(Ordering::Acquire);
        // The stream may have been made anew: then its numbers begin again.
        let after = if seen == 0 || seen > last { last } else { seen };
        let filter = bus.subjects().all(BusStream::Builds);
        let updates = bus.follow(BusStream::Builds, filter, Some(after)).await?;
        let mut updates = Box::pin(updates.take_until(self.stop.clone().cancelled_owned()));
        while let Some(delivery) = updates.next().await {
            let delivery = delivery?;
            self.newest.store(delivery.sequence, Ordering::Release);
            match serde_json::from_slice(&delivery.payload) {
                Ok(change) => {
                    let update = BuildUpdate { sequence: delivery.sequence, change };
                    // Nobody listening is no failure.
                    let _ = self.builds.send(Arc::new(update));
                }
                Err(error) => tracing::warn!(error = %error, "build update cannot be read"),
            }
        }
        Ok(())
    }

    async fn follow_claims(self, bus: Bus) {
        while !self.stop.is_cancelled() {
            let subject = bus.subjects().all(BusStream::Claims);
            match bus.subscribe(subject).await {
                Ok(claims) => {
                    let claims = claims.take_until(self.stop.clone().cancelled_owned());
                    claims.for_each(async |delivery| self.pass_claim_on(&delivery)).await;
                }
                Err(error) => tracing::debug!(error = %error, "claims not subscribed to"),
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// The workspace stands in the subject, so a payload of another version does no harm.
    fn pass_claim_on(&self, delivery: &berth_bus::Delivery) {
        let told: Option<ClaimFinished> = serde_json::from_slice(&delivery.payload).ok();
        let workspace = told.map(|it| it.workspace_id).or_else(|| delivery.key().parse().ok());
        if let Some(workspace) = workspace {
            // Nobody listening is no failure.
            let _ = self.claims.send(workspace);
        }
    }
}
