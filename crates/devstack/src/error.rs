//! What can go wrong, and what to do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a server could not be found, fetched, started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum DevstackError {
    /// A file or folder could not be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried: `create`, `read`, …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A program could not be started.
    #[error("cannot run {}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A program could not be waited for or signalled.
    #[error("cannot stop {0}")]
    Stop(String, #[source] io::Error),
    /// There is no usable program here, and it cannot be fetched either.
    #[error("{need} is not on this machine and cannot be fetched: {reason}. {advice}")]
    Fetch {
        /// What is needed, with its version.
        need: String,
        /// Why it cannot be fetched.
        reason: String,
        /// What to do.
        advice: String,
    },
    /// What was fetched is not what this version of Berth was built to trust.
    #[error(
        "the download of {package} has the wrong SHA-256 and was thrown away: the package index \
         or a proxy gives out another file than the pinned one. {advice}"
    )]
    Hash {
        /// The package and its version.
        package: String,
        /// What to do.
        advice: String,
    },
    /// A downloaded archive is not one.
    #[error("the archive {} cannot be unpacked", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        source: zip::result::ZipError,
    },
    /// Postgres refuses to run as root, and there is no other user to run it as.
    #[error("Postgres does not run as root: add a user named `postgres`, or run this as another")]
    NoAccount,
    /// As root: no folder for programs that the user Postgres runs as can read.
    #[error(
        "user `{account}`, as whom Postgres runs, can read none of these: {}. Set XDG_CACHE_HOME \
         to a folder that it can",
        list(tried)
    )]
    Unreadable {
        /// The user.
        account: String,
        /// The folders that were tried.
        tried: Vec<PathBuf>,
    },
    /// The cluster has no password file beside it, so nobody can log in to it.
    #[error(
        "{} has the data of a Postgres, but its password file {} is gone: restore the file, or \
         remove the folder to start with an empty database",
        data_dir.display(),
        password_file.display()
    )]
    PasswordGone {
        /// The data.
        data_dir: PathBuf,
        /// The file that is missing.
        password_file: PathBuf,
    },
    /// The data belongs to another major version.
    #[error(
        "{} was made by Postgres {found}, but here is Postgres {have}: install Postgres {found}, \
         or remove the folder to start with an empty database",
        data_dir.display()
    )]
    DataVersion {
        /// The data.
        data_dir: PathBuf,
        /// Its version.
        found: String,
        /// The program's version.
        have: u32,
    },
    /// Another server already runs on the data.
    #[error(
        "a {name} (process {pid}) already runs on {}: stop it first (`kill -INT {pid}`)",
        data_dir.display()
    )]
    AlreadyRunning {
        /// The server.
        name: &'static str,
        /// The data.
        data_dir: PathBuf,
        /// The other server.
        pid: u32,
    },
    /// A server ended while it was starting.
    #[error("{name} ended while starting ({status}). Its last words:\n{}", words.join("\n"))]
    Died {
        /// The server.
        name: &'static str,
        /// Its exit status.
        status: String,
        /// The end of what it logged.
        words: Vec<String>,
    },
    /// A server is there but does not answer.
    #[error("{name} did not answer within {} s. Its last words:\n{}", limit.as_secs(), words.join("\n"))]
    Silent {
        /// The server.
        name: &'static str,
        /// How long it was given.
        limit: Duration,
        /// The end of what it logged.
        words: Vec<String>,
    },
    /// A helper program such as initdb failed.
    #[error("{program} failed ({status}):\n{words}")]
    Helper {
        /// The program.
        program: &'static str,
        /// Its exit status.
        status: String,
        /// What it said.
        words: String,
    },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Names the file and what was tried with it.
pub(crate) fn file(
    action: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> DevstackError {
    let path = path.into();
    move |source| DevstackError::File { action, path, source }
}
