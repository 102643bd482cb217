//! What goes away, in which order, and what never does.

use super::*;

#[test]
fn surplus_goes_the_least_missed_first() {
    check([
        (
            "not ready first, then the oldest",
            pool(1).of("ready@30 unready@1 ready@40"),
            "delete 2 extraneous, delete 3 extraneous",
            "above_desired",
            NEVER,
        ),
        (
            "with a time to live the oldest expires soonest",
            pool(1).ttl_minutes(60).of("ready@5 ready@50"),
            "delete 2 extraneous",
            "above_desired",
            Some(10),
        ),
        ("what starts is no surplus yet", pool(1).of("ready@1 starting@1"), "", "", NEVER),
    ]);
}

#[test]
fn what_is_expired_or_invalidated_goes_and_is_replaced() {
    check([
        (
            "all expired ones, ready or not",
            pool(2).ttl_minutes(60).of("ready@60 unready@90 ready@59"),
            "delete 2 expired, delete 1 expired, create 1",
            "expired below_desired",
            Some(1),
        ),
        ("without a time to live nothing expires", pool(1).of("ready@1000000"), "", "", NEVER),
        (
            "what was made before the invalidation",
            pool(2).invalidated(5).of("ready@10 ready@4"),
            "delete 1 expired, create 1",
            "expired below_desired",
            NEVER,
        ),
        ("not what was made at it", pool(1).invalidated(5).of("ready@5"), "", "", NEVER),
        (
            "what starts cannot expire before it runs",
            pool(1).ttl_minutes(60).of("starting@90"),
            "",
            "",
            NEVER,
        ),
        (
            "the failed, the expired, the new: in this order",
            pool(2).ttl_minutes(60).of("ready@90 failed@90,ended=2000"),
            "delete 2 failed_retention, delete 1 expired, create 2",
            "expired below_desired",
            NEVER,
        ),
    ]);
}

#[test]
fn a_preset_that_is_not_active_is_emptied() {
    let inactive = || pool(3).standing(Standing::Inactive);
    check([
        (
            "pending first builds are cancelled, all that runs is deleted",
            inactive().ttl_minutes(60).of("ready@1 unready@90 starting@1"),
            "cancel 3, delete 2 expired, delete 1 inactive",
            "inactive",
            Some(59),
        ),
        (
            "what a daemon builds is awaited",
            inactive().of("starting@1,acquired"),
            "",
            "inactive",
            NEVER,
        ),
        (
            "only a first build made nothing",
            inactive().of("starting@1,build=2"),
            "",
            "inactive",
            NEVER,
        ),
        (
            "what a person cancelled is left alone",
            inactive().of("starting@1,canceled"),
            "",
            "inactive",
            NEVER,
        ),
        (
            "parked ones stay",
            inactive().of("stopped@1 stopping@1 deleting@1"),
            "",
            "inactive",
            NEVER,
        ),
        (
            "invalidated ones go like the others",
            inactive().invalidated(5).of("ready@10 ready@4"),
            "delete 1 expired, delete 2 inactive",
            "inactive",
            NEVER,
        ),
        (
            "a successor alone keeps nothing",
            inactive().successor(2, 0).of("ready@1"),
            "delete 1 inactive",
            "inactive",
            NEVER,
        ),
        (
            "its schedules are of no account",
            inactive().schedule("UTC", &[("* 9-12 * * *", 3)]),
            "",
            "inactive",
            NEVER,
        ),
        (
            "a preset without prebuild configuration is no pool",
            pool(2).set(|it| it.config.prebuilds = None).of("ready@1 starting@1"),
            "cancel 2, delete 1 inactive",
            "not_a_pool",
            NEVER,
        ),
    ]);
}

#[test]
fn the_newest_failed_ones_are_kept_for_a_day() {
    check([
        (
            "the newest three, the others at once",
            pool(0).of("failed@9999,ended=60 failed@9999,ended=300 failed@9999,ended=180 \
                        failed@9999,ended=120 failed@9999,ended=1800"),
            "delete 2 failed_surplus, delete 5 failed_surplus",
            "failed_kept",
            Some(21 * 60),
        ),
        (
            "none longer than the retention",
            pool(0).of("failed@9999,ended=60 failed@9999,ended=1440"),
            "delete 2 failed_retention",
            "failed_kept",
            Some(23 * 60),
        ),
        (
            "of an inactive preset as well",
            pool(0)
                .standing(Standing::Inactive)
                .of("failed@9999,ended=1440 failed@9999,ended=1439"),
            "delete 1 failed_retention",
            "failed_kept inactive",
            Some(1),
        ),
        (
            "one whose end nobody knows counts from its beginning",
            pool(0).of("failed@1440"),
            "delete 1 failed_retention",
            "",
            NEVER,
        ),
        (
            "as many as configured",
            pool(0).set(|it| it.policy.settings.failed_keep = 0).of("failed@9,ended=1"),
            "delete 1 failed_surplus",
            "",
            NEVER,
        ),
        (
            "what a person cancelled is left alone for ever",
            pool(0).of("failed@9999,ended=9999,canceled failed_delete@9999,ended=9999,canceled"),
            "",
            "left_alone",
            NEVER,
        ),
    ]);
}

#[test]
fn a_failed_delete_is_tried_again_ever_more_rarely() {
    // (deletes failed in a row, minutes since the last, when it is tried again)
    let table = [
        (0, 9, Some(1)),
        (1, 9, Some(1)),
        (1, 10, None),
        (2, 19, Some(1)),
        (2, 20, None),
        (6, 319, Some(1)),
        (6, 320, None),
        (50, 359, Some(1)),
        (50, 360, None),
    ];
    for (deletes, ended, look) in table {
        for &standing in Standing::ALL {
            let member = format!("failed_delete@999,ended={ended},deletes={deletes}");
            let plan = pool(0).standing(standing).of(&member).plan();
            let expected = if look.is_none() { "delete 1 failed_delete" } else { "" };
            assert_eq!(said(&plan.actions), expected, "{member} {standing}");
            assert_eq!(plan.next_look, look.map(ahead), "{member} {standing}");
        }
    }
}

#[test]
fn parked_and_going_ones_are_never_touched() {
    for &standing in Standing::ALL {
        for state in ["stopped", "stopping", "deleting"] {
            let it = pool(0).standing(standing).ttl_minutes(60).invalidated(0);
            let it = it.of(&format!("{state}@9999,ended=9999,deletes=3"));
            assert_eq!(said(&it.plan().actions), "", "{state} {standing}");
        }
    }
}

#[test]
fn one_plan_removes_a_bounded_number_and_the_next_one_follows_at_once() {
    let max = usize::try_from(DELETES_PER_PLAN_MAX).unwrap();
    let rows = [
        pool(0).with(max + 1, PoolState::Ready),
        pool(1)
            .set(|it| it.config.last_invalidated_at = Some(ahead(1)))
            .with(max + 1, PoolState::Ready),
        pool(0)
            .standing(Standing::Inactive)
            .with(max, PoolState::Starting)
            .with(1, PoolState::Ready),
    ];
    for it in rows {
        let plan = it.plan();
        let removes = |it: &&Action| !matches!(it, Action::Create { .. });
        assert_eq!(plan.actions.iter().filter(removes).count(), max);
        assert!(plan.reasons.contains(&Reason::PassLimit { max: DELETES_PER_PLAN_MAX }));
        assert_eq!(plan.next_look, Some(now()));
    }
    let plan = pool(0).with(max, PoolState::Ready).plan();
    assert_eq!((plan.actions.len(), plan.next_look), (max, None));
}
