//! How many prebuilds are created, and what holds that.

use jiff::{SignedDuration, Timestamp};

use super::{
    Action, CREATES_PER_PLAN_MAX, PROBE_DELAY, PROBE_DELAY_MAX, Planner, Reason, SETBACK_DELAY,
    doubled,
};
use crate::quota::QuotaExceeded;
use crate::state::PrebuildStatus;

impl Planner<'_> {
    /// Opens the breaker after too many failures in a row; closes it once a prebuild became ready or
    /// an operator reset it. What is not wanted any more cannot fail any more.
    pub(super) fn update_breaker(&mut self) {
        let consecutive = self.snapshot.failures.consecutive;
        let limit = self.policy.settings.failure_hard_limit;
        match self.status {
            PrebuildStatus::Healthy if limit > 0 && consecutive >= limit && self.is_wanted() => {
                self.status = PrebuildStatus::HardLimited;
                self.actions.push(Action::OpenBreaker { consecutive });
                self.reasons.push(Reason::BreakerOpened { consecutive });
            }
            PrebuildStatus::HardLimited if limit == 0 || consecutive == 0 => {
                self.status = PrebuildStatus::Healthy;
                self.actions.push(Action::CloseBreaker);
                self.reasons.push(Reason::BreakerClosed);
            }
            _ => {}
        }
    }

    /// Creates what is missing, unless something holds it. `waiting` expired prebuilds keep their
    /// places until it is their turn to be replaced.
    pub(super) fn create(&mut self, waiting: u32) {
        let (valid, starting) = (self.counts.valid, self.counts.starting);
        let present = valid.saturating_add(starting).saturating_add(waiting);
        if self.desired <= present {
            return;
        }
        self.reasons.push(Reason::BelowDesired { desired: self.desired, running: valid, starting });
        let missing = self.beside_predecessor().saturating_sub(present);
        if missing == 0 {
            return;
        }
        // All of them are looked at, so that `explain` names every hold at once.
        let is_held =
            [self.hold_refused(), self.hold_capacity(), self.hold_backoff(), self.hold_setback()];
        let probe = self.hold_breaker();
        let room = self.room(missing);
        let count = match probe {
            Probe::Closed => room,
            Probe::Due => room.min(1),
            Probe::Wait => 0,
        };
        if is_held.contains(&true) || count == 0 {
            return;
        }
        if let Probe::Due = probe {
            let before = self.snapshot.failures.breaker.map_or(0, |it| it.probes);
            self.reasons.push(Reason::Probe { before });
        } else if count > CREATES_PER_PLAN_MAX {
            self.cut_off(CREATES_PER_PLAN_MAX);
        }
        self.actions.push(Action::Create {
            count: count.min(CREATES_PER_PLAN_MAX),
            is_probe: matches!(probe, Probe::Due),
        });
    }

    /// How many there may be: the desired count, as long as the old version's prebuilds that still
    /// run leave room under the surge.
    fn beside_predecessor(&mut self) -> u32 {
        let most = self.desired.saturating_add(self.surge(self.desired));
        let limit = most.saturating_sub(self.snapshot.predecessor);
        if limit < self.desired {
            self.reasons.push(Reason::Surge { limit });
        }
        limit.min(self.desired)
    }

    fn hold_refused(&mut self) -> bool {
        let is_refused = self.status == PrebuildStatus::ValidationFailed;
        if is_refused {
            self.reasons.push(Reason::ValidationFailed);
        }
        is_refused
    }

    fn hold_capacity(&mut self) -> bool {
        if !self.snapshot.has_daemon {
            self.reasons.push(Reason::Capacity { need: self.snapshot.need.clone() });
        }
        !self.snapshot.has_daemon
    }

    /// After failures creation waits until the last one is `failures x interval` ago. An open
    /// breaker's probes have their own, longer delay.
    fn hold_backoff(&mut self) -> bool {
        if self.status == PrebuildStatus::HardLimited {
            return false;
        }
        let settings = &self.policy.settings;
        let lookback = settings.reconciliation_backoff_lookback_period;
        let after = self.now.checked_sub(lookback).unwrap_or(Timestamp::MIN);
        let recent = || {
            let failures = &self.snapshot.failures.recent;
            failures.iter().copied().filter(move |it| *it > after)
        };
        let failures = u32::try_from(recent().count()).unwrap_or(u32::MAX);
        let (Some(first), Some(last)) = (recent().min(), recent().max()) else { return false };
        let factor = i32::try_from(failures).unwrap_or(i32::MAX);
        let wait = settings
            .reconciliation_backoff_interval
            .checked_mul(factor)
            .unwrap_or(SignedDuration::MAX);
        let until = last.checked_add(wait).unwrap_or(Timestamp::MAX);
        if until <= self.now {
            return false;
        }
        self.reasons.push(Reason::Backoff { failures, until });
        // When the oldest failure ceases to count, the wait becomes shorter.
        let forgotten = first.checked_add(lookback).unwrap_or(Timestamp::MAX);
        self.looks.push(until.min(forgotten));
        true
    }

    /// After setbacks the next attempt waits a second, doubled with each one in a row, at most as
    /// long as a back-off begins with. Short enough that nobody sees a lost daemon in the pool, long
    /// enough that a machine that fails everything at once is not kept busy with it.
    fn hold_setback(&mut self) -> bool {
        let failures = &self.snapshot.failures;
        let (Some(at), 1..) = (failures.setback_at, failures.setbacks) else { return false };
        let most = self.policy.settings.reconciliation_backoff_interval;
        let wait = doubled(SETBACK_DELAY, failures.setbacks - 1, most).min(most);
        let until = at.checked_add(wait).unwrap_or(Timestamp::MAX);
        if until <= self.now {
            return false;
        }
        self.reasons.push(Reason::Setback { setbacks: failures.setbacks, until });
        self.looks.push(until);
        true
    }

    fn hold_breaker(&mut self) -> Probe {
        if self.status != PrebuildStatus::HardLimited {
            return Probe::Closed;
        }
        if self.counts.starting > 0 {
            // That one decides; two probes at once would be no probe.
            self.reasons.push(Reason::BreakerOpen { next_probe_at: None });
            return Probe::Wait;
        }
        let opens_now = self.config.status != PrebuildStatus::HardLimited;
        let breaker = if opens_now { None } else { self.snapshot.failures.breaker };
        let probes = breaker.map_or(0, |it| it.probes);
        let since = match breaker {
            Some(it) => it.last_probe_at.unwrap_or(it.opened_at),
            None if opens_now => self.now,
            // Nobody knows since when it is open: long enough.
            None => return Probe::Due,
        };
        let delay = doubled(PROBE_DELAY, probes, PROBE_DELAY_MAX);
        let due = since.checked_add(delay).unwrap_or(Timestamp::MAX);
        if due <= self.now {
            return Probe::Due;
        }
        self.reasons.push(Reason::BreakerOpen { next_probe_at: Some(due) });
        self.looks.push(due);
        Probe::Wait
    }

    /// How many of `missing` fit under the cap on creations in flight and under the quota.
    fn room(&mut self, missing: u32) -> u32 {
        let mut room = missing;
        let max = self.policy.settings.max_in_flight;
        let in_flight = self.snapshot.in_flight;
        if max > 0 && max.saturating_sub(in_flight) < room {
            room = max.saturating_sub(in_flight);
            self.reasons.push(Reason::InFlightCap { in_flight, max });
        }
        let cost = self.snapshot.cost;
        if let Some(quota) = self.snapshot.quota {
            let fits = quota.room_for(cost, missing);
            if fits < missing {
                // A new version may cost less than the one before: one build finds out.
                let finds_out = self.snapshot.is_cost_guessed && self.counts.starting == 0;
                room = room.min(fits.max(u32::from(finds_out)));
                let exceeded =
                    QuotaExceeded { budget: quota.budget, consumed: quota.consumed, cost };
                self.reasons.push(Reason::Quota { exceeded });
            }
        }
        room
    }
}

/// What the breaker has to say.
#[derive(Clone, Copy)]
enum Probe {
    /// Nothing: it is closed.
    Closed,
    /// One build is to be tried.
    Due,
    /// Nothing may be created.
    Wait,
}
