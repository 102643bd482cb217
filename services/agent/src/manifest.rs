//! What the server tells an agent about its workspace. Lists and maps may be absent or null.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

/// Answer of `GET manifest`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Manifest {
    pub(crate) agent_id: Uuid,
    #[serde(deserialize_with = "or_default")]
    pub(crate) agent_name: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) workspace_name: String,
    pub(crate) owner_id: Uuid,
    #[serde(deserialize_with = "or_default")]
    pub(crate) owner_name: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) directory: String,
    /// Shown when a terminal is opened.
    #[serde(deserialize_with = "or_default")]
    pub(crate) motd_file: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) environment_variables: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) scripts: Vec<Script>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) apps: Vec<App>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) metadata: Vec<Metadata>,
}

/// One script of the template.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Script {
    pub(crate) log_source_id: Uuid,
    #[serde(deserialize_with = "or_default")]
    pub(crate) display_name: String,
    #[serde(rename = "script", deserialize_with = "or_default")]
    pub(crate) text: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) log_path: String,
    /// Five or six fields, or empty.
    #[serde(deserialize_with = "or_default")]
    pub(crate) cron: String,
    pub(crate) run_on_start: bool,
    /// The agent is not ready before it has ended.
    pub(crate) start_blocks_login: bool,
    pub(crate) run_on_stop: bool,
    /// Seconds; 0 is no limit.
    #[serde(deserialize_with = "at_least_zero")]
    pub(crate) timeout: u64,
}

/// One application whose health may be asked.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct App {
    pub(crate) id: Uuid,
    #[serde(deserialize_with = "or_default")]
    pub(crate) slug: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) healthcheck: Healthcheck,
}

/// How an application is asked for its health. Without a URL or an interval it is not.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Healthcheck {
    #[serde(deserialize_with = "or_default")]
    pub(crate) url: String,
    /// Seconds between two questions, and the longest wait for an answer.
    #[serde(deserialize_with = "at_least_zero")]
    pub(crate) interval: u64,
    /// Failures in a row that make it unhealthy.
    #[serde(deserialize_with = "at_least_zero")]
    pub(crate) threshold: u64,
}

/// What is known of an application's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AppHealth {
    /// Not asked often enough yet.
    Initializing,
    /// The last answer was good.
    Healthy,
    /// `threshold` failures in a row.
    Unhealthy,
}

/// A value that a script gathers again and again.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Metadata {
    #[serde(deserialize_with = "or_default")]
    pub(crate) key: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) script: String,
    /// Seconds between two runs; 0 runs it once.
    #[serde(deserialize_with = "at_least_zero")]
    pub(crate) interval: u64,
    /// Seconds a run may take; 0 takes the interval.
    #[serde(deserialize_with = "at_least_zero")]
    pub(crate) timeout: u64,
}

fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A template's `-1` must not keep an agent from starting.
fn at_least_zero<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let number = Option::<i64>::deserialize(deserializer)?.unwrap_or(0);
    Ok(u64::try_from(number).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_and_null_lists_are_empty_and_unknown_fields_are_ignored() {
        let manifest: Manifest = serde_json::from_str(
            r#"{"scripts": null, "environment_variables": null, "new_field": 1,
                "apps": [{"id": "00000000-0000-0000-0000-000000000001", "healthcheck": null}]}"#,
        )
        .unwrap();
        assert!(manifest.scripts.is_empty() && manifest.metadata.is_empty());
        assert_eq!(manifest.apps[0].healthcheck.interval, 0);
    }

    #[test]
    fn a_negative_timeout_is_no_timeout() {
        let manifest: Manifest = serde_json::from_str(r#"{"scripts":[{"timeout":-1}]}"#).unwrap();
        assert_eq!(manifest.scripts[0].timeout, 0);
    }
}
