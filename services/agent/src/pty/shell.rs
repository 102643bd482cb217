//! A shell with a terminal, or a command with two pipes.

use std::io::{self, Cursor};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use berth_domain::terminal::{Open, Size};
use pty_process::OwnedWritePty;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use rustix::termios::{InputModes, OptionalActions, tcgetattr, tcsetattr};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::unix::pipe;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::either::Either;

use crate::environment::Environment;

/// How often a group is looked at while it ends: there is nothing to wait on.
const POLL: Duration = Duration::from_millis(20);

/// Where its output comes from.
pub(crate) type Output = Box<dyn AsyncRead + Send + Unpin>;
/// Where its input goes.
pub(crate) type Input = Either<OwnedWritePty, ChildStdin>;

/// A running shell.
pub(crate) struct Shell {
    pub(crate) child: Child,
    pub(crate) output: Output,
    /// `None`: it was told that no more comes.
    pub(crate) input: Option<Input>,
}

impl Shell {
    /// Starts the user's shell in the scripts' surroundings.
    pub(crate) fn start(environment: &Environment, open: &Open) -> Result<Self, String> {
        let cannot = |error: &dyn std::fmt::Display| {
            format!(
                "cannot start {} in {}: {error}",
                environment.shell,
                environment.directory.display()
            )
        };
        if open.terminal {
            with_terminal(environment, open).map_err(|error| cannot(&error))
        } else {
            with_pipes(environment, open).map_err(|error| cannot(&error))
        }
    }

    /// Says that the window has another size. A command with pipes has no window.
    pub(crate) fn resize(&self, size: Size) {
        if let Some(Either::Left(terminal)) = &self.input {
            let size = pty_process::Size::new(size.height, size.width);
            if let Err(error) = terminal.resize(size) {
                tracing::debug!(%error, "the terminal keeps its size");
            }
        }
    }

    /// Hangs up, and ends what does not go within `grace`.
    pub(crate) async fn end(mut self, grace: Duration) {
        let group = group_of(&self.child);
        // Without its terminal's other end the kernel hangs up on the shell and on what it runs.
        drop((self.input, self.output));
        let Some(group) = group else { return };
        let _ = kill_process_group(group, Signal::HUP);
        let deadline = Instant::now() + grace;
        if timeout(grace, self.child.wait()).await.is_ok() {
            while test_kill_process_group(group).is_ok() && Instant::now() < deadline {
                sleep(POLL).await;
            }
        }
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.child.wait().await;
    }
}

/// The status as shells say it.
pub(crate) fn code_of(status: &io::Result<ExitStatus>) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    let Ok(status) = status else { return 255 };
    status.code().or_else(|| status.signal().map(|it| 128 + it)).unwrap_or(255)
}

fn group_of(child: &Child) -> Option<Pid> {
    child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw)
}

fn arguments(open: &Open) -> Vec<&str> {
    if open.command.is_empty() { vec!["-l"] } else { vec!["-c", &open.command] }
}

fn with_terminal(environment: &Environment, open: &Open) -> Result<Shell, pty_process::Error> {
    let (terminal, other_end) = pty_process::open()?;
    // So that what deletes a character while a line is typed deletes all of its bytes.
    if let Ok(mut mode) = tcgetattr(&other_end) {
        mode.input_modes |= InputModes::IUTF8;
        let _ = tcsetattr(&other_end, OptionalActions::Now, &mode);
    }
    terminal.resize(pty_process::Size::new(open.size.height, open.size.width))?;
    let mut variables = environment.variables.clone();
    variables.entry("TERM".to_owned()).or_insert_with(|| "xterm-256color".to_owned());
    let child = pty_process::Command::new(&environment.shell)
        .args(arguments(open))
        .env_clear()
        .envs(&variables)
        .current_dir(&environment.directory)
        .kill_on_drop(true)
        .spawn(other_end)?;
    let (output, input) = terminal.into_split();
    let motd = if open.command.is_empty() { environment.motd() } else { Vec::new() };
    let output = Box::new(Cursor::new(motd).chain(output));
    Ok(Shell { child, output, input: Some(Either::Left(input)) })
}

/// One pipe for what it says and what it complains of, so that the order is kept.
fn with_pipes(environment: &Environment, open: &Open) -> io::Result<Shell> {
    let (output, said) = io::pipe()?;
    let complained = said.try_clone()?;
    let mut child = Command::new(&environment.shell)
        .args(arguments(open))
        .env_clear()
        .envs(&environment.variables)
        .current_dir(&environment.directory)
        .stdin(Stdio::piped())
        .stdout(said)
        .stderr(complained)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let input = child.stdin.take().map(Either::Right);
    let output = pipe::Receiver::from_owned_fd(output.into())?;
    Ok(Shell { child, output: Box::new(output), input })
}
