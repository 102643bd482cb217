//! Where Postgres is. NATS has [`berth_bus::BusConfig`].

use berth_bus::BusConfig;
use berth_service_kit::Secret;
use serde::{Deserialize, Serialize};

/// Where Postgres is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DatabaseConfig {
    /// `postgres://user:password@host:port/database`. Only from the environment
    /// (`BERTH_DATABASE__URL`): it holds a password.
    pub url: Secret,
    /// Most connections that this process opens.
    pub max_connections: u32,
}

impl Default for DatabaseConfig {
    fn default() -> Self {
        Self { url: Secret::default(), max_connections: 8 }
    }
}

/// A configuration that says where the stores are.
pub trait HasStores {
    /// Postgres.
    fn database(&self) -> &DatabaseConfig;
    /// NATS.
    fn nats(&self) -> &BusConfig;
}
