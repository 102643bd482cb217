//! Template archives.

use std::path::Path;

/// A tar archive under construction, plain. Unlike a well-behaved archiver it takes any name.
pub struct Archive {
    tar: tar::Builder<Vec<u8>>,
}

/// The two kinds of link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// A symbolic link.
    Symbolic,
    /// A hard link.
    Hard,
}

impl Default for Archive {
    fn default() -> Self {
        Self { tar: tar::Builder::new(Vec::new()) }
    }
}

impl Archive {
    /// The files of a directory, by their names in it.
    #[must_use]
    pub fn of_dir(dir: &Path) -> Vec<u8> {
        let mut all = Self::default();
        let packed = all.tar.append_dir_all(".", dir);
        packed.unwrap_or_else(|error| panic!("cannot pack {}: {error}", dir.display()));
        all.bytes()
    }

    /// Adds a file. A name that ends in `.sh` makes it executable.
    #[must_use]
    pub fn file(mut self, name: &str, content: &str) -> Self {
        let executable = Path::new(name).extension().is_some_and(|it| it == "sh");
        let mode = if executable { 0o755 } else { 0o644 };
        let header = header(name, tar::EntryType::Regular, content.len(), mode);
        self.append(&header, content.as_bytes());
        self
    }

    /// Adds a link.
    #[must_use]
    pub fn link(mut self, kind: Link, name: &str, target: &str) -> Self {
        let kind = match kind {
            Link::Symbolic => tar::EntryType::Symlink,
            Link::Hard => tar::EntryType::Link,
        };
        let mut header = header(name, kind, 0, 0o777);
        let field = &mut header.as_old_mut().linkname;
        field[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        self.append(&header, &[]);
        self
    }

    fn append(&mut self, header: &tar::Header, content: &[u8]) {
        self.tar.append(header, content).expect("writing to memory does not fail");
    }

    /// The finished archive.
    #[must_use]
    pub fn bytes(self) -> Vec<u8> {
        self.tar.into_inner().expect("writing to memory does not fail")
    }
}

/// A header whose name is taken as it is, however bad.
fn header(name: &str, kind: tar::EntryType, size: usize, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_mtime(0);
    header.set_cksum();
    header
}
