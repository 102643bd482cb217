//! Reads a template's archive: tar, plain or compressed with zstd or gzip.
//!
//! The archive comes from whoever may push templates, so nothing in it is believed: sizes are
//! counted while reading, names and links may not lead out of the directory, and what is neither a
//! file, a directory nor a link is refused.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use tar::EntryType;

/// What an archive may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes of the archive itself.
    pub(crate) packed: u64,
    /// Bytes of all its files.
    pub(crate) unpacked: u64,
    /// Files, directories and links.
    pub(crate) entries: u64,
}

impl Limits {
    /// The limits of the product.
    pub(crate) const TEMPLATE: Self =
        Self { packed: 100 * 1024 * 1024, unpacked: 500 * 1024 * 1024, entries: 20_000 };
}

/// Longest name or link target, in bytes; the header that carries it is read into memory.
const MAX_NAME: u64 = 4096;
/// Longest block of extended headers, in bytes.
const MAX_EXTENSION: u64 = 64 * 1024;
/// What each entry may cost beside its content: its header, padding and extended headers.
const OVERHEAD: u64 = 4096;

/// Why an archive was refused. Each message names the entry.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    #[error("the archive has {size} bytes; at most {limit} are accepted")]
    Packed { size: u64, limit: u64 },
    #[error("the archive unpacks to more than {limit} bytes (at entry {entry:?})")]
    Unpacked { entry: String, limit: u64 },
    #[error("the archive has more than {limit} entries (at entry {entry:?})")]
    Entries { entry: String, limit: u64 },
    #[error("archive entry {0:?} has an absolute path; paths must be relative to the template")]
    Absolute(String),
    #[error("archive entry {0:?} leaves the template's directory with `..`")]
    Parent(String),
    #[error("archive entry {entry:?} links to {target:?}, which leaves the template's directory")]
    LinkOut { entry: String, target: String },
    #[error("archive entry {entry:?} is a hard link to {target:?}, which is no file before it")]
    HardLink { entry: String, target: String },
    #[error("archive entry {entry:?} lies behind the link {link:?}; files go into directories")]
    BehindLink { entry: String, link: String },
    #[error("archive entry {entry:?} is a {kind}; only files, directories and links are accepted")]
    Special { entry: String, kind: &'static str },
    #[error("archive entry {0:?} takes the place of a directory")]
    OverDirectory(String),
    #[error("archive entry {entry:?} is malformed: {reason}")]
    Malformed { entry: String, reason: String },
    #[error("the archive cannot be read as tar, tar.zst or tar.gz (after {entries} entries)")]
    Unreadable { entries: u64, source: io::Error },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl ArchiveError {
    /// Whether the fault lies with this machine and not with the archive.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self, Self::Write { .. })
    }
}

/// Unpacks the archive at `archive` into the existing, empty directory `into`.
pub(crate) fn extract(archive: &Path, into: &Path, limits: Limits) -> Result<(), ArchiveError> {
    let unreadable = |source| ArchiveError::Unreadable { entries: 0, source };
    let mut file = File::open(archive).map_err(unreadable)?;
    let size = file.metadata().map_err(unreadable)?.len();
    if size > limits.packed {
        return Err(ArchiveError::Packed { size, limit: limits.packed });
    }
    let mut magic = [0; 4];
    let known = read_up_to(&mut file, &mut magic).map_err(unreadable)?;
    let whole = io::Cursor::new(magic).take(known).chain(file);
    match magic {
        [0x1f, 0x8b, ..] => unpack(flate2::read::MultiGzDecoder::new(whole), into, limits),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            unpack(zstd::stream::read::Decoder::new(whole).map_err(unreadable)?, into, limits)
        }
        _ => unpack(whole, into, limits),
    }
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<u64> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read(&mut buffer[read..])? {
            0 => break,
            count => read += count,
        }
    }
    Ok(read as u64)
}

/// What headers before an entry say of it.
#[derive(Default)]
struct Ahead {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

fn unpack(reader: impl Read, into: &Path, limits: Limits) -> Result<(), ArchiveError> {
    // A second bound under the counted one: a decompressor must not be made to run for ever on
    // what is never counted, such as padding.
    let ceiling = limits.unpacked.saturating_add(limits.entries.saturating_mul(OVERHEAD));
    let mut archive = tar::Archive::new(reader.take(ceiling));
    let (mut count, mut bytes, mut ahead) = (0, 0, Ahead::default());
    let unreadable = |entries, source| ArchiveError::Unreadable { entries, source };
    let entries = archive.entries().map_err(|error| unreadable(0, error))?.raw(true);
    for entry in entries {
        let mut entry = entry.map_err(|error| unreadable(count, error))?;
        if extends(&mut entry, &mut ahead, count)? {
            continue;
        }
        let place = Place::of(&entry, std::mem::take(&mut ahead))?;
        count += 1;
        if count > limits.entries {
            return Err(ArchiveError::Entries { entry: place.name, limit: limits.entries });
        }
        bytes += entry.size();
        if bytes > limits.unpacked {
            return Err(ArchiveError::Unpacked { entry: place.name, limit: limits.unpacked });
        }
        place.write(&mut entry, into)?;
    }
    Ok(())
}

/// Takes in a header that belongs to the next entry; `false` when this is an entry itself.
fn extends(
    entry: &mut tar::Entry<'_, impl Read>,
    ahead: &mut Ahead,
    count: u64,
) -> Result<bool, ArchiveError> {
    let kind = entry.header().entry_type();
    let limit = match kind {
        EntryType::GNULongName | EntryType::GNULongLink => MAX_NAME,
        EntryType::XHeader | EntryType::XGlobalHeader => MAX_EXTENSION,
        _ => return Ok(false),
    };
    let malformed = |reason: &str| ArchiveError::Malformed {
        entry: format!("extended header before entry {}", count + 1),
        reason: reason.to_owned(),
    };
    if entry.size() > limit {
        return Err(malformed(&format!("it has {} bytes, at most {limit}", entry.size())));
    }
    let mut data = Vec::new();
    entry
        .read_to_end(&mut data)
        .map_err(|source| ArchiveError::Unreadable { entries: count, source })?;
    match kind {
        EntryType::GNULongName => ahead.name = Some(until_nul(data)),
        EntryType::GNULongLink => ahead.link = Some(until_nul(data)),
        EntryType::XHeader => {
            for extension in tar::PaxExtensions::new(&data) {
                let extension = extension.map_err(|error| malformed(&error.to_string()))?;
                match extension.key() {
                    Ok("path") => ahead.name = Some(extension.value_bytes().to_vec()),
                    Ok("linkpath") => ahead.link = Some(extension.value_bytes().to_vec()),
                    // It would say that the entry is longer than its header does.
                    Ok("size") => return Err(malformed("it overrides the entry's size")),
                    _ => {}
                }
            }
        }
        // A global header says nothing that we use.
        _ => {}
    }
    Ok(true)
}

fn until_nul(mut data: Vec<u8>) -> Vec<u8> {
    let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    data.truncate(end);
    data
}

/// Where an entry goes and what it is.
struct Place {
    /// As the archive has it.
    name: String,
    /// Below the template's directory; empty for the directory itself.
    path: PathBuf,
    kind: Kind,
}

enum Kind {
    Directory,
    File {
        executable: bool,
    },
    /// Its target as the archive has it, proven to stay inside.
    Symlink(String),
    /// Its target below the template's directory.
    HardLink {
        target: String,
        path: PathBuf,
    },
}

impl Place {
    fn of(entry: &tar::Entry<'_, impl Read>, ahead: Ahead) -> Result<Self, ArchiveError> {
        let header = entry.header();
        let raw = ahead.name.unwrap_or_else(|| header.path_bytes().into_owned());
        let name = text(&raw)?;
        let path = inside(&name)?;
        let target = || {
            let link = ahead.link.or_else(|| header.link_name_bytes().map(Into::into));
            text(&link.unwrap_or_default())
        };
        let special = |kind| Err(ArchiveError::Special { entry: name.clone(), kind });
        let kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous if name.ends_with('/') => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => {
                Kind::File { executable: header.mode().unwrap_or(0) & 0o100 != 0 }
            }
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink(stays_inside(&name, &path, target()?)?),
            EntryType::Link => {
                let target = target()?;
                let out = || ArchiveError::LinkOut { entry: name.clone(), target: target.clone() };
                let path = inside(&target).map_err(|_| out())?;
                Kind::HardLink { target, path }
            }
            EntryType::Char => return special("character device"),
            EntryType::Block => return special("block device"),
            EntryType::Fifo => return special("named pipe"),
            EntryType::GNUSparse => return special("sparse file"),
            _ => return special("special entry"),
        };
        Ok(Self { name, path, kind })
    }

    fn write(
        self,
        content: &mut tar::Entry<'_, impl Read>,
        into: &Path,
    ) -> Result<(), ArchiveError> {
        if self.path.as_os_str().is_empty() {
            return match self.kind {
                Kind::Directory => Ok(()),
                _ => Err(ArchiveError::OverDirectory(self.name)),
            };
        }
        let at = into.join(&self.path);
        ensure_parents(into, &self.path, &self.name)?;
        let wrong = |source| ArchiveError::Write { path: at.clone(), source };
        match &self.kind {
            Kind::Directory => return ensure_directory(&at, &self),
            _ => make_way(&at, &self.name)?,
        }
        match self.kind {
            Kind::Directory => {}
            Kind::File { executable } => {
                let mode = if executable { 0o755 } else { 0o644 };
                let mut file = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(mode)
                    .open(&at)
                    .map_err(wrong)?;
                copy(content, &mut file, &at, &self.name)?;
            }
            Kind::Symlink(target) => symlink(target, &at).map_err(wrong)?,
            Kind::HardLink { target, path } => {
                let refused = || ArchiveError::HardLink { entry: self.name.clone(), target };
                // Neither may the way to it go through a link, nor may it be one.
                if ensure_parents(into, &path, &self.name).is_err()
                    || !fs::symlink_metadata(into.join(&path)).is_ok_and(|it| it.is_file())
                {
                    return Err(refused());
                }
                fs::hard_link(into.join(&path), &at).map_err(wrong)?;
            }
        }
        Ok(())
    }
}

/// Copies a file's content, telling a broken archive from a full disk.
fn copy(
    content: &mut tar::Entry<'_, impl Read>,
    file: &mut File,
    at: &Path,
    name: &str,
) -> Result<(), ArchiveError> {
    let malformed = |reason| ArchiveError::Malformed { entry: name.to_owned(), reason };
    let mut buffer = [0; 16 * 1024];
    let mut missing = content.size();
    loop {
        let read = match content.read(&mut buffer) {
            Ok(0) if missing > 0 => {
                return Err(malformed(format!("its last {missing} bytes are missing")));
            }
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(malformed(error.to_string())),
        };
        missing = missing.saturating_sub(read as u64);
        io::Write::write_all(file, &buffer[..read])
            .map_err(|source| ArchiveError::Write { path: at.to_owned(), source })?;
    }
}

fn text(raw: &[u8]) -> Result<String, ArchiveError> {
    let malformed = |reason: String| ArchiveError::Malformed {
        entry: String::from_utf8_lossy(&raw[..raw.len().min(256)]).into_owned(),
        reason,
    };
    if raw.len() as u64 > MAX_NAME {
        return Err(malformed(format!("a name of {} bytes, at most {MAX_NAME}", raw.len())));
    }
    if raw.is_empty() || raw.contains(&0) {
        return Err(malformed("a name is empty or holds a zero byte".to_owned()));
    }
    let text = std::str::from_utf8(raw).map_err(|_| malformed("a name is not UTF-8".to_owned()))?;
    Ok(text.to_owned())
}

/// The relative path that `name` means; `.` parts vanish.
fn inside(name: &str) -> Result<PathBuf, ArchiveError> {
    let mut path = PathBuf::new();
    for component in Path::new(name).components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir => return Err(ArchiveError::Parent(name.to_owned())),
            Component::RootDir | Component::Prefix(_) => {
                return Err(ArchiveError::Absolute(name.to_owned()));
            }
        }
    }
    Ok(path)
}

/// Whether a symbolic link at `path` to `target` stays inside, whatever other links there are.
///
/// `..` may only lead: a `..` after a name is resolved from where that name leads to, which is
/// elsewhere when it is a link itself. Since an entry's own parents are never links, leading ones
/// climb real directories and can be counted.
pub(crate) fn is_inside(path: &Path, target: &str) -> bool {
    let mut depth = path.components().count().saturating_sub(1);
    let mut descending = false;
    for component in Path::new(target).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(_) => descending = true,
            Component::ParentDir if descending || depth == 0 => return false,
            Component::ParentDir => depth -= 1,
            Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    true
}

fn stays_inside(name: &str, path: &Path, target: String) -> Result<String, ArchiveError> {
    if is_inside(path, &target) {
        return Ok(target);
    }
    Err(ArchiveError::LinkOut { entry: name.to_owned(), target })
}

/// Creates the directories above `path`, none of which may be a link.
fn ensure_parents(into: &Path, path: &Path, name: &str) -> Result<(), ArchiveError> {
    let mut at = into.to_owned();
    let parents = path.parent().into_iter().flat_map(Path::components);
    for component in parents {
        at.push(component);
        match fs::symlink_metadata(&at) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => {
                let link = at.strip_prefix(into).unwrap_or(&at).display().to_string();
                return Err(ArchiveError::BehindLink { entry: name.to_owned(), link });
            }
            Err(_) => fs::create_dir(&at)
                .map_err(|source| ArchiveError::Write { path: at.clone(), source })?,
        }
    }
    Ok(())
}

fn ensure_directory(at: &Path, place: &Place) -> Result<(), ArchiveError> {
    match fs::symlink_metadata(at) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => {
            let link = place.path.display().to_string();
            Err(ArchiveError::BehindLink { entry: place.name.clone(), link })
        }
        Err(_) => {
            fs::create_dir(at).map_err(|source| ArchiveError::Write { path: at.to_owned(), source })
        }
    }
}

/// An archive may hold a file twice; the later one counts, as tar itself has it.
fn make_way(at: &Path, name: &str) -> Result<(), ArchiveError> {
    match fs::symlink_metadata(at) {
        Ok(found) if found.is_dir() => Err(ArchiveError::OverDirectory(name.to_owned())),
        Ok(_) => fs::remove_file(at)
            .map_err(|source| ArchiveError::Write { path: at.to_owned(), source }),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
