//! The provisioner daemon: runs Terraform or an exec provisioner, one process group a job.

mod archive;
mod clock;
mod config;
mod stop;
mod tool;
pub use config::{Config, ProvisionerConfig};
