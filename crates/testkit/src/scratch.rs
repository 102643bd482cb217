//! Where the servers of a test process keep their data.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// More test processes than this at once on one machine is a mistake.
const SLOTS: usize = 16;

/// A folder that this test process alone uses, as long as it lives. Folders are few and used
/// again: a process that was killed leaves nothing that the next one does not reuse.
pub(crate) struct Slot {
    pub(crate) dir: PathBuf,
    /// Locked as long as it is open.
    _lock: File,
}

impl Slot {
    pub(crate) fn take() -> Self {
        let user = fs::metadata("/proc/self").map(|it| it.uid()).unwrap_or_default();
        let root = std::env::temp_dir().join(format!("berth-testkit-{user}"));
        let all = fs::create_dir_all(&root)
            .and_then(|()| fs::set_permissions(&root, fs::Permissions::from_mode(0o755)));
        all.unwrap_or_else(|error| panic!("cannot use {}: {error}", root.display()));
        (0..SLOTS)
            .find_map(|number| Self::lock(&root.join(number.to_string())))
            .unwrap_or_else(|| panic!("all {SLOTS} folders in {} are in use", root.display()))
    }

    fn lock(dir: &Path) -> Option<Self> {
        fs::create_dir_all(dir).ok()?;
        // Postgres may run as another user.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).ok()?;
        let path = dir.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(path).ok()?;
        lock.try_lock().ok()?;
        Some(Self { dir: dir.to_owned(), _lock: lock })
    }
}
