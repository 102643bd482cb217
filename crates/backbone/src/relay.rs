//! From the outbox to NATS. The process that committed publishes at once; what it could not
//! publish (killed, NATS away) is swept by any replica's relay.

use std::time::Duration;

use berth_bus::Bus;
use berth_bus::envelope::{self, Message};
use berth_db::{DbError, Pool, outbox};
use berth_domain::id::EventId;
use berth_service_kit::Latch;
use prometheus::{Gauge, IntCounter, IntGauge, Registry};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Commits that wait for the publisher; past it their events are left to the sweep.
const QUEUE: usize = 4096;
/// Most rows published at once.
const BATCH: usize = 512;
/// How often the sweep looks for what is left behind.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// A row older than this was left behind by the process that wrote it.
const LEFT_BEHIND_MS: f64 = 3_000.0;
/// Past this age of the oldest row the process reports itself unready.
const STUCK_SECONDS: f64 = 300.0;

/// The way in for [`crate::Work`].
#[derive(Debug, Clone)]
pub(crate) struct Relay {
    queue: mpsc::Sender<Vec<Parcel>>,
}

enum Parcel {
    Stored(outbox::Row),
    Notice(Message),
}

impl Relay {
    pub(crate) fn new() -> (Self, Publisher) {
        let (queue, parcels) = mpsc::channel(QUEUE);
        (Self { queue }, Publisher { parcels })
    }

    /// Never waits: what does not fit is in the outbox and will be swept.
    pub(crate) fn hand_over(&self, rows: Vec<outbox::Row>, notices: Vec<Message>) {
        let parcels: Vec<Parcel> = rows
            .into_iter()
            .map(Parcel::Stored)
            .chain(notices.into_iter().map(Parcel::Notice))
            .collect();
        if !parcels.is_empty() && self.queue.try_send(parcels).is_err() {
            tracing::debug!("publisher is busy; events are left to the sweep");
        }
    }
}

/// Publishes what its backbone commits.
pub struct Publisher {
    parcels: mpsc::Receiver<Vec<Parcel>>,
}

impl Publisher {
    /// Publishes what this process commits, until shutdown and the queue is empty.
    pub async fn run(mut self, db: Pool, bus: Bus, stop: CancellationToken) {
        let mut commits = Vec::new();
        loop {
            let received = tokio::select! {
                biased;
                received = self.parcels.recv_many(&mut commits, BATCH) => received,
                () = stop.cancelled() => return,
            };
            if received == 0 {
                return;
            }
            let mut rows = Vec::new();
            for parcel in commits.drain(..).flatten() {
                match parcel {
                    Parcel::Stored(row) => rows.push(row),
                    Parcel::Notice(message) if bus.is_connected() => {
                        if let Err(error) = bus.publish(&message).await {
                            tracing::debug!(error = %error, "notice not sent");
                        }
                    }
                    Parcel::Notice(_) => {}
                }
            }
            if !rows.is_empty() && bus.is_connected() {
                let published = publish(&bus, &rows).await;
                if let Err(error) = outbox::delete(&db, &published).await {
                    tracing::warn!(error = %error, "published events stay in the outbox; the sweep repeats them");
                }
            }
        }
    }
}

async fn publish(bus: &Bus, rows: &[outbox::Row]) -> Vec<EventId> {
    let messages: Vec<Message> = rows.iter().map(message).collect();
    let stored = bus.publish_stored(&messages).await;
    rows.iter().zip(stored).filter(|(_, stored)| *stored).map(|(row, _)| row.id).collect()
}

pub(crate) fn message(row: &outbox::Row) -> Message {
    let headers = row.headers.as_object().into_iter().flatten();
    Message {
        subject: row.subject.clone(),
        headers: headers
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
            .chain(envelope::common_headers(row.id, row.created_at))
            .collect(),
        payload: row.payload.clone(),
    }
}

/// Keeps the streams in being, publishes what was left behind, and watches the outbox.
pub(crate) struct Sweep {
    pub(crate) db: Pool,
    pub(crate) bus: Bus,
    pub(crate) latch: Latch,
    pub(crate) metrics: OutboxMetrics,
}

impl Sweep {
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut streams_exist = false;
        let mut ticks = tokio::time::interval(SWEEP_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! { _ = ticks.tick() => {}, () = stop.cancelled() => return }
            let connected = self.bus.is_connected();
            self.metrics.connected.set(i64::from(connected));
            if !connected {
                // A server that comes back may have lost its streams.
                streams_exist = false;
            } else if !streams_exist {
                streams_exist = self.ensure_streams().await;
            }
            if connected {
                match self.pass().await {
                    Ok(complete) => streams_exist &= complete,
                    Err(error) => tracing::debug!(error = %error, "outbox not swept"),
                }
            }
            self.watch().await;
        }
    }

    async fn ensure_streams(&self) -> bool {
        match self.bus.ensure_streams().await {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(error = %error, "streams not ensured");
                false
            }
        }
    }

    /// Publishes what was left behind, batch by batch. `false`: some rows could not be published.
    async fn pass(&self) -> Result<bool, DbError> {
        loop {
            let mut transaction = berth_db::begin(&self.db).await?;
            let limit = i64::try_from(BATCH).unwrap_or(i64::MAX);
            let rows = outbox::lease(&mut *transaction, LEFT_BEHIND_MS, limit).await?;
            if rows.is_empty() {
                return Ok(true);
            }
            let published = publish(&self.bus, &rows).await;
            outbox::delete(&mut *transaction, &published).await?;
            transaction.commit().await?;
            self.metrics.swept.inc_by(published.len() as u64);
            if published.len() < rows.len() {
                return Ok(false);
            }
        }
    }

    async fn watch(&self) {
        match outbox::depth(&self.db).await {
            Ok(depth) => {
                self.metrics.depth.set(depth.rows);
                self.metrics.oldest.set(depth.oldest_seconds);
                if depth.oldest_seconds > STUCK_SECONDS {
                    let (rows, age) = (depth.rows, depth.oldest_seconds);
                    self.latch.set_failed(format!(
                        "{rows} events wait, the oldest for {age:.0} s (bound {STUCK_SECONDS:.0} s): is NATS reachable?"
                    ));
                } else {
                    self.latch.set_ready();
                }
            }
            Err(error) => tracing::debug!(error = %error, "outbox not measured"),
        }
    }
}

/// What `/metrics` tells of the outbox and of NATS.
pub(crate) struct OutboxMetrics {
    depth: IntGauge,
    oldest: Gauge,
    swept: IntCounter,
    connected: IntGauge,
}

impl OutboxMetrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            depth: IntGauge::new("berth_outbox_depth", "Events that wait for publication.")?,
            oldest: Gauge::new("berth_outbox_oldest_seconds", "Age of the oldest waiting event.")?,
            swept: IntCounter::new(
                "berth_outbox_swept_total",
                "Events published by the sweep instead of by the process that committed them.",
            )?,
            connected: IntGauge::new("berth_nats_connected", "1 while the connection stands.")?,
        };
        registry.register(Box::new(metrics.depth.clone()))?;
        registry.register(Box::new(metrics.oldest.clone()))?;
        registry.register(Box::new(metrics.swept.clone()))?;
        registry.register(Box::new(metrics.connected.clone()))?;
        Ok(metrics)
    }
}
