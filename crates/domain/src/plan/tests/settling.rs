//! A pool in miniature: whatever the state, planning and carrying out reaches rest within a few
//! steps and stays there, and no step breaks an invariant of 91-reliability.

use proptest::prelude::*;

use super::*;

/// Plans and carries the plan out; returns the plan.
pub(super) fn step(it: &mut Pool, at: Timestamp) -> Plan {
    let plan = it.plan_at(at);
    for action in &plan.actions {
        carry_out(it, action, at);
    }
    plan
}

fn carry_out(it: &mut Pool, action: &Action, at: Timestamp) {
    let all = &mut it.snapshot.prebuilds;
    match action {
        Action::OpenBreaker { .. } => {
            it.config.status = PrebuildStatus::HardLimited;
            it.snapshot.failures.breaker =
                Some(Breaker { opened_at: at, probes: 0, last_probe_at: None });
        }
        Action::CloseBreaker => {
            it.config.status = PrebuildStatus::Healthy;
            it.snapshot.failures.breaker = None;
        }
        Action::CancelPending { workspace_id, .. } => {
            let gone = all.iter().find(|it| it.workspace_id == *workspace_id).unwrap();
            assert!(gone.is_pending() && gone.build_number == 1 && !gone.is_canceled_by_person);
            all.retain(|it| it.workspace_id != *workspace_id);
        }
        Action::Delete { workspace_id, .. } => {
            let gone = all.iter_mut().find(|it| it.workspace_id == *workspace_id).unwrap();
            assert!(!matches!(gone.state, PoolState::Deleting | PoolState::Stopped));
            gone.state = PoolState::Deleting;
        }
        Action::Create { count, is_probe } => {
            if let Some(breaker) = it.snapshot.failures.breaker.as_mut().filter(|_| *is_probe) {
                breaker.probes += 1;
                breaker.last_probe_at = Some(at);
            }
            it.snapshot.in_flight += count;
            if let Some(quota) = it.snapshot.quota.as_mut() {
                quota.consumed += it.snapshot.cost * i64::from(*count);
            }
            // As it is stored: where the clock that invalidated is ahead, new ones are no older.
            let at = it.config.last_invalidated_at.map_or(at, |it| it.max(at));
            let first = it.snapshot.prebuilds.iter().map(|it| number(it.workspace_id)).max();
            for id in (first.unwrap_or(0) + 1..).take(usize::try_from(*count).unwrap()) {
                let mut prebuild = it.new_member(PoolState::Starting, at);
                prebuild.workspace_id = workspace(id);
                it.snapshot.prebuilds.push(prebuild);
            }
        }
    }
}

/// Whatever was on its way arrives. Answers whether anything was.
fn arrive(it: &mut Pool) -> bool {
    let before = it.clone();
    it.snapshot.prebuilds.retain(|it| it.state != PoolState::Deleting);
    it.snapshot.in_flight = 0;
    for prebuild in &mut it.snapshot.prebuilds {
        match prebuild.state {
            PoolState::Starting | PoolState::Unready => {
                prebuild.state = PoolState::Ready;
                it.snapshot.failures.consecutive = 0;
            }
            PoolState::Stopping => prebuild.state = PoolState::Stopped,
            _ => {}
        }
    }
    *it != before
}

fn any_members() -> impl Strategy<Value = Vec<Prebuild>> {
    let one = (
        prop::sample::select(PoolState::ALL),
        0_i64..3_000,
        [prop::bool::weighted(0.3), prop::bool::weighted(0.1)],
        0_u32..4,
        prop::option::weighted(0.9, 0_i64..1_600),
        1_i32..3,
    );
    let one = one.prop_map(|(state, age, [acquired, canceled], deletes, ended, build)| {
        let mut it = pool(0).new_member(state, ago(age));
        (it.is_acquired, it.is_canceled_by_person) = (acquired, canceled);
        (it.failed_deletes, it.build_number) = (deletes, build);
        it.finished_at = ended.map(|it| ago(it.min(age)));
        it
    });
    prop::collection::vec(one, 0..14).prop_map(|mut all| {
        for (it, id) in all.iter_mut().zip(1..) {
            it.workspace_id = workspace(id);
            it.build_id = BuildId(Uuid::from_u128(id));
        }
        all
    })
}

fn any_policy() -> impl Strategy<Value = PoolPolicy> {
    (
        prop::sample::select(Replace::ALL),
        1_u32..=100,
        1_u32..=100,
        prop::sample::select(vec![0, 900]),
    )
        .prop_map(|(replace, max_unavailable_percent, max_surge_percent, least)| PoolPolicy {
            replace,
            max_unavailable_percent,
            allow_previous_version: false,
            max_surge_percent,
            min_remaining_ttl_seconds: least,
        })
}

fn any_config() -> impl Strategy<Value = PoolConfig> {
    (
        0_i32..6,
        prop::sample::select(Standing::ALL),
        prop::sample::select(vec![0_i64, 3_600, 36_000]),
        prop::option::weighted(0.3, (9..15_u32, 0_i32..6)),
        prop::option::weighted(0.2, -5_i64..1_000),
        prop::bool::weighted(0.05),
    )
        .prop_map(|(instances, standing, ttl, schedule, invalidated, is_no_pool)| {
            let mut it = pool(instances).standing(standing).ttl_minutes(ttl / 60);
            if let Some((hour, instances)) = schedule {
                it = it.schedule("Europe/Berlin", &[(&format!("* {hour}-16 * * *"), instances)]);
            }
            it.config.last_invalidated_at = invalidated.map(ago);
            if is_no_pool {
                it.config.prebuilds = None;
            }
            it.config
        })
}

/// Any pool that nothing holds for good: back-off and an open breaker end with time.
pub(super) fn any_free_pool() -> impl Strategy<Value = Pool> {
    (
        any_config(),
        any_policy(),
        any_members(),
        prop::collection::vec(0_i64..90, 0..6),
        prop::option::weighted(0.2, (0_u32..9, 0_i64..400)),
        prop::option::of((0_u32..6, 0_u32..6)),
    )
        .prop_map(|(config, policy, prebuilds, failures, broken, successor)| {
            let mut it = Pool { config, ..pool(0) }.failed(&failures);
            if let Some((probes, minutes)) = broken {
                it = it.broken(probes, minutes);
            }
            it.policy.pool = policy;
            it.snapshot.prebuilds = prebuilds;
            it.snapshot.successor =
                successor.map(|(desired, eligible)| Successor { desired, eligible });
            it
        })
}

/// Any pool at all.
pub(super) fn any_pool() -> impl Strategy<Value = Pool> {
    (
        any_free_pool(),
        prop::option::weighted(
            0.2,
            (prop::sample::select(PauseScope::ALL), prop::option::of(-5_i64..300)),
        ),
        prop::bool::weighted(0.9),
        prop::option::weighted(0.2, (0_u32..4, 1_u32..5)),
        prop::option::weighted(0.2, (0_i64..4, 0_i64..9)),
        0_u32..4,
        prop::option::weighted(0.3, 0_i64..90),
        prop::bool::weighted(0.05),
    )
        .prop_map(
            |(mut it, paused, has_daemon, cap, quota, predecessor, deadline, refused)| {
                if let Some((scope, until)) = paused {
                    it = it.paused(scope, until.map(ahead));
                }
                if let Some((in_flight, max)) = cap {
                    it = it.in_flight(in_flight, max);
                }
                if let Some((cost, budget)) = quota {
                    it = it.quota(cost, 2, budget);
                }
                if refused {
                    it.config.status = PrebuildStatus::ValidationFailed;
                }
                it.snapshot.has_daemon = has_daemon;
                it.snapshot.predecessor = predecessor;
                it.snapshot.deadline = deadline.map(ahead);
                it
            },
        )
}

/// Valid and starting ones: what may never be more than desired.
fn in_pool(it: &Pool, at: Timestamp) -> u32 {
    let counts = it.plan_at(at).counts;
    counts.valid + counts.starting
}

proptest! {
    /// From any state, with time passing from look to look, the pool comes to rest at its desired
    /// count, and a plan at rest changes nothing. (Failed ones may still be kept for a look.)
    #[test]
    fn repeated_plans_settle(mut it in any_free_pool()) {
        let mut at = now();
        let mut is_settled = false;
        for _ in 0..60 {
            let plan = step(&mut it, at);
            let is_still = !arrive(&mut it);
            let counts = plan.counts;
            let kept = it.snapshot.successor.filter(|_| it.config.standing == Standing::Previous);
            let kept = kept.map_or(0, |it| it.desired.saturating_sub(it.eligible));
            let wanted = plan.desired..=plan.desired + kept;
            is_settled =
                is_still && plan.is_settled() && wanted.contains(&counts.valid) && counts.starting == 0;
            if is_settled {
                break;
            }
            at = if plan.is_settled() { plan.next_look.unwrap_or(at) } else { at };
        }
        prop_assert!(is_settled, "{:#?}", step(&mut it, at));
        let again = step(&mut it, at);
        prop_assert!(again.is_settled(), "{:?}", again.actions);
    }

    /// Whatever holds a pool, it comes to rest where it is: at one moment there are only so many
    /// things to do.
    #[test]
    fn what_is_held_settles_as_well(mut it in any_pool()) {
        let steps = (0..30).position(|_| {
            let plan = step(&mut it, now());
            arrive(&mut it);
            plan.is_settled()
        });
        prop_assert!(steps.is_some(), "{:#?}", it.plan());
    }

    /// A plan that is carried out leaves nothing to do, before anything else happens.
    #[test]
    fn a_plan_carried_out_is_done(mut it in any_pool()) {
        step(&mut it, now());
        let again = it.plan();
        prop_assert!(again.is_settled(), "{:?}", again.actions);
    }

    /// No plan creates more than is missing, acts twice on one workspace, touches what is parked or
    /// left alone, or looks back in time.
    #[test]
    fn no_plan_breaks_an_invariant(mut it in any_pool()) {
        let before = it.clone();
        let present = in_pool(&it, now());
        let plan = step(&mut it, now());
        let after = in_pool(&it, now());
        prop_assert!(after <= present.max(plan.desired), "{} became {}", present, after);
        prop_assert!(plan.next_look.is_none_or(|it| it > now()));
        prop_assert!(plan.desired == 0 || plan.creates() == 0 || it.snapshot.has_daemon);

        let mut touched: Vec<WorkspaceId> = plan
            .actions
            .iter()
            .filter_map(|it| match it {
                Action::Delete { workspace_id, .. } | Action::CancelPending { workspace_id, .. } => {
                    Some(*workspace_id)
                }
                _ => None,
            })
            .collect();
        let count = touched.len();
        touched.sort();
        touched.dedup();
        prop_assert_eq!(touched.len(), count);
        for one in &before.snapshot.prebuilds {
            let is_parked = matches!(
                one.state,
                PoolState::Stopped | PoolState::Stopping | PoolState::Deleting
            );
            let is_left_alone = one.is_canceled_by_person && !one.is_running();
            if is_parked || is_left_alone {
                prop_assert!(!touched.contains(&one.workspace_id), "{:?}", one);
            }
        }
    }

    /// The order of the lists never decides.
    #[test]
    fn the_order_of_inputs_does_not_matter(it in any_pool()) {
        prop_assert_eq!(it.plan(), it.reversed().plan());
    }
}
