//! Deletes what is too old, a bounded batch at a time.

use berth_backbone::Clock;
use berth_db::{DbError, Pool, purge};
use berth_service_kit::Period;
use jiff::{SignedDuration, Timestamp};
use prometheus::IntCounterVec;
use tokio_util::sync::CancellationToken;

use crate::config::PurgeConfig;

/// What is purged.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Decisions,
    Failures,
    Marks,
    Pauses,
    IdempotencyKeys,
    ApiKeys,
    NotificationMessages,
    InboxNotifications,
}

const KINDS: [Kind; 8] = [
    Kind::Decisions,
    Kind::Failures,
    Kind::Marks,
    Kind::Pauses,
    Kind::IdempotencyKeys,
    Kind::ApiKeys,
    Kind::NotificationMessages,
    Kind::InboxNotifications,
];

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Decisions => "prebuild_decisions",
            Self::Failures => "prebuild_failures",
            Self::Marks => "prebuild_pool_marks",
            Self::Pauses => "prebuild_pauses",
            Self::IdempotencyKeys => "idempotency_keys",
            Self::ApiKeys => "api_keys",
            Self::NotificationMessages => "notification_messages",
            Self::InboxNotifications => "inbox_notifications",
        }
    }

    const fn keep(self, config: &PurgeConfig) -> Period {
        match self {
            Self::Decisions | Self::Failures | Self::Marks | Self::Pauses => config.decisions,
            Self::IdempotencyKeys => config.idempotency_keys,
            Self::ApiKeys => config.api_keys,
            Self::NotificationMessages | Self::InboxNotifications => config.notifications,
        }
    }

    async fn delete(self, db: &Pool, before: Timestamp, limit: i64) -> Result<u64, DbError> {
        match self {
            Self::Decisions => purge::decisions(db, before, limit).await,
            Self::Failures => purge::prebuild_failures(db, before, limit).await,
            Self::Marks => purge::pool_marks(db, before, limit).await,
            Self::Pauses => purge::pauses(db, before, limit).await,
            Self::IdempotencyKeys => purge::idempotency_keys(db, before, limit).await,
            Self::ApiKeys => purge::api_keys(db, before, limit).await,
            Self::NotificationMessages => purge::notification_messages(db, before, limit).await,
            Self::InboxNotifications => purge::inbox_notifications(db, before, limit).await,
        }
    }
}

/// Deletes what is too old.
#[derive(Debug, Clone)]
pub(crate) struct Purge {
    pub(crate) db: Pool,
    pub(crate) clock: Clock,
    pub(crate) config: PurgeConfig,
    /// Rows deleted, by table.
    pub(crate) deleted: IntCounterVec,
}

impl Purge {
    /// Purges now and at every interval, until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(crate::at_least(self.config.interval));
        loop {
            tokio::select! { _ = ticks.tick() => {}, () = stop.cancelled() => return }
            self.sweep(&stop).await;
        }
    }

    /// Purges everything once. One table's error never stops another's.
    pub(crate) async fn sweep(&self, stop: &CancellationToken) {
        for kind in KINDS {
            if let Err(error) = self.purge(kind, stop).await {
                let error = format!("{:#}", anyhow::Error::from(error));
                let table = kind.name();
                tracing::warn!(error, table, "not purged; the next time tries again");
            }
        }
    }

    /// Deletes batch after batch until one is not full.
    #[tracing::instrument(name = "lifecycle.purge", skip_all, fields(table = kind.name()))]
    async fn purge(&self, kind: Kind, stop: &CancellationToken) -> Result<u64, DbError> {
        let keep = SignedDuration::try_from(kind.keep(&self.config).as_duration())
            .unwrap_or(SignedDuration::MAX);
        // Kept for longer than time is: nothing is too old.
        let Ok(before) = self.clock.now().checked_sub(keep) else { return Ok(0) };
        let batch = u64::from(self.config.batch.max(1));
        let mut total = 0;
        while !stop.is_cancelled() {
            let deleted =
                kind.delete(&self.db, before, i64::try_from(batch).unwrap_or(i64::MAX)).await?;
            self.deleted.with_label_values(&[kind.name()]).inc_by(deleted);
            total += deleted;
            if deleted < batch {
                break;
            }
        }
        if total > 0 {
            tracing::info!(table = kind.name(), rows = total, "purged");
        }
        Ok(total)
    }
}
