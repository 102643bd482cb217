//! Configuration of the lifecycle service.

use berth_backbone::{DatabaseConfig, HasStores};
use berth_bus::BusConfig;
use berth_service_kit::{HasProcess, Period, Process};
use serde::{Deserialize, Serialize};

/// Configuration of the lifecycle service.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What every process has.
    pub process: Process,
    /// Postgres.
    pub database: DatabaseConfig,
    /// NATS.
    pub nats: BusConfig,
    /// How long things are kept.
    pub purge: PurgeConfig,
    /// When an agent counts as lost.
    pub agents: AgentConfig,
}

/// How long things are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PurgeConfig {
    /// How often what is too old is deleted.
    pub interval: Period,
    /// Most rows that one statement deletes; there are as many statements as needed.
    pub batch: u32,
    /// Age at which an entry of the pools' decision log goes; the same for failed creations, for
    /// pauses that have ended, and for marks whose pool is gone.
    pub decisions: Period,
    /// Age at which an idempotency key goes.
    pub idempotency_keys: Period,
    /// How long after its end an API key goes.
    pub api_keys: Period,
    /// Age at which a notification goes, from the inbox too.
    pub notifications: Period,
}

impl Default for PurgeConfig {
    fn default() -> Self {
        Self {
            interval: Period::from_hours(1),
            batch: 1_000,
            decisions: Period::from_hours(7 * 24),
            idempotency_keys: Period::from_hours(24),
            api_keys: Period::from_hours(7 * 24),
            notifications: Period::from_hours(7 * 24),
        }
    }
}

/// When an agent counts as lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentConfig {
    /// How often silent agents are looked for.
    pub interval: Period,
    /// Silence after which an agent counts as lost. Heartbeats are written down at most once a
    /// minute, so anything under two minutes loses agents that are well.
    pub lost_after: Period,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self { interval: Period::from_secs(15), lost_after: Period::from_mins(3) }
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
