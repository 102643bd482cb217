//! Build updates on their way to watchers: each goes to whoever may read it, and to nobody else.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use berth_bus::StreamState;
use berth_domain::id::{OrganizationId, UserId};
use prometheus::{IntCounter, IntGauge, Registry};
use tokio::sync::{Notify, watch};

use crate::live::encoded::{Encoded, Update};
use crate::live::event_id::EventId;
use crate::live::sight::Sight;

/// The newest updates, kept for whoever comes back and for readers that are slow: about 3 MiB.
/// Nobody else keeps updates, so this bounds what all watchers together hold.
pub(crate) const KEPT: usize = 4096;
/// Updates that are sent at once.
const BATCH: usize = 64;

/// What waits for one watcher.
#[derive(Default)]
struct Waiting {
    /// At most [`KEPT`]: an older one is gone anyway.
    updates: VecDeque<EventId>,
    /// The first that the watcher will not get. It is older than those in `updates`.
    missed: Option<EventId>,
    /// Everything up to here is in `updates`, was sent, or is covered by `missed`.
    seen: Option<EventId>,
}

/// Where updates for one watcher wait.
#[derive(Default)]
struct Mailbox {
    waiting: Mutex<Waiting>,
    news: Notify,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn offer(&self, id: EventId) {
        let mut waiting = self.lock();
        let is_old = |seen: EventId| seen.epoch == id.epoch && seen >= id;
        if waiting.seen.is_some_and(is_old) {
            return;
        }
        waiting.seen = Some(id);
        if waiting.updates.len() == KEPT {
            let oldest = waiting.updates.pop_front();
            waiting.missed = waiting.missed.or(oldest);
        }
        waiting.updates.push_back(id);
        drop(waiting);
        self.news.notify_one();
    }

    /// Updates from `first` on are lost, up to `to`. `back`: what comes next is older than what was
    /// sent, for the stream was put back.
    fn miss(&self, first: EventId, to: EventId, back: bool) {
        let mut waiting = self.lock();
        let has_more = |seen: EventId| seen.epoch == to.epoch && seen >= to;
        if !back && waiting.seen.is_some_and(has_more) {
            // It heard of them at another replica.
            return;
        }
        let first = waiting.updates.front().copied().unwrap_or(first);
        waiting.missed.get_or_insert(first);
        waiting.updates.clear();
        waiting.seen = Some(to);
        drop(waiting);
        self.news.notify_one();
    }
}

struct Registered {
    mailbox: Arc<Mailbox>,
    sight: Arc<Sight>,
}

#[derive(Default)]
struct State {
    /// The newest update that was taken in; `None` until the stream was reached.
    position: Option<EventId>,
    /// What the stream held when it was reached: nobody who came later missed anything before.
    head: Option<EventId>,
    /// All updates after this one are in `kept`.
    floor: Option<EventId>,
    kept: VecDeque<Update>,
    watchers: Vec<Option<Registered>>,
    free: Vec<usize>,
    everywhere: BTreeSet<usize>,
    by_organization: HashMap<OrganizationId, BTreeSet<usize>>,
    by_owner: HashMap<UserId, BTreeSet<usize>>,
}

impl State {
    fn index(&mut self, key: usize, sight: &Sight) {
        if sight.reaches_everywhere() {
            self.everywhere.insert(key);
        }
        for organization in sight.organizations() {
            self.by_organization.entry(organization).or_default().insert(key);
        }
        self.by_owner.entry(sight.me()).or_default().insert(key);
    }

    fn unindex(&mut self, key: usize, sight: &Sight) {
        self.everywhere.remove(&key);
        for organization in sight.organizations() {
            if let Some(keys) = self.by_organization.get_mut(&organization) {
                keys.remove(&key);
                if keys.is_empty() {
                    self.by_organization.remove(&organization);
                }
            }
        }
        if let Some(keys) = self.by_owner.get_mut(&sight.me()) {
            keys.remove(&key);
            if keys.is_empty() {
                self.by_owner.remove(&sight.me());
            }
        }
    }

    /// Looks at those alone who may read it, however many others there are. A watcher that is found
    /// twice takes the second offer for an old one.
    fn offer(&self, update: &Update) {
        let in_organization = self.by_organization.get(&update.organization);
        let of_owner = self.by_owner.get(&update.owner);
        let listed = in_organization.into_iter().chain(of_owner).flatten();
        for key in self.everywhere.iter().chain(listed) {
            let Some(Some(it)) = self.watchers.get(*key) else { continue };
            if it.sight.covers(update.organization, update.owner) {
                it.mailbox.offer(update.id);
            }
        }
    }

    fn all(&self) -> impl Iterator<Item = &Registered> {
        self.watchers.iter().flatten()
    }

    /// What lies between the position and `to` is lost: everybody is told.
    fn jump(&mut self, to: EventId) {
        if let Some(position) = self.position {
            let back = position.epoch == to.epoch && to < position;
            self.all().for_each(|it| it.mailbox.miss(position.next(), to, back));
        }
        self.kept.clear();
        self.head = None;
        self.floor = Some(to);
        self.position = Some(to);
    }

    fn find(&self, id: EventId) -> Option<&Update> {
        let index = self.kept.binary_search_by_key(&id, |it| it.id).ok()?;
        self.kept.get(index)
    }
}

/// Why a reader cannot join yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotYet {
    /// The stream was not reached so far.
    Unknown,
    /// What it lacks is to be read from the stream first, up to here at least.
    Behind(EventId),
    /// It names an update that this replica has not seen: it may be a later one, or of a stream
    /// that was lost.
    Ahead,
}

/// Where updates come in and go out. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Hub {
    state: Arc<RwLock<State>>,
    /// Tells that the position is known.
    reached: Arc<watch::Sender<bool>>,
    watchers: IntGauge,
    delivered: IntCounter,
    gaps: IntCounter,
}

impl Hub {
    pub(crate) fn new() -> Self {
        let gauge = |name: &str, help: &str| IntGauge::new(name, help);
        let counter = |name: &str, help: &str| IntCounter::new(name, help);
        let named = "the names are valid";
        Self {
            state: Arc::default(),
            reached: Arc::new(watch::Sender::new(false)),
            watchers: gauge("berth_watchers", "Open streams of all build updates.").expect(named),
            delivered: counter("berth_watch_updates_total", "Updates handed to watchers.")
                .expect(named),
            gaps: counter("berth_watch_gaps_total", "Gaps that watchers were told of.")
                .expect(named),
        }
    }

    /// Shows its counters.
    pub(crate) fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.watchers.clone()))?;
        registry.register(Box::new(self.delivered.clone()))?;
        registry.register(Box::new(self.gaps.clone()))
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stream was reached, again or for the first time. Answers with the place to read on from;
    /// watchers are told of what is lost.
    pub(crate) fn reach(&self, stream: StreamState) -> EventId {
        let at = |sequence| EventId { epoch: stream.epoch, sequence };
        let before = stream.first.saturating_sub(1);
        let mut state = self.write();
        match state.position {
            None => {
                // A little of the past, so that whoever comes back finds it here.
                let kept = u64::try_from(KEPT).unwrap_or(u64::MAX);
                let from = at(before.max(stream.last.saturating_sub(kept)));
                (state.position, state.floor) = (Some(from), Some(from));
                state.head = Some(at(stream.last));
                // They came before it was known where they stand.
                let (first, last) = (at(before).next(), at(stream.last));
                state.all().for_each(|it| it.mailbox.miss(first, last, false));
            }
            Some(it) if it.epoch != stream.epoch || it.sequence > stream.last => {
                state.jump(at(before));
            }
            Some(it) if it.sequence < before => state.jump(at(before)),
            Some(_) => {}
        }
        let position = state.position.unwrap_or(at(before));
        drop(state);
        self.reached.send_replace(true);
        position
    }

    /// What lies between the newest update and the one before `id` is in the stream no more.
    pub(crate) fn skip_to(&self, id: EventId) {
        self.write().jump(EventId { sequence: id.sequence.saturating_sub(1), ..id });
    }

    /// The newest update that was taken in.
    pub(crate) fn position(&self) -> Option<EventId> {
        self.read().position
    }

    /// Takes in the next update and hands it to whoever may read it; `None`: it cannot be read.
    pub(crate) fn push(&self, id: EventId, update: Option<Update>) {
        let mut state = self.write();
        state.position = Some(id);
        let Some(update) = update else { return };
        if state.kept.len() == KEPT {
            let oldest = state.kept.pop_front().map(|it| it.id);
            state.floor = oldest.or(state.floor);
        }
        state.offer(&update);
        state.kept.push_back(update);
    }

    /// Registers a watcher that begins now.
    pub(crate) fn join_now(&self, sight: &Arc<Sight>) -> Watcher {
        let mut state = self.write();
        let seen = state.position.max(state.head);
        self.admit(&mut state, Waiting { seen, ..Waiting::default() }, sight)
    }

    /// Registers a watcher that has seen everything up to `after`.
    pub(crate) fn join(&self, sight: &Arc<Sight>, after: EventId) -> Result<Watcher, NotYet> {
        let mut state = self.write();
        let (Some(position), Some(floor)) = (state.position, state.floor) else {
            return Err(NotYet::Unknown);
        };
        if after.epoch != position.epoch || after > position {
            return Err(NotYet::Ahead);
        }
        if after < floor {
            return Err(NotYet::Behind(floor));
        }
        let is_for = |it: &&Update| it.id > after && sight.covers(it.organization, it.owner);
        let updates = state.kept.iter().filter(is_for).map(|it| it.id).collect();
        let waiting = Waiting { updates, missed: None, seen: Some(position) };
        Ok(self.admit(&mut state, waiting, sight))
    }

    /// Registers a watcher that has seen everything up to `after`, which this replica has not.
    pub(crate) fn join_ahead(&self, sight: &Arc<Sight>, after: EventId) -> Watcher {
        let waiting = Waiting { seen: Some(after), ..Waiting::default() };
        self.admit(&mut self.write(), waiting, sight)
    }

    fn admit(&self, state: &mut State, waiting: Waiting, sight: &Arc<Sight>) -> Watcher {
        let mailbox = Arc::new(Mailbox { waiting: Mutex::new(waiting), news: Notify::new() });
        let key = state.free.pop().unwrap_or(state.watchers.len());
        state.index(key, sight);
        let it = Some(Registered { mailbox: mailbox.clone(), sight: sight.clone() });
        if key == state.watchers.len() {
            state.watchers.push(it);
        } else {
            state.watchers[key] = it;
        }
        self.watchers.inc();
        Watcher { hub: self.clone(), key, mailbox }
    }

    /// Waits until the stream was reached.
    pub(crate) async fn reached(&self) {
        let mut reached = self.reached.subscribe();
        // The sender lives as long as this does.
        let _ = reached.wait_for(|it| *it).await;
    }

    /// Counts gaps that are told elsewhere.
    pub(crate) fn count_gap(&self) {
        self.gaps.inc();
    }
}

/// A watcher that is up to date, but for what waits for it.
pub(crate) struct Watcher {
    hub: Hub,
    key: usize,
    mailbox: Arc<Mailbox>,
}

impl Watcher {
    /// The next updates, or a gap; waits for them. Nothing is lost when the wait is given up.
    pub(crate) async fn next(&mut self) -> Vec<Encoded> {
        loop {
            if let Some(batch) = self.take() {
                return batch;
            }
            self.mailbox.news.notified().await;
        }
    }

    fn take(&self) -> Option<Vec<Encoded>> {
        let state = self.hub.read();
        let mut waiting = self.mailbox.lock();
        while let Some(oldest) = waiting.updates.front().copied() {
            if state.find(oldest).is_some() {
                break;
            }
            // This reader is so slow that the update is gone.
            waiting.missed.get_or_insert(oldest);
            waiting.updates.pop_front();
        }
        let mut batch = Vec::new();
        if let Some(first) = waiting.missed.take() {
            let oldest = waiting.updates.front();
            let before = |id: &EventId| EventId { sequence: id.sequence - 1, ..*id };
            let place = oldest.map(before).or(state.position.max(waiting.seen))?;
            batch.push(Encoded::gap(first, place));
            self.hub.gaps.inc();
        }
        let many = waiting.updates.len().min(BATCH);
        let found = waiting.updates.drain(..many).filter_map(|id| state.find(id));
        batch.extend(found.map(|it| it.encoded.clone()));
        if waiting.updates.is_empty() {
            waiting.updates = VecDeque::new();
        }
        self.hub.delivered.inc_by(many as u64);
        (!batch.is_empty()).then_some(batch)
    }

    /// Where it stands, when nothing waits for it.
    pub(crate) fn place(&self) -> Option<EventId> {
        let state = self.hub.read();
        let waiting = self.mailbox.lock();
        let is_idle = waiting.updates.is_empty() && waiting.missed.is_none();
        let newest = match (state.position, waiting.seen) {
            // Another replica was ahead of this one.
            (Some(position), Some(seen)) if seen.epoch == position.epoch => position.max(seen),
            (position, _) => position?,
        };
        is_idle.then_some(newest)
    }

    /// What it may read has changed.
    pub(crate) fn look_with(&self, sight: &Arc<Sight>) {
        let mut state = self.hub.write();
        let Some(Some(it)) = state.watchers.get_mut(self.key) else { return };
        let old = std::mem::replace(&mut it.sight, sight.clone());
        state.unindex(self.key, &old);
        state.index(self.key, sight);
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut state = self.hub.write();
        let gone = state.watchers.get_mut(self.key).and_then(Option::take);
        if let Some(gone) = gone {
            state.unindex(self.key, &gone.sight);
            state.free.push(self.key);
        }
        drop(state);
        self.hub.watchers.dec();
    }
}

#[cfg(test)]
mod tests;
