//! Sessions and tokens behind open streams: what they may read now, not when the stream began.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_db::Pool;
use berth_db::api_key::{self, Session};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

use berth_domain::authz::{Action, Resource, Subject, allowed};

use crate::auth::Caller;
use crate::live::sight::Sight;

/// How often a session is looked at again.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Pause between two looks at those that are due.
pub(crate) const TICK: Duration = Duration::from_millis(500);
/// Sessions read by one statement, and so in one tick: with more than four times as many, each is
/// looked at less often.
const BATCH: usize = 512;
/// A session that could not be looked at for this long ends its streams.
const BLIND: Duration = Duration::from_mins(1);

const ENDED: &str = "The session or token of this stream has ended.";
const UNKNOWN: &str = "The session of this stream could not be checked for too long.";

/// What a session may read at the moment.
#[derive(Debug, Clone)]
pub(crate) enum Standing {
    /// It is good.
    Good {
        /// Who asks.
        subject: Arc<Subject>,
        /// Which updates may be read.
        sight: Arc<Sight>,
    },
    /// It is not, and why.
    Over(&'static str),
}

impl Standing {
    fn good(subject: Subject) -> Self {
        let sight = Arc::new(Sight::of(&subject));
        Self::Good { subject: Arc::new(subject), sight }
    }

    fn is_as(&self, subject: &Subject) -> bool {
        matches!(self, Self::Good { subject: it, .. } if **it == *subject)
    }
}

struct Entry {
    standing: watch::Sender<Standing>,
    looked_at: Instant,
    /// Streams of this session.
    streams: usize,
}

/// The sessions of all open streams of this replica. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Sessions {
    entries: Arc<Mutex<HashMap<String, Entry>>>,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks after the caller's session as long as the answer lives.
    pub(crate) fn keep(&self, caller: &Caller) -> Kept {
        let key = caller.key.id.clone();
        let mut entries = self.lock();
        let entry = entries.entry(key.clone()).or_insert_with(|| Entry {
            standing: watch::Sender::new(Standing::good(caller.subject.clone())),
            looked_at: Instant::now(),
            streams: 0,
        });
        entry.streams += 1;
        let standing = entry.standing.subscribe();
        drop(entries);
        Kept { sessions: self.clone(), key, standing }
    }

    /// Sessions that were not looked at for [`LOOK_EVERY`], those that wait longest first.
    fn due(&self) -> Vec<String> {
        let entries = self.lock();
        let is_due = |entry: &Entry| entry.looked_at.elapsed() >= LOOK_EVERY;
        let mut due: Vec<_> = entries
            .iter()
            .filter(|(_, entry)| is_due(entry))
            .map(|(key, entry)| (entry.looked_at, key))
            .collect();
        due.sort();
        due.into_iter().take(BATCH).map(|(_, key)| key.clone()).collect()
    }

    /// Looks at the sessions that are due. Those that changed tell their streams.
    pub(crate) async fn look(&self, db: &Pool, now: Timestamp) {
        let due = self.due();
        if due.is_empty() {
            return;
        }
        match api_key::list_sessions(db, &due).await {
            Ok(found) => self.apply(&due, found, now),
            Err(error) => {
                tracing::debug!(error = %error, "sessions of streams are looked at again");
                self.give_up();
            }
        }
    }

    fn apply(&self, due: &[String], found: Vec<Session>, now: Timestamp) {
        let mut found: HashMap<String, Session> =
            found.into_iter().map(|it| (it.key.id.clone(), it)).collect();
        let mut entries = self.lock();
        for key in due {
            let Some(entry) = entries.get_mut(key) else { continue };
            entry.looked_at = Instant::now();
            match found.remove(key).filter(|it| is_good(it, now)) {
                Some(it) if entry.standing.borrow().is_as(&it.subject) => {}
                Some(it) => {
                    entry.standing.send_replace(Standing::good(it.subject));
                }
                None => {
                    entry.standing.send_replace(Standing::Over(ENDED));
                }
            }
        }
    }

    /// Ends what nobody could look at for too long.
    fn give_up(&self) {
        for entry in self.lock().values().filter(|it| it.looked_at.elapsed() > BLIND) {
            entry.standing.send_replace(Standing::Over(UNKNOWN));
        }
    }
}

fn is_good(session: &Session, now: Timestamp) -> bool {
    let user = &session.user;
    session.key.expires_at > now && !user.is_system && user.status != "suspended"
}

/// A session that is looked after for one stream.
pub(crate) struct Kept {
    sessions: Sessions,
    key: String,
    standing: watch::Receiver<Standing>,
}

impl Kept {
    /// What it may read now.
    pub(crate) fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    /// Whether it may read `resource` now; the error is the last word to the stream.
    pub(crate) fn may_read(&self, resource: &Resource) -> Result<bool, &'static str> {
        match &*self.standing.borrow() {
            Standing::Good { subject, .. } => {
                Ok(allowed(subject, Action::Read, resource).is_allowed())
            }
            Standing::Over(why) => Err(why),
        }
    }

    /// Waits until its standing changes.
    pub(crate) async fn changed(&mut self) {
        if self.standing.changed().await.is_err() {
            // The entry lives as long as this does.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut entries = self.sessions.lock();
        if let Some(entry) = entries.get_mut(&self.key) {
            entry.streams -= 1;
            if entry.streams == 0 {
                entries.remove(&self.key);
            }
        }
    }
}
