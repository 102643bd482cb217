//! The leases that this daemon asked for and has not ended, written down where its successor finds
//! them: one empty file each, named by the token, in a folder that only this user may read.
//!
//! A lease is noted before it is asked for and forgotten once the broker has its job's result. What a
//! process finds when it starts was its predecessor's: whoever has the work directory's lock has ended
//! what ran there, so the broker need not wait for those leases. The same holds for what this process
//! asked for and never got.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use berth_proto::v1;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::client::Client;
use crate::workdir::{WorkRoot, create_private};

/// Most leases of one call, as the broker has it.
const BATCH: usize = 1000;
/// How long a daemon that ends tries to give up what it has; then its successor does.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// Where the process that has the work directory is named.
const INCARNATION: &str = "incarnation";

/// What is written down in a work directory. Clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    dir: PathBuf,
    given_up: mpsc::UnboundedSender<Noted>,
}

/// A lease that is written down. Dropping it leaves it to the successor.
#[derive(Debug)]
pub(crate) struct Noted {
    token: String,
    path: PathBuf,
}

/// Gives leases up, in a task of its own.
#[derive(Debug)]
pub(crate) struct GivingUp(mpsc::UnboundedReceiver<Noted>);

/// The process itself, and the one that had its work directory before.
#[derive(Debug, Clone, Default)]
pub(crate) struct Incarnation {
    pub(crate) own: String,
    pub(crate) former: String,
}

impl Incarnation {
    /// Takes the work directory over from the process before.
    pub(crate) fn enter(root: &WorkRoot) -> Self {
        let (own, path) = (random().to_string(), root.beside(INCARNATION));
        let former = fs::read_to_string(&path).unwrap_or_default();
        if let Err(error) = fs::write(&path, &own) {
            tracing::warn!(%error, path = %path.display(), "cannot say who has the work directory");
        }
        // Whatever the file has, it must not make the registration one that is refused.
        let former = former.parse::<Uuid>().map(|it| it.to_string()).unwrap_or_default();
        Self { own, former }
    }
}

impl Journal {
    /// Opens the journal and gives up what the process before had written down.
    pub(crate) fn open(root: &WorkRoot) -> anyhow::Result<(Self, GivingUp)> {
        let dir = root.beside("leases");
        create_private(&dir)?;
        let (given_up, giving_up) = mpsc::unbounded_channel();
        let entries = fs::read_dir(&dir)?.flatten();
        for path in entries.map(|it| it.path()) {
            let name = path.file_name().and_then(|it| it.to_str()).unwrap_or_default();
            if let Ok(token) = name.parse::<Uuid>() {
                // The receiver is at hand.
                let _ = given_up.send(Noted { token: token.to_string(), path });
            } else {
                tracing::warn!(path = %path.display(), "no lease; left alone");
            }
        }
        Ok((Self { dir, given_up }, GivingUp(giving_up)))
    }

    /// Writes down a lease that is about to be asked for. Where that fails, the lease stands for
    /// itself: it ends in time, as it does where there is no successor.
    pub(crate) fn note(&self) -> Noted {
        let token = random().to_string();
        let path = self.dir.join(&token);
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        if let Err(error) = made {
            tracing::warn!(%error, dir = %self.dir.display(), "cannot write a lease down");
        }
        Noted { token, path }
    }

    /// Gives a lease up: nothing runs for it, and no report on it will come.
    pub(crate) fn give_up(&self, noted: Noted) {
        // Without a receiver the process ends, and the file is there for the next.
        let _ = self.given_up.send(noted);
    }
}

impl Noted {
    /// The lease token.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    /// The broker has nothing under this lease any more.
    pub(crate) fn forget(self) {
        match fs::remove_file(&self.path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), "cannot forget a lease");
            }
        }
    }
}

impl GivingUp {
    /// Gives up what comes until nothing more can come.
    pub(crate) async fn run(mut self, client: Client) {
        let mut batch = Vec::new();
        while self.0.recv_many(&mut batch, BATCH).await > 0 {
            let lease_tokens = batch.iter().map(|it| it.token.clone()).collect();
            let request = v1::GiveUpJobsRequest { lease_tokens };
            // A refusal would be the same the next time.
            match client.give_up(request).await {
                Ok(()) => tracing::info!(leases = batch.len(), "gave up what nobody runs"),
                Err(error) => tracing::warn!(%error, leases = batch.len(), "leases not given up"),
            }
            batch.drain(..).for_each(Noted::forget);
        }
    }

    /// The last of it, in the time that there is.
    pub(crate) async fn finish(task: tokio::task::JoinHandle<()>) {
        if tokio::time::timeout(LAST_WORDS, task).await.is_err() {
            tracing::warn!("the broker does not answer; leases are given up at the next start");
        }
    }
}

/// A random id: a token, or a process' name.
#[expect(
    clippy::disallowed_methods,
    reason = "the daemon's only source of ids; it has no backbone"
)]
fn random() -> Uuid {
    Uuid::new_v4()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn opened(dir: &std::path::Path) -> (WorkRoot, Journal, Vec<String>) {
        let root = WorkRoot::open(dir, "daemon").unwrap();
        let (journal, mut giving_up) = Journal::open(&root).unwrap();
        let mut found = Vec::new();
        while let Ok(noted) = giving_up.0.try_recv() {
            found.push(noted.token);
        }
        found.sort();
        (root, journal, found)
    }

    #[test]
    fn a_successor_finds_what_was_neither_forgotten_nor_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let (root, journal, found) = opened(dir.path());
        assert!(found.is_empty(), "{found:?}");
        let (lost, done, asked) = (journal.note(), journal.note(), journal.note());
        let mode = fs::metadata(&lost.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut expected = vec![lost.token.clone(), asked.token.clone()];
        expected.sort();
        drop(lost);
        done.forget();
        // Whom it is given to has gone.
        journal.give_up(asked);
        drop(root);
        fs::write(journal.dir.join("other"), "").unwrap();
        assert_eq!(opened(dir.path()).2, expected);
        assert!(journal.dir.join("other").exists(), "what is no lease is left alone");
    }

    #[test]
    fn each_process_has_a_name_of_its_own_and_knows_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let root = WorkRoot::open(dir.path(), "daemon").unwrap();
        let (one, two) = (Incarnation::enter(&root), Incarnation::enter(&root));
        assert_eq!((one.former.as_str(), two.former.as_str()), ("", one.own.as_str()));
        assert_ne!(one.own, two.own);
        fs::write(root.beside(INCARNATION), "no such thing").unwrap();
        assert_eq!(Incarnation::enter(&root).former, "");
    }
}
