//! Durable consumers. `ack` is the last effect of handling a message, so that a crash anywhere
//! earlier means redelivery, never loss.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::pull::Config;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer};
use async_nats::jetstream::{AckKind, Message};
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::connection::{Bus, BusError};
use crate::subjects::Stream;

/// Longest a delivery may be worked on before it is delivered to somebody else.
const ACK_WAIT: Duration = Duration::from_secs(30);
/// Deliveries of one message before it counts as poison.
const MAX_DELIVERIES: i64 = 20;
/// Pause before a lost consumer is made again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);

/// What a message says, without NATS' types.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Where it was published.
    pub subject: String,
    /// Its headers; the first value of each.
    pub headers: BTreeMap<String, String>,
    /// Its payload.
    pub payload: Vec<u8>,
    /// Its place in the stream; 0 when it came without one.
    pub sequence: u64,
    /// Times it was delivered, this one included.
    pub attempt: i64,
}

impl Delivery {
    pub(crate) fn core(message: &async_nats::Message) -> Self {
        let headers = message.headers.as_ref().map_or_else(BTreeMap::new, |map| {
            map.iter()
                .filter_map(|(name, values)| {
                    values.first().map(|value| (name.to_string(), value.to_string()))
                })
                .collect()
        });
        Self {
            subject: message.subject.to_string(),
            headers,
            payload: message.payload.to_vec(),
            sequence: 0,
            attempt: 1,
        }
    }

    pub(crate) fn stored(message: &Message) -> Self {
        let (sequence, attempt) =
            message.info().map_or((0, 1), |info| (info.stream_sequence, info.delivered));
        Self { sequence, attempt, ..Self::core(&message.message) }
    }

    /// The last token of the subject: the key of a wake-up.
    #[must_use]
    pub fn key(&self) -> &str {
        self.subject.rsplit('.').next().unwrap_or_default()
    }
}

/// Why a delivery was not handled. Nothing else decides what becomes of it.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// May pass: delivered again after a pause.
    #[error("transient")]
    Transient(#[source] anyhow::Error),
    /// Never will: to the dead letters.
    #[error("poison")]
    Poison(#[source] anyhow::Error),
}

impl From<anyhow::Error> for HandlerError {
    fn from(error: anyhow::Error) -> Self {
        Self::Transient(error)
    }
}

/// A durable consumer, shared by all replicas of a service.
#[derive(Debug, Clone)]
pub struct Consumer {
    /// What it reads.
    pub stream: Stream,
    /// Its name on the server; carries the service's name.
    pub durable: String,
    /// What of the stream it reads.
    pub filter: String,
    /// Deliveries handled at once.
    pub limit: usize,
}

impl Consumer {
    /// Handles deliveries until `shutdown`; work in hand finishes first. `poison` receives what
    /// cannot be handled, before it is given up. A lost connection is only a pause.
    pub async fn run<H, F, P, G>(
        &self,
        bus: &Bus,
        shutdown: CancellationToken,
        handle: H,
        poison: P,
    ) where
        H: Fn(Arc<Delivery>) -> F + Send + Sync,
        F: Future<Output = Result<(), HandlerError>> + Send,
        P: Fn(Arc<Delivery>, String) -> G + Send + Sync,
        G: Future<Output = ()> + Send,
    {
        while !shutdown.is_cancelled() {
            if let Err(error) = self.pull(bus, &shutdown, &handle, &poison).await {
                tracing::debug!(error = %error, consumer = %self.durable, "consumer lost");
            }
            let pause = tokio::time::sleep(RECONNECT_PAUSE);
            tokio::select! { () = pause => {}, () = shutdown.cancelled() => {} }
        }
    }

    async fn pull<H, F, P, G>(
        &self,
        bus: &Bus,
        shutdown: &CancellationToken,
        handle: &H,
        poison: &P,
    ) -> Result<(), BusError>
    where
        H: Fn(Arc<Delivery>) -> F + Send + Sync,
        F: Future<Output = Result<(), HandlerError>> + Send,
        P: Fn(Arc<Delivery>, String) -> G + Send + Sync,
        G: Future<Output = ()> + Send,
    {
        let unavailable = |error: String| BusError::Unavailable(error);
        let consumer = self.open(bus).await?;
        let messages = consumer
            .stream()
            .max_messages_per_batch(self.limit)
            .messages()
            .await
            .map_err(|error| unavailable(error.to_string()))?;
        messages
            .take_until(shutdown.clone().cancelled_owned())
            .for_each_concurrent(self.limit, |message| async move {
                match message {
                    Ok(message) => {
                        let delivery = Arc::new(Delivery::stored(&message));
                        let outcome = handle(delivery.clone()).await;
                        finish(&message, delivery, outcome, poison).await;
                    }
                    Err(error) => tracing::debug!(error = %error, "pull failed"),
                }
            })
            .await;
        Ok(())
    }

    async fn open(&self, bus: &Bus) -> Result<PullConsumer, BusError> {
        let stream = bus
            .jetstream()
            .get_stream(bus.subjects().stream(self.stream))
            .await
            .map_err(|error| BusError::Unavailable(error.to_string()))?;
        let config = Config {
            durable_name: Some(self.durable.clone()),
            filter_subject: self.filter.clone(),
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_deliver: MAX_DELIVERIES,
            max_ack_pending: i64::try_from(self.limit).unwrap_or(i64::MAX).saturating_mul(4),
            ..Config::default()
        };
        stream
            .create_consumer(config)
            .await
            .map_err(|error| BusError::Unavailable(error.to_string()))
    }
}

/// Tells JetStream what became of one delivery.
async fn finish<P, G>(
    message: &Message,
    delivery: Arc<Delivery>,
    outcome: Result<(), HandlerError>,
    poison: &P,
) where
    P: Fn(Arc<Delivery>, String) -> G + Send + Sync,
    G: Future<Output = ()> + Send,
{
    let kind = match outcome {
        Ok(()) => AckKind::Ack,
        Err(HandlerError::Transient(error)) if delivery.attempt < MAX_DELIVERIES => {
            let error = format!("{error:#}");
            tracing::warn!(error, attempt = delivery.attempt, subject = %delivery.subject, "delivery not handled; it comes again");
            AckKind::Nak(Some(backoff(delivery.attempt)))
        }
        Err(HandlerError::Transient(error) | HandlerError::Poison(error)) => {
            let reason = format!("{error:#}");
            tracing::error!(reason, attempt = delivery.attempt, subject = %delivery.subject, "delivery given up");
            poison(delivery, reason).await;
            AckKind::Term
        }
    };
    if let Err(error) = message.ack_with(kind).await {
        tracing::warn!(error = %error, "ack lost; the message will be redelivered");
    }
}

/// 200 ms, doubled with each attempt, at most 30 s.
fn backoff(attempt: i64) -> Duration {
    let doublings = u32::try_from(attempt.clamp(1, 9) - 1).unwrap_or_default();
    Duration::from_millis(200 << doublings).min(Duration::from_secs(30))
}
