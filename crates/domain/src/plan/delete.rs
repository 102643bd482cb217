//! Which prebuilds go away.

use std::cmp::Reverse;

use jiff::Timestamp;

use super::{
    Action, DELETE_RETRY_DELAY, DELETE_RETRY_DELAY_MAX, DELETES_PER_PLAN_MAX, DeleteReason,
    Planner, Prebuild, Reason, Replace, Standing, doubled, is_offerable, percent_of,
};
use crate::state::PoolState;

impl<'a> Planner<'a> {
    fn delete(&mut self, prebuild: &Prebuild, why: DeleteReason) {
        let (workspace_id, build_id) = (prebuild.workspace_id, prebuild.build_id);
        self.remove(Action::Delete { workspace_id, build_id, why });
    }

    /// Adds a delete or a cancellation, as long as one transaction may hold them. The rest comes in
    /// the next plan, at once.
    fn remove(&mut self, action: Action) {
        if self.removed == DELETES_PER_PLAN_MAX {
            self.cut_off(DELETES_PER_PLAN_MAX);
            return;
        }
        self.removed += 1;
        self.actions.push(action);
    }

    /// Prebuilds that `is_wanted` chooses, oldest first.
    fn oldest(&self, is_wanted: impl Fn(&Prebuild) -> bool) -> Vec<&'a Prebuild> {
        let mut found: Vec<&Prebuild> =
            self.snapshot.prebuilds.iter().filter(|it| is_wanted(it)).collect();
        found.sort_by_key(|it| (it.created_at, it.workspace_id));
        found
    }

    /// Running prebuilds, those first that are least missed: not ready, then soonest to expire, then
    /// oldest.
    fn least_missed(&self, is_expired: bool) -> Vec<&'a Prebuild> {
        let mut found: Vec<&Prebuild> = self
            .snapshot
            .prebuilds
            .iter()
            .filter(|it| it.is_running())
            .filter(|it| self.config.is_expired(it.created_at, self.now) == is_expired)
            .collect();
        found.sort_by_cached_key(|it| {
            let expires_at = self.config.expires_at(it.created_at).unwrap_or(Timestamp::MAX);
            (it.state == PoolState::Ready, expires_at, it.created_at, it.workspace_id)
        });
        found
    }

    /// A failed delete counts for nobody's pool and is tried again, ever more rarely.
    pub(super) fn retry_failed_deletes(&mut self) {
        let mut left = 0;
        let mut next: Option<Timestamp> = None;
        let mut retried = 0;
        let failed =
            self.oldest(|it| it.state == PoolState::FailedDelete && !it.is_canceled_by_person);
        for prebuild in failed {
            let times = prebuild.failed_deletes.saturating_sub(1);
            let delay = doubled(DELETE_RETRY_DELAY, times, DELETE_RETRY_DELAY_MAX);
            let due = prebuild.finished_at.and_then(|it| it.checked_add(delay).ok());
            if let Some(due) = due.filter(|it| *it > self.now) {
                left += 1;
                next = Some(next.map_or(due, |it| it.min(due)));
            } else {
                retried += 1;
                self.delete(prebuild, DeleteReason::FailedDelete);
            }
        }
        self.looks.extend(next);
        if retried > 0 {
            self.reasons.push(Reason::FailedDeletes { count: retried, next_at: None });
        }
        if left > 0 {
            self.reasons.push(Reason::FailedDeletes { count: left, next_at: next });
        }
    }

    /// The newest failed prebuilds keep their evidence for a while; the others go. What a person
    /// cancelled is left alone.
    pub(super) fn drop_failed(&mut self) {
        let snapshot = self.snapshot;
        let settings = &self.policy.settings;
        let left_alone = snapshot
            .prebuilds
            .iter()
            .filter(|it| it.is_canceled_by_person && is_ended(it.state))
            .count();
        if left_alone > 0 {
            self.reasons.push(Reason::LeftAlone { count: number(left_alone) });
        }
        let ended_at = |it: &Prebuild| it.finished_at.unwrap_or(it.created_at);
        let mut failed =
            self.oldest(|it| it.state == PoolState::Failed && !it.is_canceled_by_person);
        failed.sort_by_key(|it| Reverse((ended_at(it), it.workspace_id)));

        let keep = usize::try_from(settings.failed_keep).unwrap_or(usize::MAX);
        let retention = settings.failed_retention;
        let mut kept = 0;
        for (place, prebuild) in failed.into_iter().enumerate() {
            let until = ended_at(prebuild).checked_add(retention).unwrap_or(Timestamp::MAX);
            if place >= keep {
                self.delete(prebuild, DeleteReason::FailedSurplus);
            } else if until <= self.now {
                self.delete(prebuild, DeleteReason::FailedRetention);
            } else {
                kept += 1;
                self.looks.push(until);
            }
        }
        if kept > 0 {
            self.reasons.push(Reason::FailedKept { count: kept });
        }
    }

    /// A preset that is wanted no more: pending first builds are cancelled, then all that runs is
    /// deleted, expired or not, but for what a previous version keeps.
    pub(super) fn retire(&mut self) {
        let pending =
            self.oldest(|it| it.is_pending() && it.build_number == 1 && !it.is_canceled_by_person);
        for prebuild in pending {
            let (workspace_id, build_id) = (prebuild.workspace_id, prebuild.build_id);
            self.remove(Action::CancelPending { workspace_id, build_id });
        }
        for prebuild in self.least_missed(true) {
            self.delete(prebuild, DeleteReason::Expired);
        }
        let valid = self.least_missed(false);
        let go = valid.len().saturating_sub(self.kept_of(&valid));
        for prebuild in &valid[..go] {
            self.delete(prebuild, DeleteReason::Inactive);
        }
    }

    /// How many of `valid`, the last ones, a previous version keeps: as many as the new one still
    /// lacks, as far as they can be handed out.
    fn kept_of(&mut self, valid: &[&Prebuild]) -> usize {
        let is_previous =
            self.config.standing == Standing::Previous && self.config.prebuilds.is_some();
        let Some(successor) = self.snapshot.successor.filter(|_| is_previous) else { return 0 };
        let (config, policy) = (self.config, &self.policy.pool);
        let offerable = valid.iter().filter(|it| is_offerable(it, config, policy, self.now));
        let missing = successor.desired.saturating_sub(successor.eligible);
        let count = missing.min(number(offerable.count()));
        self.reasons.push(Reason::PreviousKept {
            count,
            desired: successor.desired,
            eligible: successor.eligible,
        });
        usize::try_from(count).unwrap_or(usize::MAX)
    }

    /// Deletes expired prebuilds, all of them or as many as may be replaced at a time; returns how
    /// many wait for their turn.
    pub(super) fn replace_expired(&mut self) -> u32 {
        let expired = self.least_missed(true);
        if expired.is_empty() {
            return 0;
        }
        let count = number(expired.len());
        self.reasons.push(Reason::Expired { count });
        let allowed = match self.policy.pool.replace {
            Replace::AtOnce => count,
            Replace::Gradual => self.replaced_at_a_time(count),
        };
        let take = usize::try_from(allowed).unwrap_or(usize::MAX);
        for prebuild in expired.into_iter().take(take) {
            self.delete(prebuild, DeleteReason::Expired);
        }
        count - allowed
    }

    /// How many of `count` expired prebuilds may go now where the replacement is gradual.
    fn replaced_at_a_time(&mut self, count: u32) -> u32 {
        let at_a_time = percent_of(self.policy.pool.max_unavailable_percent, self.desired).max(1);
        // What is not yet claimable is unavailable as well.
        let unready = self.snapshot.prebuilds.iter().filter(|it| {
            it.state == PoolState::Unready && !self.config.is_expired(it.created_at, self.now)
        });
        let busy = self.counts.starting + self.counts.deleting + number(unready.count());
        // Beyond the desired count nothing is replaced, only removed.
        let present = self.counts.valid + self.counts.starting + count;
        let surplus = present.saturating_sub(self.desired);
        let allowed = at_a_time.saturating_sub(busy).max(surplus).min(count);
        if allowed < count {
            self.reasons.push(Reason::Gradual { waiting: count - allowed, at_a_time });
        }
        allowed
    }

    /// Deletes what runs, is valid, and is more than wanted.
    pub(super) fn delete_extraneous(&mut self) {
        let surplus = self.counts.valid.saturating_sub(self.desired);
        if surplus == 0 {
            return;
        }
        self.reasons
            .push(Reason::AboveDesired { desired: self.desired, running: self.counts.valid });
        let take = usize::try_from(surplus).unwrap_or(usize::MAX);
        for prebuild in self.least_missed(false).into_iter().take(take) {
            self.delete(prebuild, DeleteReason::Extraneous);
        }
    }
}

const fn is_ended(state: PoolState) -> bool {
    matches!(state, PoolState::Failed | PoolState::FailedDelete)
}

/// A count of workspaces; more than `u32` holds do not exist.
fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
