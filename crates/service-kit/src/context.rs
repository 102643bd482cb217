//! What a service gets to work with.

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use prometheus::Registry;
use tokio_util::sync::CancellationToken;

use crate::announce::{AnnounceError, Announcement};
use crate::{HasProcess, Health, Latch, TaskOutcome, Tasks};

/// What a service gets to work with. Clones share everything but the configuration.
#[derive(Debug, Clone)]
pub struct Context<C> {
    /// The service's name, as in `berth service <name>`.
    pub name: &'static str,
    /// The service's configuration.
    pub config: C,
    /// Cancelled when the process has to stop; every task ends on it.
    pub shutdown: CancellationToken,
    /// Readiness.
    pub health: Health,
    /// What `/metrics` shows.
    pub metrics: Registry,
    /// The process' tasks, for code that spawns its own.
    pub tasks: Tasks,
    pub(crate) announcement: Announcement,
    pub(crate) startup: Latch,
    pub(crate) grace: Duration,
    pub(crate) hurry: CancellationToken,
}

impl<C: HasProcess> Context<C> {
    /// A context without a process around it: no logs, no admin port, no signals. It ends when
    /// `shutdown` is cancelled. For tests that run several services as libraries, each killed by
    /// dropping its runtime.
    #[must_use]
    pub fn embedded(
        name: &'static str,
        config: C,
        shutdown: CancellationToken,
        announce_file: Option<PathBuf>,
    ) -> Self {
        let health = Health::default();
        Self {
            name,
            startup: health.latch("startup"),
            health,
            metrics: Registry::new(),
            tasks: Tasks::new(shutdown.clone()),
            announcement: Announcement::new(name, announce_file),
            grace: config.process().grace.as_duration(),
            hurry: CancellationToken::new(),
            config,
            shutdown,
        }
    }
}

impl<C> Context<C> {
    /// Runs a task that lasts as long as the process: see [`Tasks::spawn`].
    pub fn spawn<T: TaskOutcome>(
        &self,
        name: &'static str,
        future: impl Future<Output = T> + Send + 'static,
    ) {
        self.tasks.spawn(name, future);
    }

    /// Tells whoever started this process a fact it cannot know, such as the port that was free:
    /// one log line, and one key in the announce file when there is one.
    pub fn announce(&self, key: &str, value: impl Display) -> Result<(), AnnounceError> {
        self.announcement.tell(key, &value.to_string())
    }

    /// Start-up is over: sets the `startup` latch that every process begins with. The process is
    /// ready once the service's own latches are, too.
    pub fn ready(&self) {
        self.startup.set_ready();
    }

    /// The last call of a service: start-up is over ([`Self::ready`]); waits for a signal (or for
    /// stdin to close, when [`Args`](crate::Args) says so, or for a dead task), then for the tasks,
    /// at most the grace period. Readiness goes off before the tasks are told.
    ///
    /// Fails when a task failed or did not stop in time; the error names it.
    pub async fn drain(&self) -> anyhow::Result<()> {
        self.ready();
        self.tasks.drain(self.grace, &self.hurry).await
    }
}
