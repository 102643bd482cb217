//! Readiness: what a process waits for, latch by latch.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::watch;

/// What `/readyz` answers from. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Health {
    state: Arc<watch::Sender<State>>,
}

#[derive(Debug, Default)]
struct State {
    draining: bool,
    /// The reason why each latch is not ready; `None` when it is.
    latches: BTreeMap<String, Option<String>>,
}

/// One thing a process needs before it is ready. Dropping it changes nothing.
#[derive(Debug, Clone)]
pub struct Latch {
    name: String,
    state: Arc<watch::Sender<State>>,
}

/// The readiness of a process at one moment, as `/readyz` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// All latches are ready and the process is not draining.
    pub ready: bool,
    /// The process was told to stop.
    pub draining: bool,
    /// Every latch, by name.
    pub latches: Vec<LatchReport>,
}

/// One latch within a [`Report`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LatchReport {
    /// The name it was made with.
    pub name: String,
    /// Whether it is set.
    pub ready: bool,
    /// Why it is not ready; empty when it is.
    pub reason: String,
}

impl Default for Health {
    fn default() -> Self {
        Self { state: Arc::new(watch::Sender::new(State::default())) }
    }
}

impl Health {
    /// Adds a latch that is not ready yet (reason: `starting`). Asking for a name again gives
    /// another handle on the same latch and leaves it as it is.
    #[must_use]
    pub fn latch(&self, name: impl Into<String>) -> Latch {
        let name = name.into();
        self.state.send_modify(|state| {
            state.latches.entry(name.clone()).or_insert_with(|| Some("starting".into()));
        });
        Latch { name, state: self.state.clone() }
    }

    /// Every latch is ready and the process is not draining.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.state.borrow().is_ready()
    }

    /// Waits until [`Self::is_ready`] holds; the caller bounds the wait.
    pub async fn wait_ready(&self) {
        // The sender lives in `self`, so the channel cannot close while this waits.
        let _ = self.state.subscribe().wait_for(State::is_ready).await;
    }

    /// All latches with their reasons.
    #[must_use]
    pub fn report(&self) -> Report {
        let state = self.state.borrow();
        let latches = state.latches.iter().map(|(name, reason)| LatchReport {
            name: name.clone(),
            ready: reason.is_none(),
            reason: reason.clone().unwrap_or_default(),
        });
        Report { ready: state.is_ready(), draining: state.draining, latches: latches.collect() }
    }

    /// Turns readiness off for good: the first step of a drain.
    pub(crate) fn set_draining(&self) {
        self.state.send_modify(|state| state.draining = true);
    }
}

impl State {
    fn is_ready(&self) -> bool {
        !self.draining && self.latches.values().all(Option::is_none)
    }
}

impl Latch {
    /// What this latch stands for is there.
    pub fn set_ready(&self) {
        self.set(None);
    }

    /// What this latch stands for is not (or no longer) there, and why. The reason is shown by
    /// `/readyz`: one line, no secrets.
    pub fn set_failed(&self, reason: impl Into<String>) {
        self.set(Some(reason.into()));
    }

    fn set(&self, reason: Option<String>) {
        let changed = self.state.send_if_modified(|state| {
            let latch = state.latches.entry(self.name.clone()).or_default();
            let changed = *latch != reason;
            latch.clone_from(&reason);
            changed
        });
        match reason {
            None if changed => tracing::info!(latch = self.name, "ready"),
            Some(reason) if changed => tracing::warn!(latch = self.name, reason, "not ready"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
