//! The long-lived tasks of a process, by name: when one ends, the process ends.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The named tasks of one process. Cheap to clone; all clones are one.
///
/// A task is expected to run until `shutdown`. One that ends or panics earlier takes the process
/// down with an error naming it: half a process that still answers its health check is worse than
/// none.
#[derive(Debug, Clone)]
pub struct Tasks {
    tracker: TaskTracker,
    shutdown: CancellationToken,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// How many tasks of each name are running.
    running: BTreeMap<&'static str, usize>,
    /// Why the process must end; the first reason wins.
    failure: Option<anyhow::Error>,
}

/// Why a drain did not end well.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// A task returned although nothing asked it to.
    #[error("task `{0}` ended before shutdown")]
    Ended(&'static str),
    /// A task returned an error, before or during shutdown. The error is its source.
    #[error("task `{name}` failed")]
    Failed {
        /// The task.
        name: &'static str,
        /// What it returned.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A task panicked; the panic itself was logged where it happened.
    #[error("task `{0}` panicked")]
    Panicked(&'static str),
    /// Tasks did not stop within the grace period and were dropped.
    #[error("tasks still running {grace:?} after shutdown: {}", names.join(", "))]
    StillRunning {
        /// The tasks.
        names: Vec<String>,
        /// How long they were given.
        grace: Duration,
    },
    /// A second signal asked to stop at once.
    #[error("told to stop at once while these were stopping: {}", .0.join(", "))]
    Hurried(Vec<String>),
}

/// What a task may return: `()`, or a `Result` whose error ends the process.
pub trait TaskOutcome: Send + 'static {
    /// The error, when there is one.
    fn into_error(self) -> Option<anyhow::Error>;
}

impl TaskOutcome for () {
    fn into_error(self) -> Option<anyhow::Error> {
        None
    }
}

impl<E: Into<anyhow::Error> + Send + 'static> TaskOutcome for Result<(), E> {
    fn into_error(self) -> Option<anyhow::Error> {
        self.err().map(Into::into)
    }
}

impl Tasks {
    /// No tasks yet; `shutdown` is what they stop on, and what a dead one cancels.
    #[must_use]
    pub fn new(shutdown: CancellationToken) -> Self {
        Self { tracker: TaskTracker::new(), shutdown, state: Arc::default() }
    }

    /// Runs `future` until it ends; several tasks may share a name. See the type for what happens
    /// when it ends before shutdown.
    pub fn spawn<T: TaskOutcome>(
        &self,
        name: &'static str,
        future: impl Future<Output = T> + Send + 'static,
    ) {
        let this = self.clone();
        *this.lock().running.entry(name).or_default() += 1;
        self.tracker.spawn(async move {
            // A task of its own, so that a panic arrives here as a value.
            let outcome = tokio::spawn(future).await;
            let stopping = this.shutdown.is_cancelled();
            let failure = match outcome.map(TaskOutcome::into_error) {
                Ok(None) if stopping => None,
                Ok(None) => Some(DrainError::Ended(name)),
                Ok(Some(error)) => Some(DrainError::Failed { name, source: error.into() }),
                Err(error) if error.is_panic() => Some(DrainError::Panicked(name)),
                // Only the runtime's own end cancels it.
                Err(_) => None,
            };
            this.finish(name, failure);
        });
    }

    fn finish(&self, name: &'static str, failure: Option<DrainError>) {
        let mut state = self.lock();
        if let Some(count) = state.running.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                state.running.remove(name);
            }
        }
        let Some(failure) = failure else { return };
        let failure = anyhow::Error::from(failure);
        tracing::error!(task = name, error = format!("{failure:#}"), "task is gone; stopping");
        state.failure.get_or_insert(failure);
        drop(state);
        self.shutdown.cancel();
    }

    /// Waits for shutdown, then for all tasks: at most `grace`, or until `hurry` is cancelled.
    /// Fails with the first task's failure, or with the names of those that did not stop.
    pub async fn drain(&self, grace: Duration, hurry: &CancellationToken) -> anyhow::Result<()> {
        self.shutdown.cancelled().await;
        self.tracker.close();
        let mut stopped = pin!(self.tracker.wait());
        let outcome = tokio::select! {
            () = &mut stopped => Ok(()),
            () = tokio::time::sleep(grace) => {
                Err(DrainError::StillRunning { names: self.running(), grace })
            }
            () = hurry.cancelled() => Err(DrainError::Hurried(self.running())),
        };
        if let Some(failure) = self.lock().failure.take() {
            return Err(failure);
        }
        Ok(outcome?)
    }

    /// The names of the tasks that run now, each with its count when there are several.
    fn running(&self) -> Vec<String> {
        let state = self.lock();
        let name = |(name, count): (&&str, &usize)| match count {
            1 => (*name).to_owned(),
            count => format!("{name} (x{count})"),
        };
        state.running.iter().map(name).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing panics while holding it; a poisoned lock would still hold sound data.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
