//! What can be set about the API.

use std::net::{Ipv4Addr, SocketAddr};

use berth_backbone::{DatabaseConfig, EncryptionConfig, HasStores};
use berth_bus::BusConfig;
use berth_domain::plan::PrebuildSettings;
use berth_service_kit::{HasProcess, Period, Process};
use serde::{Deserialize, Serialize};

use crate::identity::InstanceIdentityConfig;

/// Configuration of `berth service api`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What every process has.
    pub process: Process,
    /// Postgres.
    pub database: DatabaseConfig,
    /// NATS.
    pub nats: BusConfig,
    /// Where and how requests are served.
    pub http: HttpConfig,
    /// Sessions and tokens.
    pub session: SessionConfig,
    /// How many requests are served to one caller.
    pub rate_limit: RateLimitConfig,
    /// Terminals of agents.
    pub terminals: TerminalConfig,
    /// Answers that go on: server-sent events and WebSockets.
    pub streams: StreamConfig,
    /// What is on beyond the usual. Naming a list replaces this one.
    pub experiments: Experiments,
    /// The rules of pools, as the reconciler has them: the dry run and `explain` plan with these.
    pub prebuilds: PrebuildSettings,
    /// Whether requests for workspaces are served from pools.
    pub claims: ClaimConfig,
    /// What agents that show their cloud instance's identity are checked against.
    pub instance_identity: InstanceIdentityConfig,
    /// How secrets are sealed in the database.
    pub encryption: EncryptionConfig,
}

/// Whether requests for workspaces are served from pools.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClaimConfig {
    /// `false`: every request gets an ordinary build, and the miss says `disabled`.
    pub enabled: bool,
    /// How long, in all, a request waits for prebuilds that are ready but locked: an agent's report
    /// locks its workspace for some milliseconds. They are asked for twice more in that time. Zero:
    /// once only.
    pub patience: Period,
}

impl Default for ClaimConfig {
    fn default() -> Self {
        Self { enabled: true, patience: Period::from_millis(80) }
    }
}

/// Where and how requests are served.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Where the API listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The URL under which people and agents reach this deployment; empty: `http://` and the
    /// address of the request.
    pub access_url: String,
    /// How long a request may take until its answer begins. Streams go on as long as they are read.
    pub timeout: Period,
    /// The same for uploads of archives.
    pub upload_timeout: Period,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            access_url: String::new(),
            timeout: Period::from_secs(30),
            upload_timeout: Period::from_secs(300),
        }
    }
}

/// Sessions and tokens.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionConfig {
    /// How long a session lives without use; each use moves its end.
    pub lifetime: Period,
    /// How long a token lives when its maker names no lifetime.
    pub token_lifetime: Period,
    /// The longest lifetime that a token may be given.
    pub max_token_lifetime: Period,
    /// Password hashes computed at once; each takes 19 MiB for some tens of milliseconds.
    pub password_hashes: usize,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            lifetime: Period::from_secs(24 * 3600),
            token_lifetime: Period::from_secs(30 * 24 * 3600),
            max_token_lifetime: Period::from_secs(365 * 24 * 3600),
            password_hashes: 2,
        }
    }
}

/// Terminals of agents.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TerminalConfig {
    /// How long a shell is kept for somebody who lost the connection to it.
    pub keep: Period,
    /// How often it is looked whether a person may still have a terminal that is open.
    pub check: Period,
    /// Terminals that this replica serves at once; each takes up to half a megabyte.
    pub most: usize,
}

impl Default for TerminalConfig {
    fn default() -> Self {
        Self { keep: Period::from_secs(300), check: Period::from_secs(5), most: 1000 }
    }
}

/// Answers that go on: server-sent events and WebSockets.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StreamConfig {
    /// Streams that one person has open at once at this replica, with all sessions and tokens
    /// together, terminals included; 0: no limit. One more is refused with 429.
    pub per_user: usize,
    /// The same for one agent. It uses two; what a lost connection left behind counts until the
    /// system notices.
    pub per_agent: usize,
    /// How often a silent stream says that it lives. Agents take one that said nothing for 45 s for
    /// dead.
    pub ping: Period,
    /// How often an agent's `reinit` stream looks at what is stored while it is told nothing:
    /// notices may be lost.
    pub look: Period,
}

impl Default for StreamConfig {
    fn default() -> Self {
        Self {
            per_user: 256,
            per_agent: 32,
            ping: Period::from_secs(15),
            look: Period::from_secs(5),
        }
    }
}

/// How many requests are served to one caller in a minute, by this replica.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimitConfig {
    /// By one key, or by one address where no key is sent; 0: no limit.
    pub requests: u32,
    /// Logins from one address; 0: no limit.
    pub logins: u32,
}

impl Default for RateLimitConfig {
    fn default() -> Self {
        Self { requests: 512, logins: 60 }
    }
}

/// Something that a deployment may turn off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Experiment {
    /// `watch-all-workspaces`: every build update in one stream.
    WorkspaceBuildUpdates,
}

impl Experiment {
    /// All there are.
    pub const ALL: [Self; 1] = [Self::WorkspaceBuildUpdates];
}

/// The experiments that are on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Experiments(Vec<Experiment>);

impl Experiments {
    /// Whether it is on.
    #[must_use]
    pub fn contains(&self, experiment: Experiment) -> bool {
        self.0.contains(&experiment)
    }
}

impl Default for Experiments {
    fn default() -> Self {
        Self(vec![Experiment::WorkspaceBuildUpdates])
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
