//! Two versions of a template in miniature: their pools, users who claim, builds that fail, daemons
//! that come and go, clocks that run, and a promotion from one to the other. Claims and operators act
//! between a plan and its execution, as they do in fact.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::promotion::{CallOff, Candidate, Promotion, Step, decide};

/// Something that happens.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// A pass over the old version's pool, or the new one's, with so many claims between the plan
    /// and its execution.
    Pass { is_new: bool, claims: u8 },
    /// The daemon does its work on the first prebuild that waits for it.
    Build { is_new: bool, succeeds: bool },
    /// An agent reports that it is ready.
    Ready { is_new: bool },
    /// A user wants a workspace.
    Claim,
    /// An operator parks the first ready one.
    Park { is_new: bool },
    /// Time passes.
    Minutes(i64),
    /// Daemons go, or come back.
    Daemons(bool),
}

/// What a template's two versions are at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Warming,
    Switched,
    CalledOff,
}

#[derive(Debug, Clone)]
struct World {
    now: Timestamp,
    /// The old version's pool and the new one's. Both want the same.
    pools: [Pool; 2],
    desired: u32,
    ready_percent: u32,
    deadline: Timestamp,
    stage: Stage,
    why: Option<CallOff>,
    last_id: u128,
    claimed: BTreeSet<WorkspaceId>,
    parked: BTreeSet<WorkspaceId>,
    /// What users could have when it began, less what they took and what expired.
    floor: u32,
}

const OLD: usize = 0;
const NEW: usize = 1;

impl World {
    /// A full pool of the old version, and a warm promotion that has just begun.
    fn warming(desired: u32, surge: u32, ready_percent: u32, ttl_minutes: i64) -> Self {
        let instances = i32::try_from(desired).unwrap();
        let base = pool(instances).surge(surge).ttl_minutes(ttl_minutes);
        let candidate = base.clone().standing(Standing::Candidate);
        let mut it = Self {
            now: now(),
            pools: [base.with(usize::try_from(desired).unwrap(), PoolState::Ready), candidate],
            desired,
            ready_percent,
            deadline: ahead(120),
            stage: Stage::Warming,
            why: None,
            last_id: desired.into(),
            claimed: BTreeSet::new(),
            parked: BTreeSet::new(),
            floor: desired,
        };
        it.pools[NEW].snapshot.deadline = Some(it.deadline);
        it
    }

    /// The same pools with the new version promoted at once.
    fn promoted(desired: u32, surge: u32, allow_previous: bool) -> Self {
        let mut it = Self::warming(desired, surge, 100, 0);
        it.switch(if allow_previous { Standing::Previous } else { Standing::Inactive });
        it
    }

    fn switch(&mut self, old: Standing) {
        self.stage = Stage::Switched;
        self.pools[OLD].config.standing = old;
        self.pools[NEW].config.standing = Standing::Active;
        self.pools[NEW].snapshot.deadline = None;
    }

    fn counts(&self, which: usize) -> Counts {
        self.pools[which].plan_at(self.now).counts
    }

    /// What users could have now.
    fn claimable(&self) -> u32 {
        self.counts(OLD).eligible + self.counts(NEW).eligible
    }

    /// What is there or comes, of both versions; never more than desired and surge.
    fn size(&self) -> u32 {
        let [old, new] = [self.counts(OLD), self.counts(NEW)];
        old.running + old.starting + new.valid + new.starting
    }

    fn surge(&self) -> u32 {
        (self.desired * self.pools[NEW].policy.pool.max_surge_percent / 100).max(1)
    }

    /// What a pass reads.
    fn observe(&self, which: usize) -> Pool {
        let mut it = self.pools[which].clone();
        let [old, new] = [self.counts(OLD), self.counts(NEW)];
        if self.stage == Stage::Switched && which == OLD {
            it.snapshot.successor =
                Some(Successor { desired: self.desired, eligible: new.eligible });
        }
        if self.stage == Stage::Switched && which == NEW {
            it.snapshot.predecessor = old.running + old.starting;
        }
        it
    }

    fn pass(&mut self, which: usize, claims: u8) -> Plan {
        let (size, before) = (self.size(), self.claimable());
        let plan = self.observe(which).plan_at(self.now);
        let taken = (0..claims).filter(|_| self.claim()).count();
        for action in &plan.actions {
            self.carry_out(which, action);
        }
        let most = self.desired + self.surge();
        assert!(self.size() <= size.max(most), "{} of {most}: {plan:#?}", self.size());
        // No plan takes anything from users, but for what is more than they were promised.
        let least = before.min(self.desired).saturating_sub(u32::try_from(taken).unwrap());
        let is_plain = self.pools[OLD].config.standing == Standing::Inactive;
        assert!(is_plain || self.claimable() >= least, "{plan:#?}");
        if self.stage == Stage::Warming && which == NEW {
            self.decide();
        }
        plan
    }

    /// As the executor does: whatever is no longer as the plan saw it is left alone.
    fn carry_out(&mut self, which: usize, action: &Action) {
        let now = self.now;
        let pool = &mut self.pools[which];
        match action {
            Action::OpenBreaker { .. } => {
                pool.config.status = PrebuildStatus::HardLimited;
                pool.snapshot.failures.breaker =
                    Some(Breaker { opened_at: now, probes: 0, last_probe_at: None });
            }
            Action::CloseBreaker => {
                pool.config.status = PrebuildStatus::Healthy;
                pool.snapshot.failures.breaker = None;
            }
            Action::CancelPending { workspace_id, build_id } => {
                pool.snapshot.prebuilds.retain(|it| {
                    (it.workspace_id, it.build_id) != (*workspace_id, *build_id) || it.is_acquired
                });
            }
            Action::Delete { workspace_id, build_id, .. } => {
                assert!(!self.parked.contains(workspace_id) || self.moved(which, *workspace_id));
                let member = self.pools[which]
                    .snapshot
                    .prebuilds
                    .iter_mut()
                    .find(|it| (it.workspace_id, it.build_id) == (*workspace_id, *build_id));
                if let Some(member) = member {
                    assert!(!self.claimed.contains(workspace_id));
                    member.state = PoolState::Deleting;
                }
            }
            Action::Create { count, is_probe } => {
                if let Some(breaker) = pool.snapshot.failures.breaker.as_mut().filter(|_| *is_probe)
                {
                    breaker.probes += 1;
                    breaker.last_probe_at = Some(now);
                }
                for _ in 0..*count {
                    self.last_id += 1;
                    let mut prebuild = self.pools[which].new_member(PoolState::Starting, now);
                    prebuild.workspace_id = workspace(self.last_id);
                    prebuild.build_id = BuildId(Uuid::from_u128(self.last_id));
                    self.pools[which].snapshot.prebuilds.push(prebuild);
                }
            }
        }
    }

    /// It was parked after the plan was made: its latest build is another one.
    fn moved(&self, which: usize, id: WorkspaceId) -> bool {
        let all = &self.pools[which].snapshot.prebuilds;
        all.iter().any(|it| it.workspace_id == id && it.build_number > 1)
    }

    fn decide(&mut self) {
        let it = &self.pools[NEW];
        let offerable = |one: &&Prebuild| is_offerable(one, &it.config, &it.policy.pool, self.now);
        let eligible = it.snapshot.prebuilds.iter().filter(offerable).count();
        let candidate = Candidate {
            preset_name: "small".to_owned(),
            desired: it.plan_at(self.now).desired,
            eligible: u32::try_from(eligible).unwrap(),
            status: it.config.status,
        };
        let promotion = Promotion {
            pools: vec![candidate],
            ready_percent: self.ready_percent,
            deadline: self.deadline,
        };
        match decide(&promotion, self.now) {
            Step::Wait { until, .. } => assert!(until > self.now),
            Step::Switch => self.switch(Standing::Previous),
            Step::CallOff(why) => {
                self.stage = Stage::CalledOff;
                self.why = Some(why);
                self.pools[NEW].config.standing = Standing::Inactive;
            }
        }
    }

    /// A claim takes from the active version's pool first, then from the previous one's.
    fn claim(&mut self) -> bool {
        let order = if self.stage == Stage::Switched { [NEW, OLD] } else { [OLD, NEW] };
        for which in order {
            let it = &mut self.pools[which];
            let (config, policy, now) = (&it.config, &it.policy.pool, self.now);
            let found =
                it.snapshot.prebuilds.iter().position(|one| claimable(one, config, policy, now));
            if let Some(place) = found {
                self.claimed.insert(it.snapshot.prebuilds.remove(place).workspace_id);
                self.floor = self.floor.saturating_sub(1);
                return true;
            }
        }
        false
    }

    fn build(&mut self, which: usize, succeeds: bool) {
        let now = self.now;
        let pool = &mut self.pools[which];
        if !pool.snapshot.has_daemon {
            return;
        }
        pool.snapshot.prebuilds.retain(|it| it.state != PoolState::Deleting);
        let members = &mut pool.snapshot.prebuilds;
        let Some(one) = members.iter_mut().find(|it| it.state == PoolState::Starting) else {
            return;
        };
        if !one.is_acquired {
            one.is_acquired = true;
        } else if succeeds {
            one.state = PoolState::Unready;
        } else {
            one.state = PoolState::Failed;
            one.finished_at = Some(now);
            pool.snapshot.failures.recent.push(now);
            pool.snapshot.failures.consecutive += 1;
        }
    }

    fn ready(&mut self, which: usize) {
        let pool = &mut self.pools[which];
        let members = &mut pool.snapshot.prebuilds;
        if let Some(one) = members.iter_mut().find(|it| it.state == PoolState::Unready) {
            one.state = PoolState::Ready;
            pool.snapshot.failures.consecutive = 0;
        }
    }

    fn park(&mut self, which: usize) {
        let members = &mut self.pools[which].snapshot.prebuilds;
        if let Some(one) = members.iter_mut().find(|it| it.state == PoolState::Ready) {
            (one.state, one.build_number) = (PoolState::Stopped, 2);
            one.build_id = BuildId(Uuid::from_u128(number(one.workspace_id) << 64));
            self.parked.insert(one.workspace_id);
            self.floor = self.floor.saturating_sub(1);
        }
    }

    fn happen(&mut self, event: Event) {
        let which = |is_new: bool| if is_new { NEW } else { OLD };
        match event {
            Event::Pass { is_new, claims } => {
                self.pass(which(is_new), claims);
            }
            Event::Build { is_new, succeeds } => self.build(which(is_new), succeeds),
            Event::Ready { is_new } => self.ready(which(is_new)),
            Event::Claim => {
                self.claim();
            }
            Event::Park { is_new } => self.park(which(is_new)),
            Event::Minutes(minutes) => {
                let before = self.claimable();
                self.now += SignedDuration::from_mins(minutes);
                let expired = before - self.claimable();
                self.floor = self.floor.saturating_sub(expired);
            }
            Event::Daemons(are_there) => {
                for pool in &mut self.pools {
                    pool.snapshot.has_daemon = are_there;
                }
            }
        }
        assert!(self.claimable() >= self.floor, "{event:?} left {}: {self:#?}", self.claimable());
    }

    /// Daemons work, builds of the new version succeed or not, time passes; until nothing is left to
    /// do.
    fn run_out(&mut self, succeeds: bool) {
        self.happen(Event::Daemons(true));
        for _ in 0..200 {
            let before = self.stage;
            let plans = [self.pass(OLD, 0), self.pass(NEW, 0)];
            let passed = self.pools.clone();
            for _ in 0..=self.desired + 2 {
                for which in [OLD, NEW] {
                    self.build(which, succeeds || which == OLD);
                    self.build(which, succeeds || which == OLD);
                    self.ready(which);
                }
            }
            let is_still = before == self.stage && passed == self.pools;
            if is_still && plans.iter().all(Plan::is_settled) {
                let is_held = plans.iter().any(|it| !it.holds().is_empty());
                if self.stage != Stage::Warming && !is_held {
                    return;
                }
                let looks = plans.iter().filter_map(|it| it.next_look);
                self.now = looks.min().unwrap_or(self.now);
            }
        }
        panic!("no rest: {self:#?}");
    }
}

fn any_event(fails: f64) -> impl Strategy<Value = Event> {
    let is_new = prop::bool::weighted(0.6);
    prop_oneof![
        6 => (is_new, 0_u8..3).prop_map(|(is_new, claims)| Event::Pass { is_new, claims: claims / 2 }),
        8 => (is_new, prop::bool::weighted(1.0 - fails))
            .prop_map(|(is_new, succeeds)| Event::Build { is_new, succeeds }),
        4 => is_new.prop_map(|is_new| Event::Ready { is_new }),
        1 => Just(Event::Claim),
        1 => is_new.prop_map(|is_new| Event::Park { is_new }),
        2 => (0_i64..12).prop_map(Event::Minutes),
        1 => prop::bool::weighted(0.7).prop_map(Event::Daemons),
    ]
}

fn any_events(fails: f64) -> impl Strategy<Value = Vec<Event>> {
    prop::collection::vec(any_event(fails), 0..120)
}

proptest! {
    /// Whatever happens, and however it ends: what users can have only falls by what they take, by
    /// what operators take, and by what expires; and old and new together are never more than
    /// desired and surge. (Both are asserted at every step.) In the end there is one full pool.
    #[test]
    fn a_warm_promotion_takes_nothing_from_users(
        desired in 0_u32..7,
        surge in 1_u32..=100,
        ready_percent in 1_u32..=100,
        ttl in prop::sample::select(vec![0_i64, 60, 600]),
        events in any_events(0.2),
    ) {
        let mut it = World::warming(desired, surge, ready_percent, ttl);
        for event in events {
            it.happen(event);
        }
        it.pools.iter_mut().for_each(|it| it.config.prebuilds.as_mut().unwrap().ttl_seconds = 0);
        it.run_out(true);
        let [old, new] = [it.counts(OLD), it.counts(NEW)];
        let (full, empty) = if it.stage == Stage::Switched { (new, old) } else { (old, new) };
        prop_assert_eq!((full.eligible, full.running), (desired, desired));
        prop_assert_eq!((empty.running, empty.starting), (0, 0));
    }

    /// A version that only fails is called off, and the old pool is what it was but for claims.
    #[test]
    fn a_version_that_only_fails_is_called_off(
        desired in 1_u32..7,
        surge in 1_u32..=100,
        ready_percent in 1_u32..=100,
        claims in 0_usize..3,
    ) {
        let mut it = World::warming(desired, surge, ready_percent, 0);
        let was: BTreeSet<_> =
            it.pools[OLD].snapshot.prebuilds.iter().map(|it| it.workspace_id).collect();
        for _ in 0..claims {
            it.happen(Event::Claim);
        }
        it.run_out(false);
        prop_assert_eq!(it.stage, Stage::CalledOff);
        prop_assert_eq!(it.why.clone(), Some(CallOff::BreakerOpened { preset: "small".to_owned() }));
        prop_assert!(it.now < it.deadline);
        let is_there = |id: &&WorkspaceId| {
            let all = &it.pools[OLD].snapshot.prebuilds;
            all.iter().any(|one| one.workspace_id == **id && one.state == PoolState::Ready)
        };
        let left = was.iter().filter(|id| !it.claimed.contains(id));
        prop_assert!(left.into_iter().all(|id| is_there(&id)));
        prop_assert_eq!(it.counts(OLD).eligible, desired);
        prop_assert_eq!(it.counts(NEW).running, 0);
    }

    /// A version that takes too long is called off at its deadline, not before and not much later.
    #[test]
    fn a_version_that_is_never_ready_is_called_off_at_its_deadline(desired in 1_u32..5) {
        let mut it = World::warming(desired, 100, 100, 0);
        it.pass(NEW, 0);
        let look = it.observe(NEW).plan_at(it.now).next_look;
        prop_assert_eq!(look, Some(it.deadline));
        it.now = it.deadline - SignedDuration::from_micros(1);
        it.pass(NEW, 0);
        prop_assert_eq!(it.stage, Stage::Warming);
        it.now = it.deadline;
        it.pass(NEW, 0);
        prop_assert_eq!(it.why.clone(), Some(CallOff::TimedOut { ready: 0, needed: desired }));
        prop_assert_eq!(it.counts(OLD).eligible, desired);
    }

    /// After a plain promotion nothing of the old version is claimable from that step on, unless the
    /// policy allows it: then nothing is taken from users.
    #[test]
    fn a_plain_promotion_shuts_the_old_pool_unless_the_policy_allows_it(
        desired in 1_u32..7,
        surge in 1_u32..=100,
        allow_previous: bool,
        events in any_events(0.1),
    ) {
        let mut it = World::promoted(desired, surge, allow_previous);
        if !allow_previous {
            it.floor = 0;
        }
        for event in events {
            prop_assert!(allow_previous || it.counts(OLD).eligible == 0);
            it.happen(event);
        }
        it.run_out(true);
        prop_assert_eq!((it.counts(NEW).eligible, it.counts(OLD).running), (desired, 0));
    }

    /// An hour without any daemon: nobody's fault, and no more jobs wait than are wanted.
    #[test]
    fn without_daemons_nothing_fails_and_no_queue_grows(
        desired in 0_u32..7,
        noticed_after in 0_i64..3,
        claims in prop::collection::vec(0_u8..3, 60),
        reaped in prop::collection::vec(prop::bool::weighted(0.1), 60),
    ) {
        let mut it = World::warming(desired, 100, 100, 600);
        for ((minute, claims), is_reaped) in (0..).zip(claims).zip(reaped) {
            // Until it is noticed, jobs are queued as ever; none is taken.
            it.happen(Event::Daemons(minute < noticed_after));
            it.now += SignedDuration::from_mins(1);
            for which in [OLD, NEW] {
                it.pass(which, claims);
                it.pass(which, 0);
                let counts = it.counts(which);
                prop_assert!(counts.pending <= desired, "{} of {}", counts.pending, desired);
                prop_assert_eq!(it.pools[which].config.status, PrebuildStatus::Healthy);
            }
            // The reaper gives up on one that waited: no failure of the template's.
            let at = it.now;
            let members = &mut it.pools[OLD].snapshot.prebuilds;
            let waiting = members.iter_mut().find(|it| is_reaped && it.is_pending());
            if let Some(one) = waiting {
                (one.state, one.finished_at) = (PoolState::Failed, Some(at));
            }
        }
        // They come back, and all is built at once: no back-off, no probe.
        it.happen(Event::Daemons(true));
        let plan = it.pass(OLD, 0);
        let counts = it.counts(OLD);
        prop_assert_eq!(counts.valid + counts.starting, plan.desired);
    }

    /// Whatever is paused, nothing starts: no create, no delete, no cancellation.
    #[test]
    fn paused_pools_stand_still(it in super::settling::any_pool(), scope in 0_usize..4) {
        let it = it.paused(PauseScope::ALL[scope], None);
        let plan = it.plan();
        prop_assert!(plan.is_settled(), "{:?}", plan.actions);
        prop_assert_eq!(plan.holds(), ["paused"]);
    }
}
