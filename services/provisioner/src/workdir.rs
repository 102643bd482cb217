//! Directories of jobs: one each, removed with the job; what a crash left is removed at start.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::leftovers;

/// Where the group's id of a job's tool is noted, in the job's directory.
pub(crate) const GROUP_FILE: &str = "group";

/// The directory that holds the jobs of one daemon. Held by one process at a time.
#[derive(Debug)]
pub(crate) struct WorkRoot {
    root: PathBuf,
    jobs: PathBuf,
    /// Locked for as long as it is open.
    _lock: File,
}

impl WorkRoot {
    /// Takes `work_dir/name` and clears what an earlier daemon of this name left there.
    ///
    /// Fails when another process holds it: two daemons of one name would be one to the broker.
    pub(crate) fn open(work_dir: &Path, name: &str) -> anyhow::Result<Self> {
        let root = work_dir.join(name);
        create_private(&root)?;
        let lock = root.join("lock");
        let file = File::create(&lock).with_context(|| format!("open {}", lock.display()))?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!(
                "another provisioner daemon named {name:?} works in {}; give this one another \
                 `provisioner.name` or `provisioner.work_dir`",
                root.display()
            );
        }
        let jobs = root.join("jobs");
        create_private(&jobs)?;
        clear(&jobs);
        Ok(Self { root, jobs, _lock: file })
    }

    /// A folder beside those of jobs, on the same file system.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A fresh directory for a job.
    pub(crate) fn job(&self, id: &str) -> io::Result<JobDir> {
        // An id is the broker's; it must not become a path.
        let id: String = id.chars().filter(|it| it.is_ascii_alphanumeric() || *it == '-').collect();
        let path = self.jobs.join(id);
        let _ = fs::remove_dir_all(&path);
        let mut builder = DirBuilder::new();
        builder.mode(0o700).create(&path)?;
        builder.create(path.join("template"))?;
        Ok(JobDir { path })
    }
}

/// Creates a directory that only this user may read: states and tokens lie in it.
pub(crate) fn create_private(path: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("create the directory {}", path.display()))
}

/// Removes the directories of jobs that nobody runs any more, ending tools that still do.
fn clear(jobs: &Path) {
    let entries = fs::read_dir(jobs).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        if let Some(leader) = leader_in(&path) {
            tracing::warn!(job = %path.display(), "ending a tool that an earlier daemon left");
            let _ = kill_process_group(leader, Signal::KILL);
        }
        leftovers::end(&path);
        match fs::remove_dir_all(&path) {
            Ok(()) => tracing::info!(path = %path.display(), "removed a stale work directory"),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "cannot remove a work directory");
            }
        }
    }
}

/// The leader of the tool's group, when it is alive and really works in this directory: the number
/// may have gone to another process since.
fn leader_in(job: &Path) -> Option<Pid> {
    let noted = fs::read_to_string(job.join(GROUP_FILE)).ok()?;
    let leader = Pid::from_raw(noted.trim().parse().ok()?)?;
    let works_in = fs::read_link(format!("/proc/{}/cwd", leader.as_raw_nonzero())).ok()?;
    let job = fs::canonicalize(job).ok()?;
    works_in.starts_with(job).then_some(leader)
}

/// A job's directory, removed when dropped.
#[derive(Debug)]
pub(crate) struct JobDir {
    path: PathBuf,
}

impl JobDir {
    /// Where the template lies and the tool works.
    pub(crate) fn template(&self) -> PathBuf {
        self.path.join("template")
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A file beside the template.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for JobDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove a work directory");
        }
    }
}

#[cfg(test)]
mod tests;
