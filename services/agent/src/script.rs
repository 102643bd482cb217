//! Runs one script in a process group of its own.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use berth_domain::state::LogLevel;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::environment::Environment;
use crate::lines::{LineSplitter, char_boundary};
use crate::logs::Logs;
use crate::manifest::{Metadata, Script};

/// How often a group is looked at while it ends: there is nothing to wait on.
const POLL: Duration = Duration::from_millis(20);
/// How long a script's last lines may take after it ended; a background process may hold the pipe.
const LAST_LINES: Duration = Duration::from_millis(250);
/// Most bytes kept of what a metadata script prints; servers keep no more.
const MAX_VALUE: usize = 2048;
const READ_SIZE: usize = 16 << 10;

/// What became of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Done,
    /// It could not start or ended with another status than 0.
    Failed(String),
    TimedOut,
    /// The agent wanted it to end.
    Stopped,
}

/// What scripts of one manifest share.
#[derive(Clone)]
pub(crate) struct Runner {
    pub(crate) environment: Arc<Environment>,
    pub(crate) logs: Arc<Logs>,
    pub(crate) kill_grace: Duration,
    /// Readers of pipes that outlive their script.
    pub(crate) readers: TaskTracker,
}

impl Runner {
    /// Runs `script` with its own timeout; its output goes to its log source and `log_path`.
    pub(crate) async fn run(&self, script: &Script, stop: &CancellationToken) -> Exit {
        if stop.is_cancelled() {
            return Exit::Stopped;
        }
        let exit = match self.start(script).await {
            Ok((child, readers)) => {
                let limit = Duration::from_secs(script.timeout);
                let exit = self.watch(child, limit, stop).await;
                // What it wrote comes before what we say of it.
                let _ = timeout(LAST_LINES, readers.wait()).await;
                exit
            }
            Err(error) => Exit::Failed(error),
        };
        let said = match &exit {
            Exit::Failed(reason) => Some(format!("script failed: {reason}")),
            Exit::TimedOut => Some(format!("script ended by its timeout of {} s", script.timeout)),
            Exit::Done | Exit::Stopped => None,
        };
        if let Some(text) = said {
            tracing::warn!(script = script.display_name, "{text}");
            self.log(script, LogLevel::Error, text).await;
        }
        exit
    }

    /// Runs a metadata script and gives what it printed, or why there is nothing.
    pub(crate) async fn capture(
        &self,
        metadata: &Metadata,
        stop: &CancellationToken,
    ) -> Result<String, String> {
        let seconds = if metadata.timeout > 0 { metadata.timeout } else { metadata.interval };
        let mut command = self.command(&metadata.script, &metadata.key);
        let mut child = spawn(&mut command)?;
        let printed = child.stdout.take().map(|pipe| self.readers.spawn(read_start(pipe)));
        let complained = child.stderr.take().map(|pipe| self.readers.spawn(read_start(pipe)));
        let exit = self.watch(child, Duration::from_secs(seconds), stop).await;
        let text = async |pipe: Option<tokio::task::JoinHandle<Vec<u8>>>| match pipe {
            Some(reader) => match timeout(LAST_LINES, reader).await {
                Ok(Ok(bytes)) => String::from_utf8_lossy(&bytes).trim().replace('\0', "\u{fffd}"),
                _ => String::new(),
            },
            None => String::new(),
        };
        let (printed, complained) = (text(printed).await, text(complained).await);
        match exit {
            Exit::Done => Ok(printed),
            Exit::Failed(reason) if complained.is_empty() => Err(reason),
            Exit::Failed(reason) => Err(format!("{reason}: {complained}")),
            Exit::TimedOut => Err(format!("not done within {seconds} s")),
            Exit::Stopped => Err("the agent stopped".to_owned()),
        }
    }

    /// Adds a line of the agent's own to a script's log.
    pub(crate) async fn log(&self, script: &Script, level: LogLevel, text: String) {
        self.logs.push(script.log_source_id, &script.display_name, level, text).await;
    }

    async fn start(&self, script: &Script) -> Result<(Child, TaskTracker), String> {
        let file = match script.log_path.as_str() {
            "" => None,
            path => self.open_log(script, path).await,
        };
        let mut command = self.command(&script.text, &script.log_source_id.to_string());
        let mut child = spawn(&mut command)?;
        let readers = TaskTracker::new();
        let reader = |level| Reader {
            logs: Arc::clone(&self.logs),
            script: script.clone(),
            level,
            file: file.clone(),
        };
        if let Some(pipe) = child.stdout.take() {
            self.readers.spawn(readers.track_future(reader(LogLevel::Info).drain(pipe)));
        }
        if let Some(pipe) = child.stderr.take() {
            self.readers.spawn(readers.track_future(reader(LogLevel::Error).drain(pipe)));
        }
        readers.close();
        Ok((child, readers))
    }

    /// A log file that cannot be written is no reason not to run.
    async fn open_log(&self, script: &Script, path: &str) -> Option<Arc<File>> {
        let path = self.environment.log_file(path);
        match open_append(&path).await {
            Ok(file) => Some(Arc::new(file)),
            Err(error) => {
                let text = format!("cannot write the log file {}: {error}", path.display());
                self.log(script, LogLevel::Warn, text).await;
                None
            }
        }
    }

    fn command(&self, script: &str, name: &str) -> Command {
        let (program, arguments) = self.environment.command(script);
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(&self.environment.variables)
            .env("CODER_SCRIPT_DATA_DIR", self.environment.script_data(name))
            .current_dir(&self.environment.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        command
    }

    /// Waits for the script's end, its timeout (0 is none) or `stop`; the last two end its group.
    async fn watch(&self, mut child: Child, limit: Duration, stop: &CancellationToken) -> Exit {
        let too_long = async {
            if limit.is_zero() {
                std::future::pending::<()>().await;
            }
            sleep(limit).await;
        };
        let early = tokio::select! {
            status = child.wait() => return ended(status),
            () = too_long => Exit::TimedOut,
            () = stop.cancelled() => Exit::Stopped,
        };
        end_group(&mut child, self.kill_grace).await;
        early
    }
}

fn spawn(command: &mut Command) -> Result<Child, String> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    command.spawn().map_err(|error| format!("cannot start {program}: {error}"))
}

fn ended(status: std::io::Result<ExitStatus>) -> Exit {
    match status {
        Ok(status) if status.success() => Exit::Done,
        Ok(status) => Exit::Failed(status.to_string()),
        Err(error) => Exit::Failed(format!("its end is not known: {error}")),
    }
}

/// Asks the whole group to end, and after `grace` no longer asks.
async fn end_group(child: &mut Child, grace: Duration) {
    let Some(group) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw)
    else {
        return;
    };
    // An error means that the group is empty, which is what we want.
    let _ = kill_process_group(group, Signal::TERM);
    let deadline = Instant::now() + grace;
    if timeout(grace, child.wait()).await.is_ok() {
        // Its children may take longer than the script itself.
        while test_kill_process_group(group).is_ok() && Instant::now() < deadline {
            sleep(POLL).await;
        }
    }
    let _ = kill_process_group(group, Signal::KILL);
    let _ = child.wait().await;
}

async fn open_append(path: &Path) -> std::io::Result<File> {
    if let Some(folder) = path.parent() {
        tokio::fs::create_dir_all(folder).await?;
    }
    OpenOptions::new().create(true).append(true).mode(0o600).open(path).await
}

/// Reads one pipe of a script to its end.
struct Reader {
    logs: Arc<Logs>,
    script: Script,
    level: LogLevel,
    file: Option<Arc<File>>,
}

impl Reader {
    async fn drain(self, mut pipe: impl AsyncRead + Unpin) {
        // Both pipes append to one file; each needs a handle of its own to write through.
        let mut file = match &self.file {
            Some(file) => file.try_clone().await.ok(),
            None => None,
        };
        let mut splitter = LineSplitter::default();
        let mut lines = Vec::new();
        let mut buffer = vec![0; READ_SIZE];
        while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
            let bytes = &buffer[..count];
            if let Some(open) = &mut file
                && (open.write_all(bytes).await.is_err() || open.flush().await.is_err())
            {
                tracing::warn!(script = self.script.display_name, "log file no longer written");
                file = None;
            }
            splitter.feed(bytes, &mut lines);
            self.send(&mut lines).await;
        }
        splitter.finish(&mut lines);
        self.send(&mut lines).await;
    }

    async fn send(&self, lines: &mut Vec<String>) {
        let Script { log_source_id, display_name, .. } = &self.script;
        for line in lines.drain(..) {
            self.logs.push(*log_source_id, display_name, self.level, line).await;
        }
    }
}

/// Reads to the end and keeps the start, so that the writer never blocks.
async fn read_start(mut pipe: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = vec![0; READ_SIZE];
    while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
        let room = MAX_VALUE - kept.len();
        kept.extend_from_slice(&buffer[..count.min(room)]);
    }
    if kept.len() == MAX_VALUE {
        kept.truncate(char_boundary(&kept));
    }
    kept
}
