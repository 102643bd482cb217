//! Programs that cannot outlive this process.
//!
//! `Drop` does not run when a process is killed with SIGKILL, and the flag that asks the kernel
//! for a signal at the parent's death needs unsafe code. A pipe needs neither: the kernel closes
//! our end whatever we die of, and a watchdog that reads the other end then stops the program.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinHandle;

use crate::output::Lines;
use crate::{Account, DevstackError, Output, Source};

/// Starts the watchdog, then becomes the program, so that the process we wait for and signal is
/// the program itself. Arguments: stop signal, tenths of a second until SIGKILL, program, its
/// arguments. Standard input is the lifeline.
///
/// A program that has ended but was not waited for yet (`Z`, where there is a `/proc`) counts as
/// stopped: the process that inherits it may take its time.
///
/// The watchdog is forked twice: the program must not find a child that it did not start. It stays
/// in the program's process group, which keeps the group's number (the program's process id) from
/// being given to anyone else, so that its signals can only reach the program and its children.
const WATCHDOG: &str = r#"
exec 3<&0 </dev/null
( (
    trap '' HUP INT TERM QUIT
    while read -r _ <&3; do :; done
    kill -s "$1" $$
    tenths=$2
    while [ "$tenths" -gt 0 ] && kill -0 $$; do
        case "$(cat /proc/$$/stat)" in *") Z "*) break ;; esac
        sleep 0.1
        tenths=$((tenths - 1))
    done
    kill -s KILL -- -$$
) >/dev/null 2>&1 & )
shift 2
exec "$@" 3<&-
"#;

/// How long the last lines may take to arrive after a program has ended. Its children may hold
/// the pipes open for ever.
const LAST_LINES: Duration = Duration::from_millis(500);

/// How a program is asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StopSignal {
    /// SIGTERM.
    #[default]
    Terminate,
    /// SIGINT: for Postgres, the one that does not wait for its clients.
    Interrupt,
}

impl StopSignal {
    fn name(self) -> &'static str {
        match self {
            Self::Terminate => "TERM",
            Self::Interrupt => "INT",
        }
    }

    fn number(self) -> Signal {
        match self {
            Self::Terminate => Signal::TERM,
            Self::Interrupt => Signal::INT,
        }
    }
}

/// A program to run under a lifeline.
#[derive(Debug, Clone)]
pub struct CommandSpec {
    /// The program: a path, or a name to look up on PATH.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Variables added to our environment.
    pub env: Vec<(OsString, OsString)>,
    /// Where it runs; here when `None`.
    pub current_dir: Option<PathBuf>,
    /// Whom it runs as; ourselves when `None`.
    pub account: Option<Account>,
    /// How it is asked to stop.
    pub stop: StopSignal,
    /// How long it may take to stop when this process is gone, before it is killed.
    pub orphan_grace: Duration,
    /// Where its lines go.
    pub output: Output,
}

impl CommandSpec {
    /// That program, without arguments, its output thrown away: SIGTERM, killed after 10 s.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            current_dir: None,
            account: None,
            stop: StopSignal::default(),
            orphan_grace: Duration::from_secs(10),
            output: Output::default(),
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<T: Into<OsString>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Adds a variable to its environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Says where its lines go.
    #[must_use]
    pub fn output(mut self, output: Output) -> Self {
        self.output = output;
        self
    }
}

/// A running program in a process group of its own (a Ctrl-C at the terminal does not reach it)
/// that is stopped when this value is dropped or this process ends, for whatever reason. What is
/// left of its process group after it has ended is killed.
#[derive(Debug)]
pub struct Supervised {
    name: String,
    pid: u32,
    child: Child,
    stop: StopSignal,
    /// Closing it makes the watchdog stop the program.
    lifeline: Option<ChildStdin>,
    lines: LinesHandle,
    status: Option<ExitStatus>,
}

/// The readers of a program's output.
struct LinesHandle {
    lines: Lines,
    readers: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for LinesHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinesHandle").finish_non_exhaustive()
    }
}

impl Supervised {
    /// Starts a program. Must be called inside a tokio runtime. A program that does not exist is
    /// not an error here: the shell in between reports it, and [`Self::wait`] yields status 127.
    pub fn spawn(spec: &CommandSpec) -> Result<Self, DevstackError> {
        let lines = Lines::open(&spec.output)?;
        let tenths = spec.orphan_grace.as_millis() / 100;
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", WATCHDOG, "lifeline", spec.stop.name(), &tenths.to_string()])
            .arg(&spec.program)
            .args(&spec.args)
            .envs(spec.env.iter().map(|(name, value)| (name, value)))
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(folder) = &spec.current_dir {
            command.current_dir(folder);
        }
        if let Some(account) = &spec.account {
            command.uid(account.uid).gid(account.gid);
        }
        let mut child = command
            .spawn()
            .map_err(|source| DevstackError::Run { program: spec.program.clone(), source })?;
        // Only a child that was waited for has none.
        let pid = child.id().unwrap_or_default();
        let mut readers = Vec::new();
        if let Some(stream) = child.stdout.take() {
            readers.push(tokio::spawn(lines.clone().pump(Source::Stdout, stream)));
        }
        if let Some(stream) = child.stderr.take() {
            readers.push(tokio::spawn(lines.clone().pump(Source::Stderr, stream)));
        }
        Ok(Self {
            name: spec.program.display().to_string(),
            pid,
            lifeline: child.stdin.take(),
            child,
            stop: spec.stop,
            lines: LinesHandle { lines, readers },
            status: None,
        })
    }

    /// The program's process id, which is also its process group.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The last lines it wrote, at most 20, oldest first.
    #[must_use]
    pub fn tail(&self) -> Vec<String> {
        self.lines.lines.tail()
    }

    /// Waits until it ends by itself. May be dropped and called again; the status stays.
    pub async fn wait(&mut self) -> Result<ExitStatus, DevstackError> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        let waited = self.child.wait().await;
        let status = waited.map_err(|source| DevstackError::Stop(self.name.clone(), source))?;
        self.status = Some(status);
        // The watchdog then clears up what is left of the process group, itself included.
        self.lifeline = None;
        for reader in self.lines.readers.drain(..) {
            let abort = reader.abort_handle();
            if tokio::time::timeout(LAST_LINES, reader).await.is_err() {
                abort.abort();
            }
        }
        Ok(status)
    }

    /// Asks it to stop and waits; after `grace` its whole process group is killed.
    pub async fn terminate(&mut self, grace: Duration) -> Result<ExitStatus, DevstackError> {
        self.signal(self.stop.number(), false)?;
        if let Ok(ended) = tokio::time::timeout(grace, self.wait()).await {
            return ended;
        }
        tracing::warn!(program = self.name, ?grace, "did not stop in time; killing it");
        self.signal(Signal::KILL, true)?;
        self.wait().await
    }

    /// Kills it with SIGKILL, as a crash would, and waits.
    pub async fn kill(&mut self) -> Result<ExitStatus, DevstackError> {
        self.signal(Signal::KILL, false)?;
        self.wait().await
    }

    /// Sends a signal to the program or to its whole group, unless it has ended.
    fn signal(&self, signal: Signal, group: bool) -> Result<(), DevstackError> {
        // Until it is waited for, the process id is its own; after that it may be anyone's.
        let pid = self.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let Some(pid) = pid else { return Ok(()) };
        let sent = if group { kill_process_group(pid, signal) } else { kill_process(pid, signal) };
        match sent {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(DevstackError::Stop(self.name.clone(), io::Error::from(error))),
        }
    }
}

#[cfg(test)]
mod tests;
