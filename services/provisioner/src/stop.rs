//! Why and how urgently a job is to stop.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Why a job was told to stop. The first reason wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Somebody asked the broker to cancel it.
    Canceled,
    /// The broker could not be told in time that the job is alive, or gave it to somebody else.
    LeaseLost,
    /// The daemon is stopping and the job did not finish in the time left.
    ShuttingDown,
}

/// The wish to stop one job; clones are one. Asking is polite (SIGINT), forcing is not (SIGKILL).
#[derive(Debug, Clone)]
pub(crate) struct Stop {
    asked: CancellationToken,
    forced: CancellationToken,
    reason: Arc<OnceLock<Reason>>,
    /// How long a tool may take after it was asked.
    patience: Duration,
}

impl Stop {
    /// Nobody wants the job to stop. Once asked, its tool has `patience` before it is killed.
    pub(crate) fn new(patience: Duration) -> Self {
        Self {
            asked: CancellationToken::new(),
            forced: CancellationToken::new(),
            reason: Arc::default(),
            patience,
        }
    }

    /// Asks the job to stop.
    pub(crate) fn ask(&self, reason: Reason) {
        // A later reason does not change what the job was first told.
        let _ = self.reason.set(reason);
        self.asked.cancel();
    }

    /// Ends the job's tool at once.
    pub(crate) fn force(&self, reason: Reason) {
        self.ask(reason);
        self.forced.cancel();
    }

    /// Why the job is to stop, if it is.
    pub(crate) fn reason(&self) -> Option<Reason> {
        self.reason.get().copied()
    }

    /// Waits until the job is asked to stop.
    pub(crate) async fn asked(&self) {
        self.asked.cancelled().await;
    }

    /// Waits until the job's tool must be gone: it was forced to, or asked `patience` ago.
    pub(crate) async fn out_of_patience(&self) {
        let patience = async {
            self.asked.cancelled().await;
            tokio::time::sleep(self.patience).await;
        };
        tokio::select! {
            () = self.forced.cancelled() => {}
            () = patience => {}
        }
    }
}
