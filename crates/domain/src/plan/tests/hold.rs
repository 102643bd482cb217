//! What holds creation, and that deletes go on in every case but pause.

use super::*;

/// Wants two, has one that is expired: with nothing in the way, one is deleted and two are created.
fn worn() -> Pool {
    pool(2).ttl_minutes(60).of("ready@90")
}

#[test]
fn creation_is_held_and_deletes_go_on() {
    let deletes = "delete 1 expired";
    check([
        (
            "nothing in the way",
            worn(),
            "delete 1 expired, create 2",
            "expired below_desired",
            NEVER,
        ),
        ("no daemon", worn().without_daemon(), deletes, "expired below_desired capacity", NEVER),
        (
            "values refused for good",
            worn().status(PrebuildStatus::ValidationFailed),
            deletes,
            "expired below_desired validation_failed",
            NEVER,
        ),
        (
            "breaker open",
            worn().broken(0, 3),
            deletes,
            "expired below_desired breaker_open",
            Some(7),
        ),
        ("back-off", worn().failed(&[1, 5]), deletes, "expired below_desired backoff", Some(1)),
        (
            "cap on creations in flight",
            worn().in_flight(4, 4),
            deletes,
            "expired below_desired in_flight_cap",
            NEVER,
        ),
        ("quota", worn().quota(2, 9, 10), deletes, "expired below_desired quota", NEVER),
        (
            "several at once are all told",
            worn().without_daemon().quota(2, 9, 10).failed(&[1, 5]),
            deletes,
            "expired below_desired capacity backoff quota",
            Some(1),
        ),
        ("paused: neither", worn().paused(PauseScope::Preset, None), "", "paused", NEVER),
    ]);
}

#[test]
fn what_holds_creation_is_what_a_claim_misses_by_and_what_is_stored() {
    use MissReason as M;
    let rows = [
        (worn(), M::Empty, ""),
        (worn().without_daemon(), M::Capacity, "capacity"),
        (worn().status(PrebuildStatus::ValidationFailed), M::ValidationFailed, "validation_failed"),
        (worn().broken(0, 3), M::HardLimited, "breaker_open"),
        (worn().failed(&[1, 2, 3]), M::HardLimited, "breaker_opened breaker_open"),
        (worn().failed(&[1, 5]), M::Backoff, "backoff"),
        (worn().in_flight(4, 4), M::Capacity, "in_flight_cap"),
        // Held in part: one is on its way.
        (worn().in_flight(3, 4), M::Empty, "in_flight_cap"),
        (worn().quota(2, 9, 10), M::Capacity, "quota"),
        (worn().paused(PauseScope::Template, None), M::Paused, "paused"),
        (pool(1).of("ready@1").without_daemon(), M::Empty, ""),
    ];
    for (it, miss, holds) in rows {
        let plan = it.plan();
        assert_eq!(
            (plan.miss_reason(), plan.holds().join(" ")),
            (miss, holds.to_owned()),
            "{it:?}"
        );
    }
}

#[test]
fn a_pause_of_any_scope_holds_everything_until_it_ends() {
    // Each of these would be changed by a plan.
    let busy = [
        worn(),
        worn().standing(Standing::Inactive),
        worn().standing(Standing::Previous).successor(2, 2),
        pool(1).standing(Standing::Inactive).of("starting@1"),
        pool(0).of("failed@9999,ended=9999 failed_delete@9999,ended=9999"),
        pool(1).failed(&[1, 2, 3]),
        pool(1).broken(0, 1).set(|it| it.snapshot.failures.consecutive = 0),
    ];
    for it in busy {
        assert!(!it.plan().is_settled());
        for &scope in PauseScope::ALL {
            let plan = it.clone().paused(scope, Some(ahead(5))).plan();
            assert_eq!(plan.actions, [], "{scope}");
            let told = Reason::Paused { pause: pause(scope, Some(ahead(5))) };
            assert_eq!((plan.reasons, plan.next_look), (vec![told], Some(ahead(5))));
            assert!(it.clone().paused(scope, None).plan().is_settled());
            // It ends by itself.
            let ended = it.clone().paused(scope, Some(now())).plan();
            assert_eq!(ended.actions, it.plan().actions, "{scope}");
        }
    }
}

#[test]
fn of_several_pauses_the_widest_is_told_and_the_first_end_looked_at() {
    let it = pool(1)
        .paused(PauseScope::Preset, Some(ahead(3)))
        .paused(PauseScope::Organization, Some(ahead(5)))
        .paused(PauseScope::Deployment, Some(ago(1)));
    let plan = it.plan();
    assert_eq!(
        plan.reasons,
        [Reason::Paused { pause: pause(PauseScope::Organization, Some(ahead(5))) }]
    );
    assert_eq!(plan.next_look, Some(ahead(3)));
    assert_eq!(it.reversed().plan(), plan);
}

#[test]
fn without_a_daemon_no_more_jobs_wait_than_are_wanted() {
    check([
        ("none is added", pool(3).without_daemon(), "", "below_desired capacity", NEVER),
        (
            "nor to those that wait already",
            pool(3).without_daemon().of("starting@9 starting@9"),
            "",
            "below_desired capacity",
            NEVER,
        ),
        (
            "those that wait count, also while daemons come and go",
            pool(3).of("starting@9 starting@9 ready@1"),
            "",
            "",
            NEVER,
        ),
        (
            "however old they are",
            pool(2).ttl_minutes(60).of("starting@99 starting@99"),
            "",
            "",
            NEVER,
        ),
        (
            "whose job was reaped is no failure of the template: it is built again",
            pool(2).of("failed@99,ended=1 starting@1"),
            "create 1",
            "failed_kept below_desired",
            Some(24 * 60 - 1),
        ),
    ]);
}

#[test]
fn shared_limits_leave_room_or_none() {
    let capped = "below_desired in_flight_cap";
    let spent = "below_desired quota";
    check([
        ("cap: none in flight", pool(5).in_flight(0, 4), "create 4", capped, NEVER),
        ("cap: some in flight", pool(5).in_flight(3, 4), "create 1", capped, NEVER),
        ("cap: reached", pool(5).in_flight(4, 4), "", capped, NEVER),
        ("cap: passed", pool(5).in_flight(9, 4), "", capped, NEVER),
        ("cap: room for all", pool(4).in_flight(0, 4), "create 4", "below_desired", NEVER),
        ("no cap", pool(5).in_flight(9, 0), "create 5", "below_desired", NEVER),
        ("quota: none allowed", pool(3).quota(2, 0, 0), "", spent, NEVER),
        ("quota: room for two", pool(3).quota(2, 0, 5), "create 2", spent, NEVER),
        ("quota: spent", pool(3).quota(2, 4, 5), "", spent, NEVER),
        ("quota: overspent", pool(3).quota(2, 9, 5), "", spent, NEVER),
        ("quota: what costs nothing", pool(3).quota(0, 9, 5), "create 3", "below_desired", NEVER),
        (
            "both: the narrower one decides",
            pool(5).in_flight(0, 3).quota(1, 0, 2),
            "create 2",
            "below_desired in_flight_cap quota",
            NEVER,
        ),
        ("a probe needs room as well", pool(5).broken(0, 10).in_flight(4, 4), "", capped, NEVER),
    ]);
    let exceeded = QuotaExceeded { budget: 5, consumed: 4, cost: 2 };
    assert!(pool(3).quota(2, 4, 5).plan().reasons.contains(&Reason::Quota { exceeded }));
    let cap = Reason::InFlightCap { in_flight: 3, max: 4 };
    assert!(pool(5).in_flight(3, 4).plan().reasons.contains(&cap));
}

#[test]
fn creation_waits_after_failures_in_proportion_to_them() {
    let backoff = "below_desired backoff";
    let slow = |it: Pool| {
        it.set(|it| {
            it.policy.settings.reconciliation_backoff_interval = SignedDuration::from_mins(30);
        })
    };
    check([
        (
            "one failure: one interval after it",
            pool(2).failed(&[1]),
            "create 2",
            "below_desired",
            NEVER,
        ),
        ("not before", pool(2).failed(&[0]), "", backoff, Some(1)),
        (
            "two failures: two intervals after the last",
            pool(2).failed(&[1, 5]),
            "",
            backoff,
            Some(1),
        ),
        ("then it goes on", pool(2).failed(&[2, 5]), "create 2", "below_desired", NEVER),
        (
            "what is older than the lookback period is forgotten",
            pool(2).failed(&[1, 60]),
            "create 2",
            "below_desired",
            NEVER,
        ),
        ("what is not counts", pool(2).failed(&[1, 59]), "", backoff, Some(1)),
        (
            "the wait ends early when a failure is forgotten",
            slow(pool(1).failed(&[1, 58])),
            "",
            backoff,
            Some(2),
        ),
        (
            "also where only a schedule wants any",
            pool(0).schedule("UTC", &[("* 12 * * *", 2)]).failed(&[1, 5]),
            "",
            backoff,
            Some(1),
        ),
        (
            "nothing missing: nothing to wait for",
            pool(1).failed(&[1, 5]).of("ready@1"),
            "",
            "",
            NEVER,
        ),
    ]);
    let told = Reason::Backoff { failures: 2, until: ahead(59) };
    assert!(slow(pool(1).failed(&[1, 58])).plan().reasons.contains(&told));
}

#[test]
fn creation_waits_after_setbacks_a_second_and_then_twice_as_long() {
    let after = |setbacks: u32, seconds: i64| {
        pool(2).set(|it| {
            it.snapshot.failures.setbacks = setbacks;
            it.snapshot.failures.setback_at = Some(now() - SignedDuration::from_secs(seconds));
        })
    };
    let held = |it: Pool| it.plan().creates() == 0;
    for (setbacks, wait) in [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (40, 60), (u32::MAX, 60)] {
        assert!(held(after(setbacks, wait - 1)), "{setbacks} setbacks hold for {wait} s");
        assert!(!held(after(setbacks, wait)), "{setbacks} setbacks hold for {wait} s only");
    }
    assert!(!held(after(0, 0)), "none since the last success");
    let plan = after(3, 1).plan();
    let until = now() + SignedDuration::from_secs(3);
    assert!(plan.reasons.contains(&Reason::Setback { setbacks: 3, until }));
    assert_eq!(plan.next_look, Some(until));
}

#[test]
fn a_guessed_cost_lets_one_build_find_out() {
    let guessed = |it: Pool| it.set(|it| it.snapshot.is_cost_guessed = true);
    let spent = "below_desired quota";
    check([
        ("known: none", pool(3).quota(2, 4, 5), "", spent, NEVER),
        ("guessed: one", guessed(pool(3).quota(2, 4, 5)), "create 1", spent, NEVER),
        ("one at a time", guessed(pool(3).quota(2, 4, 5).of("starting@1")), "", spent, NEVER),
        ("where there is room", guessed(pool(3).quota(2, 0, 5)), "create 2", spent, NEVER),
    ]);
}

#[test]
fn where_no_daemon_could_run_the_job_the_plan_says_what_it_would_have_to_offer() {
    let tags = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let said = |tags| {
        let it = pool(1).without_daemon().set(|it| {
            it.snapshot.need = Need { provisioner: "terraform".to_owned(), tags };
        });
        let reasons = it.plan().reasons;
        reasons.iter().map(ToString::to_string).find(|it| it.contains("daemon")).unwrap()
    };
    let common = [("scope", "organization"), ("owner", "")];
    assert!(
        said(tags(&common)).ends_with("no live provisioner daemon takes terraform jobs; start one")
    );
    let chosen = [common[0], common[1], ("region", "eu"), ("size", "big")];
    assert!(said(tags(&chosen)).contains("takes terraform jobs with region=eu size=big;"));
}
