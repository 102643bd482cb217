//! Which gRPC code an error is.

use berth_backbone::builder::BuildError;
use berth_db::DbError;
use berth_vault::VaultError;
use tonic::Status;

/// Turns a database error into what a daemon is told: whether to try again, and nothing of the
/// database itself, which goes to the log.
pub(crate) fn of_db(error: DbError) -> Status {
    let unavailable = error.is_unavailable();
    let error = format!("{:#}", anyhow::Error::from(error));
    if unavailable {
        tracing::warn!(error, "database unavailable");
        Status::unavailable("the database is unavailable: try again")
    } else {
        tracing::error!(error, "database error");
        Status::internal("the broker failed; its log has the reason")
    }
}

/// What following up on the end of a job can fail with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettleError {
    /// The database.
    #[error("follow up on the end of a job")]
    Db(#[from] DbError),
    /// The second try of a claim could not be queued.
    #[error("queue the claim again")]
    Build(#[from] BuildError),
    /// The state cannot be sealed. The daemon keeps it and reports again.
    #[error("seal the state")]
    Vault(#[from] VaultError),
}

/// Turns it into what a daemon is told.
pub(crate) fn of_settle(error: SettleError) -> Status {
    match error {
        SettleError::Db(error) | SettleError::Build(BuildError::Db(error)) => of_db(error),
        SettleError::Build(error @ BuildError::Busy(_)) => Status::aborted(error.to_string()),
        error @ SettleError::Vault(_) => {
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::error!(error, "report not taken");
            Status::unavailable("the broker cannot seal the state: try again")
        }
    }
}

/// Reads an id that a daemon sent.
pub(crate) fn id<T: std::str::FromStr<Err = uuid::Error>>(
    text: &str,
    what: &str,
) -> Result<T, Status> {
    text.parse().map_err(|_| Status::invalid_argument(format!("{what} {text:?} is not a UUID")))
}
