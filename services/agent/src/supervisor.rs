//! The process that local agents must not outlive: `berth up`.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::process::Pid;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use crate::proc::Process;

const POLL: Duration = Duration::from_secs(1);

/// Writes this process' number and start time to `path`, for agents to watch
/// (`--supervisor-pid-file`). Remove the file at the end, or leave it: an ended process is noticed.
pub fn write_supervisor_pid_file(path: &Path) -> io::Result<()> {
    let me = Process::find(rustix::process::getpid())
        .ok_or_else(|| io::Error::other("this process is not in /proc; is it mounted?"))?;
    fs::write(path, format!("{} {}\n", me.pid.as_raw_nonzero(), me.started()))
}

/// Returns when `shutdown` is cancelled, and cancels it when the process named in `path` is gone.
pub(crate) async fn cancel_when_gone(path: Option<&Path>, shutdown: &CancellationToken) {
    let gone = async {
        match path {
            Some(path) => wait_until_gone(path).await,
            None => std::future::pending().await,
        }
    };
    if shutdown.run_until_cancelled(gone).await.is_some() {
        tracing::info!("the supervisor is gone; ending");
        shutdown.cancel();
    }
}

/// Returns when the process named in `path` is gone, or when `path` is. A file that comes to name
/// another live process hands this agent over to that one: a second `berth up` keeps it.
async fn wait_until_gone(path: &Path) {
    let mut ticks = interval(POLL);
    let mut seen: Option<Process> = None;
    loop {
        ticks.tick().await;
        let Some(named) = read(path) else { return };
        // A file without a start time: what it names now must stay what it was at first.
        let reused = seen.is_some_and(|seen| seen.pid == named.pid && seen != named);
        if reused {
            return;
        }
        seen = Some(named);
    }
}

/// The live process that `path` names: its number, and its start time if that is given.
fn read(path: &Path) -> Option<Process> {
    let text = fs::read_to_string(path).ok()?;
    let mut words = text.split_ascii_whitespace();
    let named = Process::find(Pid::from_raw(words.next()?.parse().ok()?)?)?;
    match words.next() {
        Some(started) => (started.parse() == Ok(named.started())).then_some(named),
        None => Some(named),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_was_used_again_is_not_the_supervisor() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("up.pid");
        assert_eq!(read(&path), None);
        write_supervisor_pid_file(&path).unwrap();
        assert!(read(&path).is_some());
        let me = std::process::id();
        fs::write(&path, format!("{me} 1")).unwrap();
        assert_eq!(read(&path), None);
        fs::write(&path, format!("{me}\n")).unwrap();
        assert!(read(&path).is_some());
    }
}
