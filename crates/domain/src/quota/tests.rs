use super::*;

#[track_caller]
fn check(budget: i64, consumed: i64, cost: i64, previous: i64, fits: bool) {
    let quota = Quota { budget, consumed };
    assert_eq!(quota.check(cost, previous).is_ok(), fits, "{quota:?} {cost} {previous}");
}

#[test]
fn a_build_fits_up_to_the_budget() {
    check(10, 0, 10, 0, true);
    check(10, 5, 5, 0, true);
    check(10, 5, 6, 0, false);
    check(0, 0, 0, 0, true);
    check(0, 0, 1, 0, false);
}

#[test]
fn shrinking_is_always_allowed_and_staying_is_not() {
    check(10, 20, 4, 5, true);
    check(10, 20, 0, 5, true);
    check(10, 20, 5, 5, false);
    check(10, 20, 6, 5, false);
}

#[test]
fn enormous_costs_do_not_wrap_around() {
    check(10, i64::MAX, i64::MAX, 0, false);
}

#[test]
fn a_refusal_tells_the_numbers() {
    let error = Quota { budget: 10, consumed: 8 }.check(3, 0).unwrap_err().to_string();
    assert!(error.contains("8 of 10") && error.contains("costs 3"), "{error}");
}

#[test]
fn room_is_what_is_left_divided_by_the_cost() {
    let quota = Quota { budget: 10, consumed: 3 };
    assert_eq!(quota.room_for(2, 9), 3);
    assert_eq!(quota.room_for(2, 1), 1);
    assert_eq!(quota.room_for(0, 9), 9);
    assert_eq!(Quota { budget: 0, consumed: 0 }.room_for(1, 9), 0);
    assert_eq!(Quota { budget: 3, consumed: 10 }.room_for(1, 9), 0);
    assert_eq!(Quota { budget: i64::MAX, consumed: 0 }.room_for(1, 9), 9);
}
