//! Waits to be told that the prebuild this agent runs in was claimed.
//!
//! The server decides from durable state whether there is something to tell, so a dropped stream
//! or a restart on either side costs a reconnection and nothing else. This side adds what only it
//! can know: for which owner this process has reinitialised already.

use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::api::{CallError, Client, Verdict, message_of};
use crate::options::Timing;
use crate::retry::{Backoff, Trouble, fetch_manifest};
use crate::sse::SseParser;

const PREBUILD_CLAIMED: &str = "prebuild_claimed";

/// The workspace was claimed by `owner`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claimed {
    pub(crate) owner: Uuid,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Payload {
    reason: String,
    #[serde(default)]
    owner_id: Option<Uuid>,
}

/// What one connection ended with.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// Something to do.
    Event(Payload),
    /// The server said that there is nothing more to wait for.
    Terminal(String),
    /// Nothing; connect again.
    Dropped,
}

/// Asks until the server says that there is nothing to wait for, or until `stop`.
#[derive(Clone)]
pub(crate) struct Listener {
    pub(crate) client: Client,
    pub(crate) timing: Timing,
    pub(crate) stop: CancellationToken,
}

impl Listener {
    /// Sends each claim once. Ends on a terminal answer, on `stop`, or when nobody listens.
    pub(crate) async fn listen(self, claims: mpsc::Sender<Claimed>) {
        let mut backoff = Backoff::new(self.timing);
        let mut trouble = Trouble::new("reinit");
        let mut last_owner = None;
        loop {
            let since = Instant::now();
            let Some(ended) = self.stop.run_until_cancelled(self.connect()).await else { return };
            // A stream that lived is no failure, however it ended.
            if since.elapsed() >= self.timing.retry_max {
                backoff.reset();
            }
            let wait = match ended {
                Ok(Ended::Terminal(reason)) => {
                    tracing::info!(reason, "no reinitialisation to wait for");
                    return;
                }
                Ok(Ended::Event(payload)) => {
                    trouble.worked();
                    let Some(claimed) = self.accept(payload, &mut last_owner).await else {
                        return;
                    };
                    if let Some(claimed) = claimed
                        && claims.send(claimed).await.is_err()
                    {
                        return;
                    }
                    backoff.next(Verdict::Later)
                }
                Ok(Ended::Dropped) => {
                    trouble.worked();
                    backoff.next(Verdict::Later)
                }
                Err(error) => {
                    let wait = backoff.next(error.verdict().but_ask_again());
                    trouble.failed(&error, wait);
                    wait
                }
            };
            if self.stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                return;
            }
        }
    }

    /// The claim an event tells of, `Some(None)` when this process has acted on it already (or it
    /// is none). `None` on `stop`. An event without an owner is judged by the manifest's.
    async fn accept(&self, payload: Payload, last: &mut Option<Uuid>) -> Option<Option<Claimed>> {
        if payload.reason != PREBUILD_CLAIMED {
            tracing::warn!(
                reason = payload.reason,
                "reinitialisation for an unknown reason: ignored"
            );
            return Some(None);
        }
        let owner = if let Some(owner) = payload.owner_id.filter(|owner| !owner.is_nil()) {
            owner
        } else {
            fetch_manifest(&self.client, self.timing, &self.stop).await?.owner_id
        };
        if *last == Some(owner) {
            tracing::debug!(owner.id = %owner, "reinitialised for this owner already");
            return Some(None);
        }
        *last = Some(owner);
        Some(Some(Claimed { owner }))
    }

    async fn connect(&self) -> Result<Ended, CallError> {
        let mut response = match self.client.reinit().await {
            Ok(response) => response,
            Err(CallError::Status { status, message, .. }) if status.as_u16() == 409 => {
                return Ok(Ended::Terminal(message));
            }
            Err(error) => return Err(error),
        };
        let mut parser = SseParser::default();
        let mut events = Vec::new();
        loop {
            let Ok(chunk) = timeout(self.timing.stream_silence, response.chunk()).await else {
                tracing::info!(silence = ?self.timing.stream_silence, "reinit stream is silent");
                return Ok(Ended::Dropped);
            };
            // A stream that breaks off is a stream that ends.
            let Ok(Some(chunk)) = chunk else { return Ok(Ended::Dropped) };
            parser.feed(&chunk, &mut events).map_err(|error| CallError::Body {
                call: "GET reinit",
                reason: error.to_string(),
            })?;
            for event in events.drain(..) {
                match event.name.as_str() {
                    "data" => return Ok(Ended::Event(payload(&event.data))),
                    "error" => return Ok(Ended::Terminal(message_of(event.data.as_bytes()))),
                    _ => {}
                }
            }
        }
    }
}

/// Reads an event's data. What is not the JSON of today is the bare reason, as older servers send.
fn payload(data: &str) -> Payload {
    serde_json::from_str(data).unwrap_or_else(|_| {
        let reason = serde_json::from_str(data).unwrap_or_else(|_| data.trim().to_owned());
        Payload { reason, owner_id: None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(data: &str, reason: &str, owner: Option<u128>) {
        let expected = Payload { reason: reason.to_owned(), owner_id: owner.map(Uuid::from_u128) };
        assert_eq!(payload(data), expected);
    }

    #[test]
    fn payloads_are_read_as_json_or_as_the_bare_reason() {
        let owner = Uuid::from_u128(7);
        check(
            &format!(r#"{{"workspaceID":"x","reason":"prebuild_claimed","owner_id":"{owner}"}}"#),
            "prebuild_claimed",
            Some(7),
        );
        check(r#"{"reason":"prebuild_claimed"}"#, "prebuild_claimed", None);
        check(r#"{"reason":"prebuild_claimed","owner_id":null}"#, "prebuild_claimed", None);
        check(" prebuild_claimed ", "prebuild_claimed", None);
        check(r#""prebuild_claimed""#, "prebuild_claimed", None);
        check("{broken", "{broken", None);
    }
}
