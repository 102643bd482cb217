//! Watchers, each with a stream of its own.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::task::{AbortHandle, JoinSet};

use crate::data;
use crate::report::Report;
use crate::service::until;
use crate::wire::{self, Wire};

/// How an update begins, up to the workspace's id, and how it goes on after it.
const BEGINS: &[u8] = br#"data: {"workspace_id":""#;
const NAMED: &[u8] = br#"","workspace_name":""#;
/// Characters of an id.
const ID: usize = 36;

/// Microseconds since 1970.
pub(super) fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or_default()
}

/// What one watcher was told.
#[derive(Default)]
struct Heard {
    /// Updates.
    count: AtomicU64,
    /// When the last one came.
    last: AtomicU64,
    /// A gap, or the end of the stream.
    broken: AtomicBool,
    /// Names of the workspaces and when they came, in order.
    names: Mutex<Vec<(String, u64)>>,
}

impl Heard {
    fn hear(&self, line: &[u8], at: u64) {
        if line.starts_with(b"event: gap") || line.starts_with(b"event: error") {
            self.broken.store(true, Ordering::Relaxed);
        }
        let Some(rest) = line.strip_prefix(BEGINS).and_then(|it| it.get(ID..)) else { return };
        let Some(rest) = rest.strip_prefix(NAMED) else { return };
        let name = rest.split(|it| *it == b'"').next().unwrap_or_default();
        let name = String::from_utf8_lossy(name).into_owned();
        self.names.lock().unwrap_or_else(PoisonError::into_inner).push((name, at));
        self.last.store(at, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Release);
    }
}

/// Everybody who watches.
pub(super) struct Crowd {
    all: Vec<(Arc<Heard>, AbortHandle)>,
    tasks: JoinSet<()>,
}

impl Crowd {
    /// Opens so many streams.
    pub(super) async fn gather(address: &str, watchers: usize) -> anyhow::Result<Self> {
        let mut crowd = Self { all: Vec::new(), tasks: JoinSet::new() };
        for number in 0..watchers {
            let request = wire::stream("/watch-all-workspaces", &data::token(1 + number as u64));
            let wire = Wire::connect(address).await?.listen(&request).await?;
            crowd.watch(wire);
        }
        Ok(crowd)
    }

    fn watch(&mut self, wire: Wire) {
        let heard = Arc::new(Heard::default());
        let own = Arc::clone(&heard);
        let task = self.tasks.spawn(async move {
            let mut at = 0;
            let ended = wire.lines(|line| {
                // The first line of an update; its data follows in the same piece.
                if line.starts_with(b"event") {
                    at = now();
                }
                own.hear(line, at);
            });
            let _ = ended.await;
            own.broken.store(true, Ordering::Relaxed);
        });
        self.all.push((heard, task));
    }

    /// What the watcher who is furthest behind has heard.
    pub(super) fn slowest(&self) -> u64 {
        let counts = self.all.iter().map(|(it, _)| it.count.load(Ordering::Acquire));
        counts.min().unwrap_or_default()
    }

    /// Waits until everybody has heard of so many updates.
    pub(super) async fn all_heard(&self, updates: u64, within: Duration) -> anyhow::Result<()> {
        until("everybody has heard of everything", within, async || {
            Ok((self.slowest() >= updates).then_some(()))
        })
        .await
    }

    /// When the last update came to the last watcher.
    pub(super) fn last_heard(&self) -> u64 {
        self.all.iter().map(|(it, _)| it.last.load(Ordering::Relaxed)).max().unwrap_or_default()
    }

    /// Every name that every watcher heard, and when.
    pub(super) fn told(&self) -> Vec<(String, u64)> {
        let names =
            self.all.iter().map(|(it, _)| it.names.lock().unwrap_or_else(PoisonError::into_inner));
        names.flat_map(|it| it.clone()).collect()
    }

    /// Everybody has heard the same so many updates in the same order, each once.
    pub(super) fn check(&self, updates: u64, report: &mut Report) {
        let mut first: Option<Vec<String>> = None;
        let mut wrong = 0_u64;
        for (heard, _) in &self.all {
            let names = heard.names.lock().unwrap_or_else(PoisonError::into_inner);
            let names: Vec<String> = names.iter().map(|(name, _)| name.clone()).collect();
            let is_broken = heard.broken.load(Ordering::Relaxed);
            let distinct: std::collections::HashSet<&String> = names.iter().collect();
            let exact = names.len() as u64 == updates && distinct.len() == names.len();
            let same = first.as_ref().is_none_or(|it| *it == names);
            wrong += u64::from(is_broken || !exact || !same);
            first.get_or_insert(names);
        }
        report.check(wrong == 0, || {
            format!("{wrong} of {} watchers did not hear of {updates} updates", self.all.len())
        });
    }

    /// What was heard so far does not count.
    pub(super) fn forget(&self) {
        for (heard, _) in &self.all {
            heard.names.lock().unwrap_or_else(PoisonError::into_inner).clear();
            heard.count.store(0, Ordering::Release);
        }
    }

    /// Closes every stream.
    pub(super) async fn leave(mut self) {
        self.all.iter().for_each(|(_, task)| task.abort());
        while self.tasks.join_next().await.is_some() {}
    }
}
