use super::*;

#[track_caller]
fn check(text: &str, expected: Option<u64>) {
    assert_eq!(text.parse().ok(), expected.map(Period::from_millis), "{text}");
}

#[test]
fn a_period_is_read_with_its_units() {
    check("250ms", Some(250));
    check("30s", Some(30_000));
    check("1m", Some(60_000));
    check("1h30m", Some(5_400_000));
    check("7d", Some(604_800_000));
    check("1m30s5ms", Some(90_005));
    check("0s", Some(0));
    check(" 5m ", Some(300_000));
}

#[test]
fn a_period_without_a_unit_or_with_another_is_refused() {
    for text in ["", "30", "s", "30 s", "-5s", "1.5h", "10y", "5sx", "99999999999999999999s"] {
        check(text, None);
    }
    check("18446744073709551615d", None);
}

#[test]
fn a_period_is_written_as_it_is_read() {
    for text in ["250ms", "30s", "1m", "1h30m", "7d", "1m30s5ms", "0s"] {
        assert_eq!(text.parse::<Period>().unwrap().to_string(), text);
    }
    assert_eq!(Period::from_secs(90).to_string(), "1m30s");
}
