//! Pools of the versions of a promotion: the candidate's, the previous one's, the new one's.

use super::*;

#[test]
fn a_candidate_is_built_no_larger_than_the_surge() {
    let candidate = || pool(4).standing(Standing::Candidate);
    check([
        ("all of it beside the old one", candidate(), "create 4", "below_desired", NEVER),
        (
            "half of it",
            candidate().surge(50).of("ready@1"),
            "create 1",
            "surge below_desired",
            NEVER,
        ),
        ("at least one", candidate().surge(1), "create 1", "surge below_desired", NEVER),
        (
            "as many as that, no more",
            candidate().surge(50).of("ready@1 unready@1"),
            "",
            "surge",
            NEVER,
        ),
        (
            "expired ones are replaced",
            candidate().ttl_minutes(60).of("ready@60"),
            "delete 1 expired, create 4",
            "expired below_desired",
            NEVER,
        ),
        (
            "it is looked at when its time is up",
            candidate().surge(50).of("ready@1 ready@1").set(|it| {
                it.snapshot.deadline = Some(ahead(7));
            }),
            "",
            "surge",
            Some(7),
        ),
        (
            "a deadline is a candidate's only",
            pool(0).set(|it| it.snapshot.deadline = Some(ahead(7))),
            "",
            "",
            NEVER,
        ),
        ("held like any other", candidate().without_daemon(), "", "below_desired capacity", NEVER),
    ]);
    assert_eq!(candidate().surge(50).plan().desired, 2);
    assert_eq!(candidate().of("ready@1").plan().counts.eligible, 0);
}

#[test]
fn a_previous_version_keeps_as_many_as_the_new_one_lacks() {
    let previous = || pool(3).standing(Standing::Previous);
    let three = || previous().of("ready@1 ready@2 unready@3");
    check([
        (
            "one of two is ready: one stays, the one that is missed most",
            three().successor(2, 1),
            "delete 3 inactive, delete 2 inactive",
            "previous_kept",
            NEVER,
        ),
        ("none is ready", three().successor(2, 0), "delete 3 inactive", "previous_kept", NEVER),
        (
            "all are ready",
            three().successor(2, 2),
            "delete 3 inactive, delete 2 inactive, delete 1 inactive",
            "previous_kept",
            NEVER,
        ),
        (
            "more than are wanted are ready",
            three().successor(2, 5),
            "delete 3 inactive, delete 2 inactive, delete 1 inactive",
            "previous_kept",
            NEVER,
        ),
        (
            "more are missing than it has",
            three().successor(9, 1),
            "delete 3 inactive",
            "previous_kept",
            NEVER,
        ),
        (
            "nobody can be served from here",
            three(),
            "delete 3 inactive, delete 2 inactive, delete 1 inactive",
            "",
            NEVER,
        ),
        (
            "pending ones are cancelled, none is created",
            previous().successor(9, 0).of("starting@1 starting@1,acquired ready@1"),
            "cancel 1",
            "previous_kept",
            NEVER,
        ),
        (
            "expired ones go",
            previous().successor(9, 0).ttl_minutes(60).of("ready@60 ready@59"),
            "delete 1 expired",
            "previous_kept",
            Some(1),
        ),
    ]);
    // What could not be handed out any more is of no use; the other one follows in ten minutes.
    let short = previous().successor(9, 0).ttl_minutes(60).least_life_minutes(30);
    let plan = short.of("ready@40 ready@20").plan();
    assert_eq!(said(&plan.actions), "delete 1 inactive");
    assert_eq!(plan.next_look, Some(ahead(10) + SignedDuration::from_micros(1)));
}

#[test]
fn the_new_version_leaves_room_for_what_still_runs_of_the_old_one() {
    // New and old together: desired + surge.
    check([
        ("a surge of all: no wait", pool(4).predecessor(4), "create 4", "below_desired", NEVER),
        (
            "a surge of a quarter",
            pool(4).surge(25).predecessor(4),
            "create 1",
            "below_desired surge",
            NEVER,
        ),
        (
            "as the old ones go",
            pool(4).surge(25).predecessor(3).of("ready@1"),
            "create 1",
            "below_desired surge",
            NEVER,
        ),
        (
            "what starts takes its place",
            pool(4).surge(25).predecessor(3).of("ready@1 starting@1"),
            "",
            "below_desired surge",
            NEVER,
        ),
        (
            "what is there already stays",
            pool(4).surge(25).predecessor(9).of("ready@1 ready@1"),
            "",
            "below_desired surge",
            NEVER,
        ),
        (
            "a surge of at least one",
            pool(2).surge(1).predecessor(2),
            "create 1",
            "below_desired surge",
            NEVER,
        ),
        ("a full pool is not held", pool(1).surge(1).predecessor(9).of("ready@1"), "", "", NEVER),
        (
            "none of the old ones left",
            pool(4).surge(25).of("ready@1"),
            "create 3",
            "below_desired",
            NEVER,
        ),
    ]);
}
