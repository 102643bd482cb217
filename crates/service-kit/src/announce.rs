//! Tells whoever started this process which ports it got.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value};

/// What this process announced so far, and the file it is written to.
#[derive(Debug, Clone)]
pub(crate) struct Announcement {
    file: Option<PathBuf>,
    facts: Arc<Mutex<Map<String, Value>>>,
}

/// The announce file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the announce file {}", path.display())]
pub struct AnnounceError {
    /// The file.
    path: PathBuf,
    /// What the system said.
    source: io::Error,
}

impl Announcement {
    /// An announcement to `file`; to the log alone when there is none.
    pub(crate) fn new(service: &str, file: Option<PathBuf>) -> Self {
        let facts = [("service", Value::from(service)), ("pid", std::process::id().into())];
        let facts = facts.map(|(key, value)| (key.to_owned(), value)).into_iter().collect();
        Self { file, facts: Arc::new(Mutex::new(facts)) }
    }

    /// Adds one fact and rewrites the file, so that a reader sees either all of the old facts or
    /// all of the new ones.
    pub(crate) fn tell(&self, key: &str, value: &str) -> Result<(), AnnounceError> {
        tracing::info!(%key, %value, "announce");
        let mut facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        facts.insert(key.to_owned(), value.into());
        let Some(path) = &self.file else { return Ok(()) };
        // Written under the lock: two announcements at once must not race for the temporary file.
        write_atomically(path, Value::Object(facts.clone()).to_string().as_bytes())
            .map_err(|source| AnnounceError { path: path.clone(), source })
    }
}

fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(name);
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    drop(file);
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests;
