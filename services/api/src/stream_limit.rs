//! Counts the open streams of each caller. Bounded by what it counts: who has none open is forgotten.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_domain::id::{AgentId, UserId};
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};

use crate::config::StreamConfig;
use crate::error::ApiError;

/// Seconds after which somebody with too many streams may ask again: about how long a stream that
/// was left takes to be noticed.
const RETRY_SECONDS: i64 = 5;

/// Whose stream it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Holder {
    /// A person, with all sessions and tokens.
    User(UserId),
    /// An agent, by its token.
    Agent(AgentId),
}

impl Holder {
    const fn kind(self) -> &'static str {
        match self {
            Self::User(_) => "user",
            Self::Agent(_) => "agent",
        }
    }
}

/// The open streams of this replica. Cheap to clone.
#[derive(Clone)]
pub(crate) struct StreamLimits {
    config: StreamConfig,
    open: Arc<Mutex<HashMap<Holder, usize>>>,
    gauge: IntGaugeVec,
    refused: IntCounterVec,
}

impl StreamLimits {
    /// None open; shows `berth_http_streams` and `berth_http_streams_refused_total` in `registry`.
    pub(crate) fn register(
        config: StreamConfig,
        registry: &Registry,
    ) -> Result<Self, prometheus::Error> {
        let gauge = Opts::new("berth_http_streams", "Streams that are open, by who reads them.");
        let refused = Opts::new(
            "berth_http_streams_refused_total",
            "Streams refused because their caller had too many.",
        );
        let limits = Self {
            config,
            open: Arc::default(),
            gauge: IntGaugeVec::new(gauge, &["holder"])?,
            refused: IntCounterVec::new(refused, &["holder"])?,
        };
        registry.register(Box::new(limits.gauge.clone()))?;
        registry.register(Box::new(limits.refused.clone()))?;
        Ok(limits)
    }

    /// Takes a place for one more stream, to be kept as long as the stream is open; 429 with the
    /// bound where the caller has as many as it may.
    pub(crate) fn take(&self, holder: Holder) -> Result<Place, ApiError> {
        let (most, setting) = match holder {
            Holder::User(_) => (self.config.per_user, "streams.per_user"),
            Holder::Agent(_) => (self.config.per_agent, "streams.per_agent"),
        };
        let mut open = self.lock();
        let held = open.get(&holder).copied().unwrap_or_default();
        if most > 0 && held >= most {
            self.refused.with_label_values(&[holder.kind()]).inc();
            return Err(ApiError::TooManyStreams { most, setting, retry: RETRY_SECONDS });
        }
        open.insert(holder, held + 1);
        drop(open);
        self.gauge.with_label_values(&[holder.kind()]).inc();
        Ok(Place { limits: self.clone(), holder })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Holder, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one open stream; free again when it is dropped.
pub(crate) struct Place {
    limits: StreamLimits,
    holder: Holder,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.limits.lock();
        if let Some(held) = open.get_mut(&self.holder) {
            *held -= 1;
            if *held == 0 {
                open.remove(&self.holder);
            }
        }
        drop(open);
        self.limits.gauge.with_label_values(&[self.holder.kind()]).dec();
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn limits(per_user: usize) -> StreamLimits {
        let config = StreamConfig { per_user, per_agent: 1, ..StreamConfig::default() };
        StreamLimits::register(config, &Registry::new()).unwrap()
    }

    fn user(n: u128) -> Holder {
        Holder::User(UserId(Uuid::from_u128(n)))
    }

    #[test]
    fn each_caller_has_so_many_streams_and_a_closed_one_makes_room() {
        let limits = limits(2);
        let first = limits.take(user(1)).unwrap();
        let _second = limits.take(user(1)).unwrap();
        let refused = limits.take(user(1)).map(drop).unwrap_err().to_string();
        assert!(refused.contains('2') && refused.contains("streams.per_user"), "{refused}");
        let _other = limits.take(user(2)).unwrap();
        let agent = Holder::Agent(AgentId(Uuid::from_u128(1)));
        let _agents = limits.take(agent).unwrap();
        assert!(limits.take(agent).is_err(), "an agent has its own bound");
        drop(first);
        let _third = limits.take(user(1)).unwrap();
        assert_eq!(limits.gauge.with_label_values(&["user"]).get(), 3);
        assert_eq!(limits.refused.with_label_values(&["user"]).get(), 1);
    }

    #[test]
    fn who_has_no_stream_open_is_forgotten_and_zero_means_no_limit() {
        let limits = limits(0);
        let places: Vec<_> = (0..5000).map(|_| limits.take(user(1)).unwrap()).collect();
        assert_eq!(limits.lock().len(), 1);
        drop(places);
        assert!(limits.lock().is_empty());
    }
}
