//! The user that Postgres runs as when we are root, which it refuses to be.

use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::DevstackError;
use crate::error::file;

/// A user of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// Its user id.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
}

impl Account {
    /// Whom Postgres has to run as: `None`, ourselves, unless we are root; then `postgres` or,
    /// where there is none, `nobody`.
    pub fn for_postgres() -> Result<Option<Self>, DevstackError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let path = Path::new("/etc/passwd");
        let users = std::fs::read_to_string(path).map_err(file("read", path))?;
        ["postgres", "nobody"]
            .iter()
            .find_map(|name| find(&users, name))
            .map(Some)
            .ok_or(DevstackError::NoAccount)
    }

    /// Whether this user can read and enter a folder, its parents included.
    pub(crate) fn can_enter(&self, folder: &Path) -> bool {
        use std::os::unix::process::CommandExt;
        // Asked of the system rather than worked out: groups and ACLs have their say, too.
        Command::new("/bin/sh")
            .args(["-c", r#"test -r "$1" && test -x "$1""#, "sh"])
            .arg(folder)
            .current_dir("/")
            .uid(self.uid)
            .gid(self.gid)
            .stdin(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }

    /// Gives a file or folder to this user.
    pub(crate) fn own(&self, path: &Path) -> Result<(), DevstackError> {
        chown(path, Some(self.uid), Some(self.gid)).map_err(file("change the owner of", path))
    }
}

/// The line of `/etc/passwd` for `name`.
fn find(users: &str, name: &str) -> Option<Account> {
    let mut fields = users
        .lines()
        .map(|line| line.split(':'))
        .find_map(|mut fields| (fields.next() == Some(name)).then_some(fields))?;
    let (_password, uid, gid) = (fields.next()?, fields.next()?, fields.next()?);
    Some(Account { name: name.to_owned(), uid: uid.parse().ok()?, gid: gid.parse().ok()? })
}

#[cfg(test)]
mod tests;
