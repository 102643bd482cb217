//! What is written: reasons, snapshot files, settings.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;

#[test]
fn every_reason_is_a_sentence_and_survives_json() {
    let reasons = [
        Reason::Inactive,
        Reason::NotAPool,
        Reason::InvalidSchedule { detail: "unknown timezone".to_owned() },
        Reason::BelowDesired { desired: 2, running: 1, starting: 0 },
        Reason::AboveDesired { desired: 1, running: 2 },
        Reason::Expired { count: 1 },
        Reason::Gradual { waiting: 2, at_a_time: 1 },
        Reason::PreviousKept { count: 1, desired: 2, eligible: 1 },
        Reason::Surge { limit: 2 },
        Reason::Paused { pause: pause(PauseScope::Deployment, Some(now())) },
        Reason::Paused { pause: pause(PauseScope::Preset, None) },
        Reason::BreakerOpened { consecutive: 3 },
        Reason::BreakerOpen { next_probe_at: Some(now()) },
        Reason::BreakerOpen { next_probe_at: None },
        Reason::Probe { before: 1 },
        Reason::BreakerClosed,
        Reason::ValidationFailed,
        Reason::Capacity { need: Need::default() },
        Reason::InFlightCap { in_flight: 3, max: 3 },
        Reason::Quota { exceeded: QuotaExceeded { budget: 1, consumed: 1, cost: 1 } },
        Reason::Backoff { failures: 2, until: now() },
        Reason::Setback { setbacks: 2, until: now() },
        Reason::PassLimit { max: 500 },
        Reason::FailedKept { count: 1 },
        Reason::LeftAlone { count: 1 },
        Reason::FailedDeletes { count: 1, next_at: Some(now()) },
        Reason::FailedDeletes { count: 1, next_at: None },
    ];
    for reason in reasons {
        assert!(reason.to_string().len() > 10, "{reason:?}: {reason}");
        let json = serde_json::to_string(&reason).unwrap();
        assert_eq!(serde_json::from_str::<Reason>(&json).unwrap(), reason, "{json}");
        assert!(json.contains(&format!("{{\"reason\":\"{}\"", reason.name())), "{json}");
    }
}

#[test]
fn a_snapshot_file_gives_the_same_plan() {
    let it = pool(2).ttl_minutes(60).failed(&[1]).of("ready@90");
    let file = SnapshotFile {
        version: SNAPSHOT_VERSION,
        now: now(),
        preset: it.config.clone(),
        policy: it.policy.clone(),
        state: it.snapshot.clone(),
    };
    let json = serde_json::to_string_pretty(&file).unwrap();
    let read: SnapshotFile = serde_json::from_str(&json).unwrap();
    assert_eq!(read, file);
    assert_eq!(plan_snapshot(&read), it.plan());
    let plan = serde_json::to_string(&it.plan()).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&plan).unwrap(), it.plan());
}

#[test]
fn settings_have_the_documented_defaults_and_read_short_durations() {
    let it: PrebuildSettings =
        serde_json::from_str(r#"{"reconciliation_interval":"30s","failed_retention":"2h"}"#)
            .unwrap();
    assert_eq!(it.reconciliation_interval, SignedDuration::from_secs(30));
    assert_eq!(it.failed_retention, SignedDuration::from_hours(2));
    let defaults = PrebuildSettings::default();
    assert_eq!(it.failure_hard_limit, defaults.failure_hard_limit);
    assert_eq!(
        (defaults.failure_hard_limit, defaults.failed_keep, defaults.max_in_flight),
        (3, 3, 0)
    );
    let json = serde_json::to_string(&defaults).unwrap();
    assert_eq!(serde_json::from_str::<PrebuildSettings>(&json).unwrap(), defaults);
}
fn documented(name: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    std::fs::read_to_string(folder.join(name)).unwrap()
}

#[test]
fn the_documented_example_gives_the_documented_plan() {
    let page = documented("pool-snapshot.md");
    let mut blocks =
        page.split("```json\n").skip(1).map(|it| it.split_once("```").expect("it ends").0);
    let file = SnapshotFile::parse(blocks.next().unwrap()).unwrap();
    let plan: Plan = serde_json::from_str(blocks.next().unwrap()).unwrap();
    assert_eq!(plan_snapshot(&file), plan);
    assert_eq!(blocks.next(), None);
}

#[test]
fn files_of_another_version_are_refused_by_it() {
    let rows = [
        (r#"{"version": 2, "whatever": true}"#, "version 2; this program reads version 1"),
        (r#"{"version": "1"}"#, "version \"1\""),
        ("{}", "version null"),
        ("[1]", "version null"),
    ];
    for (text, told) in rows {
        let error = SnapshotFile::parse(text).unwrap_err();
        assert!(matches!(error, SnapshotError::Version { .. }), "{text}");
        assert!(error.to_string().contains(told), "{error}");
    }
}

#[test]
fn what_cannot_be_read_says_where_and_why() {
    let page = documented("pool-snapshot.md");
    let (_, rest) = page.split_once("```json\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let rows = [
        ("\"has_daemon\"", "\"has_deamon\"", "unknown field `has_deamon`"),
        ("\"starting\"", "\"begun\"", "unknown variant `begun`"),
        ("\"ttl_seconds\"", "\"ttl\"", "unknown field `ttl`"),
        ("\"consumed\"", "\"used\"", "unknown field `used`"),
        ("\"12h\"", "\"soon\"", "line "),
        ("2026-11-20T12:00:00Z", "noon", "line "),
        ("_percent\": 50", "_percent\": 0", "max_unavailable_percent is 0; give a number from 1"),
        ("\n}", "", "EOF"),
    ];
    for (good, bad, told) in rows {
        assert!(example.contains(good), "{good}");
        let error = SnapshotFile::parse(&example.replacen(good, bad, 1)).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains(told), "{bad}: {source}");
    }
    // Only what a plan cannot do without has to be there.
    let least = r#"{"version": 1, "now": "2026-11-20T12:00:00Z", "state": {"has_daemon": true},
        "preset": {"preset_id": "00000000-0000-0000-0000-000000000001", "standing": "active",
                   "status": "healthy", "prebuilds": {"instances": 2}}}"#;
    let read = SnapshotFile::parse(least).unwrap();
    assert_eq!(said(&plan_snapshot(&read).actions), "create 2");
}

/// Compares the members that `schema` names with those of `value`, which has all of them.
fn compare(schema: &Value, value: &Value, place: &str) {
    match value {
        // A map, whose names are people's.
        Value::Object(_) if schema["additionalProperties"].is_object() => {}
        Value::Object(members) => {
            let named: BTreeSet<&String> =
                schema["properties"].as_object().expect(place).keys().collect();
            assert_eq!(named, members.keys().collect(), "{place}");
            assert_eq!(schema["additionalProperties"], false, "{place}");
            for required in schema["required"].as_array().into_iter().flatten() {
                assert!(named.iter().any(|it| *required == ***it), "{place}: {required}");
            }
            for (name, value) in members {
                compare(&schema["properties"][name], value, &format!("{place}.{name}"));
            }
        }
        Value::Array(items) => compare(&schema["items"], &items[0], &format!("{place}[0]")),
        _ => assert!(schema["type"] != "object" && schema["type"] != "array", "{place}"),
    }
}

#[test]
fn the_published_schema_says_what_is_read() {
    let mut it = pool(1)
        .schedule("UTC", &[("* 9 * * *", 2)])
        .of("ready@1")
        .broken(1, 9)
        .failed(&[1])
        .paused(PauseScope::Template, Some(now()))
        .quota(1, 2, 3)
        .successor(1, 1);
    it.snapshot.deadline = Some(now());
    let (preset, policy, state) = (it.config, it.policy, it.snapshot);
    let file = SnapshotFile { version: SNAPSHOT_VERSION, now: now(), preset, policy, state };
    let schema: Value =
        serde_json::from_str(&documented("schemas/pool-snapshot.schema.json")).unwrap();
    compare(&schema, &serde_json::to_value(&file).unwrap(), "file");

    let spelt = |place: &str| schema.pointer(place).unwrap_or_else(|| panic!("{place}")).clone();
    let preset = "/properties/preset/properties";
    let state = "/properties/state/properties";
    let pool = "/properties/policy/properties/pool/properties";
    assert_eq!(spelt("/properties/version/const"), SNAPSHOT_VERSION);
    assert_eq!(spelt(&format!("{preset}/standing/enum")), json!(Standing::ALL));
    assert_eq!(spelt(&format!("{preset}/status/enum")), json!(PrebuildStatus::ALL));
    let prebuild = format!("{state}/prebuilds/items/properties");
    assert_eq!(spelt(&format!("{prebuild}/state/enum")), json!(PoolState::ALL));
    let pause = format!("{state}/pauses/items/properties");
    assert_eq!(spelt(&format!("{pause}/scope/enum")), json!(PauseScope::ALL));
    assert_eq!(spelt(&format!("{pool}/replace/enum")), json!(Replace::ALL));
}
