//! The modules that a template fetched: packed at import, put back in every later build, so that
//! builds need no registry and run with the very modules that were imported.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::archive::{self, ArchiveError, Limits};

/// Where Terraform keeps modules, in the template's directory.
const FOLDER: &str = ".terraform/modules";
/// How hard to compress: modules are text, and are packed once for many builds.
const LEVEL: i32 = 6;

/// Packs the modules of `template` into the file `to`. `false` when it fetched none: modules that are
/// part of the template are there anyway. The same modules give the same bytes.
pub(crate) fn pack(template: &Path, to: &Path) -> io::Result<bool> {
    let folder = template.join(FOLDER);
    let fetched = match fs::read_dir(&folder) {
        Ok(mut entries) => entries.any(|it| it.is_ok_and(|it| it.path().is_dir())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    if !fetched {
        return Ok(false);
    }
    let file = io::BufWriter::new(fs::File::create(to)?);
    let builder = tar::Builder::new(zstd::Encoder::new(file, LEVEL)?);
    let mut packer = Packer { builder, entries: 0, bytes: 0 };
    packer.folder(&folder, Path::new(""))?;
    io::Write::flush(&mut packer.builder.into_inner()?.finish()?)?;
    Ok(true)
}

/// An archive in the making, which may hold what [`restore`] takes.
struct Packer<W: io::Write> {
    builder: tar::Builder<W>,
    entries: u64,
    bytes: u64,
}

impl<W: io::Write> Packer<W> {
    /// Appends what is in `folder`, by name. What is no file, directory or link has no business
    /// there.
    fn folder(&mut self, folder: &Path, within: &Path) -> io::Result<()> {
        let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (path, name) = (entry.path(), within.join(entry.file_name()));
            // A module of this machine is linked to from the top; what it is has to travel.
            let top = within.as_os_str().is_empty();
            let kind = if top { fs::metadata(&path)?.file_type() } else { entry.file_type()? };
            if kind.is_dir() {
                // The history of a module that came by git is many times its size.
                if entry.file_name() != ".git" {
                    self.count(0)?;
                    let mut header = header(tar::EntryType::Directory, 0);
                    self.builder.append_data(&mut header, &name, io::empty())?;
                    self.folder(&path, &name)?;
                }
            } else if kind.is_symlink() {
                self.link(&name, &fs::read_link(&path)?)?;
            } else if kind.is_file() {
                self.file(&name, &path)?;
            }
        }
        Ok(())
    }

    /// Appends a link, unless it leads out: then it means nothing elsewhere.
    fn link(&mut self, name: &Path, target: &Path) -> io::Result<()> {
        let Some(target) = target.to_str().filter(|it| archive::is_inside(name, it)) else {
            return Ok(());
        };
        self.count(0)?;
        let mut header = header(tar::EntryType::Symlink, 0);
        self.builder.append_link(&mut header, name, target)
    }

    fn file(&mut self, name: &Path, path: &Path) -> io::Result<()> {
        let file = fs::File::open(path)?;
        let size = file.metadata()?.len();
        self.count(size)?;
        // It may grow meanwhile; the header has been decided.
        let content = io::Read::take(file, size);
        self.builder.append_data(&mut header(tar::EntryType::Regular, size), name, content)
    }

    fn count(&mut self, bytes: u64) -> io::Result<()> {
        let limits = Limits::TEMPLATE;
        self.entries += 1;
        self.bytes += bytes;
        if self.entries > limits.entries || self.bytes > limits.unpacked {
            let Limits { entries, unpacked, .. } = limits;
            let text = format!("they are more than {entries} files or {unpacked} bytes");
            return Err(io::Error::other(text));
        }
        Ok(())
    }
}

/// The same whenever and wherever the modules were fetched.
fn header(kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mtime(0);
    header.set_mode(0o755);
    header.set_size(size);
    header
}

/// Why modules could not be put back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestoreError {
    #[error("cannot create {}", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("the stored modules cannot be used")]
    Archive(#[from] ArchiveError),
}

/// Puts packed modules back into `template`, which has none.
pub(crate) fn restore(packed: &Path, template: &Path) -> Result<(), RestoreError> {
    let folder = template.join(FOLDER);
    fs::create_dir_all(&folder)
        .map_err(|source| RestoreError::Create { path: folder.clone(), source })?;
    Ok(archive::extract(packed, &folder, Limits::TEMPLATE)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let module = dir.path().join(FOLDER).join("m/inner");
        fs::create_dir_all(&module).unwrap();
        fs::create_dir(dir.path().join(FOLDER).join("m/.git")).unwrap();
        fs::write(module.join("main.tf"), "# inner").unwrap();
        fs::write(dir.path().join(FOLDER).join("modules.json"), "{}").unwrap();
        for (name, target) in [("link", "inner"), ("out", "../../../.."), ("abs", "/etc")] {
            std::os::unix::fs::symlink(target, dir.path().join(FOLDER).join("m").join(name))
                .unwrap();
        }
        dir
    }

    #[test]
    fn modules_travel_whole_but_for_their_history_and_always_as_the_same_bytes() {
        let (from, to) = (template(), tempfile::tempdir().unwrap());
        let (file, again) = (to.path().join("packed"), to.path().join("again"));
        assert!(pack(from.path(), &file).unwrap() && pack(template().path(), &again).unwrap());
        assert_eq!(fs::read(&file).unwrap(), fs::read(&again).unwrap());
        restore(&file, to.path()).unwrap();
        let module = to.path().join(FOLDER).join("m");
        assert_eq!(fs::read_to_string(module.join("link/main.tf")).unwrap(), "# inner");
        for gone in [".git", "out", "abs"] {
            assert!(fs::symlink_metadata(module.join(gone)).is_err(), "{gone}");
        }
    }

    #[test]
    fn a_template_that_fetched_nothing_has_nothing_to_pack() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!pack(dir.path(), &dir.path().join("packed")).unwrap());
        fs::create_dir_all(dir.path().join(FOLDER)).unwrap();
        fs::write(dir.path().join(FOLDER).join("modules.json"), "{}").unwrap();
        assert!(!pack(dir.path(), &dir.path().join("packed")).unwrap());
    }
}
