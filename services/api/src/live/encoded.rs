//! Messages of streams as bytes: encoded once, however many watchers get them.

use axum::body::Bytes;
use axum::extract::ws::Utf8Bytes;
use berth_bus::event::BuildChanged;
use berth_domain::id::{OrganizationId, UserId};
use serde::Serialize;
use serde_json::json;

use crate::live::event_id::EventId;

/// One message, ready for both kinds of streams. A clone shares its bytes.
#[derive(Debug, Clone)]
pub(crate) struct Encoded {
    /// A server-sent event.
    pub(crate) sse: Bytes,
    /// A WebSocket text message: `{type, id, data}`.
    pub(crate) frame: Utf8Bytes,
}

impl Encoded {
    /// `data` must be JSON of one line.
    fn new(event: &str, id: Option<EventId>, data: &str) -> Self {
        let (sse_id, frame_id) = match id {
            Some(id) => (format!("id: {id}\n"), format!(r#""id":"{id}","#)),
            None => Default::default(),
        };
        let sse = if data == "null" { "" } else { data };
        Self {
            sse: format!("event: {event}\n{sse_id}data: {sse}\n\n").into(),
            frame: format!(r#"{{"type":"{event}",{frame_id}"data":{data}}}"#).into(),
        }
    }

    /// Something to tell.
    pub(crate) fn data(value: &serde_json::Value) -> Self {
        Self::new("data", None, &value.to_string())
    }

    /// A sign of life. Whoever breaks off here resumes from `id`.
    pub(crate) fn ping(id: Option<EventId>) -> Self {
        Self::new("ping", id, "null")
    }

    /// Updates are missing, from `first_missing` on. Whoever breaks off here resumes from `id`.
    pub(crate) fn gap(first_missing: EventId, id: EventId) -> Self {
        let data = json!({ "first_missing_id": first_missing.to_string() });
        Self::new("gap", Some(id), &data.to_string())
    }

    /// The last word.
    pub(crate) fn error(message: &str) -> Self {
        Self::new("error", None, &json!({ "message": message }).to_string())
    }
}

/// What a watcher is told of a build.
#[derive(Serialize)]
struct Told<'a> {
    workspace_id: berth_domain::id::WorkspaceId,
    workspace_name: &'a str,
    build_id: berth_domain::id::BuildId,
    transition: berth_domain::state::Transition,
    job_status: berth_domain::state::JobStatus,
    build_number: i32,
}

/// An update of a workspace build: who may read it, and its bytes.
#[derive(Debug)]
pub(crate) struct Update {
    /// Its place in the stream.
    pub(crate) id: EventId,
    /// The workspace's organization.
    pub(crate) organization: OrganizationId,
    /// Who owned the workspace when it happened.
    pub(crate) owner: UserId,
    /// What is sent.
    pub(crate) encoded: Encoded,
}

impl Update {
    /// Encodes an update.
    pub(crate) fn new(id: EventId, it: &BuildChanged) -> Self {
        let told = Told {
            workspace_id: it.workspace_id,
            workspace_name: &it.workspace_name,
            build_id: it.build_id,
            transition: it.transition,
            job_status: it.job_status,
            build_number: it.build_number,
        };
        let data = serde_json::to_string(&told).expect("plain data with text keys is always JSON");
        Self {
            id,
            organization: it.organization_id,
            owner: it.owner_id,
            encoded: Encoded::new("data", Some(id), &data),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn both_kinds_of_streams_say_the_same() {
        let id = EventId { epoch: 255, sequence: 7 };
        let gap = Encoded::gap(id, id.next());
        let text = std::str::from_utf8(&gap.sse).unwrap();
        assert_eq!(text, "event: gap\nid: ff-8\ndata: {\"first_missing_id\":\"ff-7\"}\n\n");
        let frame: Value = serde_json::from_str(&gap.frame).unwrap();
        let expected =
            json!({ "type": "gap", "id": "ff-8", "data": { "first_missing_id": "ff-7" } });
        assert_eq!(frame, expected);
        assert_eq!(&Encoded::ping(None).sse[..], b"event: ping\ndata: \n\n");
        let ping: Value = serde_json::from_str(&Encoded::ping(None).frame).unwrap();
        assert_eq!(ping, json!({ "type": "ping", "data": null }));
    }

    #[test]
    fn a_name_cannot_end_a_message_early() {
        let data = Encoded::data(&json!({ "name": "a\n\nevent: data" }));
        let text = std::str::from_utf8(&data.sse).unwrap();
        assert_eq!(text.lines().count(), 3);
    }
}
