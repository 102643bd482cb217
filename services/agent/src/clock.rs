//! The one place of the agent where time and fresh ids come from outside.

use jiff::Timestamp;
use uuid::Uuid;

/// Now, in microseconds like everything that Postgres keeps.
#[expect(clippy::disallowed_methods, reason = "the agent's clock; everything else takes a value")]
pub(crate) fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
}

/// A name that no other agent process has.
#[expect(
    clippy::disallowed_methods,
    reason = "the agent's ids; there is no `Ids` without backbone"
)]
pub(crate) fn fresh_id() -> Uuid {
    Uuid::new_v4()
}
