use serde_json::json;

use super::*;
use crate::schema::Type;

const ITEM: (&[Attribute], &[Nested]) = (
    &[
        Attribute::required("key", Type::Text, ""),
        Attribute::optional("on", Type::Bool, "").or_bool(true),
        Attribute::computed("made", Type::Bool, ""),
    ],
    &[],
);

const BLOCK: Block = Block {
    attributes: &[
        Attribute::computed("id", Type::Text, ""),
        Attribute::required("name", Type::Text, ""),
        Attribute::optional("share", Type::Text, "").or_text("owner"),
        Attribute::optional("icon", Type::Text, ""),
    ],
    blocks: &[
        Nested::list("item", "", ITEM),
        Nested::set("tag", "", (&[Attribute::required("key", Type::Text, "")], &[])),
        Nested::set(
            "shown",
            "",
            (&[Attribute::optional("web", Type::Bool, "").or_bool(true)], &[]),
        )
        .assumed(),
    ],
};

fn object(json: serde_json::Value) -> Object {
    match Value::from(json) {
        Value::Object(object) => object,
        other => panic!("not an object: {other:?}"),
    }
}

fn state() -> Object {
    object(json!({
        "id": "1", "name": "n", "share": "owner", "icon": null,
        "item": [{"key": "k", "on": true, "made": true}],
        "tag": [{"key": "a"}, {"key": "b"}],
        "shown": [{"web": true}],
    }))
}

#[test]
fn a_new_resource_has_its_defaults_and_unknown_computed_values() {
    let config = object(json!({"name": "n", "item": [{"key": "k"}]}));
    let planned = planned(&BLOCK, &config, None);
    assert_eq!(planned["id"], Value::Unknown);
    assert_eq!(planned["share"], Value::from("owner"));
    assert_eq!(planned["icon"], Value::Null);
    let mut item = object(json!({"key": "k", "on": true}));
    item.insert("made".into(), Value::Unknown);
    assert_eq!(planned["item"], Value::List(vec![Value::Object(item)]));
    assert_eq!(planned["tag"], Value::List(vec![]));
    assert_eq!(planned["shown"], Value::from(json!([{"web": true}])));
}

#[test]
fn an_unchanged_configuration_plans_what_is_there() {
    let config = object(json!({
        "name": "n", "item": [{"key": "k"}], "tag": [{"key": "b"}, {"key": "a"}],
    }));
    let planned = planned(&BLOCK, &config, Some(&state()));
    assert_eq!(planned["id"], Value::from("1"));
    assert_eq!(planned["item"], state()["item"]);
    assert_eq!(replaced_by(&BLOCK, &state(), &planned), []);
}

#[test]
fn each_changed_argument_replaces_the_resource() {
    for (change, name) in [
        (json!({"name": "m"}), "name"),
        (json!({"share": "public"}), "share"),
        (json!({"item": [{"key": "k", "on": false}]}), "item"),
        (json!({"item": []}), "item"),
        (json!({"tag": [{"key": "a"}, {"key": "c"}]}), "tag"),
        (json!({"shown": [{"web": false}]}), "shown"),
    ] {
        let mut config = object(json!({
            "name": "n", "item": [{"key": "k"}], "tag": [{"key": "a"}, {"key": "b"}],
        }));
        config.extend(object(change));
        let planned = planned(&BLOCK, &config, Some(&state()));
        let replaced = replaced_by(&BLOCK, &state(), &planned);
        assert_eq!(replaced, [Path::of(name)]);
    }
}

#[test]
fn a_value_that_becomes_unknown_replaces_the_resource() {
    let mut config = object(json!({"item": [{"key": "k"}], "tag": [{"key": "a"}, {"key": "b"}]}));
    config.insert("name".into(), Value::Unknown);
    let planned = planned(&BLOCK, &config, Some(&state()));
    assert_eq!(replaced_by(&BLOCK, &state(), &planned), [Path::of("name")]);
}

#[test]
fn an_empty_string_left_by_the_public_provider_is_no_change() {
    let mut prior = state();
    prior.insert("icon".into(), Value::from(""));
    let config = object(json!({
        "name": "n", "item": [{"key": "k"}], "tag": [{"key": "a"}, {"key": "b"}],
    }));
    let planned = planned(&BLOCK, &config, Some(&prior));
    assert_eq!(planned, prior);
}

#[test]
fn blocks_of_an_unknown_number_stay_unknown() {
    let config = Object::from([("name".into(), Value::from("n")), ("item".into(), Value::Unknown)]);
    assert_eq!(planned(&BLOCK, &config, None)["item"], Value::Unknown);
}

#[test]
fn an_older_state_is_filled_up_and_cleared_of_what_is_gone() {
    let old = object(json!({"id": "1", "name": "n", "gone": 1, "item": [{"key": "k", "old": 2}]}));
    let upgraded = upgraded(&BLOCK, &old);
    assert_eq!(
        upgraded,
        object(json!({
            "id": "1", "name": "n", "share": "owner", "icon": null,
            "item": [{"key": "k", "on": true, "made": null}], "tag": [], "shown": [{"web": true}],
        }))
    );
}
