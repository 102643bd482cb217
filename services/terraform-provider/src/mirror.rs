//! A filesystem mirror that leads Terraform and OpenTofu to this binary.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::{VERSION, platform};

/// The registries that templates mean by `coder/coder`, for Terraform and for OpenTofu.
const REGISTRIES: [&str; 2] = ["registry.terraform.io", "registry.opentofu.org"];

/// Writes a filesystem mirror into `dir` that holds the provider `coder/coder` for this machine:
/// a script that runs `<berth> terraform-provider`. Existing files are replaced at once, so a
/// Terraform that starts meanwhile finds the old one or the new one.
///
/// `dir` is for `provider_installation { filesystem_mirror { path = … } }`. `berth` should be
/// absolute, since Terraform runs elsewhere.
///
/// Fails when `dir` cannot be written to, or when `berth` is not UTF-8.
pub fn mirror(dir: &Path, berth: &Path) -> io::Result<()> {
    let berth = berth.to_str().ok_or_else(|| {
        let why = format!("{} is not UTF-8, so no script can name it", berth.display());
        io::Error::new(io::ErrorKind::InvalidInput, why)
    })?;
    let script = format!("#!/bin/sh\nexec {} terraform-provider\n", quoted(berth));
    let platform = format!("{}_{}", platform::os(), platform::arch());
    for registry in REGISTRIES {
        let dir = dir.join(registry).join("coder/coder").join(VERSION).join(&platform);
        fs::create_dir_all(&dir)?;
        let mut file = tempfile::NamedTempFile::new_in(&dir)?;
        file.write_all(script.as_bytes())?;
        file.as_file().set_permissions(fs::Permissions::from_mode(0o755))?;
        file.as_file().sync_all()?;
        file.persist(dir.join(format!("terraform-provider-coder_v{VERSION}")))?;
    }
    Ok(())
}

/// Quotes a word for a POSIX shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests;
