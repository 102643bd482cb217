//! Time and ids, as inputs.

use std::sync::{Arc, Mutex};

use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

/// Tells the time, in microseconds like Postgres.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    manual: Option<Arc<Mutex<Timestamp>>>,
}

impl Clock {
    /// A clock that stands at `start` until it is advanced, for tests.
    #[must_use]
    pub fn manual(start: Timestamp) -> Self {
        Self { manual: Some(Arc::new(Mutex::new(start))) }
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let now = match &self.manual {
            Some(time) => *time.lock().unwrap_or_else(std::sync::PoisonError::into_inner),
            None => system_now(),
        };
        // Always in range: cutting the nanoseconds off brings it nearer to the epoch.
        Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
    }

    /// Moves a manual clock; the system's clock stays as it is.
    pub fn advance(&self, by: SignedDuration) {
        if let Some(time) = &self.manual {
            let mut time = time.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *time += by;
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place where services read the clock")]
fn system_now() -> Timestamp {
    Timestamp::now()
}

/// Makes ids and tokens.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ids;

impl Ids {
    /// An id that sorts by time (UUID v7).
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place where services make ids")]
    pub fn next(self) -> Uuid {
        Uuid::now_v7()
    }

    /// An id that tells nothing (UUID v4): for tokens.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place where services make tokens")]
    pub fn secret(self) -> Uuid {
        Uuid::new_v4()
    }

    /// Random bytes from the system's generator.
    #[must_use]
    pub fn bytes<const N: usize>(self) -> [u8; N] {
        rand::random()
    }
}
