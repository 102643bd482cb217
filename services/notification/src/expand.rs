//! From an event to messages: parse, render, and one statement that stores a message for each
//! recipient.

use anyhow::{Context as _, anyhow};
use berth_backbone::Clock;
use berth_bus::event::Notify;
use berth_bus::{Delivery, HandlerError};
use berth_db::Pool;
use berth_db::notification::{self, NewMessage};
use berth_domain::notification::NotificationTemplate;
use jiff::Timestamp;
use prometheus::{IntCounterVec, Opts, Registry};

use crate::render::{Rendered, render};

/// Expands messages to their recipients.
#[derive(Debug, Clone)]
pub struct Expander {
    /// Postgres.
    pub db: Pool,
    /// The time, for messages that do not say when they were sent.
    pub clock: Clock,
    /// Messages sent, by method, template and result; storing a message is sending it to an inbox.
    pub sent: IntCounterVec,
}

impl Expander {
    /// An expander whose counter is shown in `registry`.
    pub fn new(db: Pool, clock: Clock, registry: &Registry) -> Result<Self, prometheus::Error> {
        let sent = IntCounterVec::new(
            Opts::new(
                "coderd_notifications_dispatch_attempts_total",
                "Messages sent or tried, one per recipient and method.",
            ),
            &["method", "notification_template_id", "result"],
        )?;
        registry.register(Box::new(sent.clone()))?;
        Ok(Self { db, clock, sent })
    }

    /// Handles one delivery; twice the same changes nothing. Answers with the number of messages
    /// that are new. What cannot be read or rendered is poison: it never will be.
    #[tracing::instrument(name = "notification.expand", skip_all, fields(subject = %delivery.subject))]
    pub async fn expand(&self, delivery: &Delivery) -> Result<u64, HandlerError> {
        let headers = delivery.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        berth_bus::trace::link(headers);
        let (template, message) = self.read(delivery).map_err(HandlerError::Poison)?;
        let stored = notification::insert(&self.db, &message)
            .await
            .with_context(|| format!("store the message {template}"))?;
        let id = template.id().to_string();
        self.sent.with_label_values(&["inbox", &id, "success"]).inc_by(stored);
        tracing::info!(%template, stored, "message expanded");
        Ok(stored)
    }

    fn read(&self, delivery: &Delivery) -> anyhow::Result<(NotificationTemplate, NewMessage)> {
        let notify: Notify = serde_json::from_slice(&delivery.payload)
            .with_context(|| format!("the payload on {} is no message", delivery.subject))?;
        let template = NotificationTemplate::find(notify.template)
            .ok_or_else(|| anyhow!("no notification template has the id {}", notify.template))?;
        let Rendered { title, body } = render(template, &notify.labels, &notify.data)
            .with_context(|| format!("render the template {template}"))?;
        let mut targets = notify.targets;
        targets.sort_unstable();
        targets.dedup();
        let message = NewMessage {
            template: notify.template,
            organization_id: notify.organization_id,
            user_id: notify.user_id,
            payload: serde_json::json!({ "labels": notify.labels, "data": notify.data }),
            targets,
            title,
            content: body,
            now: self.sent_at(delivery),
        };
        Ok((template, message))
    }

    /// The event's own time, so that a redelivery past midnight is still the same day's message.
    fn sent_at(&self, delivery: &Delivery) -> Timestamp {
        let told = delivery.headers.get("ce-time").and_then(|it| it.parse().ok());
        told.unwrap_or_else(|| self.clock.now())
    }
}
