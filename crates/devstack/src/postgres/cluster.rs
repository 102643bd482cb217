//! The data of a private Postgres: where it is, whose it is, and how it comes to be.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::{POLL, PidFile, STOP, USER};
use crate::error::file;
use crate::secret::beside;
use crate::tools::library_path;
use crate::{Account, DevstackError, PostgresTool, secret};

/// Where data goes when the user that Postgres runs as cannot get to where it should be.
const ELSEWHERE: &str = "/var/lib/berth";

/// How long a watchdog may take to notice that the parent is gone.
const NOTICE: Duration = Duration::from_secs(2);

/// The data of a private Postgres.
pub(super) struct Cluster {
    /// Where it really is.
    pub(super) data_dir: PathBuf,
    /// Whom the server has to run as; ourselves when `None`.
    pub(super) account: Option<Account>,
    /// The superuser's password.
    pub(super) password: String,
}

impl Cluster {
    /// The cluster in `wanted`, made when nothing is there.
    pub(super) async fn prepare(tool: &PostgresTool, wanted: &Path) -> Result<Self, DevstackError> {
        let wanted = std::path::absolute(wanted).map_err(file("find", wanted))?;
        let password_file = password_file(&wanted);
        let data_dir = place(&wanted, tool.account.as_ref())?;
        if data_dir.join("PG_VERSION").exists() {
            return Self::existing(tool, data_dir, password_file);
        }
        let password = secret::generate()?;
        create(tool, &data_dir, &password).await?;
        // The password first: a cluster without one is of no use, the other way round does no harm.
        secret::write(&password_file, &password)?;
        let _ = std::fs::remove_dir(&data_dir);
        std::fs::rename(unfinished(&data_dir), &data_dir).map_err(file("create", &data_dir))?;
        Ok(Self { data_dir, account: tool.account.clone(), password })
    }

    fn existing(
        tool: &PostgresTool,
        data_dir: PathBuf,
        password_file: PathBuf,
    ) -> Result<Self, DevstackError> {
        let version = data_dir.join("PG_VERSION");
        let found = std::fs::read_to_string(&version).map_err(file("read", version))?;
        if found.trim() != tool.major.to_string() {
            let found = found.trim().to_owned();
            return Err(DevstackError::DataVersion { data_dir, found, have: tool.major });
        }
        let Ok(password) = std::fs::read_to_string(&password_file) else {
            return Err(DevstackError::PasswordGone { data_dir, password_file });
        };
        let account = match &tool.account {
            None => None,
            // Made by someone else before we were root: it stays theirs.
            Some(account) => {
                let owner = std::fs::metadata(&data_dir).map_err(file("read", &data_dir))?;
                let (uid, gid) = (owner.uid(), owner.gid());
                let own = uid == account.uid || uid == 0;
                let owner = Account { name: uid.to_string(), uid, gid };
                Some(if own { account.clone() } else { owner })
            }
        };
        Ok(Self { data_dir, account, password: password.trim().to_owned() })
    }

    /// Waits for a server whose parent was killed to be stopped by its watchdog. Fails when it is
    /// not even stopping, or does not get it done: then it is somebody else's.
    pub(super) async fn wait_for_orphan(&self) -> Result<(), DevstackError> {
        let started = Instant::now();
        while let Some(state) = PidFile::read(&self.data_dir)? {
            let limit = if state.ready { NOTICE } else { STOP };
            match runs_on(state.pid, &self.data_dir) {
                Some(true) if started.elapsed() < limit => tokio::time::sleep(POLL).await,
                Some(true) => {
                    let (name, data_dir) = ("Postgres", self.data_dir.clone());
                    return Err(DevstackError::AlreadyRunning { name, data_dir, pid: state.pid });
                }
                Some(false) => {
                    // It is dead but not waited for, or its number was given to another process:
                    // Postgres would take it for alive.
                    let path = self.data_dir.join("postmaster.pid");
                    return std::fs::remove_file(&path).map_err(file("remove", path));
                }
                // Postgres itself finds out.
                None => break,
            }
        }
        Ok(())
    }

    /// Waits until the server `pid` accepts connections on `port`; the caller bounds the wait.
    pub(super) async fn accepts_connections(&self, pid: u32, port: u16) {
        loop {
            let state = PidFile::read(&self.data_dir).ok().flatten();
            // The pid tells it from an earlier server, and from another's on the same port.
            if state.is_some_and(|it| it.ready && it.pid == pid && it.port == Some(port)) {
                return;
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Removes a cluster: see [`super::Postgres::purge`].
pub(super) fn purge(wanted: &Path) -> Result<(), DevstackError> {
    let gone = |result: std::io::Result<()>, path: &Path| match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(file("remove", path)(error))
        }
        _ => Ok(()),
    };
    let wanted = std::path::absolute(wanted).map_err(file("find", wanted))?;
    if let Ok(target) = std::fs::read_link(&wanted) {
        gone(std::fs::remove_dir_all(&target), &target)?;
        gone(std::fs::remove_file(&wanted), &wanted)?;
    }
    for folder in [unfinished(&wanted), wanted.clone()] {
        gone(std::fs::remove_dir_all(&folder), &folder)?;
    }
    let password = password_file(&wanted);
    gone(std::fs::remove_file(&password), &password)
}

fn password_file(data_dir: &Path) -> PathBuf {
    beside(data_dir, ".password")
}

/// Where a cluster is made before it takes its place, so that a half-made one is never used.
fn unfinished(data_dir: &Path) -> PathBuf {
    beside(data_dir, ".new")
}

/// Whether process `pid` is a server on `data_dir`: a server's working directory is its data.
/// `None` when that cannot be found out, because it is gone or there is no `/proc`.
fn runs_on(pid: u32, data_dir: &Path) -> Option<bool> {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    if state.contains(") Z ") {
        return Some(false);
    }
    let working = std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    Some(working == std::fs::canonicalize(data_dir).ok()?)
}

/// Where the data of `wanted` really is or shall be.
fn place(wanted: &Path, account: Option<&Account>) -> Result<PathBuf, DevstackError> {
    if wanted.is_symlink() {
        let target = std::fs::read_link(wanted).map_err(file("read", wanted))?;
        return Ok(target);
    }
    let parent = wanted.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(parent).map_err(file("create", parent))?;
    let reachable = account.is_none_or(|account| account.can_enter(parent));
    if reachable || wanted.join("PG_VERSION").exists() {
        return Ok(wanted.to_owned());
    }
    let elsewhere = Path::new(ELSEWHERE);
    std::fs::create_dir_all(elsewhere)
        .and_then(|()| std::fs::set_permissions(elsewhere, Permissions::from_mode(0o755)))
        .map_err(file("create", elsewhere))?;
    let digest = hex::encode(Sha256::digest(wanted.as_os_str().as_encoded_bytes()));
    let target = elsewhere.join(&digest[..16]);
    let _ = std::fs::remove_dir(wanted);
    std::os::unix::fs::symlink(&target, wanted).map_err(file("create the link", wanted))?;
    Ok(target)
}

/// Makes a cluster with a superuser and a database, both named `berth`, in [`unfinished`].
async fn create(tool: &PostgresTool, data_dir: &Path, password: &str) -> Result<(), DevstackError> {
    let folder = unfinished(data_dir);
    match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(file("remove", &folder)(error));
        }
        _ => {}
    }
    std::fs::create_dir(&folder)
        .and_then(|()| std::fs::set_permissions(&folder, Permissions::from_mode(0o700)))
        .map_err(file("create", &folder))?;
    // A folder only its owner enters, for the moment that initdb needs the password in a file.
    let scratch = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o700))
        .tempdir()
        .map_err(file("create a folder in", std::env::temp_dir()))?;
    let password_file = scratch.path().join("password");
    secret::write(&password_file, password)?;
    if let Some(account) = &tool.account {
        for path in [&folder, scratch.path(), &password_file] {
            account.own(path)?;
        }
    }
    let mut initdb = command(tool, "initdb");
    initdb
        .arg("-D")
        .arg(&folder)
        .args(["--username", USER, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"])
        // The files of a cluster that was never used need not survive a power cut.
        .arg("--no-sync")
        .arg("--pwfile")
        .arg(&password_file);
    if tool.major >= 17 {
        // Knows the letters of all languages, on every system alike.
        initdb.args(["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]);
    }
    run("initdb", initdb, "").await?;
    let mut single = command(tool, "postgres");
    single.arg("--single").arg("-D").arg(&folder).arg("postgres");
    let said = run("postgres --single", single, &format!("create database {USER};\n")).await?;
    if said.contains("ERROR") {
        let (program, status) = ("postgres --single", "an error".to_owned());
        return Err(DevstackError::Helper { program, status, words: said });
    }
    Ok(())
}

fn command(tool: &PostgresTool, program: impl AsRef<OsStr> + AsRef<Path>) -> Command {
    let mut command = Command::new(tool.bin.join(program));
    // Our own folder may be closed to the account.
    command.current_dir("/").kill_on_drop(true);
    if let Some(path) = library_path(&tool.libraries) {
        command.env("LD_LIBRARY_PATH", path);
    }
    if let Some(account) = &tool.account {
        command.uid(account.uid).gid(account.gid);
    }
    command
}

/// Runs a helper to its end with `input`, and gives back everything it wrote.
async fn run(
    program: &'static str,
    mut command: Command,
    input: &str,
) -> Result<String, DevstackError> {
    let failed = |source| DevstackError::Run { program: program.into(), source };
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).await.map_err(failed)?;
    }
    let output = child.wait_with_output().await.map_err(failed)?;
    let mut words = String::from_utf8_lossy(&output.stderr).into_owned();
    words.push_str(&String::from_utf8_lossy(&output.stdout));
    if output.status.success() {
        return Ok(words);
    }
    Err(DevstackError::Helper { program, status: output.status.to_string(), words })
}
