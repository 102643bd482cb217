//! Time alone: schedules to the second and through changes of the clock, ends of lives, waits.

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[test]
fn the_desired_count_changes_at_the_very_second() {
    let office = pool(1).schedule("Europe/Berlin", &[("* 9-18 * * 1-5", 5)]);
    let night_shift = pool(1).schedule("Europe/Berlin", &[("* 2 * * *", 5)]);
    let rows = [
        // Friday 2026-11-20; Berlin is an hour ahead.
        (&office, "2026-11-20T07:59:59.999999Z", 1, "2026-11-20T08:00:00Z"),
        (&office, "2026-11-20T08:00:00Z", 5, "2026-11-20T18:00:00Z"),
        (&office, "2026-11-20T17:59:59.999999Z", 5, "2026-11-20T18:00:00Z"),
        (&office, "2026-11-20T18:00:00Z", 1, "2026-11-23T08:00:00Z"),
        // In summer two hours.
        (&office, "2026-07-17T06:59:59Z", 1, "2026-07-17T07:00:00Z"),
        (&office, "2026-07-17T07:00:00Z", 5, "2026-07-17T17:00:00Z"),
        // The hour that does not exist on 29 March is skipped.
        (&night_shift, "2026-03-28T01:30:00Z", 5, "2026-03-28T02:00:00Z"),
        (&night_shift, "2026-03-28T02:00:00Z", 1, "2026-03-30T00:00:00Z"),
        (&night_shift, "2026-03-29T01:30:00Z", 1, "2026-03-30T00:00:00Z"),
        // The hour that comes twice on 25 October holds both times.
        (&night_shift, "2026-10-24T23:59:59Z", 1, "2026-10-25T00:00:00Z"),
        (&night_shift, "2026-10-25T00:00:00Z", 5, "2026-10-25T02:00:00Z"),
        (&night_shift, "2026-10-25T01:59:59Z", 5, "2026-10-25T02:00:00Z"),
        (&night_shift, "2026-10-25T02:00:00Z", 1, "2026-10-26T01:00:00Z"),
    ];
    for (it, moment, desired, look) in rows {
        let plan = it.plan_at(at(moment));
        assert_eq!((plan.desired, plan.next_look), (desired, Some(at(look))), "{moment}");
    }
}

#[test]
fn the_first_schedule_that_holds_changes_without_a_gap() {
    let it = pool(9).schedule("UTC", &[("* 0-11 * * *", 1), ("* 12-23 * * *", 2)]);
    for (moment, desired) in [
        ("2026-11-20T11:59:59.999999999Z", 1),
        ("2026-11-20T12:00:00Z", 2),
        ("2026-11-20T23:59:59.999999999Z", 2),
        ("2026-11-21T00:00:00Z", 1),
    ] {
        assert_eq!(it.plan_at(at(moment)).desired, desired, "{moment}");
    }
}

#[test]
fn the_next_look_is_the_earliest_of_all() {
    let looks = |it: Pool| it.plan().next_look;
    // A schedule's edge in 60, an expiry in 20, the end of a kept failure in 40, a delete in 4.
    let it = pool(1)
        .schedule("UTC", &[("* 12 * * *", 1)])
        .ttl_minutes(60)
        .of("ready@40 failed@9999,ended=1400 failed_delete@9,ended=6");
    assert_eq!(looks(it.clone()), Some(ahead(4)));
    let it = it.set(|it| it.snapshot.prebuilds.truncate(2));
    assert_eq!(looks(it.clone()), Some(ahead(20)));
    let it = it.ttl_minutes(0);
    assert_eq!(looks(it.clone()), Some(ahead(40)));
    let it = it.set(|it| it.snapshot.prebuilds.truncate(1));
    assert_eq!(looks(it.clone()), Some(ahead(60)));
    let it = it.schedule("UTC", &[]);
    assert_eq!(looks(it.clone()), None);
    // While paused, the end of the pause counts as well.
    assert_eq!(looks(it.paused(PauseScope::Template, Some(ahead(2)))), Some(ahead(2)));
}

#[test]
fn a_prebuild_with_too_little_life_left_is_looked_at_before_it_ends() {
    let it = pool(1).ttl_minutes(60).least_life_minutes(10).of("ready@20");
    let look = it.plan().next_look.unwrap();
    assert_eq!(look, ahead(30) + SignedDuration::from_micros(1));
    assert_eq!(it.plan_at(ahead(30)).counts.eligible, 1);
    assert_eq!(it.plan_at(look).counts.eligible, 0);
    assert_eq!(it.plan_at(look).next_look, Some(ahead(40)));
}

#[test]
fn moments_beyond_what_can_be_written_are_never() {
    let it = pool(2)
        .ttl_minutes(i64::MAX / 60)
        .least_life_minutes(i64::MAX / 60)
        .of("ready@1 failed@1")
        .failed(&[1, 2])
        .set(|it| {
            it.policy.settings.failed_retention = SignedDuration::MAX;
            it.policy.settings.reconciliation_backoff_interval = SignedDuration::MAX;
        });
    let plan = it.plan();
    assert!(plan.is_settled());
    assert!(plan.reasons.contains(&Reason::Backoff { failures: 2, until: Timestamp::MAX }));
}
