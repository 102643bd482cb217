//! "Desired count" and "State of one preset": what a pool has, wants, and therefore creates.

use super::*;

#[test]
fn what_is_missing_is_created() {
    check([
        ("an empty pool is filled", pool(2), "create 2", "below_desired", NEVER),
        ("none wanted", pool(0), "", "", NEVER),
        ("ready ones are there", pool(2).of("ready@1"), "create 1", "below_desired", NEVER),
        ("as many as wanted", pool(2).of("ready@1 ready@2"), "", "", NEVER),
        ("starting ones come", pool(2).of("ready@1 starting@1"), "", "", NEVER),
        ("acquired or not", pool(2).of("starting@1,acquired starting@1"), "", "", NEVER),
        ("unready ones run", pool(2).of("unready@1 ready@1"), "", "", NEVER),
        ("what starts beyond is awaited", pool(1).of("starting@1 starting@1"), "", "", NEVER),
        ("a restart is one as well", pool(1).of("starting@1,build=2"), "", "", NEVER),
        ("stopped ones are out", pool(1).of("stopped@1"), "create 1", "below_desired", NEVER),
        ("stopping ones too", pool(1).of("stopping@1"), "create 1", "below_desired", NEVER),
        ("deleting ones too", pool(1).of("deleting@1"), "create 1", "below_desired", NEVER),
        (
            "failed ones too",
            pool(1).of("failed@9,ended=5"),
            "create 1",
            "failed_kept below_desired",
            Some(24 * 60 - 5),
        ),
        (
            "failed deletes too",
            pool(1).of("failed_delete@9,ended=5"),
            "create 1",
            "failed_deletes below_desired",
            Some(5),
        ),
        (
            "expired ones too",
            pool(1).ttl_minutes(60).of("ready@90"),
            "delete 1 expired, create 1",
            "expired below_desired",
            NEVER,
        ),
        (
            "one plan creates a bounded number, and the next one follows at once",
            pool(2_000),
            "create 500",
            "below_desired pass_limit",
            Some(0),
        ),
        (
            "a negative count is none",
            pool(-3).of("ready@1"),
            "delete 1 extraneous",
            "above_desired",
            NEVER,
        ),
    ]);
}

#[test]
fn the_first_schedule_that_holds_sets_the_desired_count() {
    let base = || pool(1);
    check([
        ("no schedule: the base count", base(), "create 1", "below_desired", NEVER),
        (
            "one that holds, until its end",
            base().schedule("UTC", &[("* 9-12 * * *", 3)]),
            "create 3",
            "below_desired",
            Some(60),
        ),
        (
            "one that does not hold yet",
            base().schedule("UTC", &[("* 13 * * *", 3)]),
            "create 1",
            "below_desired",
            Some(60),
        ),
        (
            "the first of several",
            base().schedule("UTC", &[("* 12 * * 5", 4), ("* 12-14 * * *", 2)]),
            "create 4",
            "below_desired",
            Some(60),
        ),
        (
            "in the timezone of the preset: 12:00 in London is 13:00 in Berlin",
            base().schedule("Europe/Berlin", &[("* 13 * * *", 2)]),
            "create 2",
            "below_desired",
            Some(60),
        ),
        (
            "none at all, for a while",
            base().schedule("UTC", &[("* * * * 5", 0)]).of("ready@1"),
            "delete 1 extraneous",
            "above_desired",
            Some(12 * 60),
        ),
        (
            "a timezone that is gone: the base count, and nothing of the schedule",
            base().schedule("Mars/X", &[("* 9-12 * * *", 3)]),
            "create 1",
            "invalid_schedule below_desired",
            NEVER,
        ),
        (
            "one that cannot be read makes all give way",
            base().schedule("UTC", &[("* 9-12 * * *", 3), ("*/5 * * * *", 3)]),
            "create 1",
            "invalid_schedule below_desired",
            NEVER,
        ),
    ]);
}

#[test]
fn every_state_is_counted_where_the_page_says() {
    use PoolState as S;
    let base = Counts::default();
    let running = Counts { running: 1, valid: 1, ..base };
    let rows = [
        ("ready@1", Counts { eligible: 1, ..running }),
        ("unready@1", running),
        ("ready@90", Counts { running: 1, expired: 1, ..base }),
        ("starting@1", Counts { starting: 1, pending: 1, ..base }),
        ("starting@1,acquired", Counts { starting: 1, ..base }),
        ("stopping@1", Counts { stopping: 1, ..base }),
        ("stopped@1", Counts { stopped: 1, ..base }),
        ("deleting@1", Counts { deleting: 1, ..base }),
        ("failed@1", Counts { failed: 1, ..base }),
        ("failed_delete@1", Counts { failed_delete: 1, ..base }),
    ];
    for (member, expected) in rows {
        let plan = pool(1).ttl_minutes(60).of(member).plan();
        assert_eq!(plan.counts, expected, "{member}");
    }
    for state in S::ALL {
        let named = rows.iter().any(|(it, _)| it.starts_with(&format!("{state}@")));
        assert!(named, "{state} has no row");
    }
}

#[test]
fn claimable_is_running_ready_alive_and_open() {
    let one = || pool(1).ttl_minutes(60);
    let rows = [
        ("ready", one().of("ready@1"), true),
        ("not ready yet", one().of("unready@1"), false),
        ("starting", one().of("starting@1"), false),
        ("stopped", one().of("stopped@1"), false),
        ("being deleted", one().of("deleting@1"), false),
        ("failed", one().of("failed@1"), false),
        ("a minute before the end of its life", one().of("ready@59"), true),
        ("at the end of its life", one().of("ready@60"), false),
        ("with enough life left", one().least_life_minutes(10).of("ready@50"), true),
        ("with too little left", one().least_life_minutes(11).of("ready@50"), false),
        (
            "any life is enough where it has no end",
            pool(1).least_life_minutes(9).of("ready@9"),
            true,
        ),
        ("made before the invalidation", one().invalidated(1).of("ready@2"), false),
        ("made at the invalidation", one().invalidated(2).of("ready@2"), true),
        (
            "whatever the clock: it was invalidated by a machine that is ahead",
            one().invalidated(-5).of("ready@2"),
            false,
        ),
        ("of a candidate", one().standing(Standing::Candidate).of("ready@1"), false),
        ("of a version kept", one().standing(Standing::Previous).of("ready@1"), true),
        ("of any other version", one().standing(Standing::Inactive).of("ready@1"), false),
        ("of no pool", one().set(|it| it.config.prebuilds = None).of("ready@1"), false),
        // Claims go on.
        ("in a paused pool", one().paused(PauseScope::Deployment, None).of("ready@1"), true),
        ("with an open breaker", one().broken(0, 1).of("ready@1"), true),
    ];
    for (rule, it, expected) in rows {
        let got = claimable(&it.snapshot.prebuilds[0], &it.config, &it.policy.pool, now());
        assert_eq!(got, expected, "{rule}");
        assert_eq!(it.plan().counts.eligible, u32::from(expected), "{rule}");
    }
}
