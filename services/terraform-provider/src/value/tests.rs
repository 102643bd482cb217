use serde_json::json;

use super::*;

#[track_caller]
fn survives_the_wire(value: &Value) {
    assert!(Value::from_wire(Some(&value.to_wire())) == Ok(value.clone()), "{value:?}");
}

#[test]
fn every_kind_of_value_survives_the_wire() {
    for value in [
        Value::Null,
        Value::Unknown,
        Value::Bool(true),
        Value::Int(0),
        Value::Int(-7),
        Value::Int(31_536_000),
        Value::Int(i64::MAX),
        Value::Float(0.5),
        Value::from("grüezi"),
        Value::List(vec![Value::Unknown, Value::from("a")]),
        Value::from(json!({"name": "x", "list": [1, null, true], "map": {}})),
    ] {
        survives_the_wire(&value);
    }
}

#[test]
fn unknown_is_extension_zero_with_one_byte() {
    assert_eq!(Value::Unknown.to_wire().msgpack, [0xd4, 0x00, 0x00]);
}

#[test]
fn a_refined_unknown_is_read_as_unknown() {
    // fixext 2, type 12: {1: false}, "is not null".
    let refined = [0xc7, 0x03, 0x0c, 0x81, 0x01, 0xc2];
    assert!(Value::from_msgpack(&refined) == Ok(Value::Unknown));
}

#[test]
fn numbers_are_encoded_as_the_smallest_integer() {
    assert_eq!(Value::Int(120).to_wire().msgpack, [0x78]);
    assert_eq!(Value::Int(3600).to_wire().msgpack, [0xcd, 0x0e, 0x10]);
}

#[test]
fn a_number_too_large_for_an_integer_is_kept_as_text() {
    let huge = [0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    assert!(Value::from_msgpack(&huge) == Ok(Value::from("18446744073709551615")));
}

#[test]
fn what_is_not_a_value_is_refused() {
    for bytes in [&[][..], &[0x81], &[0x01, 0x02], &[0xc4, 0x01, 0x00], &[0xd4, 0x05, 0x00]] {
        assert!(Value::from_msgpack(bytes).is_err(), "{bytes:x?}");
    }
    assert!(Value::from_json(b"{").is_err());
}

#[test]
fn nothing_at_all_is_null() {
    assert!(Value::from_wire(None) == Ok(Value::Null));
    assert!(Value::from_wire(Some(&DynamicValue::default())) == Ok(Value::Null));
}

#[test]
fn debug_never_shows_text() {
    let value = Value::from(json!({"token": "hunter2"}));
    assert_eq!(format!("{value:?}"), r#"{"token": <text of 7 bytes>}"#);
}

#[test]
fn one_unknown_inside_makes_the_whole_not_wholly_known() {
    let value = Value::List(vec![Value::from(json!({"a": 1})), Value::Unknown]);
    assert!(!value.is_wholly_known());
    assert!(Value::from(json!({"a": [null]})).is_wholly_known());
}
