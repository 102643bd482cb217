//! Agents of workspaces that are plain folders on this machine, used by `templates/local`.
//!
//! A folder knows its agent by three files. `agent.json` says what to run with and that an agent
//! is wanted; `agent.lock` is locked by the agent for as long as it lives, so that one folder never
//! has two; `agent.pid` names the agent from when it has taken over until it begins to end.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::leftovers::{end_leftovers, end_leftovers_blocking};
use crate::options::Token;
use crate::proc::{self, Process};
use crate::{environment_names, supervisor};

const CONFIG: &str = "agent.json";
const PID: &str = "agent.pid";
const LOG: &str = "agent.log";
const LOCK: &str = "agent.lock";
/// Held by whoever starts or stops an agent, so that these never overlap.
const START_LOCK: &str = "agent.start.lock";

/// Bytes of log beyond which a new agent begins a new file.
const MAX_LOG: u64 = 4 << 20;
const POLL: Duration = Duration::from_millis(20);
/// For a new agent to take over; its predecessor may need all of its shutdown time first.
const TAKE_OVER: Duration = Duration::from_secs(20);
/// For an agent to end by itself; then it is killed.
const POLITE_END: Duration = Duration::from_secs(12);
const LEFTOVER_GRACE: Duration = Duration::from_secs(2);
/// Folders of agents lie this deep below the root at most.
const MAX_DEPTH: usize = 3;
/// Agents started at the same time by [`resume_local`].
const START_BATCH: usize = 8;

/// What of the starter's environment a detached agent, and so the scripts, get. The starter is a
/// provisioner: the rest may hold its key and other people's tokens.
const KEPT_ENVIRONMENT: [&str; 20] = [
    "HOME",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_CTYPE",
    "LOGNAME",
    "NO_PROXY",
    "PATH",
    "RUST_LOG",
    "SHELL",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TERM",
    "TMPDIR",
    "TZ",
    "USER",
    "http_proxy",
    "https_proxy",
];

/// What an agent of a folder runs with. No `Debug`: it holds the token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Config {
    pub(crate) url: String,
    pub(crate) token: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) supervisor_pid_file: Option<PathBuf>,
}

impl Config {
    /// What `dir` says, `None` when no agent is wanted there.
    pub(crate) fn read(dir: &Path) -> io::Result<Option<Self>> {
        let path = dir.join(CONFIG);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
                // Not the error itself, which may quote what it read.
                let place = format!("line {} column {}", error.line(), error.column());
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{} at {place} is not an agent's configuration", path.display()),
                )
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The token, redacted wherever it goes.
    pub(crate) fn token(&self) -> Token {
        Token::new(&self.token)
    }

    fn write(&self, dir: &Path) -> io::Result<()> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        replace(&dir.join(CONFIG), &bytes)
    }
}

/// Sees to it that the agent of `dir` runs as `config` says, and returns when it has taken over.
/// `None` runs what `dir` says already.
pub(crate) fn detach(dir: &Path, config: Option<Config>) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    let dir = &dir.canonicalize()?;
    let _starting = lock(&dir.join(START_LOCK))?;
    let known = Config::read(dir)?;
    let wanted = config.or_else(|| known.clone()).with_context(|| {
        format!(
            "nothing is known of an agent for {}: set BERTH_AGENT_URL and BERTH_AGENT_TOKEN",
            dir.display()
        )
    })?;
    if running(dir).is_some() {
        if known.as_ref() == Some(&wanted) {
            return Ok(());
        }
        end(dir);
    }
    wanted.write(dir)?;
    let log = open_log(&dir.join(LOG))?;
    let log_before = log.metadata()?.len();
    let child = start(dir, log)?;
    wait_for_take_over(child, dir, log_before)
}

fn start(dir: &Path, log: File) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("this program does not know where it lies")?;
    let kept = std::env::vars_os()
        .filter(|(name, _)| name.to_str().is_some_and(|name| KEPT_ENVIRONMENT.contains(&name)));
    Command::new(&program)
        .args(["agent", "--dir"])
        .arg(dir)
        .env_clear()
        .envs(kept)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))
}

/// Opens the agent's log for appending. A large one is put aside first, in place of the last such.
fn open_log(path: &Path) -> io::Result<File> {
    if fs::metadata(path).is_ok_and(|log| log.len() > MAX_LOG) {
        fs::rename(path, path.with_extension("log.old"))?;
    }
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

fn wait_for_take_over(mut child: Child, dir: &Path, log_before: u64) -> anyhow::Result<()> {
    let deadline = Instant::now() + TAKE_OVER;
    loop {
        if running(dir).is_some() {
            return Ok(());
        }
        if let Some(status) = child.try_wait()? {
            let log = fs::read(dir.join(LOG)).unwrap_or_default();
            let start = usize::try_from(log_before).unwrap_or(0).min(log.len());
            let said = String::from_utf8_lossy(&log[start..]);
            anyhow::bail!(
                "the agent of {} ended at once ({status}): {}",
                dir.display(),
                said.trim()
            );
        }
        if Instant::now() > deadline {
            anyhow::bail!(
                "the agent of {} has not taken over within {} s; see {LOG} there",
                dir.display(),
                TAKE_OVER.as_secs()
            );
        }
        std::thread::sleep(POLL);
    }
}

/// Ends the agent of `dir` and all that its scripts left. Without one there is nothing to do.
/// `keep` leaves `agent.json`, so that [`resume_local`] starts it again.
pub(crate) fn stop(dir: &Path, keep: bool) -> io::Result<()> {
    let dir = match dir.canonicalize() {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let _starting = lock(&dir.join(START_LOCK))?;
    if !keep {
        // First: an agent that is just starting looks here and ends by itself.
        remove(&dir.join(CONFIG))?;
    }
    end(&dir);
    remove(&dir.join(PID))
}

/// Ends all agents of `dir`: the one that its pid file names, and any that has not taken over yet.
fn end(dir: &Path) {
    let ours: Vec<Process> = running(dir).into_iter().chain(proc::agents_of(dir)).collect();
    for process in &ours {
        process.signal(Signal::TERM);
    }
    let deadline = Instant::now() + POLITE_END;
    while ours.iter().any(|process| process.is_alive()) {
        if Instant::now() > deadline {
            tracing::warn!(dir = %dir.display(), "the agent does not end; killing it");
            for process in &ours {
                process.signal(Signal::KILL);
            }
            break;
        }
        std::thread::sleep(POLL);
    }
    // An agent that ended in order left none; one that was killed, now or earlier, may have.
    end_leftovers_blocking(&scope(dir), LEFTOVER_GRACE);
}

/// The agent that has taken over `dir` and is not about to end.
fn running(dir: &Path) -> Option<Process> {
    let number = fs::read_to_string(dir.join(PID)).ok()?.trim().parse().ok()?;
    let process = Process::find(Pid::from_raw(number)?)?;
    proc::is_agent_of(process, dir).then_some(process)
}

/// What marks the processes of the workspace in `dir`.
pub(crate) fn scope(dir: &Path) -> String {
    dir.to_string_lossy().into_owned()
}

/// Takes `dir` over for this process. `None` when another agent has it or none is wanted any more.
/// Waits while a predecessor ends.
pub(crate) async fn take_over(dir: &Path) -> anyhow::Result<Option<(Config, Ownership)>> {
    // Away from the terminal and the process group of whoever started us. It fails for a group
    // leader, which somebody started by hand and wants to keep at hand.
    let _ = rustix::process::setsid();
    let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(dir.join(LOCK))?;
    let deadline = Instant::now() + TAKE_OVER;
    loop {
        match lock.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if running(dir).is_some() => return Ok(None),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                tokio::time::sleep(POLL).await;
            }
            Err(TryLockError::WouldBlock) => anyhow::bail!(
                "the agent that had {} before does not end within {} s",
                dir.display(),
                TAKE_OVER.as_secs()
            ),
            Err(TryLockError::Error(error)) => return Err(error).context("cannot lock agent.lock"),
        }
    }
    // Read only now: a stop that came while we waited has removed it.
    let Some(config) = Config::read(dir)? else { return Ok(None) };
    // An agent that was killed left what its scripts had started; ours will start it again.
    end_leftovers(&scope(dir), LEFTOVER_GRACE).await;
    let pid = dir.join(PID);
    replace(&pid, format!("{}\n", std::process::id()).as_bytes())?;
    Ok(Some((config, Ownership { pid, _lock: lock })))
}

/// A folder that is this process' own.
pub(crate) struct Ownership {
    pid: PathBuf,
    _lock: File,
}

impl Ownership {
    /// Cancels `shutdown` when the supervisor is gone, and gives the folder up when `shutdown` is
    /// cancelled: from then on a successor may be started, which waits for the lock.
    pub(crate) async fn watch(&self, supervisor: Option<&Path>, shutdown: &CancellationToken) {
        supervisor::cancel_when_gone(supervisor, shutdown).await;
        if let Err(error) = remove(&self.pid) {
            tracing::warn!(%error, file = %self.pid.display(), "cannot remove the pid file");
        }
    }
}

/// Starts the agents of all folders below `root` that want one (`agent.json`) and have none, with
/// the program `berth`. Gives the number started; returns when they have taken over.
///
/// # Errors
/// `root` cannot be read, or one agent did not start; the others are started all the same.
pub fn resume_local(root: &Path, berth: &Path) -> io::Result<usize> {
    let waiting: Vec<PathBuf> = agent_folders(root)?
        .into_iter()
        .filter(|dir| dir.join(CONFIG).is_file() && running(dir).is_none())
        .collect();
    let mut started = 0;
    let mut failed = None;
    for batch in waiting.chunks(START_BATCH) {
        // `--detach` rather than the agent itself: it returns, so nobody has to wait for agents.
        let children: Vec<_> = batch.iter().map(|dir| resume(dir, berth)).collect();
        for (dir, child) in batch.iter().zip(children) {
            match child.and_then(Child::wait_with_output) {
                Ok(output) if output.status.success() => started += 1,
                Ok(output) => {
                    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                    failed = Some(io::Error::other(format!("{}: {said}", dir.display())));
                }
                Err(error) => failed = Some(error),
            }
        }
    }
    failed.map_or(Ok(started), Err)
}

fn resume(dir: &Path, berth: &Path) -> io::Result<Child> {
    let mut command = Command::new(berth);
    command.args(["agent", "--detach", "--dir"]).arg(dir);
    // What the folder remembers counts, not what happens to be set around `berth up`.
    for name in environment_names() {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()
}

/// Ends all agents below `root` at the same time, each within 12 seconds. `keep` leaves their
/// `agent.json`, so that [`resume_local`] starts them again.
///
/// # Errors
/// `root` cannot be read, or files of one folder cannot be removed; the others are ended all the
/// same.
pub async fn stop_local(root: &Path, keep: bool) -> io::Result<()> {
    let mut stops = tokio::task::JoinSet::new();
    for dir in agent_folders(root)? {
        stops.spawn_blocking(move || stop(&dir, keep));
    }
    let mut outcome = Ok(());
    while let Some(stopped) = stops.join_next().await {
        outcome = outcome.and(stopped.map_err(io::Error::other).and_then(|it| it));
    }
    outcome
}

/// Makes all agents below `root` use the deployment at `url` from their next start on, for a
/// `berth up` whose port has changed. Gives the number of folders changed.
pub fn retarget_local(root: &Path, url: &str) -> io::Result<usize> {
    let mut changed = 0;
    for dir in agent_folders(root)? {
        if let Some(config) = Config::read(&dir)?
            && config.url != url
        {
            Config { url: url.to_owned(), ..config }.write(&dir)?;
            changed += 1;
        }
    }
    Ok(changed)
}

/// The folders at or below `root` that have an agent or want one. Nothing below such a folder is
/// looked at: that is somebody's work. A `root` that does not exist has none.
fn agent_folders(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut next = match root.canonicalize() {
        Ok(root) => vec![(root, 0)],
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error),
    };
    while let Some((dir, depth)) = next.pop() {
        if dir.join(CONFIG).is_file() || dir.join(PID).is_file() {
            found.push(dir);
        } else if depth < MAX_DEPTH {
            for entry in fs::read_dir(&dir)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    next.push((entry.path(), depth + 1));
                }
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Waits for the lock on `path`; it is given back when the file is dropped.
fn lock(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    file.lock()?;
    Ok(file)
}

/// Replaces `path` by a file of mode 0600, as a whole or not at all.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension(format!("new.{}", std::process::id()));
    remove(&new)?;
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)
}

/// Removes a file that need not exist.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
