//! The broker's configuration.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use berth_backbone::{DatabaseConfig, EncryptionConfig, HasStores};
use berth_bus::BusConfig;
use berth_service_kit::{HasProcess, Period, Process};
use serde::{Deserialize, Serialize};

/// How often a quiet connection is probed, and how long the answer may take.
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(20);

/// The broker's configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What every process has.
    pub process: Process,
    /// Postgres.
    pub database: DatabaseConfig,
    /// NATS.
    pub nats: BusConfig,
    /// Where daemons connect.
    pub grpc: Grpc,
    /// Where workspaces reach the API, such as `https://berth.example.com`.
    pub access_url: String,
    /// How provisioner state is sealed in the database.
    pub encryption: EncryptionConfig,
    /// Bounds and times.
    pub limits: Limits,
}

/// Where daemons connect.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Grpc {
    /// Port 0 takes a free one, announced as `grpc`.
    pub addr: SocketAddr,
    /// TLS; without a certificate, plain HTTP/2 is spoken, for private networks alone.
    pub tls: Tls,
}

/// TLS of the listener. The files are PEM and are read again for each new connection: a renewed one
/// needs no restart.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// The broker's certificate, followed by those between it and its authority.
    pub cert_file: Option<PathBuf>,
    /// The certificate's private key.
    pub key_file: Option<PathBuf>,
    /// The authorities whose certificates admit daemons without a key: docs/provisioner.md.
    pub client_ca_file: Option<PathBuf>,
}

/// Bounds and times.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// A daemon that reports nothing for this long loses its job.
    pub lease: Period,
    /// The same from the beginning of apply on.
    pub apply_lease: Period,
    /// A job that no daemon takes for this long is cancelled.
    pub pending_timeout: Period,
    /// How often waiting daemons look at the queue when nothing wakes them; up to a fifth more or
    /// less each time.
    pub poll: Period,
    /// How often the reaper looks.
    pub reap: Period,
    /// Bytes of log that a job may have; the rest is dropped, and the log says so.
    pub log_bytes: u32,
    /// Files that are received at once; each is held in memory, at most 100 MiB.
    pub uploads: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            process: Process::default(),
            database: DatabaseConfig::default(),
            nats: BusConfig::default(),
            grpc: Grpc::default(),
            access_url: "http://127.0.0.1:3000".to_owned(),
            encryption: EncryptionConfig::default(),
            limits: Limits::default(),
        }
    }
}

impl Default for Grpc {
    fn default() -> Self {
        Self { addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), tls: Tls::default() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            lease: Period::from_secs(60),
            apply_lease: Period::from_mins(5),
            pending_timeout: Period::from_mins(30),
            poll: Period::from_secs(5),
            reap: Period::from_secs(5),
            log_bytes: 1024 * 1024,
            uploads: 2,
        }
    }
}

impl HasProcess for Config {
    fn process(&self) -> &Process {
        &self.process
    }
}

impl HasStores for Config {
    fn database(&self) -> &DatabaseConfig {
        &self.database
    }

    fn nats(&self) -> &BusConfig {
        &self.nats
    }
}
