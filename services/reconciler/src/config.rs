//! Configuration of the reconciler.

use berth_backbone::{DatabaseConfig, HasStores};
use berth_bus::BusConfig;
use berth_domain::plan::PrebuildSettings;
use berth_service_kit::{HasProcess, Process};
use serde::{Deserialize, Serialize};

/// Configuration of the reconciler.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What every process has.
    pub process: Process,
    /// Postgres.
    pub database: DatabaseConfig,
    /// NATS.
    pub nats: BusConfig,
    /// The rules of 10-prebuilds.
    pub prebuilds: PrebuildSettings,
    /// Most pools that `/metrics` shows one by one, about a kilobyte each; with more it shows
    /// organizations, with empty names of template and preset.
    pub pool_series: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            process: Process::default(),
            database: DatabaseConfig::default(),
            nats: BusConfig::default(),
            prebuilds: PrebuildSettings::default(),
            pool_series: 10_000,
        }
    }
}

impl Config {
    /// Presets reconciled at once: as configured, else half of the connection pool; at least 1.
    #[must_use]
    pub fn concurrency(&self) -> usize {
        let configured = match self.prebuilds.reconciliation_concurrency {
            0 => self.database.max_connections / 2,
            configured => configured,
        };
        usize::try_from(configured.max(1)).unwrap_or(1)
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
