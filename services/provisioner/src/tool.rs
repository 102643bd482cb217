//! Runs one program of a job in a process group of its own.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::leftovers::{self, MARK};
use crate::stop::Stop;
use crate::workdir::GROUP_FILE;

/// Longest line that is passed on, in bytes; the rest of it follows as lines of its own.
const MAX_LINE: u64 = 8 * 1024 * 1024;
/// Lines read and not yet taken; then the tool waits.
const QUEUE: usize = 32;
/// How long after the tool's end its output may stay open, as when a process that it left behind
/// has inherited it.
const AFTERGLOW: Duration = Duration::from_secs(1);

/// One run of a program.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) program: &'a Path,
    pub(crate) args: Vec<OsString>,
    pub(crate) dir: &'a Path,
    /// The whole environment.
    pub(crate) env: &'a BTreeMap<String, String>,
    /// What it reads from stdin; nothing when empty.
    pub(crate) input: Vec<u8>,
    /// Most bytes of stdout that are kept; `None` passes stdout on line by line instead.
    pub(crate) capture: Option<u64>,
    /// The job's directory: what marks its processes, and where the group's id is noted while it
    /// runs, for whoever cleans up after a crash.
    pub(crate) job: &'a Path,
}

/// Which output a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) status: ExitStatus,
    /// What was captured of stdout.
    pub(crate) stdout: Vec<u8>,
    /// stdout had more than was kept.
    pub(crate) truncated: bool,
}

/// A program could not be run.
#[derive(Debug, thiserror::Error)]
#[error("cannot run {}", program.display())]
pub(crate) struct ToolError {
    program: PathBuf,
    source: io::Error,
}

/// Runs `call` to its end, passing each line to `on_line`.
///
/// When `stop` asks, the whole process group gets SIGINT, and SIGKILL once patience is over.
/// Whatever of the job is left after a failure, a stop, or when the future is dropped, is killed,
/// in the group or out of it ([`leftovers`]); after a success it is left alone.
pub(crate) async fn run(
    call: Call<'_>,
    stop: &Stop,
    on_line: impl FnMut(Stream, &str) + Send,
) -> Result<Exit, ToolError> {
    let wrong = |source| ToolError { program: call.program.to_owned(), source };
    let input = if call.input.is_empty() { Stdio::null() } else { Stdio::piped() };
    let mut child = Command::new(call.program)
        .args(&call.args)
        .current_dir(call.dir)
        .env_clear()
        .envs(call.env)
        .env(MARK, call.job)
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(wrong)?;
    let mut group = Group::of(&child, call.job);
    if let Some(mut stdin) = child.stdin.take() {
        // A tool need not read its input; then writing ends with an error that nobody needs.
        tokio::spawn(async move {
            let _ = stdin.write_all(&call.input).await;
        });
    }
    let (lines, mut arriving) = mpsc::channel(QUEUE);
    let stdout = child.stdout.take().expect("stdout is piped above");
    let stderr = child.stderr.take().expect("stderr is piped above");
    let captured = Captured::default();
    let reading = match call.capture {
        Some(limit) => tokio::spawn(capture(stdout, limit, (captured.clone(), lines.clone()))),
        None => tokio::spawn(read_lines(stdout, Stream::Stdout, lines.clone())),
    };
    let errors = tokio::spawn(read_lines(stderr, Stream::Stderr, lines));
    let outcome = supervise(&mut child, &mut arriving, stop, (&group, on_line)).await;
    reading.abort();
    errors.abort();
    let status = outcome.map_err(wrong)?;
    if status.success() && stop.reason().is_none() {
        group.release();
    } else {
        group.end();
    }
    let (stdout, truncated) = std::mem::take(&mut *captured.lock());
    Ok(Exit { status, stdout, truncated })
}

/// Waits for the child and its output, and carries out a stop.
async fn supervise(
    child: &mut Child,
    arriving: &mut mpsc::Receiver<(Stream, String)>,
    stop: &Stop,
    (group, mut on_line): (&Group, impl FnMut(Stream, &str) + Send),
) -> io::Result<ExitStatus> {
    let (mut asked, mut killed, mut open) = (false, false, true);
    let mut ended: Option<(ExitStatus, Instant)> = None;
    loop {
        let closing = ended.map_or_else(Instant::now, |(_, deadline)| deadline);
        tokio::select! {
            line = arriving.recv(), if open => match line {
                Some((stream, line)) => on_line(stream, &line),
                None => open = false,
            },
            status = child.wait(), if ended.is_none() => {
                ended = Some((status?, Instant::now() + AFTERGLOW));
                if stop.reason().is_some() {
                    group.signal(Signal::KILL);
                }
            }
            () = stop.asked(), if !asked && ended.is_none() => {
                asked = true;
                group.signal(Signal::INT);
            }
            () = stop.out_of_patience(), if !killed && ended.is_none() => {
                killed = true;
                group.signal(Signal::KILL);
            }
            () = tokio::time::sleep_until(closing), if ended.is_some() => open = false,
        }
        if let (Some((status, _)), false) = (ended, open) {
            return Ok(status);
        }
    }
}

/// Passes lines on until the stream ends or nobody takes them.
async fn read_lines(
    stream: impl AsyncRead + Unpin + Send,
    from: Stream,
    lines: mpsc::Sender<(Stream, String)>,
) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        match (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        while line.last().is_some_and(|last| matches!(last, b'\n' | b'\r')) {
            line.pop();
        }
        let line = String::from_utf8_lossy(&line).into_owned();
        if lines.send((from, line)).await.is_err() {
            return;
        }
    }
}

/// What was read of stdout so far, and whether there was more than is kept. Shared, so that it is
/// there even when the stream never ends.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<(Vec<u8>, bool)>>);

impl Captured {
    fn lock(&self) -> MutexGuard<'_, (Vec<u8>, bool)> {
        // Nothing panics while holding it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a stream to its end, keeping at most `limit` bytes. It holds `_open` so that the lines
/// count as open until this is done.
async fn capture(
    mut stream: impl AsyncRead + Unpin + Send,
    limit: u64,
    (captured, _open): (Captured, mpsc::Sender<(Stream, String)>),
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        let mut captured = captured.lock();
        let room = usize::try_from(limit).unwrap_or(usize::MAX) - captured.0.len();
        captured.0.extend_from_slice(&buffer[..read.min(room)]);
        captured.1 |= read > room;
    }
}

/// A process group, killed when it is dropped before it was released.
struct Group {
    id: Option<Pid>,
    /// The job's directory.
    job: PathBuf,
}

impl Group {
    fn of(child: &Child, job: &Path) -> Self {
        let id = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(id) = id
            && let Err(error) =
                std::fs::write(job.join(GROUP_FILE), id.as_raw_nonzero().to_string())
        {
            tracing::warn!(%error, job = %job.display(), "cannot note the group");
        }
        Self { id, job: job.to_owned() }
    }

    fn signal(&self, signal: Signal) {
        let Some(id) = self.id else { return };
        match kill_process_group(id, signal) {
            // Nothing is left of it.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => tracing::warn!(%error, ?signal, "cannot signal the tool's group"),
        }
    }

    /// Leaves what remains of the group alone.
    fn release(&mut self) {
        self.id = None;
        let _ = std::fs::remove_file(self.job.join(GROUP_FILE));
    }

    /// Kills what remains of the group, and what of the job has left it.
    fn end(&mut self) {
        self.signal(Signal::KILL);
        leftovers::end(&self.job);
        self.release();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.id.is_some() {
            self.end();
        }
    }
}

#[cfg(test)]
mod tests;
