//! The unit of work: rows and the events that tell of them commit together.

use berth_bus::envelope;
use berth_bus::event::Event;
use berth_db::{Connection, DbError, Transaction, outbox};
use jiff::Timestamp;
use uuid::Uuid;

use crate::{Backbone, Ids};

/// A transaction and the events of its changes. Dropping it undoes both.
pub struct Work {
    backbone: Backbone,
    transaction: Transaction,
    now: Timestamp,
    events: Vec<Event>,
}

impl Work {
    pub(crate) fn new(backbone: Backbone, transaction: Transaction) -> Self {
        let now = backbone.clock.now();
        Self { backbone, transaction, now, events: Vec::new() }
    }

    /// The connection, for the statements of `db`.
    pub fn conn(&mut self) -> &mut Connection {
        &mut self.transaction
    }

    /// The time of everything in this unit of work.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Makes an id.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.backbone.ids.next()
    }

    /// The source of ids and tokens.
    #[must_use]
    pub fn ids(&self) -> Ids {
        self.backbone.ids
    }

    /// The trace that this work belongs to, as stored with what it queues.
    #[must_use]
    pub fn trace(&self) -> serde_json::Value {
        serde_json::json!(berth_bus::trace::inject())
    }

    /// Tells of a change. Nothing is said before the commit, and nothing is lost after it.
    pub fn emit(&mut self, event: Event) {
        self.events.push(event);
    }

    /// Commits the rows together with their events, then hands the events to the relay.
    #[tracing::instrument(name = "work.commit", level = "debug", skip_all, fields(events = self.events.len()), err)]
    pub async fn commit(mut self) -> Result<(), DbError> {
        let (stored, notices): (Vec<Event>, Vec<Event>) =
            std::mem::take(&mut self.events).into_iter().partition(envelope::is_stored);
        let rows: Vec<outbox::Row> =
            stored.iter().map(|event| self.backbone.row(self.now, event)).collect();
        let notices = notices.iter().map(|event| self.backbone.message(self.now, event)).collect();
        if !rows.is_empty() {
            outbox::insert(self.conn(), &rows).await?;
        }
        self.transaction.commit().await?;
        self.backbone.relay.hand_over(rows, notices);
        Ok(())
    }
}
