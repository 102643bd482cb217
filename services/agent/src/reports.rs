//! What the server is told about this agent's life: each report once, in order, however long the
//! server is away.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use berth_domain::state::AgentLifecycle;
use tokio::sync::Notify;

use crate::api::{CallError, Client, Lifecycle, Startup, Verdict};
use crate::clock::Clock;
use crate::options::Timing;
use crate::retry::{Backoff, Trouble};

#[derive(Clone, Debug)]
enum Report {
    Startup(Startup),
    Lifecycle(Lifecycle),
}

/// The reports not delivered yet. A life has some ten of them, so the queue needs no bound.
#[derive(Debug)]
pub(crate) struct Reports {
    clock: Clock,
    queue: Mutex<Queue>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    waiting: VecDeque<(u64, Report)>,
    shutting_down: bool,
    closed: bool,
}

impl Reports {
    /// Nothing to tell yet; `clock` says when things happened.
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, queue: Mutex::default(), wake: Notify::new() }
    }

    pub(crate) fn startup(&self, startup: Startup) {
        self.push(Report::Startup(startup));
    }

    /// Reports a state as of now. Results of the start are no news once shutting down was reported.
    pub(crate) fn lifecycle(&self, state: AgentLifecycle) {
        use AgentLifecycle as S;
        {
            let mut queue = self.lock();
            queue.shutting_down |= state == S::ShuttingDown;
            if queue.shutting_down
                && matches!(
                    state,
                    S::Created | S::Starting | S::Ready | S::StartError | S::StartTimeout
                )
            {
                return;
            }
        }
        tracing::info!(%state, "lifecycle");
        self.push(Report::Lifecycle(Lifecycle { state, changed_at: self.clock.now() }));
    }

    /// Forgets what was not delivered: it told of the agent this process was before a claim.
    pub(crate) fn forget(&self) {
        self.lock().waiting.clear();
        self.wake.notify_one();
    }

    /// Lets `deliver` end when nothing is left.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_one();
    }

    /// Delivers until closed and empty.
    pub(crate) async fn deliver(&self, client: &Client, timing: Timing) {
        let mut backoff = Backoff::new(timing);
        let mut trouble = Trouble::new("lifecycle report");
        loop {
            let Some((number, report)) = self.front() else {
                if self.lock().closed {
                    return;
                }
                self.wake.notified().await;
                continue;
            };
            let outcome = match &report {
                Report::Startup(startup) => client.startup(startup).await,
                Report::Lifecycle(lifecycle) => client.lifecycle(lifecycle).await,
            };
            match outcome {
                Ok(()) => {
                    trouble.worked();
                    backoff.reset();
                    self.settle(number);
                }
                Err(error) if error.verdict() == Verdict::Never => {
                    self.drop_refused(number, &error);
                }
                Err(error) => {
                    let wait = backoff.next(error.verdict());
                    trouble.failed(&error, wait);
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = self.wake.notified() => {}
                    }
                }
            }
        }
    }

    /// One report the server will never take must not hold back the ones after it.
    fn drop_refused(&self, number: u64, error: &CallError) {
        tracing::error!(error = %error.explain(), "report refused for good; dropped");
        self.settle(number);
    }

    fn push(&self, report: Report) {
        {
            let mut queue = self.lock();
            let number = queue.next;
            queue.next += 1;
            queue.waiting.push_back((number, report));
        }
        self.wake.notify_one();
    }

    fn front(&self) -> Option<(u64, Report)> {
        self.lock().waiting.front().cloned()
    }

    /// Removes the report delivered, unless it was forgotten meanwhile.
    fn settle(&self, number: u64) {
        let mut queue = self.lock();
        if queue.waiting.front().is_some_and(|(front, _)| *front == number) {
            queue.waiting.pop_front();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(reports: &Reports) -> Vec<AgentLifecycle> {
        reports
            .lock()
            .waiting
            .iter()
            .filter_map(|(_, report)| match report {
                Report::Lifecycle(lifecycle) => Some(lifecycle.state),
                Report::Startup(_) => None,
            })
            .collect()
    }

    #[test]
    fn a_start_that_ends_during_shutdown_is_not_reported() {
        let reports = Reports::new(Clock::system());
        for state in [AgentLifecycle::ShuttingDown, AgentLifecycle::Ready, AgentLifecycle::Off] {
            reports.lifecycle(state);
        }
        assert_eq!(states(&reports), [AgentLifecycle::ShuttingDown, AgentLifecycle::Off]);
    }

    #[test]
    fn a_report_forgotten_while_in_flight_does_not_settle_its_successor() {
        let reports = Reports::new(Clock::system());
        reports.lifecycle(AgentLifecycle::Ready);
        let (in_flight, _) = reports.front().unwrap();
        reports.forget();
        reports.lifecycle(AgentLifecycle::Starting);
        reports.settle(in_flight);
        assert_eq!(states(&reports), [AgentLifecycle::Starting]);
    }
}
