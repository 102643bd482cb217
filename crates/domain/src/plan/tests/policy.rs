//! Pool policies: defaults, bounds, and how a preset's lies over its template's.

use serde_json::{Value, json};

use super::*;

fn laid(over: Value, base: &PoolPolicy) -> Result<PoolPolicy, PolicyError> {
    serde_json::from_value::<PolicyOverride>(over).unwrap().over(base)
}

#[test]
fn an_empty_policy_is_the_default() {
    let read: PoolPolicy = serde_json::from_str("{}").unwrap();
    assert_eq!(read, PoolPolicy::default());
    assert_eq!(laid(json!({}), &read), Ok(PoolPolicy::default()));
    let written = serde_json::to_value(&read).unwrap();
    assert_eq!(
        written,
        json!({
            "replace": "at_once",
            "max_unavailable_percent": 25,
            "allow_previous_version": false,
            "max_surge_percent": 100,
            "min_remaining_ttl_seconds": 0,
        })
    );
}

#[test]
fn a_preset_says_only_what_differs_from_its_template() {
    let template = laid(
        json!({ "replace": "gradual", "max_surge_percent": 30, "min_remaining_ttl_seconds": 60 }),
        &PoolPolicy::default(),
    )
    .unwrap();
    let preset =
        laid(json!({ "max_surge_percent": 50, "allow_previous_version": true }), &template);
    assert_eq!(
        preset,
        Ok(PoolPolicy {
            replace: Replace::Gradual,
            max_unavailable_percent: 25,
            allow_previous_version: true,
            max_surge_percent: 50,
            min_remaining_ttl_seconds: 60,
        })
    );
    let all = json!({
        "replace": "at_once", "max_unavailable_percent": 1, "allow_previous_version": false,
        "max_surge_percent": 2, "min_remaining_ttl_seconds": 3,
    });
    let laid_over = laid(all.clone(), &preset.unwrap()).unwrap();
    assert_eq!(serde_json::to_value(&laid_over).unwrap(), all);
    // An override writes what it says, and no more.
    let one: PolicyOverride = serde_json::from_value(json!({ "replace": "gradual" })).unwrap();
    assert_eq!(serde_json::to_value(&one).unwrap(), json!({ "replace": "gradual" }));
}

#[test]
fn values_out_of_bounds_are_named_with_their_bound() {
    let bounds = [
        ("max_unavailable_percent", 1, 100),
        ("max_surge_percent", 1, 100),
        ("min_remaining_ttl_seconds", 0, 31_536_000),
    ];
    for (field, least, most) in bounds {
        for value in [least, most] {
            assert!(
                laid(json!({ field: value }), &PoolPolicy::default()).is_ok(),
                "{field} {value}"
            );
        }
        for value in [least - 1, most + 1, i64::MIN, i64::MAX] {
            let error = laid(json!({ field: value }), &PoolPolicy::default()).unwrap_err();
            assert_eq!(error, PolicyError { field, value, least, most });
            let told = error.to_string();
            assert_eq!(told, format!("{field} is {value}; give a number from {least} to {most}"));
        }
    }
    let unchecked = PoolPolicy { max_surge_percent: 0, ..PoolPolicy::default() };
    assert_eq!(unchecked.check().unwrap_err().field, "max_surge_percent");
    assert!(laid(json!({}), &unchecked).is_err());
}

#[test]
fn unknown_fields_and_values_are_refused() {
    for text in [r#"{"max_surge": 1}"#, r#"{"replace": "slowly"}"#, r#"{"max_surge_percent": "1"}"#]
    {
        assert!(serde_json::from_str::<PolicyOverride>(text).is_err(), "{text}");
        assert!(serde_json::from_str::<PoolPolicy>(text).is_err(), "{text}");
    }
}
