//! How long to wait after a call that failed, and how loudly to say so.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::api::{CallError, Client, Verdict};
use crate::manifest::Manifest;
use crate::options::Timing;

/// Exponential back-off with jitter between `retry_min` and `retry_max`.
#[derive(Debug)]
pub(crate) struct Backoff {
    timing: Timing,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(timing: Timing) -> Self {
        Self { timing, failures: 0 }
    }

    /// The next wait. A refused caller begins as any other: the build that started it may not have
    /// made its token known yet. Then it waits longer than others: nothing it does will change the
    /// answer.
    pub(crate) fn next(&mut self, verdict: Verdict) -> Duration {
        let doubled = self.timing.retry_min.saturating_mul(1_u32 << self.failures.min(20));
        self.failures = self.failures.saturating_add(1);
        let longest = match verdict {
            Verdict::Refused => self.timing.refused,
            Verdict::Later | Verdict::Never => self.timing.retry_max,
        };
        // Half of it is fixed, so that a wait is never nothing; the rest spreads the callers.
        doubled.min(longest).mul_f64(rand::random_range(0.5..=1.0))
    }

    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Says that a call fails when it begins to, when the reason changes, and when it works again;
/// an outage of a day is not a log of a day.
#[derive(Debug)]
pub(crate) struct Trouble {
    what: &'static str,
    told: Option<String>,
}

impl Trouble {
    pub(crate) fn new(what: &'static str) -> Self {
        Self { what, told: None }
    }

    pub(crate) fn failed(&mut self, error: &CallError, wait: Duration) {
        let text = error.explain();
        if self.told.as_ref() == Some(&text) {
            return;
        }
        tracing::warn!(what = self.what, error = %text, ?wait, "call failed; trying again");
        self.told = Some(text);
    }

    pub(crate) fn worked(&mut self) {
        if self.told.take().is_some() {
            tracing::info!(what = self.what, "works again");
        }
    }
}

/// Asks for the manifest until it comes. `None` when `stop` came first.
pub(crate) async fn fetch_manifest(
    client: &Client,
    timing: Timing,
    stop: &CancellationToken,
) -> Option<Manifest> {
    let mut backoff = Backoff::new(timing);
    let mut trouble = Trouble::new("manifest");
    loop {
        let error = match stop.run_until_cancelled(client.manifest()).await? {
            Ok(manifest) => {
                trouble.worked();
                return Some(manifest);
            }
            Err(error) => error,
        };
        let wait = backoff.next(error.verdict().but_ask_again());
        trouble.failed(&error, wait);
        stop.run_until_cancelled(tokio::time::sleep(wait)).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_from_the_first_to_the_longest_with_jitter() {
        let mut backoff = Backoff::new(Timing::FIELD);
        for expected in [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000] {
            let wait = backoff.next(Verdict::Later).as_millis();
            assert!((expected / 2..=expected).contains(&wait), "{wait} is not about {expected}");
        }
        backoff.reset();
        assert!(backoff.next(Verdict::Later) <= Timing::FIELD.retry_min);
    }

    #[test]
    fn a_refused_caller_asks_again_soon_and_then_ever_more_slowly() {
        let mut backoff = Backoff::new(Timing::FIELD);
        let waits: Vec<Duration> = (0..12).map(|_| backoff.next(Verdict::Refused)).collect();
        assert!(waits[0] <= Timing::FIELD.retry_min, "{waits:?}");
        assert!(waits[11] >= Timing::FIELD.refused / 2, "{waits:?}");
    }

    #[test]
    fn a_thousand_failures_do_not_overflow() {
        let mut backoff = Backoff::new(Timing::FIELD);
        assert!((0..1000).all(|_| backoff.next(Verdict::Later) <= Timing::FIELD.retry_max));
    }
}
