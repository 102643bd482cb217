//! The one place where this crate reads the wall clock: for log lines and timings, never for
//! deadlines.

use jiff::Timestamp;

/// Now.
#[expect(clippy::disallowed_methods, reason = "the daemon's only clock; it has no backbone")]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}
