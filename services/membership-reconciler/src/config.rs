//! Configuration of the membership reconciler.

use berth_backbone::{DatabaseConfig, HasStores};
use berth_bus::BusConfig;
use berth_service_kit::{HasProcess, Period, Process};
use serde::{Deserialize, Serialize};

/// Configuration of the membership reconciler.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What every process has.
    pub process: Process,
    /// Postgres.
    pub database: DatabaseConfig,
    /// NATS.
    pub nats: BusConfig,
    /// The rules of 60-membership-quota.
    pub membership: MembershipConfig,
}

/// The rules of 60-membership-quota.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MembershipConfig {
    /// How often all organizations are looked at, whether or not somebody asked.
    pub interval: Period,
    /// Organizations that are set right at once; each takes a connection.
    pub concurrency: usize,
    /// Removes what was added in an organization whose last pool has been gone for 24 h. What people
    /// configured there stays.
    pub remove_unused: bool,
}

impl Default for MembershipConfig {
    fn default() -> Self {
        Self { interval: Period::from_mins(5), concurrency: 4, remove_unused: false }
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
