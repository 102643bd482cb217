//! What Terraform made of a template in `init`, kept from one build of a workspace to the next: its
//! folder of providers and modules, and its lock file. An experiment, and the template must want it.
//!
//! What is kept is moved into a job's own directory and moved back after it: two jobs of one
//! workspace, should there ever be two, never share it, and a crash loses it, which costs time and
//! nothing else. States are no part of it: they come with the job.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::workdir::create_private;

/// What is kept, by its name in the template's directory.
const PARTS: [&str; 2] = [".terraform", ".terraform.lock.hcl"];
/// Says which template the rest is of.
const KEY: &str = "template";
/// Workspaces of which something is kept; then the one that was built longest ago goes.
const WORKSPACES: usize = 64;
/// Most bytes of one workspace. Providers are links into the cache and count nothing.
const BYTES: u64 = 64 * 1024 * 1024;

/// Where it is kept: one folder a workspace.
#[derive(Debug)]
pub(crate) struct Kept(PathBuf);

impl Kept {
    /// Keeps in `folder`.
    pub(crate) fn open(folder: PathBuf) -> anyhow::Result<Self> {
        create_private(&folder)?;
        Ok(Self(folder))
    }

    /// Moves what was kept of the workspace into `template`, if it is of the same template. It is
    /// gone from here either way. `false`: there was nothing.
    pub(crate) fn take(&self, workspace: &str, key: &str, template: &Path) -> bool {
        let Some(from) = self.folder(workspace) else { return false };
        let same = fs::read_to_string(from.join(KEY)).is_ok_and(|kept| kept == key);
        let taken = same
            && PARTS.iter().all(|part| {
                let (from, to) = (from.join(part), template.join(part));
                // A lock file of the template's own is as good, and without providers there is none.
                to.exists() || !from.exists() || fs::rename(from, to).is_ok()
            });
        let _ = fs::remove_dir_all(&from);
        taken
    }

    /// Moves out of `template` what the workspace's next build can use.
    pub(crate) fn keep(&self, workspace: &str, key: &str, template: &Path) -> io::Result<()> {
        let Some(to) = self.folder(workspace) else { return Ok(()) };
        let folder = template.join(PARTS[0]);
        if !folder.is_dir() {
            // Terraform's own resources need no provider and no module.
            return Ok(());
        }
        if size(&folder, BYTES)? > BYTES {
            tracing::info!(workspace.id = workspace, "more than is kept of a workspace");
            return Ok(());
        }
        let _ = fs::remove_dir_all(&to);
        fs::create_dir(&to)?;
        for part in PARTS {
            match fs::rename(template.join(part), to.join(part)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        // Last: without it nothing of the folder is used.
        fs::write(to.join(KEY), key)?;
        self.make_room()
    }

    /// Forgets a workspace that is no more.
    pub(crate) fn forget(&self, workspace: &str) {
        if let Some(folder) = self.folder(workspace) {
            let _ = fs::remove_dir_all(folder);
        }
    }

    /// Where a workspace has its part; `None` when the id is no name.
    fn folder(&self, workspace: &str) -> Option<PathBuf> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (!workspace.is_empty() && workspace.bytes().all(fits)).then(|| self.0.join(workspace))
    }

    fn make_room(&self) -> io::Result<()> {
        let mut folders = fs::read_dir(&self.0)?
            .map(|entry| {
                let entry = entry?;
                let at = entry.metadata()?.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                Ok((at, entry.path()))
            })
            .collect::<io::Result<Vec<_>>>()?;
        folders.sort();
        let surplus = folders.len().saturating_sub(WORKSPACES);
        for (_, folder) in folders.into_iter().take(surplus) {
            fs::remove_dir_all(folder)?;
        }
        Ok(())
    }
}

/// Bytes of the files below `path`, counted no further than past `enough`; links count nothing.
fn size(path: &Path, enough: u64) -> io::Result<u64> {
    let mut total = 0;
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                total += entry.metadata()?.len();
            }
            if total > enough {
                return Ok(total);
            }
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(dir: &Path, name: &str) -> PathBuf {
        let template = dir.join(name);
        fs::create_dir_all(template.join(".terraform/modules")).unwrap();
        fs::write(template.join(".terraform.lock.hcl"), name).unwrap();
        template
    }

    #[test]
    fn what_is_kept_is_had_once_and_by_the_same_template_only() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(dir.path().join("kept")).unwrap();
        let first = template(dir.path(), "first");
        let next = dir.path().join("next");
        fs::create_dir(&next).unwrap();
        kept.keep("w-1", "k", &first).unwrap();
        assert!(!kept.take("w-2", "k", &next) && !kept.take("../w-1", "k", &next));
        assert!(kept.take("w-1", "k", &next));
        assert_eq!(fs::read_to_string(next.join(".terraform.lock.hcl")).unwrap(), "first");
        assert!(next.join(".terraform/modules").is_dir());
        assert!(!kept.take("w-1", "k", &dir.path().join("first")), "it was had twice");
        kept.keep("w-1", "k", &next).unwrap();
        assert!(!kept.take("w-1", "another", &next));
        assert!(!next.join(".terraform").exists());
    }

    #[test]
    fn of_too_many_workspaces_the_oldest_goes_and_of_a_large_one_nothing_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(dir.path().join("kept")).unwrap();
        for index in 0..=WORKSPACES {
            let template = template(dir.path(), "t");
            kept.keep(&format!("w{index}"), "k", &template).unwrap();
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(index as u64);
            let folder = fs::File::open(dir.path().join(format!("kept/w{index}"))).unwrap();
            folder.set_modified(at).unwrap();
        }
        assert_eq!(fs::read_dir(dir.path().join("kept")).unwrap().count(), WORKSPACES);
        assert!(!dir.path().join("kept/w0").exists());
        let large = template(dir.path(), "large");
        let file = fs::File::create(large.join(".terraform/modules/x")).unwrap();
        file.set_len(BYTES + 1).unwrap();
        kept.keep("large", "k", &large).unwrap();
        assert!(!dir.path().join("kept/large").exists());
    }
}
