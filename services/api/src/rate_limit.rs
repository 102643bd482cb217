//! Counts requests by caller in windows of one minute. Bounded: past [`MOST_CALLERS`] callers in a
//! minute the newcomers share one count.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use crate::config::RateLimitConfig;

/// Callers counted apart within one minute.
const MOST_CALLERS: usize = 65_536;
const WINDOW_SECONDS: i64 = 60;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Any request.
    Request,
    /// A password was sent.
    Login,
}

/// The counts of this minute.
pub(crate) struct RateLimits {
    config: RateLimitConfig,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    window: i64,
    by_caller: HashMap<u64, u32>,
}

impl RateLimits {
    pub(crate) fn new(config: RateLimitConfig) -> Self {
        Self { config, counts: Mutex::default() }
    }

    /// Counts one request. `Err`: it is one too many; seconds until the next window.
    pub(crate) fn count(&self, kind: Kind, caller: &str, now: Timestamp) -> Result<(), i64> {
        let limit = match kind {
            Kind::Request => self.config.requests,
            Kind::Login => self.config.logins,
        };
        if limit == 0 {
            return Ok(());
        }
        let mut hasher = DefaultHasher::new();
        (kind, caller).hash(&mut hasher);
        let window = now.as_second() / WINDOW_SECONDS;
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.window != window {
            *counts = Counts { window, by_caller: HashMap::new() };
        }
        let full = counts.by_caller.len() >= MOST_CALLERS;
        let known = counts.by_caller.contains_key(&hasher.finish());
        let key = if full && !known { 0 } else { hasher.finish() };
        let count = counts.by_caller.entry(key).or_default();
        *count = count.saturating_add(1);
        if *count > limit { Err((window + 1) * WINDOW_SECONDS - now.as_second()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_refused_past_the_limit_until_the_next_minute_and_others_are_not() {
        let limits = RateLimits::new(RateLimitConfig { requests: 2, logins: 1 });
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        assert_eq!(limits.count(Kind::Request, "a", at(600)), Ok(()));
        assert_eq!(limits.count(Kind::Request, "a", at(610)), Ok(()));
        assert_eq!(limits.count(Kind::Request, "a", at(615)), Err(45));
        assert_eq!(limits.count(Kind::Request, "b", at(615)), Ok(()));
        assert_eq!(limits.count(Kind::Login, "a", at(615)), Ok(()));
        assert_eq!(limits.count(Kind::Request, "a", at(660)), Ok(()));
    }

    #[test]
    fn zero_means_no_limit() {
        let limits = RateLimits::new(RateLimitConfig { requests: 0, logins: 0 });
        for _ in 0..10_000 {
            assert_eq!(limits.count(Kind::Request, "a", Timestamp::UNIX_EPOCH), Ok(()));
        }
    }
}
