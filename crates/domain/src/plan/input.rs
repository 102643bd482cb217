//! What a pool's plan is made from. Plain values; their JSON is the decision log's and the snapshot
//! file's.

use std::collections::BTreeMap;
use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::policy::{PolicyError, PoolPolicy};
use crate::id::{BuildId, PresetId, WorkspaceId};
use crate::preset::Prebuilds;
use crate::quota::Quota;
use crate::state::{PoolState, PrebuildStatus};

/// The deployment's settings (10-prebuilds, "Configuration"), with its defaults. Durations are
/// written as `1m` or `PT1M`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrebuildSettings {
    /// Time between two full sweeps.
    pub reconciliation_interval: SignedDuration,
    /// Creation waits this long after the last failure, times the number of failures.
    pub reconciliation_backoff_interval: SignedDuration,
    /// Failures older than this do not count for the back-off.
    pub reconciliation_backoff_lookback_period: SignedDuration,
    /// Consecutive failures that open the breaker; 0: it never opens.
    pub failure_hard_limit: u32,
    /// How long a failed prebuild is kept for a look.
    pub failed_retention: SignedDuration,
    /// How many failed prebuilds of a preset are kept, newest first.
    pub failed_keep: u32,
    /// Prebuild creations in flight per organization; 0: no cap.
    pub max_in_flight: u32,
    /// Presets reconciled at once; 0: half of the connection pool.
    pub reconciliation_concurrency: u32,
}

impl Default for PrebuildSettings {
    fn default() -> Self {
        Self {
            reconciliation_interval: SignedDuration::from_mins(1),
            reconciliation_backoff_interval: SignedDuration::from_mins(1),
            reconciliation_backoff_lookback_period: SignedDuration::from_hours(1),
            failure_hard_limit: 3,
            failed_retention: SignedDuration::from_hours(24),
            failed_keep: 3,
            max_in_flight: 0,
            reconciliation_concurrency: 0,
        }
    }
}

/// Everything that people configured and that holds for a pool's plan.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// The deployment's.
    pub settings: PrebuildSettings,
    /// The pool's.
    pub pool: PoolPolicy,
}

closed_set! {
    /// What a preset's version is to its template.
    Standing {
        /// The active version of a template that is neither deleted nor deprecated.
        Active = "active",
        /// Candidate of a warm promotion: its pool is built beside the active one.
        Candidate = "candidate",
        /// The version that was active before the newest promotion, claimable until as many of the
        /// new version's are ready: the pool policy or a warm promotion's switch says so.
        Previous = "previous",
        /// Anything else; its prebuilds go away.
        Inactive = "inactive",
    }
}

/// The preset whose pool is planned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolConfig {
    /// The preset.
    pub preset_id: PresetId,
    /// What its version is to its template.
    pub standing: Standing,
    /// Its prebuild configuration; `None`: it is no pool, and what is left of one goes away.
    pub prebuilds: Option<Prebuilds>,
    /// Health of the pool as it is stored.
    pub status: PrebuildStatus,
    /// Prebuilds created before this moment are expired.
    #[serde(default)]
    pub last_invalidated_at: Option<Timestamp>,
}

impl PoolConfig {
    /// When a prebuild created at `created_at` is older than its time to live; `None`: never.
    #[must_use]
    pub fn expires_at(&self, created_at: Timestamp) -> Option<Timestamp> {
        let ttl = self.prebuilds.as_ref().map_or(0, |it| it.ttl_seconds);
        (ttl > 0).then(|| created_at.checked_add(SignedDuration::from_secs(ttl)).ok()).flatten()
    }

    /// Whether a prebuild created at `created_at` is expired at `now`: older than its time to live,
    /// or invalidated. (Whatever `now` is, in the second case: clocks of two machines differ.)
    #[must_use]
    pub fn is_expired(&self, created_at: Timestamp, now: Timestamp) -> bool {
        self.last_invalidated_at.is_some_and(|it| created_at < it)
            || self.expires_at(created_at).is_some_and(|it| it <= now)
    }
}

/// One workspace of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prebuild {
    /// The workspace.
    pub workspace_id: WorkspaceId,
    /// Its latest build: what an action assumes to be still the latest.
    pub build_id: BuildId,
    /// Number of that build, from 1.
    pub build_number: i32,
    /// Where it stands.
    pub state: PoolState,
    /// When the workspace was created; its time to live counts from here.
    pub created_at: Timestamp,
    /// A daemon took the job of the latest build.
    #[serde(default)]
    pub is_acquired: bool,
    /// A person cancelled the job of the latest build: hands off, somebody wants to look at it.
    #[serde(default)]
    pub is_canceled_by_person: bool,
    /// When the job of the latest build ended, if it did.
    #[serde(default)]
    pub finished_at: Option<Timestamp>,
    /// Deletes of this workspace that failed in a row.
    #[serde(default)]
    pub failed_deletes: u32,
}

impl Prebuild {
    /// Running: started with success and not gone.
    #[must_use]
    pub const fn is_running(&self) -> bool {
        matches!(self.state, PoolState::Ready | PoolState::Unready)
    }

    /// Pending: its first build waits for a daemon.
    #[must_use]
    pub const fn is_pending(&self) -> bool {
        matches!(self.state, PoolState::Starting) && !self.is_acquired
    }
}

closed_set! {
    /// What a pause holds for.
    PauseScope {
        /// Everything.
        Deployment = "deployment",
        /// One organization.
        Organization = "organization",
        /// One template.
        Template = "template",
        /// One preset.
        Preset = "preset",
    }
}

/// A pause that covers the preset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pause {
    /// What it was set for.
    pub scope: PauseScope,
    /// Why, in the words of whoever set it.
    #[serde(default)]
    pub reason: String,
    /// When it ends by itself; `None`: when somebody ends it.
    #[serde(default)]
    pub until: Option<Timestamp>,
}

/// An open breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Breaker {
    /// When it opened.
    pub opened_at: Timestamp,
    /// Probe builds made since.
    #[serde(default)]
    pub probes: u32,
    /// When the last of them was made.
    #[serde(default)]
    pub last_probe_at: Option<Timestamp>,
}

/// Failed creations. The pool's own are those that the template caused: its plan, its apply or the
/// start of its agents. Lost daemons, broken machines and exceeded quotas are setbacks: they delay the
/// next attempt, and count for nothing else. Reaped and cancelled jobs are neither.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failures {
    /// When creations failed, in any order; those before the lookback period may be left out.
    #[serde(default)]
    pub recent: Vec<Timestamp>,
    /// Creations that failed since the last one that became ready, or since an operator's reset.
    #[serde(default)]
    pub consecutive: u32,
    /// The breaker, where the pool is `hard_limited`.
    #[serde(default)]
    pub breaker: Option<Breaker>,
    /// Setbacks in a row; those that were on their way together are one.
    #[serde(default)]
    pub setbacks: u32,
    /// When the last of them was.
    #[serde(default)]
    pub setback_at: Option<Timestamp>,
}

/// The pool that takes the place of a previous version's: the active version's preset of that name
/// and with the same values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Successor {
    /// Instances it wants now.
    pub desired: u32,
    /// Claimable prebuilds it has.
    pub eligible: u32,
}

/// What a provisioner daemon must offer to run a pool's jobs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Need {
    /// The tool; empty: not known.
    pub provisioner: String,
    /// The version's tags.
    pub tags: BTreeMap<String, String>,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} jobs", self.provisioner)?;
        // Every daemon has a scope and an owner; who reads this is after what somebody chose.
        let chosen = self.tags.iter().filter(|(name, value)| {
            !matches!((name.as_str(), value.as_str()), ("scope", "organization") | ("owner", ""))
        });
        for (position, (name, value)) in chosen.enumerate() {
            write!(f, "{}{name}={value}", if position == 0 { " with " } else { " " })?;
        }
        Ok(())
    }
}

/// The state that a plan looks at, read in one transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolSnapshot {
    /// The pool's workspaces that are not deleted, in any order. Claimed ones are nobody's pool.
    #[serde(default)]
    pub prebuilds: Vec<Prebuild>,
    /// Failed creations.
    #[serde(default)]
    pub failures: Failures,
    /// Pauses that cover the preset; ended ones do not count.
    #[serde(default)]
    pub pauses: Vec<Pause>,
    /// A live daemon could run the preset's jobs.
    pub has_daemon: bool,
    /// What such a daemon must offer, to be named where there is none.
    #[serde(default)]
    pub need: Need,
    /// Prebuild creations in flight in the organization, this pool's included.
    #[serde(default)]
    pub in_flight: u32,
    /// Quota of the prebuilds user in the organization, this pool's prebuilds consumed; `None`:
    /// quotas are not kept.
    #[serde(default)]
    pub quota: Option<Quota>,
    /// Credits a day that one more prebuild costs, as far as is known.
    #[serde(default)]
    pub cost: i64,
    /// No build of this preset has told its cost yet: `cost` is that of another version.
    #[serde(default)]
    pub is_cost_guessed: bool,
    /// For a previous version's preset: the pool that takes its place. `None`: nobody can be served
    /// from here any more.
    #[serde(default)]
    pub successor: Option<Successor>,
    /// Prebuilds of the pools whose successor this preset is that run, and those that start and will
    /// run.
    #[serde(default)]
    pub predecessor: u32,
    /// For a candidate: when its warm promotion is called off.
    #[serde(default)]
    pub deadline: Option<Timestamp>,
}

impl Default for PoolSnapshot {
    fn default() -> Self {
        Self {
            prebuilds: Vec::new(),
            failures: Failures::default(),
            pauses: Vec::new(),
            has_daemon: true,
            need: Need::default(),
            in_flight: 0,
            quota: None,
            cost: 0,
            is_cost_guessed: false,
            successor: None,
            predecessor: 0,
            deadline: None,
        }
    }
}

/// Version of the snapshot file that this program reads and writes.
pub const SNAPSHOT_VERSION: u32 = 1;

/// A snapshot file: everything that a plan depends on (`berth prebuilds plan --snapshot FILE`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotFile {
    /// Always [`SNAPSHOT_VERSION`].
    pub version: u32,
    /// The moment it speaks of.
    pub now: Timestamp,
    /// The preset.
    pub preset: PoolConfig,
    /// What people configured.
    #[serde(default)]
    pub policy: Policy,
    /// What was there.
    pub state: PoolSnapshot,
}

/// Why a text is no snapshot file.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It is of another version.
    #[error(
        "the snapshot file has version {found}; this program reads version {SNAPSHOT_VERSION}: \
         write it so, or take a program that knows that version"
    )]
    Version {
        /// What it says, as JSON; `null`: nothing.
        found: serde_json::Value,
    },
    /// It is not JSON, or not of the documented form.
    #[error("the snapshot file cannot be read; its form is in docs/pool-snapshot.md")]
    Json(#[from] serde_json::Error),
    /// Its pool policy is out of bounds.
    #[error("the snapshot file's policy.pool is out of bounds")]
    Policy(#[from] PolicyError),
}

impl SnapshotFile {
    /// Reads a snapshot file. The version is looked at first: a file of another one is told as such,
    /// whatever else it says.
    pub fn parse(text: &str) -> Result<Self, SnapshotError> {
        let json: serde_json::Value = serde_json::from_str(text)?;
        let found = json.get("version").cloned().unwrap_or_default();
        if found != SNAPSHOT_VERSION {
            return Err(SnapshotError::Version { found });
        }
        // From the text once more: its errors name line and column.
        let file: Self = serde_json::from_str(text)?;
        file.policy.pool.check()?;
        Ok(file)
    }
}
