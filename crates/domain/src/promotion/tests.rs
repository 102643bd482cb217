//! The decision of a warm promotion, as a table.

use jiff::SignedDuration;
use proptest::prelude::*;

use super::*;

fn deadline() -> Timestamp {
    "2026-11-20T12:00:00Z".parse().unwrap()
}

fn before() -> Timestamp {
    deadline() - SignedDuration::from_micros(1)
}

/// Pools of `(desired, eligible, status)`, named `a`, `b`, …
fn promotion(ready_percent: u32, pools: &[(u32, u32, PrebuildStatus)]) -> Promotion {
    let pools = pools.iter().zip('a'..).map(|(&(desired, eligible, status), name)| Candidate {
        preset_name: name.to_string(),
        desired,
        eligible,
        status,
    });
    Promotion { pools: pools.collect(), ready_percent, deadline: deadline() }
}

fn wait(missing: u32) -> Step {
    Step::Wait { missing, until: deadline() }
}

#[test]
fn it_switches_when_every_pool_has_enough() {
    use PrebuildStatus::Healthy as H;
    let table = [
        ("no pools: nothing to wait for", promotion(100, &[]), Step::Switch),
        ("none wanted", promotion(100, &[(0, 0, H), (0, 0, H)]), Step::Switch),
        ("all ready", promotion(100, &[(2, 2, H), (1, 1, H)]), Step::Switch),
        ("more than all", promotion(100, &[(2, 9, H)]), Step::Switch),
        ("one missing", promotion(100, &[(2, 1, H)]), wait(1)),
        ("of each pool enough", promotion(100, &[(2, 9, H), (3, 1, H)]), wait(2)),
        ("missing ones add up", promotion(100, &[(2, 0, H), (3, 1, H)]), wait(4)),
        ("a share is enough", promotion(50, &[(4, 2, H)]), Step::Switch),
        ("rounded up", promotion(50, &[(3, 1, H)]), wait(1)),
        ("rounded up", promotion(1, &[(3, 0, H)]), wait(1)),
        ("rounded up", promotion(67, &[(3, 2, H)]), wait(1)),
        ("rounded up", promotion(66, &[(3, 2, H)]), Step::Switch),
        ("very many", promotion(100, &[(u32::MAX, 0, H), (u32::MAX, 0, H)]), wait(u32::MAX)),
    ];
    for (rule, it, expected) in table {
        assert_eq!(decide(&it, before()), expected, "{rule}: {it:?}");
    }
}

#[test]
fn it_is_called_off_when_a_pool_is_sick_or_the_time_is_up() {
    use PrebuildStatus::{HardLimited, Healthy, ValidationFailed};
    let off = |why| Step::CallOff(why);
    let opened = |preset: &str| off(CallOff::BreakerOpened { preset: preset.to_owned() });
    let refused = |preset: &str| off(CallOff::ValidationFailed { preset: preset.to_owned() });
    let late = |ready, needed| off(CallOff::TimedOut { ready, needed });
    let one_sick = |status| promotion(100, &[(2, 2, Healthy), (2, 0, status)]);
    let table = [
        ("breaker", one_sick(HardLimited), before(), opened("b")),
        ("refused values", one_sick(ValidationFailed), before(), refused("b")),
        ("also with enough ready", promotion(50, &[(2, 1, HardLimited)]), before(), opened("a")),
        (
            "refused values come first: no retry helps",
            promotion(100, &[(1, 0, HardLimited), (1, 0, ValidationFailed)]),
            before(),
            refused("b"),
        ),
        ("time up", promotion(100, &[(2, 1, Healthy), (2, 3, Healthy)]), deadline(), late(3, 4)),
        ("time up", promotion(50, &[(4, 1, Healthy)]), deadline(), late(1, 2)),
        ("ready when the time is up", promotion(50, &[(4, 2, Healthy)]), deadline(), Step::Switch),
    ];
    for (rule, it, at, expected) in table {
        assert_eq!(decide(&it, at), expected, "{rule}: {it:?}");
    }
}

#[test]
fn a_call_off_says_why() {
    let preset = "Large \"EU\"".to_owned();
    let table = [
        (
            CallOff::BreakerOpened { preset: preset.clone() },
            r#"creating prebuilds of preset "Large \"EU\"" failed too often in a row"#,
        ),
        (
            CallOff::ValidationFailed { preset },
            r#"the values of preset "Large \"EU\"" were refused; push a version that fixes them"#,
        ),
        (
            CallOff::TimedOut { ready: 3, needed: 4 },
            "the time was up when 3 of 4 prebuilds were ready",
        ),
    ];
    for (why, text) in table {
        assert_eq!(why.to_string(), text);
    }
}

proptest! {
    /// More ready prebuilds never make it wait for more, and waiting ends at the deadline at the
    /// latest.
    #[test]
    fn readiness_only_helps(
        pools in prop::collection::vec((0_u32..20, 0_u32..20), 0..4),
        percent in 1_u32..=100,
        place in 0_usize..4,
    ) {
        let healthy = |pools: &[(u32, u32)]| {
            let pools: Vec<_> =
                pools.iter().map(|&(d, e)| (d, e, PrebuildStatus::Healthy)).collect();
            promotion(percent, &pools)
        };
        let missing = |it: &Promotion| match decide(it, before()) {
            Step::Wait { missing, .. } => missing,
            _ => 0,
        };
        let first = healthy(&pools);
        let mut more = pools;
        if let Some((_, eligible)) = more.get_mut(place) {
            *eligible += 1;
        }
        let second = healthy(&more);
        prop_assert!(missing(&second) <= missing(&first));
        let is_waiting = matches!(decide(&first, deadline()), Step::Wait { .. });
        prop_assert!(!is_waiting);
        let is_enough = first.pools.iter().all(|it| it.eligible * 100 >= percent * it.desired);
        prop_assert_eq!(decide(&first, before()) == Step::Switch, is_enough);
    }
}
