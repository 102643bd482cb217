//! The one reader of events that all streams of this replica share.

use std::time::Duration;

use berth_bus::event::{BuildChanged, ClaimFinished, WorkspaceChanged};
use berth_bus::subjects::Stream;
use berth_bus::{Bus, BusError, Delivery, StreamState};
use futures_util::StreamExt as _;
use tokio_util::sync::CancellationToken;

use crate::live::Live;
use crate::live::encoded::Update;
use crate::live::event_id::EventId;

/// Pause before a lost subscription is made again.
const RETRY: Duration = Duration::from_millis(500);
/// How often the stream is compared with what was heard of it.
const COMPARE_EVERY: Duration = Duration::from_secs(5);

/// What build updates are followed with.
struct Builds<'a> {
    live: &'a Live,
    bus: &'a Bus,
    /// A hole that was met once: met again, it is in the stream and not on the way.
    hole: Option<EventId>,
}

/// Follows the stream of builds for ever.
pub(crate) async fn builds(live: Live, bus: Bus) {
    let mut builds = Builds { live: &live, bus: &bus, hole: None };
    while !live.stop.is_cancelled() {
        if let Err(error) = builds.pass_on().await {
            tracing::debug!(error = %error, "stream of builds lost; followed again");
        }
        // Whatever happened meanwhile, watchers of single workspaces look for themselves.
        live.workspaces.notice_all();
        pause(&live.stop).await;
    }
}

async fn pause(stop: &CancellationToken) {
    tokio::select! { () = tokio::time::sleep(RETRY) => {}, () = stop.cancelled() => {} }
}

impl Builds<'_> {
    async fn pass_on(&mut self) -> Result<(), BusError> {
        let stream = self.bus.state(Stream::Builds).await?;
        let from = self.live.hub.reach(stream);
        let filter = self.bus.subjects().all(Stream::Builds);
        let updates = self.bus.follow(Stream::Builds, filter, Some(from.sequence)).await?;
        if self.bus.state(Stream::Builds).await?.epoch != stream.epoch {
            // It was made anew in between: whose updates would these be?
            return Ok(());
        }
        let stop = self.live.stop.clone();
        let mut updates = Box::pin(updates.take_until(stop.cancelled_owned()));
        let mut compare = tokio::time::interval(COMPARE_EVERY);
        let mut before = None;
        loop {
            tokio::select! {
                delivery = updates.next() => match delivery {
                    Some(delivery) => {
                        if !self.take(stream.epoch, &delivery?) {
                            return Ok(());
                        }
                    }
                    None => return Ok(()),
                },
                _ = compare.tick() => {
                    let now = self.bus.state(Stream::Builds).await?;
                    if now.epoch != stream.epoch || self.is_stuck(before, now) {
                        return Ok(());
                    }
                    before = Some((now, self.live.hub.position()));
                }
            }
        }
    }

    /// Whether nothing came since the last comparison, though there was something to come.
    fn is_stuck(&self, before: Option<(StreamState, Option<EventId>)>, now: StreamState) -> bool {
        let position = self.live.hub.position();
        let is_behind = |last: u64| position.is_some_and(|it| it.sequence < last);
        before.is_some_and(|(then, at)| at == position && is_behind(then.last.min(now.last)))
    }

    /// Hands an update on. `false`: there is a hole before it, and the stream is to be read again
    /// from there.
    fn take(&mut self, epoch: u64, delivery: &Delivery) -> bool {
        let id = EventId { epoch, sequence: delivery.sequence };
        let hub = &self.live.hub;
        let position = hub.position();
        let expected = position.map(EventId::next);
        if expected.is_some_and(|it| it < id) {
            if self.hole != expected {
                self.hole = expected;
                return false;
            }
            hub.skip_to(id);
        }
        if position.is_some_and(|it| it.epoch == epoch && it >= id) {
            return true;
        }
        match serde_json::from_slice::<BuildChanged>(&delivery.payload) {
            Ok(change) => {
                hub.push(id, Some(Update::new(id, &change)));
                self.live.workspaces.notice(change.workspace_id);
            }
            Err(error) => {
                tracing::warn!(error = %error, "build update cannot be read");
                hub.push(id, None);
            }
        }
        true
    }
}

/// Hears of workspaces and of claims for ever. What is missed is found by looking.
pub(crate) async fn notices(live: Live, bus: Bus, of: Stream) {
    while !live.stop.is_cancelled() {
        match bus.subscribe(bus.subjects().all(of)).await {
            Ok(notices) => {
                let mut notices = Box::pin(notices.take_until(live.stop.clone().cancelled_owned()));
                live.workspaces.notice_all();
                while let Some(delivery) = notices.next().await {
                    match of {
                        Stream::Claims => pass_claim_on(&live, &delivery),
                        _ => pass_workspace_on(&live, &delivery),
                    }
                }
            }
            Err(error) => tracing::debug!(error = %error, "notices not subscribed to"),
        }
        pause(&live.stop).await;
    }
}

/// The workspace stands in the subject, so a payload of another version does no harm.
fn pass_claim_on(live: &Live, delivery: &Delivery) {
    let told: Option<ClaimFinished> = serde_json::from_slice(&delivery.payload).ok();
    let workspace = told.map(|it| it.workspace_id).or_else(|| delivery.key().parse().ok());
    if let Some(workspace) = workspace {
        live.claimed(workspace);
        live.workspaces.notice(workspace);
    }
}

fn pass_workspace_on(live: &Live, delivery: &Delivery) {
    let told: Option<WorkspaceChanged> = serde_json::from_slice(&delivery.payload).ok();
    let in_subject = || delivery.subject.rsplit('.').nth(1).and_then(|it| it.parse().ok());
    if let Some(workspace) = told.map(|it| it.workspace_id).or_else(in_subject) {
        live.workspaces.notice(workspace);
    }
}
