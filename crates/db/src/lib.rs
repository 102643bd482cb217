//! Every SQL statement of Berth: one module per entity, one function per statement. No other crate
//! names sqlx. Functions take an executor, so the same one runs on the pool or in a transaction;
//! the caller owns the commit.

pub mod agent;
pub mod agent_log;
pub mod api_key;
pub mod audit;
pub mod build;
pub mod build_state;
pub mod claim;
pub mod claim_attempt;
pub mod completion;
pub mod daemon;
pub mod dead_letter;
pub mod decision;
pub mod dry_run;
pub mod encryption_key;
pub mod file;
pub mod group;
pub mod idempotency;
pub mod import;
pub mod inbox;
pub mod job;
pub mod job_log;
pub mod job_timing;
pub mod job_view;
pub mod member;
pub mod membership;
pub mod notification;
pub mod organization;
pub mod outbox;
pub mod pause;
pub mod pool;
pub mod pool_policy;
pub mod prebuild;
pub mod preset;
pub mod promotion;
pub mod provisioner_certificate;
pub mod provisioner_key;
pub mod purge;
pub mod rehearsal;
pub mod resource;
pub mod schema;
pub mod site_setting;
mod stored;
pub mod template;
pub mod user;
pub mod user_secret;
pub mod variable;
pub mod version;
pub mod workspace;

use std::time::Duration;

use jiff_sqlx::ToSqlx;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

pub use crate::stored::{Seal, Stored};

/// A connection, as a transaction or a pool lends it.
pub type Connection = sqlx::PgConnection;
/// A pool of connections.
pub type Pool = sqlx::PgPool;
/// An open transaction.
pub type Transaction = sqlx::Transaction<'static, sqlx::Postgres>;
/// What a statement function accepts: a pool or a connection.
pub trait Executor<'c>: sqlx::PgExecutor<'c> {}
impl<'c, E: sqlx::PgExecutor<'c>> Executor<'c> for E {}

/// What a statement can fail with.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// A constraint refused the write; the name is one of migrations/.
    #[error("constraint {constraint} refused the write")]
    Constraint {
        /// Name of the constraint or unique index.
        constraint: String,
        /// What Postgres said.
        #[source]
        source: sqlx::Error,
    },
    /// A row that must exist does not.
    #[error("no {what} {id}")]
    NotFound {
        /// The entity.
        what: &'static str,
        /// Its key.
        id: String,
    },
    /// A column holds a text that this version does not know.
    #[error("stored value")]
    Stored(#[from] berth_domain::state::UnknownValue),
    /// A JSON column does not have the shape that this version expects.
    #[error("stored JSON of {what}")]
    Json {
        /// Which column.
        what: &'static str,
        /// What serde said.
        #[source]
        source: serde_json::Error,
    },
    /// Postgres cannot be reached or gave up.
    #[error("database")]
    Database(#[source] sqlx::Error),
    /// A migration failed.
    #[error("migration")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The schema is older or newer than this binary knows.
    #[error("schema version is {found}, this binary needs {needed}: run `berth migrate`")]
    Schema {
        /// Newest migration that was applied; 0: none.
        found: i64,
        /// Newest migration in this binary.
        needed: i64,
    },
}

impl DbError {
    /// The violated constraint's name, if that is what happened.
    #[must_use]
    pub fn constraint(&self) -> Option<&str> {
        match self {
            Self::Constraint { constraint, .. } => Some(constraint),
            _ => None,
        }
    }

    /// Whether the database was unavailable: the caller may answer 503 and try again.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        let Self::Database(error) = self else { return false };
        match error {
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Io(_) => true,
            // Class 57 is operator intervention, 53 insufficient resources, 08 connection errors.
            sqlx::Error::Database(error) => error.code().is_some_and(|code| {
                code.starts_with("57") || code.starts_with("53") || code.starts_with("08")
            }),
            _ => false,
        }
    }
}

impl From<sqlx::Error> for DbError {
    fn from(source: sqlx::Error) -> Self {
        let constraint =
            source.as_database_error().and_then(|error| error.constraint()).map(ToOwned::to_owned);
        match constraint {
            Some(constraint) => Self::Constraint { constraint, source },
            None => Self::Database(source),
        }
    }
}

/// Opens a pool of at most `max` connections. Sessions give up on a statement after 30 s and on an
/// idle transaction after 5 s, so that no forgotten lock outlives its owner; they compile no plans.
pub fn connect(url: &str, max: u32, application: &str) -> Result<Pool, DbError> {
    let options: PgConnectOptions =
        url.parse::<PgConnectOptions>()?.application_name(application).options([
            ("statement_timeout", "30s"),
            ("idle_in_transaction_session_timeout", "5s"),
            // No statement runs for so long that compiling it pays, but estimates may say so.
            ("jit", "off"),
        ]);
    let pool = PgPoolOptions::new()
        .max_connections(max)
        .acquire_timeout(Duration::from_secs(5))
        .test_before_acquire(false)
        .connect_lazy_with(options);
    Ok(pool)
}

/// Begins a transaction.
pub async fn begin(pool: &Pool) -> Result<Transaction, DbError> {
    Ok(pool.begin().await?)
}

/// Begins a transaction that sees one moment and can write nothing.
pub async fn begin_reading(pool: &Pool) -> Result<Transaction, DbError> {
    Ok(pool.begin_with("begin isolation level repeatable read, read only").await?)
}

/// A timestamp as a statement binds it.
pub(crate) fn at(time: jiff::Timestamp) -> jiff_sqlx::Timestamp {
    time.to_sqlx()
}

/// An optional timestamp as a statement binds it.
pub(crate) fn maybe_at(time: Option<jiff::Timestamp>) -> Option<jiff_sqlx::Timestamp> {
    time.map(ToSqlx::to_sqlx)
}

/// An optional timestamp as a row gives it.
pub(crate) fn maybe_time(time: Option<jiff_sqlx::Timestamp>) -> Option<jiff::Timestamp> {
    time.map(jiff_sqlx::Timestamp::to_jiff)
}
