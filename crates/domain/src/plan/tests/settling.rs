//! A pool in miniature: whatever the state, planning and carrying out reaches rest within a few
//! steps and stays there, and no step breaks an invariant of 91-reliability.

use proptest::prelude::*;

use super::*;

/// Plans, carries the plan out, lets daemons and time do their part; returns the plan.
fn step(it: &mut Pool, at: Timestamp) -> Plan {
    let plan = plan(&it.config, &it.policy, &it.snapshot, at);
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
            assert!(gone.is_pending() && !gone.is_canceled_by_person);
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
            for _ in 0..*count {
                let id = it.snapshot.prebuilds.iter().map(|it| it.workspace_id.0.as_u128()).max();
                let id = id.unwrap_or(0) + 1;
                *it = it.clone().with_one(|it| {
                    (it.workspace_id, it.state) = (workspace(id), PoolState::Starting);
                    it.created_at = at;
                });
            }
        }
    }
}

/// Whatever was on its way arrives.
fn arrive(it: &mut Pool) {
    it.snapshot.prebuilds.retain(|it| it.state != PoolState::Deleting);
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
}

fn any_prebuild() -> impl Strategy<Value = (PoolState, i64, [bool; 2], u32)> {
    (
        prop::sample::select(PoolState::ALL),
        0_i64..3_000,
        [prop::bool::weighted(0.3), prop::bool::weighted(0.1)],
        0_u32..4,
    )
}

fn any_pool() -> impl Strategy<Value = Pool> {
    (
        prop::collection::vec(any_prebuild(), 0..12),
        0_i32..6,
        prop::sample::select(Standing::ALL),
        prop::sample::select(vec![0_i64, 60, 600]),
        prop::sample::select(Replace::ALL),
        prop::collection::vec(0_i64..90, 0..5),
        prop::option::of(0_i64..1_000),
    )
        .prop_map(|(prebuilds, instances, standing, ttl, replace, failures, invalidated)| {
            let mut it = pool(instances).standing(standing).ttl_minutes(ttl).failed(&failures);
            it.policy.pool.replace = replace;
            it.config.last_invalidated_at = invalidated.map(ago);
            for (state, age, [is_acquired, is_canceled_by_person], failed_deletes) in prebuilds {
                it = it.with_one(|it| {
                    (it.state, it.created_at, it.failed_deletes) =
                        (state, ago(age), failed_deletes);
                    (it.is_acquired, it.is_canceled_by_person) =
                        (is_acquired, is_canceled_by_person);
                    it.finished_at = Some(ago(age / 2));
                });
            }
            it
        })
}

fn in_pool(it: &Pool, at: Timestamp) -> usize {
    let is_valid = |one: &&Prebuild| {
        one.state == PoolState::Starting
            || (one.is_running() && !it.config.is_expired(one.created_at, at))
    };
    it.snapshot.prebuilds.iter().filter(is_valid).count()
}

proptest! {
    /// From any state, with time passing from look to look, the pool comes to rest at its desired
    /// count, and a plan at rest changes nothing. (Failed ones may still be kept for a look.)
    #[test]
    fn repeated_plans_settle(mut it in any_pool()) {
        let mut at = now();
        let mut is_settled = false;
        for _ in 0..60 {
            let plan = step(&mut it, at);
            arrive(&mut it);
            let counts = plan.counts;
            let is_full = counts.valid == plan.desired && counts.starting == 0;
            is_settled = plan.is_settled() && is_full;
            if is_settled {
                break;
            }
            at = if plan.is_settled() { plan.next_look.unwrap_or(at) } else { at };
        }
        prop_assert!(is_settled, "{:#?}", step(&mut it, at));
        let again = step(&mut it, at);
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
        let desired = usize::try_from(plan.desired).unwrap();
        prop_assert!(after <= present.max(desired), "{present} became {after}");
        prop_assert!(plan.next_look.is_none_or(|it| it > now()));

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
        let mut reversed = it.clone();
        reversed.snapshot.prebuilds.reverse();
        reversed.snapshot.failures.recent.reverse();
        prop_assert_eq!(it.plan(), reversed.plan());
    }

    /// Before the next look time alone changes nothing.
    #[test]
    fn nothing_changes_before_the_next_look(it in any_pool(), minutes in 1_i64..5_000) {
        let first = it.plan();
        let at = ahead(minutes);
        if first.next_look.is_none_or(|look| look > at) {
            let later = plan(&it.config, &it.policy, &it.snapshot, at);
            prop_assert_eq!(first.actions, later.actions);
            prop_assert_eq!(first.desired, later.desired);
        }
    }
}
