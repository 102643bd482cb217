//! Passwords of private servers: made once, kept in a file beside the data.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::DevstackError;
use crate::error::file;

/// Bytes of randomness in a password.
const BYTES: usize = 24;

/// A new password of 48 hexadecimal digits from the system's generator.
pub(crate) fn generate() -> Result<String, DevstackError> {
    let mut bytes = [0_u8; BYTES];
    let source = Path::new("/dev/urandom");
    File::open(source)
        .and_then(|mut device| device.read_exact(&mut bytes))
        .map_err(file("read", source))?;
    Ok(hex::encode(bytes))
}

/// Writes a secret to a file that only its owner can read. Replaces the file as a whole.
pub(crate) fn write(path: &Path, secret: &str) -> Result<(), DevstackError> {
    let temporary = beside(path, ".new");
    let _ = std::fs::remove_file(&temporary);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut new| new.write_all(secret.as_bytes()))
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(file("write", path))
}

/// The path whose name has `suffix` at its end: what belongs to a data folder lies beside it.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}
