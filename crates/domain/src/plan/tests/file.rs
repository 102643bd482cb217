//! What is written: reasons, snapshot files, settings.

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
        Reason::Capacity,
        Reason::InFlightCap { in_flight: 3, max: 3 },
        Reason::Quota { exceeded: QuotaExceeded { budget: 1, consumed: 1, cost: 1 } },
        Reason::Backoff { failures: 2, until: now() },
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
