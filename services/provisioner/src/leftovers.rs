//! Ends what a job's programs left running, wherever it went.
//!
//! A process group ends with one signal, but a program may leave it (`setsid`, a double fork). So
//! every program of a job has [`MARK`] in its environment, which its children inherit, and works in
//! the job's directory. A process is the job's when it has the mark or works there. One that is to
//! outlive its job, as an agent that is the workspace, drops the mark and works elsewhere; what
//! cleared its environment, left the group and went elsewhere is not found.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The variable that says which job a process belongs to: the job's directory.
pub(crate) const MARK: &str = "BERTH_PROVISIONER_JOB";
/// Looks at all processes: between two of them a process may have had children.
const ROUNDS: usize = 20;

/// Kills every process of the job whose directory is `dir`. Gives how many there were.
pub(crate) fn end(dir: &Path) -> usize {
    // One that was killed may take a moment to go, but has no more children.
    let mut killed = BTreeSet::new();
    for _ in 0..ROUNDS {
        let before = killed.len();
        for pid in all() {
            if !killed.contains(&pid.as_raw_nonzero()) && kill_if_of(pid, dir) {
                killed.insert(pid.as_raw_nonzero());
            }
        }
        if killed.len() == before {
            break;
        }
    }
    if !killed.is_empty() {
        tracing::warn!(killed = killed.len(), job = %dir.display(), "killed what a job left");
    }
    killed.len()
}

/// The processes of this machine but this one.
fn all() -> impl Iterator<Item = Pid> {
    let own = rustix::process::getpid();
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
        .filter(move |pid| *pid != own)
}

/// Kills the process if it is the job's. Its number is held while it is looked at, so that it cannot
/// go to another process in between.
fn kill_if_of(pid: Pid, dir: &Path) -> bool {
    if !is_of(pid, dir) {
        return false;
    }
    let Ok(held) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    is_of(pid, dir) && pidfd_send_signal(held, Signal::KILL).is_ok()
}

/// Whether a living process has the job's mark or works in its directory. Those of other users
/// cannot be read and are not the job's.
fn is_of(pid: Pid, dir: &Path) -> bool {
    let entry = Path::new("/proc").join(pid.as_raw_nonzero().to_string());
    let works_there = || fs::read_link(entry.join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
    // A process that ended and was not waited for has neither.
    fs::read(entry.join("environ")).is_ok_and(|environ| is_marked(&environ, dir)) || works_there()
}

fn is_marked(environ: &[u8], dir: &Path) -> bool {
    environ.split(|byte| *byte == 0).any(|variable| {
        let value = variable.strip_prefix(MARK.as_bytes()).and_then(|it| it.strip_prefix(b"="));
        value.is_some_and(|value| OsStr::from_bytes(value) == dir.as_os_str())
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::{Child, Command};

    use super::*;

    fn sleeper(change: impl FnOnce(&mut Command)) -> Child {
        let mut command = Command::new("sleep");
        command.arg("600").current_dir("/").process_group(0);
        change(&mut command);
        command.spawn().unwrap()
    }

    #[test]
    fn only_what_has_the_mark_or_works_in_the_directory_ends() {
        let dir = tempfile::tempdir().unwrap();
        let job = fs::canonicalize(dir.path()).unwrap().join("jobs/a");
        fs::create_dir_all(job.join("template")).unwrap();
        let mut marked = sleeper(|it| {
            it.env(MARK, &job);
        });
        let mut inside = sleeper(|it| {
            it.current_dir(job.join("template"));
        });
        let mut longer = sleeper(|it| {
            it.env(MARK, job.with_file_name("ab"));
        });
        assert_eq!(end(&job), 2);
        assert_eq!(marked.wait().unwrap().signal(), Some(9));
        assert_eq!(inside.wait().unwrap().signal(), Some(9));
        assert_eq!(longer.try_wait().unwrap(), None, "another job's process ended");
        assert_eq!(end(&job), 0);
        longer.kill().unwrap();
        longer.wait().unwrap();
    }
}
