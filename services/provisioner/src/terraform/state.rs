//! The state that apply wrote, found wherever Terraform could put it.
//!
//! Terraform rewrites its state file in place. Killed while it does, or with the disk full, it
//! leaves half a file; with the disk full it tries `errored.tfstate` and then prints the state. The
//! whole one with the highest serial is the newest.

use std::io;
use std::path::Path;

use serde::Deserialize;

/// Where Terraform keeps a local state, in the template's directory.
pub(super) const STATE_FILE: &str = "terraform.tfstate";
/// Where it puts the state when it cannot write that file.
const ERRORED: &str = "errored.tfstate";

/// What can be said of the state after apply.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// Apply wrote none.
    Nothing,
    /// The newest whole state.
    State(Vec<u8>),
    /// There is something, and it cannot be read.
    Damaged(String),
}

/// Reads what apply wrote in `template`; `printed` is the state that it printed for want of space.
pub(super) async fn written(template: &Path, printed: Option<Vec<u8>>) -> Written {
    let mut newest: Option<(u64, Vec<u8>)> = None;
    let mut damage = None;
    let main = read(&template.join(STATE_FILE)).await;
    let errored = read(&template.join(ERRORED)).await;
    for found in [main, errored, printed.map(Ok)].into_iter().flatten() {
        match found.and_then(|state| Ok((serial_of(&state)?, state))) {
            // Of two with one serial the later one: the state file may be of before apply.
            Ok((serial, state)) if newest.as_ref().is_none_or(|(best, _)| serial >= *best) => {
                newest = Some((serial, state));
            }
            Ok(_) => {}
            Err(error) => damage = Some(error),
        }
    }
    match (newest, damage) {
        (Some((_, state)), _) => Written::State(state),
        (None, Some(error)) => Written::Damaged(error.to_string()),
        (None, None) => Written::Nothing,
    }
}

async fn read(path: &Path) -> Option<io::Result<Vec<u8>>> {
    match tokio::fs::read(path).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        read => Some(read),
    }
}

#[derive(Deserialize)]
struct Serial {
    serial: u64,
}

/// The serial of a whole state.
fn serial_of(state: &[u8]) -> io::Result<u64> {
    let Serial { serial } = serde_json::from_slice(state)?;
    Ok(serial)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(serial: u64) -> Vec<u8> {
        format!("{{\"version\": 4, \"serial\": {serial}}}").into_bytes()
    }

    #[tokio::test]
    async fn half_a_state_file_never_counts_and_the_newest_whole_one_does() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(written(dir.path(), None).await, Written::Nothing);
        let main = dir.path().join(STATE_FILE);
        std::fs::write(&main, &state(3)[..9]).unwrap();
        assert!(matches!(written(dir.path(), None).await, Written::Damaged(_)));
        assert_eq!(written(dir.path(), Some(state(5))).await, Written::State(state(5)));
        std::fs::write(dir.path().join(ERRORED), "").unwrap();
        assert_eq!(written(dir.path(), Some(state(5))).await, Written::State(state(5)));
        std::fs::write(dir.path().join(ERRORED), state(6)).unwrap();
        std::fs::write(&main, state(2)).unwrap();
        assert_eq!(written(dir.path(), None).await, Written::State(state(6)));
    }
}
