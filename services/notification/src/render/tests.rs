use std::collections::BTreeMap;

use serde_json::{Value, json};

use berth_domain::notification::NotificationTemplate;

use super::render;

/// Renders and compares: title, body, one line after another.
#[track_caller]
fn check(template: NotificationTemplate, labels: &[(&str, &str)], data: &Value, expected: &str) {
    let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
    let rendered = render(template, &labels, data).expect("renders");
    let text = format!("{}\n{}\n", rendered.title, rendered.body);
    assert_eq!(text, expected, "{template}");
}

const POOL: [(&str, &str); 4] =
    [("organization", "acme"), ("template", "go"), ("version", "v3"), ("preset", "large")];

fn pool(more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    POOL.iter().chain(more).copied().collect()
}

#[test]
fn the_failure_limit_says_where_how_often_and_what_to_do() {
    check(
        NotificationTemplate::PrebuildFailureLimit,
        &pool(&[
            ("failures", "3"),
            ("last_error", "quota of region exceeded"),
            ("url", "https://berth.example/builds/7"),
        ]),
        &Value::Null,
        include_str!("golden/prebuild_failure_limit.txt"),
    );
}

#[test]
fn the_recovery_says_where() {
    check(
        NotificationTemplate::PrebuildsRecovered,
        &pool(&[]),
        &Value::Null,
        include_str!("golden/prebuilds_recovered.txt"),
    );
}

#[test]
fn a_replacement_names_each_resource_and_its_attributes() {
    let paths =
        json!({ "docker_container.dev": ["env", "name"], "aws_instance.vm": ["user_data"] });
    // As the broker sends it, and bare.
    for data in [json!({ "replacements": paths }), paths] {
        check(
            NotificationTemplate::ResourceReplaced,
            &pool(&[("workspace", "dev"), ("claimant", "ada")]),
            &data,
            include_str!("golden/resource_replaced.txt"),
        );
    }
}

#[test]
fn an_invalid_preset_says_what_was_refused() {
    check(
        NotificationTemplate::PresetInvalid,
        &pool(&[("last_error", "parameter \"cpu\" is 64: at most 16")]),
        &Value::Null,
        include_str!("golden/preset_invalid.txt"),
    );
}

#[test]
fn an_empty_pool_says_for_how_long() {
    check(
        NotificationTemplate::PoolEmpty,
        &pool(&[("minutes", "10"), ("missed", "4")]),
        &Value::Null,
        include_str!("golden/pool_empty.txt"),
    );
}

#[test]
fn a_promotion_that_was_called_off_says_why() {
    check(
        NotificationTemplate::PromotionCalledOff,
        &pool(&[("reason", "the time was up when 1 of 3 prebuilds were ready")]),
        &Value::Null,
        include_str!("golden/promotion_called_off.txt"),
    );
}

#[test]
fn the_test_says_who_sent_it() {
    check(
        NotificationTemplate::Test,
        &[("initiator", "root")],
        &Value::Null,
        include_str!("golden/test.txt"),
    );
}

#[test]
fn every_template_renders_without_labels_and_data() {
    for &template in NotificationTemplate::ALL {
        for data in [json!({}), Value::Null] {
            let rendered = render(template, &BTreeMap::<String, String>::new(), &data)
                .unwrap_or_else(|error| panic!("{template}: {error}"));
            assert!(!rendered.title.is_empty() && !rendered.body.is_empty(), "{template}");
        }
    }
}

#[test]
fn a_label_neither_breaks_the_title_nor_is_read_as_a_template() {
    let labels = BTreeMap::from([("workspace", "a\r\nBcc: b"), ("template", "{{ 1 + 1 }}")]);
    let rendered = render(NotificationTemplate::WorkspaceCreated, &labels, &Value::Null).unwrap();
    assert_eq!(rendered.title, "Workspace a Bcc: b was created");
    assert!(rendered.body.contains("{{ 1 + 1 }}"), "{}", rendered.body);
}
