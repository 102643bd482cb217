//! Truth tables of the plan. `Pool` is the vocabulary: a pool of two in order, to which a test adds
//! what it is about.

use uuid::Uuid;

use super::*;
use crate::id::{BuildId, PresetId, WorkspaceId};
use crate::preset::{Prebuilds, PresetSchedule};
use crate::quota::{Quota, QuotaExceeded};
use crate::state::MissReason;

mod settling;

fn now() -> Timestamp {
    "2026-11-20T12:00:00Z".parse().unwrap()
}

fn ago(minutes: i64) -> Timestamp {
    now() - SignedDuration::from_mins(minutes)
}

fn ahead(minutes: i64) -> Timestamp {
    now() + SignedDuration::from_mins(minutes)
}

#[derive(Debug, Clone)]
struct Pool {
    config: PoolConfig,
    policy: Policy,
    snapshot: PoolSnapshot,
}

fn pool(instances: i32) -> Pool {
    Pool {
        config: PoolConfig {
            preset_id: PresetId(Uuid::from_u128(1)),
            standing: Standing::Active,
            prebuilds: Some(Prebuilds { instances, ..Prebuilds::default() }),
            status: PrebuildStatus::Healthy,
            last_invalidated_at: None,
        },
        policy: Policy::default(),
        snapshot: PoolSnapshot::default(),
    }
}

impl Pool {
    /// Adds a prebuild of this age; its id is its place, from 1.
    fn with(self, state: PoolState, age_minutes: i64) -> Self {
        self.with_one(|it| {
            it.state = state;
            it.created_at = ago(age_minutes);
        })
    }

    fn with_one(mut self, change: impl FnOnce(&mut Prebuild)) -> Self {
        let id = self.snapshot.prebuilds.len() as u128 + 1;
        let mut prebuild = Prebuild {
            workspace_id: workspace(id),
            build_id: BuildId(Uuid::from_u128(id)),
            build_number: 1,
            state: PoolState::Ready,
            created_at: ago(10),
            is_acquired: false,
            is_canceled_by_person: false,
            finished_at: None,
            failed_deletes: 0,
        };
        change(&mut prebuild);
        self.snapshot.prebuilds.push(prebuild);
        self
    }

    fn prebuilds(&mut self) -> &mut Prebuilds {
        self.config.prebuilds.as_mut().unwrap()
    }

    fn ttl_minutes(mut self, minutes: i64) -> Self {
        self.prebuilds().ttl_seconds = minutes * 60;
        self
    }

    fn standing(mut self, standing: Standing) -> Self {
        self.config.standing = standing;
        self
    }

    fn failed(mut self, minutes_ago: &[i64]) -> Self {
        self.snapshot.failures.recent = minutes_ago.iter().map(|it| ago(*it)).collect();
        self.snapshot.failures.consecutive = minutes_ago.len().try_into().unwrap();
        self
    }

    fn plan(&self) -> Plan {
        plan(&self.config, &self.policy, &self.snapshot, now())
    }

    /// The plan does this, whatever the order of its inputs.
    #[track_caller]
    fn does(&self, expected: &[Action]) -> Plan {
        let plan = self.plan();
        assert_eq!(plan.actions, expected, "{:#?}", plan.reasons);
        let mut reversed = self.clone();
        reversed.snapshot.prebuilds.reverse();
        reversed.snapshot.failures.recent.reverse();
        reversed.snapshot.pauses.reverse();
        assert_eq!(reversed.plan(), plan);
        plan
    }
}

fn workspace(id: u128) -> WorkspaceId {
    WorkspaceId(Uuid::from_u128(id))
}

fn create(count: u32) -> Action {
    Action::Create { count, is_probe: false }
}

fn delete(id: u128, why: DeleteReason) -> Action {
    Action::Delete { workspace_id: workspace(id), build_id: BuildId(Uuid::from_u128(id)), why }
}

fn cancel(id: u128) -> Action {
    Action::CancelPending { workspace_id: workspace(id), build_id: BuildId(Uuid::from_u128(id)) }
}

#[test]
fn what_is_missing_is_created_counting_what_is_on_its_way() {
    use PoolState::{Deleting, Ready, Starting, Stopped, Stopping, Unready};
    pool(2).does(&[create(2)]);
    pool(2).with(Ready, 1).does(&[create(1)]);
    pool(2).with(Ready, 1).with(Starting, 1).does(&[]);
    pool(2).with(Unready, 1).with(Starting, 1).does(&[]);
    pool(2).with(Starting, 1).with(Starting, 1).with(Starting, 1).does(&[]);
    pool(0).does(&[]);
    // None of these is in the pool.
    pool(2).with(Stopped, 1).with(Stopping, 1).with(Deleting, 1).does(&[create(2)]);
}

#[test]
fn surplus_goes_the_least_missed_first() {
    use DeleteReason::Extraneous;
    use PoolState::{Ready, Unready};
    // Not ready first, then the oldest.
    let it = pool(1).with(Ready, 30).with(Unready, 1).with(Ready, 40);
    let plan = it.does(&[delete(2, Extraneous), delete(3, Extraneous)]);
    assert!(plan.reasons.contains(&Reason::AboveDesired { desired: 1, running: 3 }));
    // With a time to live the oldest is also the one that expires soonest.
    pool(1).ttl_minutes(60).with(Ready, 5).with(Ready, 50).does(&[delete(2, Extraneous)]);
    // What starts is not deleted; it becomes surplus once it runs.
    pool(1).with(Ready, 1).with(PoolState::Starting, 1).does(&[]);
}

#[test]
fn what_is_expired_goes_and_is_replaced() {
    use DeleteReason::Expired;
    use PoolState::{Ready, Unready};
    let it = pool(2).ttl_minutes(60).with(Ready, 60).with(Unready, 90).with(Ready, 59);
    let plan = it.does(&[delete(2, Expired), delete(1, Expired), create(1)]);
    assert_eq!((plan.counts.running, plan.counts.valid, plan.counts.expired), (3, 1, 2));
    assert_eq!(plan.next_look, Some(ahead(1)));
    // No time to live: nothing expires.
    pool(1).with(Ready, 1_000_000).does(&[]);
}

#[test]
fn what_was_created_before_the_invalidation_is_expired() {
    let mut it = pool(2).with(PoolState::Ready, 10).with(PoolState::Ready, 4);
    it.config.last_invalidated_at = Some(ago(5));
    it.does(&[delete(1, DeleteReason::Expired), create(1)]);
    it.config.last_invalidated_at = Some(ago(10));
    it.does(&[]);
    // An inactive preset's go like the others.
    it.config.last_invalidated_at = Some(ago(5));
    it.standing(Standing::Inactive)
        .does(&[delete(1, DeleteReason::Expired), delete(2, DeleteReason::Inactive)]);
}

#[test]
fn gradual_replacement_takes_a_quarter_at_a_time() {
    use DeleteReason::Expired;
    let mut it = pool(8).ttl_minutes(60);
    it.policy.pool.replace = Replace::Gradual;
    for age in [70, 71, 72, 73, 74, 75] {
        it = it.with(PoolState::Ready, age);
    }
    it = it.with(PoolState::Ready, 1).with(PoolState::Ready, 2);
    let plan = it.does(&[delete(6, Expired), delete(5, Expired), create(2)]);
    assert!(plan.reasons.contains(&Reason::Gradual { waiting: 4, at_a_time: 2 }));
    // One is still on its way: one more may go.
    let busy = it.clone().with(PoolState::Unready, 1);
    busy.does(&[delete(6, Expired)]);
    it.with(PoolState::Starting, 1).with(PoolState::Starting, 1).does(&[
        // Ten in all for eight wanted: two are surplus, and go without replacement.
        delete(6, Expired),
        delete(5, Expired),
    ]);
}

#[test]
fn gradual_replacement_takes_at_least_one() {
    let mut it = pool(2).ttl_minutes(60).with(PoolState::Ready, 70).with(PoolState::Ready, 80);
    it.policy.pool.replace = Replace::Gradual;
    it.does(&[delete(2, DeleteReason::Expired), create(1)]);
}

#[test]
fn schedules_set_the_desired_count_and_the_next_look() {
    let mut it = pool(1);
    *it.prebuilds() = Prebuilds {
        instances: 1,
        ttl_seconds: 0,
        timezone: "UTC".to_owned(),
        schedules: vec![PresetSchedule { cron: "* 9-12 * * *".to_owned(), instances: 3 }],
    };
    let plan = it.does(&[create(3)]);
    assert_eq!((plan.desired, plan.next_look), (3, Some(ahead(60))));
    "Mars/X".clone_into(&mut it.prebuilds().timezone);
    let plan = it.does(&[create(1)]);
    assert!(matches!(plan.reasons[0], Reason::InvalidSchedule { .. }));
}

#[test]
fn an_inactive_preset_cancels_what_is_pending_and_deletes_what_runs() {
    use DeleteReason::{Expired, Inactive};
    use PoolState::{Deleting, Ready, Starting, Stopped, Unready};
    let it = pool(3)
        .standing(Standing::Inactive)
        .ttl_minutes(60)
        .with(Ready, 1)
        .with(Unready, 90)
        .with(Starting, 1)
        .with_one(|it| (it.state, it.is_acquired) = (Starting, true))
        .with_one(|it| (it.state, it.build_number) = (Starting, 2))
        .with_one(|it| (it.state, it.is_canceled_by_person) = (Starting, true))
        .with(Stopped, 1)
        .with(Deleting, 1);
    let plan = it.does(&[cancel(3), delete(2, Expired), delete(1, Inactive)]);
    assert_eq!((plan.desired, plan.counts.eligible), (0, 0));
    assert!(plan.reasons.contains(&Reason::Inactive));
}

#[test]
fn a_preset_without_prebuild_configuration_is_no_pool() {
    let mut it = pool(2).with(PoolState::Ready, 1).with(PoolState::Starting, 1);
    it.config.prebuilds = None;
    let plan = it.does(&[cancel(2), delete(1, DeleteReason::Inactive)]);
    assert!(plan.reasons.contains(&Reason::NotAPool));
}

#[test]
fn the_previous_version_may_be_kept_until_as_many_new_ones_are_ready() {
    use DeleteReason::Inactive;
    use PoolState::{Ready, Unready};
    let mut it =
        pool(3).standing(Standing::Inactive).with(Ready, 1).with(Ready, 2).with(Unready, 3);
    it.snapshot.successor = Some(Successor { desired: 2, eligible: 1 });
    it.does(&[delete(3, Inactive), delete(2, Inactive), delete(1, Inactive)]);
    it.config.standing = Standing::Previous;
    let plan = it.does(&[delete(3, Inactive), delete(2, Inactive)]);
    assert!(plan.reasons.contains(&Reason::PreviousKept { count: 1, desired: 2, eligible: 1 }));
    it.snapshot.successor = Some(Successor { desired: 2, eligible: 0 });
    it.does(&[delete(3, Inactive)]);
    it.snapshot.successor = Some(Successor { desired: 2, eligible: 2 });
    it.does(&[delete(3, Inactive), delete(2, Inactive), delete(1, Inactive)]);
    it.snapshot.successor = None;
    it.does(&[delete(3, Inactive), delete(2, Inactive), delete(1, Inactive)]);
}

#[test]
fn a_candidate_is_built_no_larger_than_the_surge_and_is_not_claimable() {
    let mut it = pool(4).standing(Standing::Candidate).with(PoolState::Ready, 1);
    let plan = it.does(&[create(3)]);
    assert_eq!(plan.counts.eligible, 0);
    it.policy.pool.max_surge_percent = 50;
    let plan = it.does(&[create(1)]);
    assert!(plan.reasons.contains(&Reason::Surge { limit: 2 }));
}

fn pause(scope: PauseScope, until: Option<Timestamp>) -> Pause {
    Pause { scope, reason: "maintenance".to_owned(), until }
}

#[test]
fn a_pause_of_any_scope_holds_everything_until_it_ends() {
    let full = pool(1).ttl_minutes(60).with(PoolState::Ready, 90).with(PoolState::Ready, 2);
    for &scope in PauseScope::ALL {
        let mut it = full.clone();
        it.snapshot.pauses = vec![pause(scope, Some(ahead(5)))];
        let plan = it.does(&[]);
        let because = Reason::Paused { pause: pause(scope, Some(ahead(5))) };
        assert_eq!(plan.reasons, [because]);
        assert_eq!((plan.next_look, plan.miss_reason()), (Some(ahead(5)), MissReason::Paused));
        it.snapshot.pauses = vec![pause(scope, Some(now()))];
        it.does(&[delete(1, DeleteReason::Expired)]);
        it.snapshot.pauses = vec![pause(scope, None)];
        it.does(&[]);
        it.config.standing = Standing::Inactive;
        it.does(&[]);
    }
}

#[test]
fn of_several_pauses_the_widest_is_told() {
    let mut it = pool(1);
    it.snapshot.pauses =
        vec![pause(PauseScope::Preset, None), pause(PauseScope::Organization, Some(ahead(5)))];
    let plan = it.does(&[]);
    let because = Reason::Paused { pause: pause(PauseScope::Organization, Some(ahead(5))) };
    assert_eq!(plan.reasons, [because]);
}

#[test]
fn without_a_daemon_nothing_is_created_but_deletes_go_on() {
    let mut it = pool(2).ttl_minutes(60).with(PoolState::Ready, 90);
    it.snapshot.has_daemon = false;
    let plan = it.does(&[delete(1, DeleteReason::Expired)]);
    assert!(plan.reasons.contains(&Reason::Capacity));
    assert_eq!(plan.miss_reason(), MissReason::Capacity);
}

#[test]
fn a_refused_preset_is_not_built_again() {
    let mut it = pool(2).ttl_minutes(60).with(PoolState::Ready, 90);
    it.config.status = PrebuildStatus::ValidationFailed;
    let plan = it.does(&[delete(1, DeleteReason::Expired)]);
    assert_eq!(plan.miss_reason(), MissReason::ValidationFailed);
}

#[test]
fn the_cap_on_creations_in_flight_leaves_room_or_none() {
    let mut it = pool(5);
    it.policy.settings.max_in_flight = 4;
    for (in_flight, expected) in [(0, 4), (1, 3), (3, 1)] {
        it.snapshot.in_flight = in_flight;
        let plan = it.does(&[create(expected)]);
        assert!(plan.reasons.contains(&Reason::InFlightCap { in_flight, max: 4 }));
        assert_eq!(plan.miss_reason(), MissReason::Empty);
    }
    for in_flight in [4, 9] {
        it.snapshot.in_flight = in_flight;
        assert_eq!(it.does(&[]).miss_reason(), MissReason::Capacity);
    }
    it.policy.settings.max_in_flight = 0;
    it.does(&[create(5)]);
}

#[test]
fn a_spent_quota_holds_creation_before_a_job_is_spent() {
    let mut it = pool(3);
    it.snapshot.cost = 2;
    it.snapshot.quota = Some(Quota { budget: 0, consumed: 0 });
    let plan = it.does(&[]);
    let exceeded = QuotaExceeded { budget: 0, consumed: 0, cost: 2 };
    assert!(plan.reasons.contains(&Reason::Quota { exceeded }));
    it.snapshot.quota = Some(Quota { budget: 5, consumed: 0 });
    it.does(&[create(2)]);
    it.snapshot.cost = 0;
    it.does(&[create(3)]);
    it.snapshot.quota = None;
    it.snapshot.cost = 2;
    it.does(&[create(3)]);
}

#[test]
fn creation_waits_after_failures_in_proportion_to_them() {
    let plan = pool(2).failed(&[1]).does(&[create(2)]);
    assert_eq!(plan.next_look, None);
    let plan = pool(2).failed(&[1, 5]).does(&[]);
    assert!(plan.reasons.contains(&Reason::Backoff { failures: 2, until: ahead(1) }));
    assert_eq!((plan.next_look, plan.miss_reason()), (Some(ahead(1)), MissReason::Backoff));
    pool(2).failed(&[2, 5]).does(&[create(2)]);
    // Those before the lookback period are forgotten.
    let mut it = pool(2).failed(&[1, 60]);
    it.does(&[create(2)]);
    it.snapshot.failures.recent[1] = ago(59);
    assert_eq!(it.does(&[]).next_look, Some(ahead(1)));
}

#[test]
fn the_wait_ends_early_when_a_failure_is_forgotten() {
    let mut it = pool(1).failed(&[1, 58]);
    it.policy.settings.reconciliation_backoff_interval = SignedDuration::from_mins(30);
    let plan = it.does(&[]);
    assert!(plan.reasons.contains(&Reason::Backoff { failures: 2, until: ahead(59) }));
    assert_eq!(plan.next_look, Some(ahead(2)));
}

#[test]
fn too_many_failures_in_a_row_open_the_breaker_once() {
    let mut it = pool(2).failed(&[0, 1, 2]);
    let plan = it.does(&[Action::OpenBreaker { consecutive: 3 }]);
    assert_eq!((plan.next_look, plan.miss_reason()), (Some(ahead(10)), MissReason::HardLimited));
    it.config.status = PrebuildStatus::HardLimited;
    it.snapshot.failures.breaker =
        Some(Breaker { opened_at: now(), probes: 0, last_probe_at: None });
    it.does(&[]);
    // Never, where the limit is off.
    it.config.status = PrebuildStatus::Healthy;
    it.policy.settings.failure_hard_limit = 0;
    let actions = it.plan().actions;
    assert!(!actions.contains(&Action::OpenBreaker { consecutive: 3 }), "{actions:?}");
}

#[test]
fn an_open_breaker_tries_one_build_ever_more_rarely() {
    let probe = Action::Create { count: 1, is_probe: true };
    // (probes made, minutes since the last one or the opening, whether the next is due)
    let table = [
        (0, 9, false),
        (0, 10, true),
        (1, 19, false),
        (1, 20, true),
        (2, 39, false),
        (2, 40, true),
        (5, 319, false),
        (5, 320, true),
        (6, 359, false),
        (6, 360, true),
        (40, 360, true),
    ];
    for (probes, minutes, is_due) in table {
        let mut it = pool(4).failed(&[70, 80, 90]);
        it.config.status = PrebuildStatus::HardLimited;
        let last_probe_at = (probes > 0).then(|| ago(minutes));
        let opened_at = if probes > 0 { ago(9_999) } else { ago(minutes) };
        it.snapshot.failures.breaker = Some(Breaker { opened_at, probes, last_probe_at });
        let expected: &[Action] = if is_due { std::slice::from_ref(&probe) } else { &[] };
        it.does(expected);
        // One at a time.
        it.with(PoolState::Starting, 1).does(&[]);
    }
}

#[test]
fn a_prebuild_that_became_ready_closes_the_breaker() {
    let mut it = pool(3).with(PoolState::Ready, 1);
    it.config.status = PrebuildStatus::HardLimited;
    it.snapshot.failures.breaker =
        Some(Breaker { opened_at: ago(30), probes: 1, last_probe_at: Some(ago(2)) });
    it.does(&[Action::CloseBreaker, create(2)]);
    it.snapshot.failures.consecutive = 4;
    it.does(&[]);
}

#[test]
fn the_newest_failed_ones_are_kept_for_a_day() {
    use DeleteReason::{FailedRetention, FailedSurplus};
    let failed = |it: Pool, hours: i64| {
        it.with_one(|it| {
            (it.state, it.created_at) = (PoolState::Failed, ago(10_000));
            it.finished_at = Some(ago(hours * 60));
        })
    };
    let it = failed(failed(failed(failed(failed(pool(0), 1), 5), 3), 2), 30);
    let plan = it.does(&[delete(2, FailedSurplus), delete(5, FailedSurplus)]);
    assert!(plan.reasons.contains(&Reason::FailedKept { count: 3 }));
    assert_eq!(plan.next_look, Some(ahead(21 * 60)));
    failed(failed(pool(0), 1), 24).does(&[delete(2, FailedRetention)]);
    failed(pool(0), 24).standing(Standing::Inactive).does(&[delete(1, FailedRetention)]);
    // They take nobody's place.
    failed(pool(1), 1).does(&[create(1)]);
}

#[test]
fn what_a_person_cancelled_is_left_alone() {
    for standing in [Standing::Active, Standing::Inactive] {
        let it = pool(0).standing(standing).with_one(|it| {
            (it.state, it.is_canceled_by_person) = (PoolState::Failed, true);
            it.finished_at = Some(ago(100_000));
        });
        let plan = it.does(&[]);
        assert!(plan.reasons.contains(&Reason::LeftAlone { count: 1 }));
    }
}

#[test]
fn a_failed_delete_is_tried_again_ever_more_rarely() {
    // (failures, minutes since the last, whether it is tried again)
    let table = [
        (0, 9, false),
        (1, 9, false),
        (1, 10, true),
        (2, 19, false),
        (2, 20, true),
        (6, 319, false),
        (6, 320, true),
        (50, 359, false),
        (50, 360, true),
    ];
    for (failed_deletes, minutes, is_tried) in table {
        for standing in [Standing::Active, Standing::Inactive] {
            let it = pool(0).standing(standing).with_one(|it| {
                (it.state, it.failed_deletes) = (PoolState::FailedDelete, failed_deletes);
                it.finished_at = Some(ago(minutes));
            });
            let expected = delete(1, DeleteReason::FailedDelete);
            let expected: &[Action] = if is_tried { &[expected] } else { &[] };
            let plan = it.does(expected);
            assert_eq!(plan.next_look.is_none(), is_tried);
        }
    }
    pool(1)
        .with_one(|it| {
            (it.state, it.finished_at) = (PoolState::FailedDelete, Some(ago(1)));
        })
        .does(&[create(1)]);
}

#[test]
fn deletes_come_before_creations() {
    let it = pool(2)
        .ttl_minutes(60)
        .with(PoolState::Ready, 90)
        .with_one(|it| (it.state, it.finished_at) = (PoolState::Failed, Some(ago(2_000))));
    it.does(&[
        delete(2, DeleteReason::FailedRetention),
        delete(1, DeleteReason::Expired),
        create(2),
    ]);
}

#[test]
fn one_plan_creates_a_bounded_number_and_looks_again_at_once() {
    let plan = pool(2_000).does(&[create(CREATES_PER_PLAN_MAX)]);
    assert_eq!(plan.next_look, Some(now()));
    assert!(plan.reasons.contains(&Reason::PassLimit { max: CREATES_PER_PLAN_MAX }));
}

#[test]
fn claimable_is_ready_alive_and_of_the_active_version() {
    let check = |it: Pool, expected: bool| {
        let one = &it.snapshot.prebuilds[0];
        let got = claimable(one, &it.config, &it.policy.pool, now());
        assert_eq!(got, expected, "{one:?} {:?}", it.config);
        assert_eq!(it.plan().counts.eligible, u32::from(expected));
    };
    for &state in PoolState::ALL {
        check(pool(1).with(state, 1), state == PoolState::Ready);
    }
    for &standing in Standing::ALL {
        let it = pool(1).standing(standing).with(PoolState::Ready, 1);
        check(it, matches!(standing, Standing::Active | Standing::Previous));
    }
    check(pool(1).ttl_minutes(60).with(PoolState::Ready, 60), false);
    check(pool(1).ttl_minutes(60).with(PoolState::Ready, 59), true);
    let mut short = pool(1).ttl_minutes(60).with(PoolState::Ready, 50);
    short.policy.pool.min_remaining_ttl_seconds = 600;
    check(short.clone(), true);
    short.policy.pool.min_remaining_ttl_seconds = 601;
    check(short, false);
    let mut invalidated = pool(1).with(PoolState::Ready, 1);
    invalidated.config.last_invalidated_at = Some(now());
    check(invalidated, false);
}

#[test]
fn every_reason_is_a_sentence_and_survives_json() {
    let reasons = [
        Reason::Inactive,
        Reason::NotAPool,
        Reason::InvalidSchedule { detail: "unknown timezone".to_owned() },
        Reason::BelowDesired { desired: 2, running: 1, starting: 0 },
        Reason::AboveDesired { desired: 1, running: 2 },
        Reason::Expired { count: 1 },
        Reason::Gradual { waiting: 2, at_a_time: 1 },
        Reason::PreviousKept { count: 1, desired: 2, eligible: 1 },
        Reason::Surge { limit: 2 },
        Reason::Paused { pause: pause(PauseScope::Deployment, Some(now())) },
        Reason::Paused { pause: pause(PauseScope::Preset, None) },
        Reason::BreakerOpened { consecutive: 3 },
        Reason::BreakerOpen { next_probe_at: Some(now()) },
        Reason::BreakerOpen { next_probe_at: None },
        Reason::Probe { before: 1 },
        Reason::BreakerClosed,
        Reason::ValidationFailed,
        Reason::Capacity,
        Reason::InFlightCap { in_flight: 3, max: 3 },
        Reason::Quota { exceeded: QuotaExceeded { budget: 1, consumed: 1, cost: 1 } },
        Reason::Backoff { failures: 2, until: now() },
        Reason::PassLimit { max: 500 },
        Reason::FailedKept { count: 1 },
        Reason::LeftAlone { count: 1 },
        Reason::FailedDeletes { count: 1, next_at: Some(now()) },
        Reason::FailedDeletes { count: 1, next_at: None },
    ];
    for reason in reasons {
        assert!(reason.to_string().len() > 10, "{reason:?}: {reason}");
        let json = serde_json::to_string(&reason).unwrap();
        assert_eq!(serde_json::from_str::<Reason>(&json).unwrap(), reason, "{json}");
        assert!(json.contains(&format!("{{\"reason\":\"{}\"", reason.name())), "{json}");
    }
}

#[test]
fn a_snapshot_file_gives_the_same_plan() {
    let it = pool(2).ttl_minutes(60).failed(&[1]).with(PoolState::Ready, 90);
    let file = SnapshotFile {
        version: SNAPSHOT_VERSION,
        now: now(),
        preset: it.config.clone(),
        policy: it.policy.clone(),
        state: it.snapshot.clone(),
    };
    let json = serde_json::to_string_pretty(&file).unwrap();
    let read: SnapshotFile = serde_json::from_str(&json).unwrap();
    assert_eq!(read, file);
    assert_eq!(plan_snapshot(&read), it.plan());
    let plan = serde_json::to_string(&it.plan()).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&plan).unwrap(), it.plan());
}

#[test]
fn settings_have_the_documented_defaults_and_read_short_durations() {
    let it: PrebuildSettings =
        serde_json::from_str(r#"{"reconciliation_interval":"30s","failed_retention":"2h"}"#)
            .unwrap();
    assert_eq!(it.reconciliation_interval, SignedDuration::from_secs(30));
    assert_eq!(it.failed_retention, SignedDuration::from_hours(2));
    let defaults = PrebuildSettings::default();
    assert_eq!(it.failure_hard_limit, defaults.failure_hard_limit);
    assert_eq!(
        (defaults.failure_hard_limit, defaults.failed_keep, defaults.max_in_flight),
        (3, 3, 0)
    );
    let json = serde_json::to_string(&defaults).unwrap();
    assert_eq!(serde_json::from_str::<PrebuildSettings>(&json).unwrap(), defaults);
}
