//! Opens what every service stands on.

use std::sync::Arc;
use std::time::Duration;

use berth_bus::{Bus, Consumer, Delivery, HandlerError};
use berth_db::{DbError, Pool, dead_letter, schema};
use berth_service_kit::{Context, Latch};
use tokio_util::sync::CancellationToken;

use crate::relay::{OutboxMetrics, Publisher, Relay, Sweep};
use crate::{Clock, HasStores, Ids, Work};

/// How often the schema is looked at again while it is not as it should be.
const SCHEMA_RETRY: Duration = Duration::from_millis(500);

/// The stores, the clock and the ids of one service. Cheap to clone.
#[derive(Clone)]
pub struct Backbone {
    /// Postgres.
    pub db: Pool,
    /// NATS.
    pub bus: Bus,
    /// The time.
    pub clock: Clock,
    /// Ids and tokens.
    pub ids: Ids,
    pub(crate) name: &'static str,
    pub(crate) relay: Relay,
}

impl Backbone {
    /// Opens both stores and starts the outbox relay as tasks of `ctx`. Neither store needs to be
    /// there yet: the latches `schema` and `outbox` tell when they are. The connection is never
    /// waited for, so a service starts while NATS is away.
    pub async fn open<C: HasStores>(ctx: &Context<C>) -> anyhow::Result<Self> {
        let database = ctx.config.database();
        anyhow::ensure!(
            !database.url.is_empty(),
            "no database: set BERTH_DATABASE__URL to postgres://user:password@host:port/database"
        );
        let application = format!("berth-{}", ctx.name);
        let db = berth_db::connect(database.url.expose(), database.max_connections, &application)?;
        let bus = Bus::connect(ctx.config.nats(), ctx.name).await?;
        let (backbone, publisher) =
            Self::over(ctx.name, (db.clone(), bus.clone()), Clock::default());
        ctx.spawn(
            "schema",
            watch_schema(db.clone(), ctx.health.latch("schema"), ctx.shutdown.clone()),
        );
        ctx.spawn("publisher", publisher.run(db.clone(), bus.clone(), ctx.shutdown.clone()));
        let sweep = Sweep {
            db,
            bus,
            latch: ctx.health.latch("outbox"),
            metrics: OutboxMetrics::register(&ctx.metrics)?,
        };
        ctx.spawn("outbox", sweep.run(ctx.shutdown.clone()));
        Ok(backbone)
    }

    /// A backbone over stores that are open already. What it commits is published by the second
    /// value, which has to run as a task; until then, and without it, events wait in the outbox.
    #[must_use]
    pub fn over(name: &'static str, (db, bus): (Pool, Bus), clock: Clock) -> (Self, Publisher) {
        let (relay, publisher) = Relay::new();
        (Self { db, bus, clock, ids: Ids, name, relay }, publisher)
    }

    /// Begins a unit of work.
    pub async fn begin(&self) -> Result<Work, DbError> {
        let transaction = berth_db::begin(&self.db).await?;
        Ok(Work::new(self.clone(), transaction))
    }

    /// Runs a durable consumer until `shutdown`. What no handler can handle is kept in the dead
    /// letters.
    pub async fn consume<H, F>(&self, consumer: &Consumer, shutdown: CancellationToken, handle: H)
    where
        H: Fn(Arc<Delivery>) -> F + Send + Sync,
        F: Future<Output = Result<(), HandlerError>> + Send,
    {
        let poison = |delivery: Arc<Delivery>, reason: String| async move {
            let letter = dead_letter::DeadLetter {
                id: self.ids.next(),
                stream: self.bus.subjects().stream(consumer.stream),
                consumer: consumer.durable.clone(),
                subject: delivery.subject.clone(),
                headers: serde_json::json!(delivery.headers),
                payload: delivery.payload.clone(),
                reason,
            };
            if let Err(error) = dead_letter::insert(&self.db, &letter).await {
                tracing::error!(error = %error, subject = %letter.subject, "dead letter lost");
            }
        };
        consumer.run(&self.bus, shutdown, handle, poison).await;
    }
}

/// Sets the latch once the schema is as this binary needs it.
async fn watch_schema(db: Pool, latch: Latch, stop: CancellationToken) {
    loop {
        match schema::check(&db).await {
            Ok(()) => break latch.set_ready(),
            Err(error) => latch.set_failed(format!("{:#}", anyhow::Error::from(error))),
        }
        tokio::select! {
            () = tokio::time::sleep(SCHEMA_RETRY) => {}
            () = stop.cancelled() => return,
        }
    }
    stop.cancelled().await;
}
