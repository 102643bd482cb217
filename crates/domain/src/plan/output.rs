//! A pool's plan: what is wanted, what to do, and why.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::input::{Need, Pause, PauseScope};
use crate::id::{BuildId, WorkspaceId};
use crate::quota::QuotaExceeded;
use crate::state::MissReason;

closed_set! {
    /// Why a prebuild is deleted.
    DeleteReason {
        /// It is older than its time to live, or was invalidated.
        Expired = "expired",
        /// There are more than wanted.
        Extraneous = "extraneous",
        /// Its preset is not active, or no pool any more.
        Inactive = "inactive",
        /// It failed, and enough newer ones are kept for a look.
        FailedSurplus = "failed_surplus",
        /// It failed, and was kept long enough.
        FailedRetention = "failed_retention",
        /// Its delete failed and is tried again.
        FailedDelete = "failed_delete",
    }
}

/// One thing to do. Actions are carried out in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// Record the breaker as open, and tell template admins once.
    OpenBreaker {
        /// Failures in a row.
        consecutive: u32,
    },
    /// Record the breaker as closed, and tell template admins once.
    CloseBreaker,
    /// Cancel the pending first build (re-checking that no daemon holds it) and orphan-delete the
    /// workspace, in a transaction of its own.
    CancelPending {
        /// The workspace.
        workspace_id: WorkspaceId,
        /// The build that must still be its latest.
        build_id: BuildId,
    },
    /// Delete a prebuild, re-checking under its lock that it still is one.
    Delete {
        /// The workspace.
        workspace_id: WorkspaceId,
        /// The build that must still be its latest.
        build_id: BuildId,
        /// Why.
        why: DeleteReason,
    },
    /// Create prebuilds.
    Create {
        /// How many, at least 1.
        count: u32,
        /// It is the open breaker's probe: count it there.
        is_probe: bool,
    },
}

/// Why a plan is as it is. The texts of `Display` are sentences for `explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Reason {
    /// The preset's version is not active, or its template is deleted or deprecated.
    Inactive,
    /// The preset has no prebuild configuration.
    NotAPool,
    /// Stored schedules no longer validate; the base count holds.
    InvalidSchedule {
        /// What is wrong.
        detail: String,
    },
    /// Prebuilds are missing.
    BelowDesired {
        /// How many are wanted.
        desired: u32,
        /// Running and not expired.
        running: u32,
        /// On their way.
        starting: u32,
    },
    /// Prebuilds are deleted because there are more than wanted.
    AboveDesired {
        /// How many are wanted.
        desired: u32,
        /// Running and not expired.
        running: u32,
    },
    /// Prebuilds are expired or invalidated.
    Expired {
        /// How many.
        count: u32,
    },
    /// Expired prebuilds wait for their turn to be replaced.
    Gradual {
        /// How many wait.
        waiting: u32,
        /// How many are replaced at a time.
        at_a_time: u32,
    },
    /// Prebuilds of the previous version are kept until new ones are ready.
    PreviousKept {
        /// How many are kept.
        count: u32,
        /// Wanted of the new version.
        desired: u32,
        /// Claimable of the new version.
        eligible: u32,
    },
    /// A new version's pool is built no larger beside the old one's than the surge allows.
    Surge {
        /// The most it may have now.
        limit: u32,
    },
    /// Nothing is done: paused.
    Paused {
        /// The pause that decides.
        pause: Pause,
    },
    /// Creation failed too often in a row: the breaker opens.
    BreakerOpened {
        /// Failures in a row.
        consecutive: u32,
    },
    /// Nothing is created: the breaker is open.
    BreakerOpen {
        /// When the next probe is made; `None`: one is on its way.
        next_probe_at: Option<Timestamp>,
    },
    /// One build is tried although the breaker is open.
    Probe {
        /// How many were tried before.
        before: u32,
    },
    /// The breaker closes: a prebuild became ready, an operator reset it, or the limit is off.
    BreakerClosed,
    /// Nothing is created: the builder refused the preset's input for good.
    ValidationFailed,
    /// Nothing is created: no live daemon could run the job.
    Capacity {
        /// What such a daemon must offer.
        #[serde(default)]
        need: Need,
    },
    /// Fewer or none are created: the cap on creations in flight.
    InFlightCap {
        /// Creations in flight in the organization.
        in_flight: u32,
        /// The cap.
        max: u32,
    },
    /// Fewer or none are created: the prebuilds group's quota.
    Quota {
        /// The numbers.
        #[serde(flatten)]
        exceeded: QuotaExceeded,
    },
    /// Nothing is created yet: creations failed lately.
    Backoff {
        /// Failures that count.
        failures: u32,
        /// When creation goes on.
        until: Timestamp,
    },
    /// Nothing is created yet: the last creations failed for reasons that are not the template's.
    Setback {
        /// How often in a row.
        setbacks: u32,
        /// When creation goes on.
        until: Timestamp,
    },
    /// Fewer are created or deleted than should be: the limit of one plan. The next one follows at
    /// once.
    PassLimit {
        /// The limit.
        max: u32,
    },
    /// Failed prebuilds are kept for a look.
    FailedKept {
        /// How many.
        count: u32,
    },
    /// Prebuilds whose build a person cancelled are left alone.
    LeftAlone {
        /// How many.
        count: u32,
    },
    /// Prebuilds could not be deleted; the deletes are tried again.
    FailedDeletes {
        /// How many.
        count: u32,
        /// When the next one is tried; `None`: now.
        next_at: Option<Timestamp>,
    },
}

impl Reason {
    /// The stable name of this reason: the tag of its JSON, and what `prebuild_pools.holds` stores.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::NotAPool => "not_a_pool",
            Self::InvalidSchedule { .. } => "invalid_schedule",
            Self::BelowDesired { .. } => "below_desired",
            Self::AboveDesired { .. } => "above_desired",
            Self::Expired { .. } => "expired",
            Self::Gradual { .. } => "gradual",
            Self::PreviousKept { .. } => "previous_kept",
            Self::Surge { .. } => "surge",
            Self::Paused { .. } => "paused",
            Self::BreakerOpened { .. } => "breaker_opened",
            Self::BreakerOpen { .. } => "breaker_open",
            Self::Probe { .. } => "probe",
            Self::BreakerClosed => "breaker_closed",
            Self::ValidationFailed => "validation_failed",
            Self::Capacity { .. } => "capacity",
            Self::InFlightCap { .. } => "in_flight_cap",
            Self::Quota { .. } => "quota",
            Self::Backoff { .. } => "backoff",
            Self::Setback { .. } => "setback",
            Self::PassLimit { .. } => "pass_limit",
            Self::FailedKept { .. } => "failed_kept",
            Self::LeftAlone { .. } => "left_alone",
            Self::FailedDeletes { .. } => "failed_deletes",
        }
    }

    /// What a claim that finds the pool empty reports as its miss, if this reason holds creation.
    #[must_use]
    pub const fn miss_reason(&self) -> Option<MissReason> {
        match self {
            Self::Paused { .. } => Some(MissReason::Paused),
            Self::BreakerOpened { .. } | Self::BreakerOpen { .. } => Some(MissReason::HardLimited),
            Self::ValidationFailed => Some(MissReason::ValidationFailed),
            Self::Backoff { .. } | Self::Setback { .. } => Some(MissReason::Backoff),
            Self::Capacity { .. } | Self::InFlightCap { .. } | Self::Quota { .. } => {
                Some(MissReason::Capacity)
            }
            _ => None,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inactive => f.write_str("the preset is not active: its prebuilds are removed"),
            Self::NotAPool => {
                f.write_str("the preset has no prebuild configuration: nothing is kept ready")
            }
            Self::InvalidSchedule { detail } => {
                write!(f, "the stored schedules are not used, the base count holds: {detail}")
            }
            Self::BelowDesired { desired, running, starting } => {
                write!(f, "{desired} wanted, {running} running and {starting} starting")
            }
            Self::AboveDesired { desired, running } => {
                write!(f, "{running} running, only {desired} wanted")
            }
            Self::Expired { count } => write!(f, "{count} expired or invalidated"),
            Self::Gradual { waiting, at_a_time } => write!(
                f,
                "{waiting} expired wait for their replacement, at most {at_a_time} at a time"
            ),
            Self::PreviousKept { count, desired, eligible } => write!(
                f,
                "{count} of the previous version kept: {eligible} of {desired} new ones are ready"
            ),
            Self::Surge { limit } => {
                write!(f, "at most {limit} of this version for now, beside the other version's")
            }
            Self::Paused { pause } => fmt_pause(f, pause),
            _ => self.fmt_hold(f),
        }
    }
}

fn fmt_pause(f: &mut fmt::Formatter<'_>, pause: &Pause) -> fmt::Result {
    match pause.scope {
        PauseScope::Deployment => f.write_str("paused for the whole deployment")?,
        scope => write!(f, "paused for this {scope}")?,
    }
    if let Some(until) = pause.until {
        write!(f, " until {until}")?;
    }
    if !pause.reason.is_empty() {
        write!(f, ": {}", pause.reason)?;
    }
    Ok(())
}

impl Reason {
    fn fmt_hold(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BreakerOpened { consecutive } => {
                write!(f, "creation stops after {consecutive} failures in a row")
            }
            Self::BreakerOpen { next_probe_at: Some(at) } => {
                write!(f, "creation has stopped after failures; one build is tried at {at}")
            }
            Self::BreakerOpen { next_probe_at: None } => {
                f.write_str("creation has stopped after failures; a trial build is on its way")
            }
            Self::Probe { before } => write!(
                f,
                "one build is tried, after {before} before it, to see whether creation works again"
            ),
            Self::BreakerClosed => f.write_str("creation goes on again"),
            Self::ValidationFailed => f.write_str(
                "nothing is created: the preset's values were refused; push a version that fixes \
                 them",
            ),
            Self::Capacity { need } => {
                write!(f, "nothing is created: no live provisioner daemon takes {need}; start one")
            }
            Self::InFlightCap { in_flight, max } => {
                write!(f, "{in_flight} creations in flight in the organization, at most {max}")
            }
            Self::Quota { exceeded } => write!(
                f,
                "the prebuilds group's quota is spent: {} of {} credits in use, one more prebuild \
                 costs {}",
                exceeded.consumed, exceeded.budget, exceeded.cost
            ),
            Self::Backoff { failures, until } => {
                write!(f, "creation waits until {until} after {failures} recent failures")
            }
            Self::Setback { setbacks, until } => write!(
                f,
                "creation waits until {until}: it failed {setbacks} times in a row for reasons that \
                 are not the template's; the failed builds' logs name them"
            ),
            Self::PassLimit { max } => write!(
                f,
                "at most {max} are created or deleted in one pass; the next one follows at once"
            ),
            Self::FailedKept { count } => write!(f, "{count} failed kept for a look"),
            Self::LeftAlone { count } => {
                write!(f, "{count} left alone: a person cancelled the build")
            }
            Self::FailedDeletes { count, next_at: Some(at) } => {
                write!(f, "{count} could not be deleted; tried again at {at}")
            }
            Self::FailedDeletes { count, next_at: None } => {
                write!(f, "{count} could not be deleted; tried again now")
            }
            // `Display` writes the others.
            _ => Ok(()),
        }
    }
}

/// What a plan saw, counted by the definitions of 10-prebuilds, "State of one preset".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Running, expired ones included.
    pub running: u32,
    /// Running and not expired.
    pub valid: u32,
    /// What a claim could have at once.
    pub eligible: u32,
    /// Running and expired or invalidated.
    pub expired: u32,
    /// First build pending or running.
    pub starting: u32,
    /// Of those starting: not yet taken by a daemon.
    pub pending: u32,
    /// Stop pending or running.
    pub stopping: u32,
    /// Parked by an operator.
    pub stopped: u32,
    /// Delete pending or running.
    pub deleting: u32,
    /// Failed starts.
    pub failed: u32,
    /// Failed deletes.
    pub failed_delete: u32,
}

/// What a pool needs next. A value: it can be compared, logged and replayed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// How many prebuilds are wanted at this moment.
    pub desired: u32,
    /// What was there.
    pub counts: Counts,
    /// What to do, in this order.
    pub actions: Vec<Action>,
    /// Why it is done, and why nothing else is.
    pub reasons: Vec<Reason>,
    /// The earliest moment at which time alone could change the plan; never before `now`. `None`:
    /// only an event can.
    pub next_look: Option<Timestamp>,
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        self.actions.is_empty()
    }

    /// How many prebuilds it creates.
    #[must_use]
    pub fn creates(&self) -> u32 {
        self.actions
            .iter()
            .map(|it| if let Action::Create { count, .. } = it { *count } else { 0 })
            .sum()
    }

    /// Names of the reasons that hold creation back, wholly or in part, in the plan's order.
    #[must_use]
    pub fn holds(&self) -> Vec<&'static str> {
        self.reasons.iter().filter(|it| it.miss_reason().is_some()).map(Reason::name).collect()
    }

    /// What a claim that finds the pool empty reports as its miss: what holds creation, or `empty`
    /// where some are on their way.
    #[must_use]
    pub fn miss_reason(&self) -> MissReason {
        if self.creates() > 0 {
            return MissReason::Empty;
        }
        self.reasons.iter().find_map(Reason::miss_reason).unwrap_or(MissReason::Empty)
    }
}
