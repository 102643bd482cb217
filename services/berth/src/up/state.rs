//! The data directory and what is remembered in it.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use super::stores::Stores;
use crate::client::session::write_private;

/// Tried first for the API, so that its address is the same on most machines.
const DEFAULT_PORT: u16 = 7070;

/// The data directory, held by this process alone.
pub(super) struct Home {
    dir: PathBuf,
    /// Locked as long as it is open.
    _lock: File,
}

impl Home {
    /// Opens or creates the directory; refuses one that another process holds.
    pub(super) fn open(dir: &Path) -> anyhow::Result<Self> {
        let failed = || format!("cannot use {} for data", dir.display());
        fs::create_dir_all(dir).with_context(failed)?;
        let dir = dir.canonicalize().with_context(failed)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(dir.join("lock"))
            .with_context(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { dir, _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                bail!("another `berth up` runs on {}: stop it, or pass --data-dir", dir.display())
            }
            Err(TryLockError::Error(error)) => Err(error).with_context(failed),
        }
    }

    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where workspaces of templates/local live.
    pub(super) fn workspaces(&self) -> PathBuf {
        self.dir.join("workspaces")
    }

    /// Tells local agents which process they live and die with.
    pub(super) fn pid_file(&self) -> PathBuf {
        self.dir.join("up.pid")
    }

    fn state_file(&self) -> PathBuf {
        self.dir.join("state.json")
    }
}

/// What a second `berth up` needs to continue. In a file of mode 0600: it holds credentials.
#[derive(Serialize, Deserialize)]
pub(super) struct State {
    pub(super) email: String,
    pub(super) password: String,
    pub(super) api_port: u16,
    pub(super) grpc_port: u16,
    pub(super) postgres_port: Option<u16>,
    pub(super) nats_port: Option<u16>,
    pub(super) provisioner_key: Option<String>,
}

impl State {
    /// What was remembered, or a new beginning.
    pub(super) fn load(home: &Home, port: Option<u16>) -> anyhow::Result<Self> {
        let mut state = match Self::find(home)? {
            Some(state) => state,
            None => Self {
                email: "admin@berth.local".to_owned(),
                password: generated_password(),
                api_port: free_port_near(DEFAULT_PORT)?,
                grpc_port: berth_devstack::free_port()?,
                postgres_port: None,
                nats_port: None,
                provisioner_key: None,
            },
        };
        // Somebody else may listen there by now; local agents are told of another address.
        state.api_port = match port {
            Some(port) => port,
            None => free_port_near(state.api_port)?,
        };
        state.grpc_port = free_port_near(state.grpc_port)?;
        state.save(home)?;
        Ok(state)
    }

    /// What was remembered, if anything was.
    pub(super) fn find(home: &Home) -> anyhow::Result<Option<Self>> {
        let path = home.state_file();
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .with_context(|| format!("{} is damaged", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    pub(super) fn save(&self, home: &Home) -> anyhow::Result<()> {
        write_private(&home.state_file(), &serde_json::to_vec_pretty(self)?)
    }

    /// Keeps the stores' ports, so that a second `berth up` has the same addresses.
    pub(super) fn remember_ports(&mut self, home: &Home, stores: &Stores) -> anyhow::Result<()> {
        self.postgres_port = Some(stores.postgres_port());
        self.nats_port = Some(stores.nats_port());
        self.save(home)
    }

    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.api_port)
    }

    pub(super) fn broker_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.grpc_port)
    }
}

/// `port` if nobody listens on it, else any free one.
fn free_port_near(port: u16) -> anyhow::Result<u16> {
    match std::net::TcpListener::bind(("127.0.0.1", port)) {
        Ok(_) => Ok(port),
        Err(_) => Ok(berth_devstack::free_port()?),
    }
}

/// 120 random bits, readable.
fn generated_password() -> String {
    let groups: [u64; 3] = rand::random();
    groups.map(|it| format!("{:010x}", it & 0xff_ffff_ffff)).join("-")
}
