//! What `/proc` says about other processes. Where there is none, nothing is known of any.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

/// One process, safe against the reuse of its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    /// Clock ticks since boot.
    started: u64,
}

impl Process {
    /// The live process with this number. One that has ended but was not waited for is not live.
    pub(crate) fn find(pid: Pid) -> Option<Self> {
        let stat = fs::read_to_string(of(pid, "stat")).ok()?;
        // The name, in brackets, may hold anything; the fields are counted after it.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace();
        let state = fields.next()?;
        let started = fields.nth(18)?.parse().ok()?;
        (!matches!(state, "Z" | "X" | "x")).then_some(Self { pid, started })
    }

    pub(crate) fn started(self) -> u64 {
        self.started
    }

    pub(crate) fn is_alive(self) -> bool {
        Self::find(self.pid) == Some(self)
    }

    /// Sends a signal to this very process; one that has ended needs none.
    pub(crate) fn signal(self, signal: Signal) {
        if self.is_alive() {
            // It may end right now, and what we may not signal is not ours.
            let _ = kill_process(self.pid, signal);
        }
    }

    /// The arguments it was started with.
    pub(crate) fn arguments(self) -> Vec<Vec<u8>> {
        let line = fs::read(of(self.pid, "cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
    }

    /// Whether it was started with `variable=value` in its environment.
    fn has_variable(self, entry: &[u8]) -> bool {
        let environment = fs::read(of(self.pid, "environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|it| it == entry)
    }
}

/// All live processes that can be seen.
pub(crate) fn all() -> impl Iterator<Item = Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        Process::find(Pid::from_raw(number)?)
    })
}

/// The live processes, but for this one, that carry `variable=value`.
pub(crate) fn with_variable(variable: &str, value: &str) -> Vec<Process> {
    let entry = format!("{variable}={value}").into_bytes();
    let me = rustix::process::getpid();
    all().filter(|it| it.pid != me && it.has_variable(&entry)).collect()
}

/// The agents started for the folder `dir`.
pub(crate) fn agents_of(dir: &Path) -> impl Iterator<Item = Process> {
    all().filter(move |it| is_agent_of(*it, dir))
}

/// Whether `process` was started as `berth agent --dir DIR`, as detached agents are.
pub(crate) fn is_agent_of(process: Process, dir: &Path) -> bool {
    let arguments = process.arguments();
    let wanted = dir.as_os_str().as_bytes();
    arguments.get(1).is_some_and(|it| it == b"agent")
        && !arguments.iter().any(|it| it == b"--detach" || it == b"--stop")
        && arguments.windows(2).any(|pair| pair[0] == b"--dir" && pair[1] == wanted)
}

fn of(pid: Pid, file: &str) -> PathBuf {
    let number = pid.as_raw_nonzero().to_string();
    Path::new("/proc").join(OsStr::new(&number)).join(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_its_number_alone_does_not_make_another_one() {
        let me = Process::find(rustix::process::getpid()).unwrap();
        assert!(me.is_alive());
        assert!(!Process { started: me.started + 1, ..me }.is_alive());
    }

    #[test]
    fn a_process_that_nobody_waited_for_is_gone() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = Pid::from_child(&child);
        // Reads until the child has ended, which `wait` would also remove it for.
        rustix::process::waitid(
            rustix::process::WaitId::Pid(pid),
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT,
        )
        .unwrap();
        assert_eq!(Process::find(pid), None);
        child.wait().unwrap();
    }
}
