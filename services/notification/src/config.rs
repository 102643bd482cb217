//! Configuration of the notification service.

use berth_backbone::{DatabaseConfig, HasStores};
use berth_bus::BusConfig;
use berth_service_kit::{HasProcess, Period, Process};
use serde::{Deserialize, Serialize};

/// Configuration of the notification service.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What every process has.
    pub process: Process,
    /// Postgres.
    pub database: DatabaseConfig,
    /// NATS.
    pub nats: BusConfig,
    /// The rules of 70-notifications.
    pub notifications: NotificationConfig,
}

/// The rules of 70-notifications.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NotificationConfig {
    /// Messages that are expanded to their recipients at once; each takes a connection.
    pub concurrency: usize,
    /// How often it is read whether an operator has switched notifications off.
    pub pause_poll: Period,
}

impl Default for NotificationConfig {
    fn default() -> Self {
        Self { concurrency: 4, pause_poll: Period::from_secs(5) }
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
