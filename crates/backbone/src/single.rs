//! A statement that is a transaction of its own. It stores its events with its rows, and they are handed
//! to the relay once it has answered: one round trip where [`crate::Work`] needs a begin and a commit.

use berth_bus::envelope::{self, Message};
use berth_bus::event::Event;
use berth_db::outbox;
use berth_domain::id::EventId;
use jiff::Timestamp;
use uuid::Uuid;

use crate::Backbone;

/// The time and the events of one such statement.
pub struct Single {
    backbone: Backbone,
    now: Timestamp,
}

impl Single {
    /// The time of everything in the statement.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Makes an id.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.backbone.ids.next()
    }

    /// The trace that the statement belongs to, as stored with what it queues.
    #[must_use]
    pub fn trace(&self) -> serde_json::Value {
        serde_json::json!(berth_bus::trace::inject())
    }

    /// An event as the statement has to store it.
    #[must_use]
    pub fn row(&self, event: &Event) -> outbox::Row {
        self.backbone.row(self.now, event)
    }

    /// The statement has committed: publishes what it stored, and tells `notices`, behind each of which
    /// something stands that finds what they tell of.
    pub fn committed(self, stored: Vec<outbox::Row>, notices: &[Event]) {
        let notices = notices.iter().map(|event| self.backbone.message(self.now, event)).collect();
        self.backbone.relay.hand_over(stored, notices);
    }
}

impl Backbone {
    /// Prepares a statement that is a transaction of its own.
    #[must_use]
    pub fn single(&self) -> Single {
        Single { backbone: self.clone(), now: self.clock.now() }
    }

    pub(crate) fn message(&self, now: Timestamp, event: &Event) -> Message {
        let id = EventId(self.ids.next());
        envelope::wrap(self.bus.subjects(), self.name, id, now, event)
    }

    /// The event without the headers that follow from the row.
    pub(crate) fn row(&self, now: Timestamp, event: &Event) -> outbox::Row {
        let subjects = self.bus.subjects();
        outbox::Row {
            id: EventId(self.ids.next()),
            subject: subjects.of(event),
            headers: serde_json::json!(envelope::own_headers(self.name, event)),
            payload: envelope::payload(event),
            created_at: now,
        }
    }
}
