use super::*;

#[track_caller]
fn refused(text: &str, reason: &str) {
    let error = Schedule::parse(text).expect_err(text);
    assert!(error.contains(reason), "{text}: {error}");
}

#[test]
fn a_schedule_is_five_fields_of_values_lists_and_ranges() {
    for text in ["* 9-18 * * 1-5", "* * * * *", "* 0,6,12-14 1,15 1-3,12 0", "*  8  * *  6 "] {
        assert!(Schedule::parse(text).is_ok(), "{text}");
    }
}

#[test]
fn what_is_no_schedule_is_refused_with_field_and_value() {
    refused("", "0 fields");
    refused("* 9-18 * *", "4 fields");
    refused("0 9 * * *", "minute");
    refused("* 24 * * *", "\"24\" is not a number from 0 to 23");
    refused("* 9 0 * *", "day of month");
    refused("* 9 * 13 *", "month");
    refused("* 9 * * 7", "day of week");
    refused("* */2 * * *", "steps are not allowed");
    refused("* 18-9 * * *", "ends before it begins");
    refused("* 9 * * mon", "\"mon\"");
    refused("* 9, * * *", "\"\"");
}

#[track_caller]
fn overlap(one: &str, other: &str, expected: bool) {
    let parse = |text| Schedule::parse(text).expect("a good schedule");
    assert_eq!(parse(one).overlaps(&parse(other)), expected, "{one} and {other}");
    assert_eq!(parse(other).overlaps(&parse(one)), expected, "{other} and {one}");
}

#[test]
fn schedules_overlap_when_they_share_an_hour_of_a_day() {
    overlap("* 9-18 * * 1-5", "* 18-20 * * 5-6", true);
    overlap("* 9-18 * * 1-5", "* 19-20 * * 1-5", false);
    overlap("* 9-18 * * 1-5", "* 9-18 * * 0,6", false);
    overlap("* 9 * 1-6 *", "* 9 * 7-12 *", false);
    overlap("* 9 1-15 * *", "* 9 16-31 * *", false);
    overlap("* 9 1 * *", "* 9 * * 3", true);
}

#[test]
fn a_restricted_day_of_month_and_of_week_hold_either_way() {
    // Both restricted: holds on the 1st and on every Monday, so also on a Monday that is the 2nd.
    overlap("* 9 1 * 1", "* 9 2 * *", true);
    overlap("* 9 1 * 1", "* 9 * * 2", true);
}

#[test]
fn days_that_no_month_has_overlap_with_nothing() {
    overlap("* 9 30,31 2 *", "* 9 30 2 *", false);
    overlap("* 9 29 2 *", "* 9 29 2 *", true);
}

#[test]
fn scripts_run_by_seconds_or_by_a_word() {
    for text in
        ["0 */5 * * * *", "0 0 8-18/2 * JAN-jun MON,fri", "0 30 8 1 *", "@daily", "@every 1h30m"]
    {
        assert_eq!(check_script(text), Ok(()), "{text}");
    }
    for text in ["", "* * * *", "60 * * * * *", "0 0 0 0 * *", "0 0 9-5 * * *", "0 */0 * * * *"] {
        assert!(check_script(text).is_err(), "{text}");
    }
    for text in ["@sometimes", "@every", "@every 1", "@every h", "@every 1d", "0 0 0 1 FOO *"] {
        assert!(check_script(text).is_err(), "{text}");
    }
}
