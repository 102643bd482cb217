//! The one place of the agent where time and fresh ids come from outside.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use uuid::Uuid;

/// What tells the time of day. Waits and intervals do not ask it: they go by a clock that nobody
/// sets.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// The machine's.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the agent's clock; everything else takes it")]
    pub fn system() -> Self {
        Self::new(Timestamp::now)
    }

    /// One that says what `now` says.
    #[must_use]
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// Now, in microseconds like everything that Postgres keeps.
    pub(crate) fn now(&self) -> Timestamp {
        let now = (self.0)();
        Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.now())
    }
}

/// A name that no other agent process has.
#[expect(
    clippy::disallowed_methods,
    reason = "the agent's ids; there is no `Ids` without backbone"
)]
pub(crate) fn fresh_id() -> Uuid {
    Uuid::new_v4()
}
