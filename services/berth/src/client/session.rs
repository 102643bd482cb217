//! The stored session: where the deployment is and the token, in a file that only its user reads.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use serde::{Deserialize, Serialize};

/// Who is logged in where.
#[derive(Serialize, Deserialize)]
pub(crate) struct Session {
    pub(crate) url: String,
    pub(crate) token: String,
}

fn path() -> anyhow::Result<PathBuf> {
    let config = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")));
    let config = config
        .ok_or_else(|| anyhow!("neither HOME nor XDG_CONFIG_HOME is set: set one of them"))?;
    Ok(config.join("berth/session.json"))
}

/// The stored session, if there is one.
pub(crate) fn load() -> anyhow::Result<Option<Session>> {
    let path = path()?;
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .with_context(|| format!("{} is damaged: run `berth login URL`", path.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Stores a session in place of the last one.
pub(crate) fn save(session: &Session) -> anyhow::Result<()> {
    let path = path()?;
    write_private(&path, &serde_json::to_vec_pretty(session)?)
}

/// Forgets the session if it belongs to `url`.
pub(crate) fn forget(url: &str) -> anyhow::Result<()> {
    if load()?.is_some_and(|it| it.url == url) {
        fs::remove_file(path()?)?;
    }
    Ok(())
}

/// Writes a file with mode 0600, whole or not at all.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", path.display());
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(failed)?;
    }
    let part = path.with_extension("part");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&part)
        .with_context(failed)?;
    file.write_all(content).and_then(|()| file.sync_all()).with_context(failed)?;
    fs::rename(&part, path).with_context(failed)
}
