//! CloudEvents 1.0 in NATS binary mode: attributes are headers, the payload is the data.

use std::collections::BTreeMap;

use berth_domain::id::EventId;
use jiff::Timestamp;

use crate::event::Event;
use crate::subjects::Subjects;

/// An event, ready for the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where it goes.
    pub subject: String,
    /// Attributes and trace context.
    pub headers: BTreeMap<String, String>,
    /// JSON; empty for wake-ups.
    pub payload: Vec<u8>,
}

/// Wraps an event: who says it, which it is, when it happened, and the trace it belongs to.
#[must_use]
pub fn wrap(
    subjects: &Subjects,
    source: &str,
    id: EventId,
    at: Timestamp,
    event: &Event,
) -> Message {
    let mut headers = own_headers(source, event);
    headers.extend(common_headers(id, at));
    Message { subject: subjects.of(event), headers, payload: payload(event) }
}

/// The headers that follow from the event and from who tells it.
#[must_use]
pub fn own_headers(source: &str, event: &Event) -> BTreeMap<String, String> {
    let mut headers = crate::trace::inject();
    headers.extend([
        ("ce-source".to_owned(), format!("/berth/{source}")),
        ("ce-type".to_owned(), kind(event).to_owned()),
    ]);
    headers
}

/// The headers that follow from id and time alone: whoever keeps those need not keep these.
#[must_use]
pub fn common_headers(id: EventId, at: Timestamp) -> [(String, String); 5] {
    [
        ("Nats-Msg-Id".to_owned(), id.to_string()),
        ("ce-id".to_owned(), id.to_string()),
        ("ce-specversion".to_owned(), "1.0".to_owned()),
        ("ce-time".to_owned(), at.to_string()),
        ("content-type".to_owned(), "application/json".to_owned()),
    ]
}

/// Whether the event is kept in a stream, and so goes through the outbox.
#[must_use]
pub const fn is_stored(event: &Event) -> bool {
    !matches!(
        event,
        Event::JobPosted(_) | Event::JobCanceled(_) | Event::DaemonsDrained(_) | Event::Logs(_)
    )
}

const fn kind(event: &Event) -> &'static str {
    match event {
        Event::Build(_) => "berth.build.changed",
        Event::Claim(_) => "berth.claim.finished",
        Event::Workspace(_) => "berth.workspace.changed",
        Event::Template(_) => "berth.template.changed",
        Event::Wake(_) => "berth.wake",
        Event::Notify(_) => "berth.notify",
        Event::JobPosted(_) => "berth.job.posted",
        Event::JobCanceled(_) => "berth.job.canceled",
        Event::DaemonsDrained(_) => "berth.provisioner.drained",
        Event::Logs(_) => "berth.job.logs",
    }
}

/// The payload alone.
///
/// # Panics
///
/// Never: events are plain data with text keys.
#[must_use]
pub fn payload(event: &Event) -> Vec<u8> {
    let json = match event {
        Event::Build(it) => serde_json::to_vec(it),
        Event::Claim(it) => serde_json::to_vec(it),
        Event::Workspace(it) => serde_json::to_vec(it),
        Event::Template(it) => serde_json::to_vec(it),
        Event::Wake(_) => Ok(Vec::new()),
        Event::Notify(it) => serde_json::to_vec(it),
        Event::JobPosted(it) => serde_json::to_vec(it),
        Event::JobCanceled(it) => serde_json::to_vec(it),
        Event::DaemonsDrained(it) => serde_json::to_vec(it),
        Event::Logs(it) => serde_json::to_vec(it),
    };
    json.expect("events are plain data with text keys, which JSON always holds")
}

#[cfg(test)]
mod tests;
