//! The breaker: closed, open with ever rarer probes, closed again.

use super::*;

#[test]
fn failures_in_a_row_open_it() {
    check([
        (
            "one fewer than the limit does not",
            pool(2).failed(&[2, 3]),
            "create 2",
            "below_desired",
            NEVER,
        ),
        (
            "at the limit it opens, and the first probe comes ten minutes later",
            pool(2).failed(&[0, 1, 2]),
            "open after 3",
            "breaker_opened below_desired breaker_open",
            Some(10),
        ),
        (
            "once",
            pool(2).failed(&[0, 1, 2]).broken(0, 0),
            "",
            "below_desired breaker_open",
            Some(10),
        ),
        (
            "also where nothing is missing",
            pool(1).failed(&[0, 1, 2]).of("ready@9"),
            "open after 3",
            "breaker_opened",
            NEVER,
        ),
        (
            "a limit of 0 never opens it",
            pool(2).failed(&[5, 6, 7]).set(|it| it.policy.settings.failure_hard_limit = 0),
            "create 2",
            "below_desired",
            NEVER,
        ),
        (
            "what is not wanted any more cannot fail any more",
            pool(2).standing(Standing::Inactive).failed(&[0, 1, 2]),
            "",
            "inactive",
            NEVER,
        ),
        (
            "a candidate can",
            pool(2).standing(Standing::Candidate).failed(&[0, 1, 2]),
            "open after 3",
            "breaker_opened below_desired breaker_open",
            Some(10),
        ),
    ]);
}

#[test]
fn success_or_a_reset_closes_it() {
    let reset = |it: &mut Pool| it.snapshot.failures.consecutive = 0;
    check([
        (
            "a limit of 0 closes it",
            pool(2).broken(0, 1).set(|it| it.policy.settings.failure_hard_limit = 0),
            "close, create 2",
            "breaker_closed below_desired",
            NEVER,
        ),
        (
            "a prebuild became ready, or an operator reset it",
            pool(3).broken(1, 2).set(reset).of("ready@1"),
            "close, create 2",
            "breaker_closed below_desired",
            NEVER,
        ),
        (
            "refused values stay refused",
            pool(2).status(PrebuildStatus::ValidationFailed).failed(&[5, 6, 7]),
            "",
            "below_desired validation_failed",
            NEVER,
        ),
    ]);
}

#[test]
fn an_open_one_tries_one_build_ever_more_rarely() {
    // (probes made, minutes since the last one or the opening, minutes to the next)
    let table = [
        (0, 9, Some(1)),
        (0, 10, None),
        (1, 19, Some(1)),
        (1, 20, None),
        (2, 39, Some(1)),
        (2, 40, None),
        (5, 319, Some(1)),
        (5, 320, None),
        (6, 359, Some(1)),
        (6, 360, None),
        (40, 359, Some(1)),
        (40, 360, None),
    ];
    for (probes, minutes, look) in table {
        let it = pool(4).broken(probes, minutes);
        let plan = it.plan();
        let expected = if look.is_none() { "probe 1" } else { "" };
        assert_eq!(said(&plan.actions), expected, "{probes} {minutes}");
        assert_eq!(plan.next_look, look.map(ahead), "{probes} {minutes}");
        // One at a time.
        let plan = it.of("starting@1").plan();
        assert_eq!((said(&plan.actions).as_str(), plan.next_look), ("", None));
        assert!(plan.reasons.contains(&Reason::BreakerOpen { next_probe_at: None }));
    }
}

#[test]
fn a_probe_waits_for_no_back_off_and_for_every_other_hold() {
    check([
        (
            "no back-off: the probe has its own delay",
            pool(2).failed(&[1, 2, 3]).broken(0, 10),
            "probe 1",
            "below_desired probe",
            NEVER,
        ),
        ("none is missing", pool(1).broken(0, 10).of("ready@1"), "", "", NEVER),
        ("no daemon", pool(2).broken(0, 10).without_daemon(), "", "below_desired capacity", NEVER),
        ("quota", pool(2).broken(0, 10).quota(1, 1, 1), "", "below_desired quota", NEVER),
        (
            "nobody knows since when it is open: long enough",
            pool(2).broken(0, 0).set(|it| it.snapshot.failures.breaker = None),
            "probe 1",
            "below_desired probe",
            NEVER,
        ),
    ]);
}
