//! What an operator chose for a pool: bounds, and how a preset's choice lies over its template's.

use serde::{Deserialize, Serialize};

/// Longest `min_remaining_ttl_seconds`: a year, the longest time to live.
const REMAINING_TTL_SECONDS_MAX: i64 = 31_536_000;

closed_set! {
    /// How expired and invalidated prebuilds are replaced.
    Replace {
        /// All in one pass. The default.
        AtOnce = "at_once",
        /// At most `max_unavailable` at a time.
        Gradual = "gradual",
    }
}

/// What an operator chose for one pool. Read from `{}` it is the default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolPolicy {
    /// How expired and invalidated prebuilds are replaced.
    pub replace: Replace,
    /// Percent of the desired count replaced at a time where that is gradual, 1 to 100; at least one
    /// is.
    pub max_unavailable_percent: u32,
    /// Prebuilds of the previous version stay claimable after a plain promotion until as many new
    /// ones are ready.
    pub allow_previous_version: bool,
    /// Percent of the desired count that a new version's pool may have beside the old one's, 1 to
    /// 100; at least one. (With 100 the whole new pool is built beside a full old one: more would
    /// say nothing.)
    pub max_surge_percent: u32,
    /// Seconds that a prebuild must have left to live to be handed out, 0 to a year.
    pub min_remaining_ttl_seconds: i64,
}

impl Default for PoolPolicy {
    fn default() -> Self {
        Self {
            replace: Replace::AtOnce,
            max_unavailable_percent: 25,
            allow_previous_version: false,
            max_surge_percent: 100,
            min_remaining_ttl_seconds: 0,
        }
    }
}

/// A value that is out of its bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}; give a number from {least} to {most}")]
pub struct PolicyError {
    /// The field, as it is written in JSON.
    pub field: &'static str,
    /// Its value.
    pub value: i64,
    /// The least it may be.
    pub least: i64,
    /// The most it may be.
    pub most: i64,
}

impl PoolPolicy {
    /// Checks the bounds of every field; the error names the first that is out of its own.
    pub fn check(&self) -> Result<(), PolicyError> {
        within("max_unavailable_percent", self.max_unavailable_percent.into(), 1, 100)?;
        within("max_surge_percent", self.max_surge_percent.into(), 1, 100)?;
        let seconds = self.min_remaining_ttl_seconds;
        within("min_remaining_ttl_seconds", seconds, 0, REMAINING_TTL_SECONDS_MAX)?;
        Ok(())
    }
}

/// What a template or a preset says of its pools' policy: fields that are left out are as they are
/// below it. Numbers are as wide as JSON's integers, so that one out of bounds is told as such.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyOverride {
    /// See [`PoolPolicy::replace`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replace: Option<Replace>,
    /// See [`PoolPolicy::max_unavailable_percent`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_unavailable_percent: Option<i64>,
    /// See [`PoolPolicy::allow_previous_version`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_previous_version: Option<bool>,
    /// See [`PoolPolicy::max_surge_percent`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_surge_percent: Option<i64>,
    /// See [`PoolPolicy::min_remaining_ttl_seconds`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_remaining_ttl_seconds: Option<i64>,
}

impl PolicyOverride {
    /// Lays it over `base`: a template's over the default, a preset's over its template's.
    pub fn over(&self, base: &PoolPolicy) -> Result<PoolPolicy, PolicyError> {
        let percent = |field, given: Option<i64>, base| {
            given.map_or(Ok(base), |it| {
                let value = within(field, it, 1, 100)?;
                Ok(u32::try_from(value).unwrap_or(base))
            })
        };
        let policy = PoolPolicy {
            replace: self.replace.unwrap_or(base.replace),
            max_unavailable_percent: percent(
                "max_unavailable_percent",
                self.max_unavailable_percent,
                base.max_unavailable_percent,
            )?,
            allow_previous_version: self
                .allow_previous_version
                .unwrap_or(base.allow_previous_version),
            max_surge_percent: percent(
                "max_surge_percent",
                self.max_surge_percent,
                base.max_surge_percent,
            )?,
            min_remaining_ttl_seconds: self
                .min_remaining_ttl_seconds
                .unwrap_or(base.min_remaining_ttl_seconds),
        };
        policy.check()?;
        Ok(policy)
    }
}

const fn within(
    field: &'static str,
    value: i64,
    least: i64,
    most: i64,
) -> Result<i64, PolicyError> {
    if value < least || value > most {
        return Err(PolicyError { field, value, least, most });
    }
    Ok(value)
}
