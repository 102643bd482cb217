use jiff::SignedDuration;
use proptest::prelude::*;

use super::*;
use crate::preset::PresetSchedule;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// A moment given in local time.
fn local(text: &str, zone: &str) -> Timestamp {
    let civil: DateTime = text.parse().unwrap();
    timezone(zone).unwrap().to_ambiguous_zoned(civil).compatible().unwrap().timestamp()
}

#[track_caller]
fn holds(cron: &str, zone: &str, rows: &[(&str, bool)]) {
    let schedule = Schedule::new(cron, zone, 1).unwrap();
    for (text, expected) in rows {
        assert_eq!(schedule.contains(local(text, zone)), *expected, "{cron} at {text} {zone}");
    }
}

fn cron(text: &str) -> Cron {
    text.parse().unwrap()
}

#[test]
fn a_cron_denotes_whole_hours_of_local_time() {
    // 2026-11-20 is a Friday.
    let rows = [
        ("2026-11-20T08:59:59.999", false),
        ("2026-11-20T09:00:00", true),
        ("2026-11-20T18:59:59.999", true),
        ("2026-11-20T19:00:00", false),
        ("2026-11-21T12:00:00", false),
        ("2026-11-22T12:00:00", false),
        ("2026-11-23T12:00:00", true),
    ];
    for zone in ["UTC", "Europe/Berlin", "Asia/Kolkata", "America/St_Johns"] {
        holds("* 9-18 * * 1-5", zone, &rows);
    }
}

#[test]
fn where_both_days_are_restricted_either_matches() {
    holds(
        "* * 13 * 5",
        "UTC",
        &[
            ("2026-11-13T00:00:00", true),
            ("2026-11-20T12:00:00", true),
            ("2026-10-13T12:00:00", true),
            ("2026-11-14T12:00:00", false),
        ],
    );
    holds("* * 13 * *", "UTC", &[("2026-10-13T12:00:00", true), ("2026-11-20T12:00:00", false)]);
    holds("* * * * 5", "UTC", &[("2026-11-20T12:00:00", true), ("2026-10-13T12:00:00", false)]);
    // A full range is a restriction as well: only `*` is none.
    holds("* * 1-31 * 5", "UTC", &[("2026-11-21T12:00:00", true)]);
}

#[test]
fn sunday_is_0_and_months_count_from_1() {
    holds("* * * * 0", "UTC", &[("2026-11-22T12:00:00", true), ("2026-11-23T12:00:00", false)]);
    holds("* * * 1,11 *", "UTC", &[("2026-11-22T12:00:00", true), ("2026-12-01T12:00:00", false)]);
}

#[test]
fn an_hour_that_does_not_exist_is_skipped_and_a_repeated_one_holds_both_times() {
    let schedule = Schedule::new("* 2 * * *", "Europe/Berlin", 1).unwrap();
    // 2026-03-29: 02:00 to 03:00 local do not exist. 01:00 UTC is 03:00.
    for t in ["2026-03-29T00:59:59Z", "2026-03-29T01:00:00Z", "2026-03-29T01:30:00Z"] {
        assert!(!schedule.contains(at(t)), "{t}");
    }
    // 2026-10-25: 02:00 to 03:00 local come twice, from 00:00 and from 01:00 UTC.
    let rows = [
        ("2026-10-24T23:59:59Z", false),
        ("2026-10-25T00:00:00Z", true),
        ("2026-10-25T00:59:59Z", true),
        ("2026-10-25T01:00:00Z", true),
        ("2026-10-25T01:59:59Z", true),
        ("2026-10-25T02:00:00Z", false),
    ];
    for (t, expected) in rows {
        assert_eq!(schedule.contains(at(t)), expected, "{t}");
    }
    assert_eq!(schedule.next_edge(at("2026-10-25T00:00:00Z")), Some(at("2026-10-25T02:00:00Z")));
    assert_eq!(schedule.next_edge(at("2026-03-28T12:00:00Z")), Some(at("2026-03-30T00:00:00Z")));
}

#[test]
fn clocks_that_change_by_half_an_hour_are_followed() {
    // Lord Howe Island, 2026-04-05: at 02:00 (+11) the clock goes back to 01:30 (+10:30).
    let schedule = Schedule::new("* 1 5 4 *", "Australia/Lord_Howe", 1).unwrap();
    let start = at("2026-04-04T14:00:00Z");
    assert_eq!(schedule.next_edge(at("2026-04-01T00:00:00Z")), Some(start));
    assert_eq!(schedule.next_edge(start), Some(at("2026-04-04T15:30:00Z")));
}

#[test]
fn crons_that_are_not_of_our_form_are_refused() {
    let table = [
        ("", "0 fields"),
        ("* * * *", "4 fields"),
        ("* * * * * *", "6 fields"),
        ("0 9 * * *", "minute"),
        ("*/5 9 * * *", "minute"),
        ("* 24 * * *", "hour"),
        ("* 9-24 * * *", "hour"),
        ("* 18-9 * * *", "backwards"),
        ("* */2 * * *", "no steps"),
        ("* 9-18/2 * * *", "no steps"),
        ("* 9, * * *", "hour"),
        ("* -1 * * *", "hour"),
        ("* +1 * * *", "hour"),
        ("* 009 * * *", "hour"),
        ("* * 0 * *", "day of month"),
        ("* * 32 * *", "day of month"),
        ("* * * 13 *", "month"),
        ("* * * JAN *", "month"),
        ("* * * * 7", "day of week"),
        ("* * * * MON-FRI", "day of week"),
        ("* * ? * *", "day of month"),
        ("* 9-10-11 * * *", "hour"),
        ("* *,3 * * *", "hour"),
    ];
    for (text, word) in table {
        let error = text.parse::<Cron>().unwrap_err().to_string();
        assert!(error.contains(word), "{text:?}: {error}");
    }
    for text in ["* * * * *", "* 0,5,9-12 1-31 1-12 0-6", "*  9 * * 1", "* 09 * * *"] {
        assert!(text.parse::<Cron>().is_ok(), "{text:?}");
    }
}

#[test]
fn an_unknown_timezone_is_refused_by_name() {
    for zone in ["Mars/Olympus", "", "Local", "../etc/passwd"] {
        let error = Schedule::new("* * * * *", zone, 1).unwrap_err();
        assert_eq!(error, ScheduleError::Timezone { timezone: zone.to_owned() });
    }
}

#[test]
fn schedules_overlap_when_they_share_an_hour_of_a_real_day() {
    let table = [
        ("* 9-18 * * 1-5", "* 18-20 * * 5", true),
        ("* 9-18 * * 1-5", "* 19-20 * * 5", false),
        ("* 9-18 * * 1-5", "* 9-18 * * 0,6", false),
        ("* * * 1 *", "* * * 2 *", false),
        ("* * 30 * *", "* * * 2 *", false),
        ("* * 29 * *", "* * * 2 *", true),
        // The thirteenth is a Friday now and then.
        ("* * 13 * *", "* * * * 5", true),
        // Either day matches in the first: also a Monday that is no first.
        ("* 9 1 * 1", "* 9 2 * *", true),
        ("* 9 1 * *", "* 9 2 * *", false),
        ("* * * * *", "* 3 31 12 6", true),
    ];
    for (a, b, expected) in table {
        assert_eq!(cron(a).overlaps(&cron(b)), expected, "{a} and {b}");
        assert_eq!(cron(b).overlaps(&cron(a)), expected, "{b} and {a}");
    }
}

fn prebuilds(zone: &str, schedules: &[(&str, i32)]) -> Prebuilds {
    let schedules = schedules
        .iter()
        .map(|(cron, instances)| PresetSchedule { cron: (*cron).to_owned(), instances: *instances })
        .collect();
    Prebuilds { instances: 2, ttl_seconds: 0, timezone: zone.to_owned(), schedules }
}

#[test]
fn the_first_schedule_that_holds_decides_else_the_base_count() {
    let it = prebuilds("UTC", &[("* 9-18 * * 1-5", 7), ("* 8-18 * * *", 5)]);
    let count = |t| desired(&it, at(t));
    assert_eq!(count("2026-11-20T10:00:00Z").instances, 7);
    assert_eq!(count("2026-11-20T08:00:00Z").instances, 5);
    assert_eq!(count("2026-11-21T10:00:00Z").instances, 5);
    assert_eq!(count("2026-11-21T20:00:00Z"), Desired { instances: 2, warning: None });
    assert_eq!(desired(&prebuilds("", &[]), at("2026-11-20T10:00:00Z")).instances, 2);
    assert_eq!(next_edge(&it, at("2026-11-20T10:00:00Z")), Some(at("2026-11-20T19:00:00Z")));
    assert_eq!(next_edge(&it, at("2026-11-20T19:00:00Z")), Some(at("2026-11-21T08:00:00Z")));
    assert_eq!(next_edge(&prebuilds("", &[]), at("2026-11-20T10:00:00Z")), None);
}

#[test]
fn stored_schedules_that_no_longer_validate_fall_back_with_a_warning() {
    for it in [
        prebuilds("Gone/Away", &[("* * * * *", 7)]),
        prebuilds("UTC", &[("* * * * *", 7), ("* 25 * * *", 1)]),
    ] {
        let got = desired(&it, at("2026-11-20T10:00:00Z"));
        assert_eq!(got.instances, 2);
        assert!(got.warning.is_some());
        assert_eq!(next_edge(&it, at("2026-11-20T10:00:00Z")), None);
    }
}

#[test]
fn edges_far_away_are_found_and_those_that_never_come_are_not() {
    let edge = |cron: &str, t| Schedule::new(cron, "UTC", 1).unwrap().next_edge(at(t));
    assert_eq!(edge("* * * * *", "2026-11-20T10:00:00Z"), None);
    assert_eq!(edge("* * 31 2 *", "2026-11-20T10:00:00Z"), None);
    assert_eq!(edge("* 5 29 2 *", "2026-11-20T10:00:00Z"), Some(at("2028-02-29T05:00:00Z")));
    assert_eq!(edge("* * 29 2 *", "2097-01-01T00:00:00Z"), Some(at("2104-02-29T00:00:00Z")));
    assert_eq!(edge("* * * 1-11 *", "2026-11-20T10:00:00Z"), Some(at("2026-12-01T00:00:00Z")));
}

#[test]
fn a_midnight_that_comes_twice_is_found_both_times() {
    // Havana goes back at 01:00 to 00:00 on 2026-11-01: 00:00 local is 04:00 and 05:00 UTC.
    let schedule = Schedule::new("* 0 1 11 *", "America/Havana", 1).unwrap();
    assert_eq!(schedule.next_edge(at("2026-10-20T00:00:00Z")), Some(at("2026-11-01T04:00:00Z")));
    assert_eq!(schedule.next_edge(at("2026-11-01T04:00:00Z")), Some(at("2026-11-01T06:00:00Z")));
}

fn field(low: u32, high: u32) -> impl Strategy<Value = String> {
    let range = (low..=high, low..=high).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b)));
    let item = prop_oneof![(low..=high).prop_map(|it| it.to_string()), range];
    prop_oneof![
        Just("*".to_owned()),
        proptest::collection::vec(item, 1..4).prop_map(|it| it.join(",")),
    ]
}

fn any_cron() -> impl Strategy<Value = String> {
    (field(0, 23), field(1, 31), field(1, 12), field(0, 6))
        .prop_map(|(hour, day, month, weekday)| format!("* {hour} {day} {month} {weekday}"))
}

fn any_zone() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "America/St_Johns",
        "America/Havana",
        "Australia/Lord_Howe",
        "Asia/Kathmandu",
        "Pacific/Apia",
        "Africa/Casablanca",
    ])
}

fn any_time() -> impl Strategy<Value = Timestamp> {
    // 2020 to 2030, to the second.
    (1_577_836_800_i64..1_893_456_000).prop_map(|it| Timestamp::from_second(it).unwrap())
}

proptest! {
    /// Between a moment and its edge nothing changes, and at the edge something does.
    #[test]
    fn an_edge_is_the_first_change(cron in any_cron(), zone in any_zone(), t in any_time()) {
        let schedule = Schedule::new(&cron, zone, 1).unwrap();
        let now = schedule.contains(t);
        let edge = schedule.next_edge(t);
        if let Some(edge) = edge {
            prop_assert!(edge > t);
            prop_assert_ne!(schedule.contains(edge), now);
            let before = edge - SignedDuration::from_nanos(1);
            prop_assert_eq!(schedule.contains(before), now);
        }
        // Every quarter of an hour for three weeks, as far as the edge.
        let mut probe = t;
        for _ in 0..(21 * 24 * 4) {
            probe += SignedDuration::from_mins(15);
            if edge.is_some_and(|it| it <= probe) {
                break;
            }
            prop_assert_eq!(schedule.contains(probe), now, "at {}", probe);
        }
    }

    /// Two schedules that hold at one moment overlap.
    #[test]
    fn what_holds_together_overlaps(a in any_cron(), b in any_cron(), t in any_time()) {
        let [one, other] = [&a, &b].map(|it| Schedule::new(it, "Europe/Berlin", 1).unwrap());
        if one.contains(t) && other.contains(t) {
            prop_assert!(one.cron.overlaps(&other.cron));
        }
        let hours = (0..24 * 40).map(|it| t + SignedDuration::from_hours(it));
        if !one.cron.overlaps(&other.cron) {
            prop_assert!(hours.into_iter().all(|t| !(one.contains(t) && other.contains(t))));
        }
    }

    /// No text makes the parser panic, and what it takes it prints as it reads it.
    #[test]
    fn any_text_is_read_or_refused(text in "[-*0-9, /A-Z]{0,24}") {
        if let Ok(read) = text.parse::<Cron>() {
            prop_assert_eq!(read.to_string().parse::<Cron>(), Ok(read));
        }
    }
}
