//! Every build update that somebody may read: first what was missed, then what happens.

use std::sync::Arc;
use std::time::Duration;

use berth_bus::subjects::Stream;
use berth_bus::{Bus, BusError, Delivery};
use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::app::App;
use crate::auth::Caller;
use crate::live::Live;
use crate::live::answer::Source;
use crate::live::encoded::{Encoded, Update};
use crate::live::event_id::EventId;
use crate::live::hub::{NotYet, Watcher};
use crate::live::session::{Kept, Standing};
use crate::live::sight::Sight;
use crate::stream_limit;

/// How long somebody who begins waits for the stream to be reached, so as to know where he begins.
const REACH: Duration = Duration::from_secs(2);
/// Pause before the stream is asked again.
const RETRY: Duration = Duration::from_millis(500);
/// How long the stream may keep silent though there is something to read.
const SILENCE: Duration = Duration::from_secs(5);
/// Updates of the past that are sent at once.
const BATCH: usize = 64;

/// Every build update that a session may read.
pub(super) struct All {
    live: Live,
    bus: Bus,
    kept: Kept,
    sight: Arc<Sight>,
    place: Place,
    ping: Duration,
    _held: stream_limit::Place,
}

enum Place {
    /// Begins with what happens from now on.
    New,
    /// Lacks what happened meanwhile.
    Past(Past),
    /// Up to date.
    Live(Watcher),
    /// The last word was said.
    Over,
}

/// What a turn came to.
enum Turn {
    Tell(Vec<Encoded>),
    Join(Watcher),
    /// The session's standing is another one.
    Look,
    /// Nothing was said for long.
    Ping,
}

impl All {
    /// Goes on after `after`, or begins now.
    pub(super) fn new(
        app: App,
        caller: &Caller,
        after: Option<EventId>,
        held: stream_limit::Place,
    ) -> Self {
        let kept = app.live.sessions.keep(caller);
        Self {
            kept,
            sight: Arc::new(Sight::of(&caller.subject)),
            place: match after {
                Some(after) => Place::Past(Past { after, reading: None }),
                None => Place::New,
            },
            bus: app.backbone.bus.clone(),
            ping: app.config.streams.ping.into(),
            live: app.live,
            _held: held,
        }
    }

    /// What the session may read may have changed. The error is the last word.
    fn look(&mut self) -> Result<(), &'static str> {
        match self.kept.standing() {
            Standing::Over(why) => Err(why),
            Standing::Good { sight, .. } => {
                if *sight != *self.sight {
                    if let Place::Live(watcher) = &self.place {
                        watcher.look_with(&sight);
                    }
                    self.sight = sight;
                }
                Ok(())
            }
        }
    }

    async fn turn(&mut self, ping: Instant) -> Turn {
        let Self { live, bus, kept, sight, place, .. } = self;
        // What is rare is large, and boxed so that a watcher who waits is small.
        let step = async {
            match place {
                Place::New => Turn::Join(Box::pin(begin(live, sight)).await),
                Place::Past(past) => Box::pin(past.step(live, bus, sight)).await,
                Place::Live(watcher) => Turn::Tell(watcher.next().await),
                Place::Over => std::future::pending().await,
            }
        };
        tokio::select! {
            turn = step => turn,
            () = kept.changed() => Turn::Look,
            () = tokio::time::sleep_until(ping) => Turn::Ping,
        }
    }

    /// Whoever breaks off here knows where to go on.
    fn ping(&self) -> Encoded {
        match &self.place {
            Place::Live(watcher) => Encoded::ping(watcher.place()),
            _ => Encoded::ping(None),
        }
    }
}

impl Source for All {
    async fn next(&mut self) -> Option<Vec<Encoded>> {
        let ping = Instant::now() + self.ping;
        loop {
            if matches!(self.place, Place::Over) {
                return None;
            }
            if let Err(why) = self.look() {
                self.place = Place::Over;
                return Some(vec![Encoded::error(why)]);
            }
            match self.turn(ping).await {
                Turn::Tell(messages) => return Some(messages),
                Turn::Look => {}
                Turn::Ping => return Some(vec![self.ping()]),
                Turn::Join(watcher) => {
                    let place = watcher.place();
                    self.place = Place::Live(watcher);
                    if place.is_some() {
                        return Some(vec![Encoded::ping(place)]);
                    }
                }
            }
        }
    }
}

async fn begin(live: &Live, sight: &Arc<Sight>) -> Watcher {
    // Without the stream it begins all the same, and is told of a gap once it is there.
    let _ = tokio::time::timeout(REACH, live.hub.reached()).await;
    live.hub.join_now(sight)
}

/// On the way to what happens now.
struct Past {
    /// Everything up to here was told or left out.
    after: EventId,
    reading: Option<Reading>,
}

/// The stream, where the hub has forgotten what is missing.
struct Reading {
    stored: BoxStream<'static, Result<Delivery, BusError>>,
    /// The hub is enough from here on.
    until: EventId,
    _turn: OwnedSemaphorePermit,
}

impl Past {
    async fn step(&mut self, live: &Live, bus: &Bus, sight: &Arc<Sight>) -> Turn {
        loop {
            if let Some(reading) = &mut self.reading {
                if self.after >= reading.until {
                    self.reading = None;
                    continue;
                }
                match tokio::time::timeout(SILENCE, reading.stored.next()).await {
                    Ok(Some(Ok(delivery))) => {
                        let told = self.pass_on(&delivery, sight);
                        if !told.is_empty() {
                            return Turn::Tell(told);
                        }
                    }
                    _ => self.reading = None,
                }
                continue;
            }
            let until = match live.hub.join(sight, self.after) {
                Ok(watcher) => return Turn::Join(watcher),
                Err(NotYet::Unknown) => {
                    live.hub.reached().await;
                    continue;
                }
                Err(NotYet::Behind(floor)) => Some(floor),
                Err(NotYet::Ahead) => None,
            };
            match self.read(live, bus, sight, until).await {
                Ok(Some(turn)) => return turn,
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(error = %error, "updates cannot be read from the stream");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Begins to read from the stream, unless it holds nothing more.
    async fn read(
        &mut self,
        live: &Live,
        bus: &Bus,
        sight: &Arc<Sight>,
        until: Option<EventId>,
    ) -> Result<Option<Turn>, BusError> {
        let turn = live.readers.clone().acquire_owned().await;
        let turn = turn.map_err(|error| BusError::Unavailable(error.to_string()))?;
        let state = bus.state(Stream::Builds).await?;
        let before = state.first.saturating_sub(1);
        let is_same = state.epoch == self.after.epoch && self.after.sequence <= state.last;
        if !is_same || self.after.sequence < before {
            // Too old, or of a stream that was lost.
            let first_missing = self.after.next();
            self.after = EventId { epoch: state.epoch, sequence: before };
            live.hub.count_gap();
            return Ok(Some(Turn::Tell(vec![Encoded::gap(first_missing, self.after)])));
        }
        if self.after.sequence == state.last {
            return Ok(Some(Turn::Join(live.hub.join_ahead(sight, self.after))));
        }
        let filter = bus.subjects().all(Stream::Builds);
        let stored = bus.follow(Stream::Builds, filter, Some(self.after.sequence)).await?;
        if bus.state(Stream::Builds).await?.epoch == state.epoch {
            let last = EventId { epoch: state.epoch, sequence: state.last };
            // A hub that has not noticed yet that the stream is another one says nothing here.
            let until = until.filter(|it| it.epoch == state.epoch).unwrap_or(last);
            self.reading = Some(Reading { stored: stored.boxed(), until, _turn: turn });
        }
        Ok(None)
    }

    /// This update and those that are there already.
    fn pass_on(&mut self, delivery: &Delivery, sight: &Sight) -> Vec<Encoded> {
        let mut told = self.pass_one_on(delivery, sight);
        while told.len() < BATCH {
            let stored = self.reading.as_mut().map(|it| it.stored.next().now_or_never());
            match stored.flatten().flatten() {
                Some(Ok(delivery)) => told.extend(self.pass_one_on(&delivery, sight)),
                Some(Err(_)) => self.reading = None,
                None => break,
            }
        }
        told
    }

    fn pass_one_on(&mut self, delivery: &Delivery, sight: &Sight) -> Vec<Encoded> {
        let mut told = Vec::new();
        let id = EventId { sequence: delivery.sequence, ..self.after };
        if id > self.after.next() {
            // It grew too old while it was read.
            let before = EventId { sequence: id.sequence - 1, ..id };
            told.push(Encoded::gap(self.after.next(), before));
        }
        self.after = id;
        let update = serde_json::from_slice(&delivery.payload).map(|it| Update::new(id, &it));
        if let Ok(update) = update
            && sight.covers(update.organization, update.owner)
        {
            told.push(update.encoded);
        }
        told
    }
}
