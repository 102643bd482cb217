//! Ends what scripts left in the background, in whatever session or process group it is.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::options::SCOPE_VARIABLE;
use crate::proc::{self, Process};

/// How often the processes are looked at: there is nothing to wait on.
const POLL: Duration = Duration::from_millis(50);

/// The end of all processes of one scope, step by step.
struct Ending<'a> {
    scope: &'a str,
    asked: HashSet<Process>,
    since: Instant,
    grace: Duration,
}

impl<'a> Ending<'a> {
    fn new(scope: &'a str, grace: Duration) -> Self {
        Self { scope, asked: HashSet::new(), since: Instant::now(), grace }
    }

    /// Signals what is left. `true` when that is nothing, or nothing that can be helped.
    fn step(&mut self) -> bool {
        let left = proc::with_variable(SCOPE_VARIABLE, self.scope);
        if left.is_empty() {
            return true;
        }
        let elapsed = self.since.elapsed();
        if elapsed > self.grace * 2 {
            tracing::warn!(count = left.len(), "processes of this workspace do not end");
            return true;
        }
        for process in left {
            if elapsed >= self.grace {
                process.signal(Signal::KILL);
            } else if self.asked.insert(process) {
                // Once: to many programs the second time means "at once".
                process.signal(Signal::TERM);
            }
        }
        false
    }
}

/// Ends every process that carries `scope`: politely, and after `grace` at once.
pub(crate) async fn end_leftovers(scope: &str, grace: Duration) {
    let mut ending = Ending::new(scope, grace);
    while !ending.step() {
        tokio::time::sleep(POLL).await;
    }
}

/// [`end_leftovers`] for callers without a runtime.
pub(crate) fn end_leftovers_blocking(scope: &str, grace: Duration) {
    let mut ending = Ending::new(scope, grace);
    while !ending.step() {
        std::thread::sleep(POLL);
    }
}
