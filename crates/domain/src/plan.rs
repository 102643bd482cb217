//! What a pool needs next (10-prebuilds, "What a reconciliation of one preset does"). [`plan`] is
//! the only place where these rules live: the reconciler, the dry run, the snapshot file and the
//! tests all call it.

use jiff::{SignedDuration, Timestamp};

use crate::schedule;
use crate::state::{PoolState, PrebuildStatus};

mod create;
mod delete;
mod input;
mod output;
mod policy;
#[cfg(test)]
mod tests;

pub use input::{
    Breaker, Failures, Need, Pause, PauseScope, Policy, PoolConfig, PoolSnapshot, Prebuild,
    PrebuildSettings, SNAPSHOT_VERSION, SnapshotError, SnapshotFile, Standing, Successor,
};
pub use output::{Action, Counts, DeleteReason, Plan, Reason};
pub use policy::{PolicyError, PolicyOverride, PoolPolicy, Replace};

/// Most creations in one plan: one transaction inserts them, and none may last for a second.
pub const CREATES_PER_PLAN_MAX: u32 = 500;
/// Most deletes and cancellations in one plan, for the same reason.
pub const DELETES_PER_PLAN_MAX: u32 = 500;
/// An open breaker's first probe comes after this time; each further one after twice the last.
pub const PROBE_DELAY: SignedDuration = SignedDuration::from_mins(10);
/// After the first setback creation waits so long; twice as long after each further one.
pub const SETBACK_DELAY: SignedDuration = SignedDuration::from_secs(1);
/// The longest time between two probes.
pub const PROBE_DELAY_MAX: SignedDuration = SignedDuration::from_hours(6);
/// Time before the first new attempt at a failed delete; doubles with each failure.
pub const DELETE_RETRY_DELAY: SignedDuration = SignedDuration::from_mins(10);
/// The longest time between two attempts at a delete.
pub const DELETE_RETRY_DELAY_MAX: SignedDuration = SignedDuration::from_hours(6);

/// Plans one pool. Pure: the same inputs give the same plan, whatever the order of the snapshot's
/// lists.
#[must_use]
pub fn plan(config: &PoolConfig, policy: &Policy, snapshot: &PoolSnapshot, now: Timestamp) -> Plan {
    let mut planner = Planner::new(config, policy, snapshot, now);
    if let Some(pause) = planner.pause() {
        planner.reasons.push(Reason::Paused { pause });
        return planner.finish();
    }
    planner.update_breaker();
    planner.retry_failed_deletes();
    planner.drop_failed();
    match config.standing {
        _ if config.prebuilds.is_none() => {
            planner.reasons.push(Reason::NotAPool);
            planner.retire();
        }
        Standing::Inactive => {
            planner.reasons.push(Reason::Inactive);
            planner.retire();
        }
        Standing::Previous => planner.retire(),
        Standing::Active | Standing::Candidate => {
            let waiting = planner.replace_expired();
            planner.delete_extraneous();
            planner.create(waiting);
        }
    }
    planner.finish()
}

/// Plans what a snapshot file describes.
#[must_use]
pub fn plan_snapshot(file: &SnapshotFile) -> Plan {
    plan(&file.preset, &file.policy, &file.state, file.now)
}

/// Whether a claim may have this prebuild now (10-prebuilds, "One predicate"): running, ready, not
/// expired, with enough life left, not being deleted, of the active version or of the previous one
/// where that is kept. The SQL function `is_claimable`, which claims and the metric `eligible` ask,
/// says the same.
#[must_use]
pub fn claimable(
    prebuild: &Prebuild,
    config: &PoolConfig,
    policy: &PoolPolicy,
    now: Timestamp,
) -> bool {
    let is_open = matches!(config.standing, Standing::Active | Standing::Previous);
    is_open && config.prebuilds.is_some() && is_offerable(prebuild, config, policy, now)
}

/// [`claimable`], whatever the standing of the preset: also what a warm promotion counts for its
/// candidate, and what a kept previous version may still hand out.
#[must_use]
pub fn is_offerable(
    prebuild: &Prebuild,
    config: &PoolConfig,
    policy: &PoolPolicy,
    now: Timestamp,
) -> bool {
    let created_at = prebuild.created_at;
    let least = least_life(policy);
    let lives_on = config
        .expires_at(created_at)
        .is_none_or(|at| now.checked_add(least).is_ok_and(|needed| at >= needed));
    prebuild.state == PoolState::Ready && !config.is_expired(created_at, now) && lives_on
}

/// How long a prebuild must still live to be handed out.
fn least_life(policy: &PoolPolicy) -> SignedDuration {
    SignedDuration::from_secs(policy.min_remaining_ttl_seconds.max(0))
}

/// A plan in the making.
struct Planner<'a> {
    config: &'a PoolConfig,
    policy: &'a Policy,
    snapshot: &'a PoolSnapshot,
    now: Timestamp,
    desired: u32,
    counts: Counts,
    status: PrebuildStatus,
    actions: Vec<Action>,
    reasons: Vec<Reason>,
    looks: Vec<Timestamp>,
    /// Deletes and cancellations so far.
    removed: u32,
}

impl<'a> Planner<'a> {
    fn new(
        config: &'a PoolConfig,
        policy: &'a Policy,
        snapshot: &'a PoolSnapshot,
        now: Timestamp,
    ) -> Self {
        let mut planner = Self {
            config,
            policy,
            snapshot,
            now,
            desired: 0,
            counts: count(config, policy, snapshot, now),
            status: config.status,
            actions: Vec::new(),
            reasons: Vec::new(),
            looks: Vec::new(),
            removed: 0,
        };
        planner.look_at_schedule();
        planner
    }

    /// Its prebuilds are wanted: of the active version, or of one that is about to be.
    const fn is_wanted(&self) -> bool {
        matches!(self.config.standing, Standing::Active | Standing::Candidate)
            && self.config.prebuilds.is_some()
    }

    /// Prebuilds of a new version that may be there beside the old version's: at least one.
    fn surge(&self, desired: u32) -> u32 {
        percent_of(self.policy.pool.max_surge_percent, desired).max(1)
    }

    /// Sets the desired count, 0 for a preset that is no pool any more.
    fn look_at_schedule(&mut self) {
        let is_wanted = self.is_wanted();
        let Some(prebuilds) = self.config.prebuilds.as_ref().filter(|_| is_wanted) else { return };
        let desired = schedule::desired(prebuilds, self.now);
        self.desired = desired.instances;
        if let Some(error) = desired.warning {
            self.reasons.push(Reason::InvalidSchedule { detail: error.to_string() });
        }
        if self.config.standing == Standing::Candidate {
            let limit = self.surge(self.desired);
            if limit < self.desired {
                self.desired = limit;
                self.reasons.push(Reason::Surge { limit });
            }
        }
        self.looks.extend(schedule::next_edge(prebuilds, self.now));
        let deadline =
            self.snapshot.deadline.filter(|_| self.config.standing == Standing::Candidate);
        self.looks.extend(deadline.filter(|it| *it > self.now));
    }

    /// The pause that decides: the widest one that has not ended.
    fn pause(&mut self) -> Option<Pause> {
        let now = self.now;
        let snapshot = self.snapshot;
        let holds =
            || snapshot.pauses.iter().filter(move |it| it.until.is_none_or(|until| until > now));
        self.looks.extend(holds().filter_map(|it| it.until));
        holds().min_by_key(|it| (it.scope, it.until, &it.reason)).cloned()
    }

    /// There is more to do than one plan may hold: the next one follows at once.
    fn cut_off(&mut self, max: u32) {
        if !self.reasons.contains(&Reason::PassLimit { max }) {
            self.reasons.push(Reason::PassLimit { max });
        }
        self.looks.push(self.now);
    }

    /// Running prebuilds expire by time alone, and some time before that they have too little left
    /// to be handed out.
    fn look_at_expiries(&mut self) {
        let least = least_life(&self.policy.pool);
        let mut soonest: Option<Timestamp> = None;
        for prebuild in &self.snapshot.prebuilds {
            if !prebuild.is_running() || self.config.is_expired(prebuild.created_at, self.now) {
                continue;
            }
            let Some(expires_at) = self.config.expires_at(prebuild.created_at) else { continue };
            // At this very moment there is still enough; databases count in microseconds.
            let until = expires_at.checked_sub(least).ok().filter(|it| *it >= self.now);
            let too_late = until.and_then(|it| it.checked_add(SignedDuration::from_micros(1)).ok());
            let changes_at = too_late.map_or(expires_at, |it| it.min(expires_at));
            soonest = Some(soonest.map_or(changes_at, |it| it.min(changes_at)));
        }
        self.looks.extend(soonest);
    }

    fn finish(mut self) -> Plan {
        self.look_at_expiries();
        Plan {
            desired: self.desired,
            counts: self.counts,
            actions: self.actions,
            reasons: self.reasons,
            next_look: self.looks.into_iter().min(),
        }
    }
}

fn count(config: &PoolConfig, policy: &Policy, snapshot: &PoolSnapshot, now: Timestamp) -> Counts {
    let mut counts = Counts::default();
    for prebuild in &snapshot.prebuilds {
        match prebuild.state {
            PoolState::Ready | PoolState::Unready => {
                counts.running += 1;
                if config.is_expired(prebuild.created_at, now) {
                    counts.expired += 1;
                } else {
                    counts.valid += 1;
                }
                counts.eligible += u32::from(claimable(prebuild, config, &policy.pool, now));
            }
            PoolState::Starting => {
                counts.starting += 1;
                counts.pending += u32::from(prebuild.is_pending());
            }
            PoolState::Stopping => counts.stopping += 1,
            PoolState::Stopped => counts.stopped += 1,
            PoolState::Deleting => counts.deleting += 1,
            PoolState::Failed => counts.failed += 1,
            PoolState::FailedDelete => counts.failed_delete += 1,
        }
    }
    counts
}

/// `percent` of `of`, rounded down.
fn percent_of(percent: u32, of: u32) -> u32 {
    u32::try_from(u64::from(percent) * u64::from(of) / 100).unwrap_or(u32::MAX)
}

/// `first` doubled `times` times, at most `max`.
fn doubled(first: SignedDuration, times: u32, max: SignedDuration) -> SignedDuration {
    let factor = 1_i32.checked_shl(times.min(30)).unwrap_or(i32::MAX);
    first.checked_mul(factor).unwrap_or(max).min(max)
}
