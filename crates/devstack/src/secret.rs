//! Passwords of private servers: made once, kept in a file beside the data.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

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
    let temporary = path.with_extension("new");
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
