//! The provisioner daemon: runs Terraform or an exec provisioner, one process group a job.
//!
//! [`run`] registers with a broker and takes jobs. A job (`job`) is a session of steps (`session`)
//! that a driver carries out (`terraform`, `exec`), each of its programs in a process group of its
//! own (`tool`), while `report` keeps the broker told and the lease alive.

mod archive;
mod client;
mod clock;
mod config;
mod connect;
mod daemon;
mod environment;
mod exec;
mod job;
mod journal;
mod leftovers;
mod modules;
mod register;
mod report;
mod reuse;
mod session;
mod stop;
mod terraform;
mod tool;
mod trace;
mod transfer;
mod veil;
mod workdir;

use std::path::Path;

pub use config::{Config, Experiment, ProvisionerConfig};
pub use daemon::run;

/// Unpacks the template archive at `archive` into the existing, empty directory `into`, as a job
/// would. The error says what was refused, and why.
pub fn unpack(archive: &Path, into: &Path) -> anyhow::Result<()> {
    Ok(archive::extract(archive, into, archive::Limits::TEMPLATE)?)
}
