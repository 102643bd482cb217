//! Riding over a server that restarts: which failures pass, and how long they are waited for.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use reqwest::{Response, StatusCode};
use serde_json::Value;

use super::{list, text};

/// How long a server that went away is waited for.
const WITHIN: Duration = Duration::from_mins(1);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Whether a request may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It changes nothing.
    Always,
    /// The server knows it again by its key.
    Keyed,
    /// Only when it certainly did not arrive.
    Unsent,
}

/// Why there is no answer, or not the one that was asked for.
#[derive(Debug)]
pub(super) enum Failure {
    /// The connection was refused: nothing arrived.
    Unsent(reqwest::Error),
    /// Nobody knows how far the request came.
    Lost(reqwest::Error),
    /// The server, or what stands before it, cannot answer now.
    Away(anyhow::Error),
    /// An earlier request with the same key is still under way.
    UnderWay(anyhow::Error),
    /// The server said no.
    Refused(anyhow::Error),
}

impl Failure {
    pub(super) fn of(error: reqwest::Error) -> Self {
        if error.is_connect() {
            Self::Unsent(error)
        } else if error.is_builder() {
            Self::Refused(error.into())
        } else {
            Self::Lost(error)
        }
    }

    /// What the caller is told in the end.
    pub(super) fn into_error(self, url: &str) -> anyhow::Error {
        match self {
            Self::Unsent(error) | Self::Lost(error) => anyhow!(error)
                .context(format!("no answer from {url}: is it up? (`berth up` starts one here)")),
            Self::Away(error) | Self::UnderWay(error) | Self::Refused(error) => error,
        }
    }
}

/// The tries of one request.
#[derive(Debug)]
pub(super) struct Ride {
    repeat: Repeat,
    since: Option<Instant>,
    wait: Duration,
}

impl Ride {
    pub(super) fn new(repeat: Repeat) -> Self {
        Self { repeat, since: None, wait: FIRST_WAIT }
    }

    /// How long to wait before the next try; `None`: there is none.
    pub(super) fn next(&mut self, failure: &Failure, now: Instant) -> Option<Duration> {
        let may = match failure {
            Failure::Unsent(_) => true,
            Failure::Lost(_) | Failure::Away(_) => self.repeat != Repeat::Unsent,
            // A first try meets no earlier one of its own.
            Failure::UnderWay(_) => self.repeat == Repeat::Keyed && self.since.is_some(),
            Failure::Refused(_) => false,
        };
        if !may {
            return None;
        }
        let since = *self.since.get_or_insert_with(|| {
            eprintln!("the server is away; trying again for {} s", WITHIN.as_secs());
            now
        });
        if now.duration_since(since) >= WITHIN {
            return None;
        }
        let wait = self.wait;
        self.wait = (wait * 2).min(LONGEST_WAIT);
        Some(wait)
    }
}

/// Turns an error answer into an error that says what the server said.
pub(super) async fn check(response: Response) -> Result<Response, Failure> {
    let status = response.status();
    if status.is_success() || status == StatusCode::NOT_MODIFIED {
        return Ok(response);
    }
    let body: Value = response.json().await.unwrap_or_default();
    let mut message = match text(&body, "message") {
        "" => format!("the server answered {status}"),
        message => message.to_owned(),
    };
    if !text(&body, "detail").is_empty() {
        message = format!("{message}: {}", text(&body, "detail"));
    }
    for field in list(&body, "validations") {
        message = format!("{message}\n  {}: {}", text(field, "field"), text(field, "detail"));
    }
    if status == StatusCode::UNAUTHORIZED {
        message.push_str("\nlog in again with `berth login URL`");
    }
    let is_under_way = status == StatusCode::CONFLICT && message.contains("Idempotency-Key");
    Err(match status.as_u16() {
        502..=504 => Failure::Away(anyhow!(message)),
        409 if is_under_way => Failure::UnderWay(anyhow!(message)),
        _ => Failure::Refused(anyhow!(message)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> Failure {
        Failure::Refused(anyhow!("no"))
    }

    fn away() -> Failure {
        Failure::Away(anyhow!("503"))
    }

    fn under_way() -> Failure {
        Failure::UnderWay(anyhow!("409"))
    }

    #[track_caller]
    fn check(repeat: Repeat, failures: &[Failure], expected: &[bool]) {
        let mut ride = Ride::new(repeat);
        let again: Vec<bool> =
            failures.iter().map(|it| ride.next(it, Instant::now()).is_some()).collect();
        assert_eq!(again, expected, "{repeat:?}");
    }

    #[test]
    fn only_what_does_no_harm_is_sent_twice() {
        check(Repeat::Always, &[away(), away(), refused()], &[true, true, false]);
        check(Repeat::Keyed, &[away(), refused()], &[true, false]);
        check(Repeat::Unsent, &[away()], &[false]);
    }

    #[test]
    fn a_request_waits_for_itself_and_for_no_other() {
        check(Repeat::Keyed, &[under_way()], &[false]);
        check(Repeat::Keyed, &[away(), under_way()], &[true, true]);
        check(Repeat::Unsent, &[under_way()], &[false]);
    }

    #[test]
    fn a_server_is_waited_for_a_minute_and_no_longer() {
        let mut ride = Ride::new(Repeat::Always);
        let since = Instant::now();
        let mut waited = Duration::ZERO;
        while let Some(wait) = ride.next(&away(), since + waited) {
            assert!(wait <= LONGEST_WAIT);
            waited += wait;
        }
        assert!(waited >= WITHIN && waited <= WITHIN + LONGEST_WAIT, "{waited:?}");
    }
}
