//! `next_look` is early enough: before it, time alone changes nothing.

use proptest::prelude::*;

use super::settling::{any_pool, step};
use super::*;

/// Whole microseconds, as databases store them.
fn between(until: Timestamp, share: f64) -> Timestamp {
    let width = until.as_microsecond() - now().as_microsecond();
    #[expect(clippy::cast_possible_truncation, reason = "a share of a width is no wider")]
    #[expect(clippy::cast_precision_loss, reason = "any moment in between will do")]
    let at = (width as f64 * share) as i64;
    now() + SignedDuration::from_micros(at.clamp(0, width - 1))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_024))]

    /// What a service sleeps by is the look of the plan that it carried out. Until then the plan
    /// stays what it was at that moment, to the last reason.
    #[test]
    fn nothing_changes_before_the_next_look(
        mut it in any_pool(),
        shares in prop::collection::vec(0.0..1.0_f64, 4),
    ) {
        let carried_out = step(&mut it, now());
        let until = carried_out.next_look.unwrap_or(ahead(60 * 24 * 30));
        prop_assert!(until > now());
        let settled = it.plan();
        let moments = shares.into_iter().map(|share| between(until, share));
        for at in moments.chain([until - SignedDuration::from_micros(1)]) {
            prop_assert_eq!(&it.plan_at(at), &settled, "at {}", at);
        }
    }

    /// And without anything being carried out, as for the dry run.
    #[test]
    fn an_untouched_plan_keeps_until_its_next_look(it in any_pool(), share in 0.0..1.0_f64) {
        let plan = it.plan();
        let until = plan.next_look.unwrap_or(ahead(60 * 24 * 30));
        prop_assert!(until > now());
        prop_assert_eq!(it.plan_at(between(until, share)).actions, plan.actions);
    }
}
