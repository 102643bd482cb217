//! What a template's presets must satisfy at import. A violation fails the import with an error that
//! names the preset and the value.

use std::collections::{BTreeMap, BTreeSet};

use super::{DESCRIPTION_MAX, ICON_MAX, Prebuilds, PresetSpec, TTL_MAX_SECONDS, TTL_MIN_SECONDS};
use crate::parameter::{Parameter, check_value};
use crate::schedule::{CronError, Schedule, ScheduleError, timezone};

/// What is wrong with a preset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// It has no name.
    #[error("has no name; give it one")]
    NoName,
    /// Another preset has its name.
    #[error("is defined more than once; names must be unique, whatever their case")]
    DuplicateName,
    /// Another preset has its values.
    #[error("has the same parameters as preset {other:?}; a request could not tell them apart")]
    SameParameters {
        /// Name of the other preset.
        other: String,
    },
    /// There is another default.
    #[error("is a default preset, but so is {other:?}; at most one may be")]
    SecondDefault {
        /// Name of the other preset.
        other: String,
    },
    /// The description is too long.
    #[error("has a description of {len} characters; at most {DESCRIPTION_MAX} are allowed")]
    LongDescription {
        /// Characters it has.
        len: usize,
    },
    /// The icon is too long.
    #[error("has an icon of {len} characters; at most {ICON_MAX} are allowed")]
    LongIcon {
        /// Characters it has.
        len: usize,
    },
    /// Fewer than no instances.
    #[error("asks for {instances} prebuilt instances; use 0 or more")]
    NegativeInstances {
        /// What it asks for.
        instances: i32,
    },
    /// A schedule asks for fewer than no instances.
    #[error("asks for {instances} instances in schedule {cron:?}; use 0 or more")]
    NegativeScheduledInstances {
        /// The schedule.
        cron: String,
        /// What it asks for.
        instances: i32,
    },
    /// The time to live is out of bounds.
    #[error(
        "has an expiration ttl of {ttl} s; use 0 (never) or {TTL_MIN_SECONDS} to {TTL_MAX_SECONDS}"
    )]
    Ttl {
        /// Seconds it has.
        ttl: i64,
    },
    /// The timezone is not known.
    #[error("has the unknown timezone {timezone:?}; use an IANA name such as \"Europe/Berlin\"")]
    Timezone {
        /// What it has.
        timezone: String,
    },
    /// A cron is not `* HOUR DOM MONTH DOW`.
    #[error("has the schedule {cron:?}: {reason}")]
    Cron {
        /// What it has.
        cron: String,
        /// Why it does not do.
        reason: CronError,
    },
    /// Two schedules hold at the same time.
    #[error("has schedules that overlap: {first:?} and {second:?}")]
    Overlap {
        /// The first.
        first: String,
        /// The second.
        second: String,
    },
    /// A value is not one of its parameter.
    #[error("sets parameter {parameter:?} to {value:?}: {detail}")]
    Value {
        /// Name of the parameter.
        parameter: String,
        /// What the preset sets it to.
        value: String,
        /// Why that does not do.
        detail: String,
    },
}

/// A violation, with the preset's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("preset {preset:?} {violation}")]
pub struct PresetError {
    /// Name of the preset.
    pub preset: String,
    /// What is wrong with it.
    pub violation: Violation,
}

/// An oddity that does no harm: goes to the import log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("preset {preset:?} sets parameter {parameter:?}, which the template does not define")]
pub struct PresetWarning {
    /// Name of the preset.
    pub preset: String,
    /// Name of the unknown parameter.
    pub parameter: String,
}

/// What the checks found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checked {
    /// Violations: the import fails.
    pub errors: Vec<PresetError>,
    /// Oddities: the import goes on.
    pub warnings: Vec<PresetWarning>,
}

/// Checks all presets of one version (10-prebuilds, "Preset configuration").
#[must_use]
pub fn check(presets: &[PresetSpec], parameters: &[Parameter]) -> Checked {
    let mut checked = Checked::default();
    let mut names = BTreeSet::new();
    let mut values: BTreeMap<&BTreeMap<String, String>, &str> = BTreeMap::new();
    let mut default: Option<&str> = None;
    for preset in presets {
        let mut violations = Vec::new();
        if preset.name.is_empty() {
            violations.push(Violation::NoName);
        }
        if !names.insert(preset.name.to_lowercase()) {
            violations.push(Violation::DuplicateName);
        }
        match values.get(&preset.parameters) {
            Some(other) => {
                violations.push(Violation::SameParameters { other: (*other).to_owned() });
            }
            None => _ = values.insert(&preset.parameters, &preset.name),
        }
        if preset.is_default {
            match default {
                Some(other) => {
                    violations.push(Violation::SecondDefault { other: other.to_owned() });
                }
                None => default = Some(&preset.name),
            }
        }
        violations.extend(check_texts(preset));
        if let Some(prebuilds) = &preset.prebuilds {
            violations.extend(check_prebuilds(prebuilds));
        }
        check_values(preset, parameters, &mut violations, &mut checked.warnings);
        checked.errors.extend(
            violations
                .into_iter()
                .map(|violation| PresetError { preset: preset.name.clone(), violation }),
        );
    }
    checked
}

fn check_texts(preset: &PresetSpec) -> Vec<Violation> {
    let mut violations = Vec::new();
    let len = preset.description.chars().count();
    if len > DESCRIPTION_MAX {
        violations.push(Violation::LongDescription { len });
    }
    let len = preset.icon.chars().count();
    if len > ICON_MAX {
        violations.push(Violation::LongIcon { len });
    }
    violations
}

fn check_values(
    preset: &PresetSpec,
    parameters: &[Parameter],
    violations: &mut Vec<Violation>,
    warnings: &mut Vec<PresetWarning>,
) {
    for (name, value) in &preset.parameters {
        let Some(parameter) = parameters.iter().find(|it| it.name == *name) else {
            warnings.push(PresetWarning { preset: preset.name.clone(), parameter: name.clone() });
            continue;
        };
        if let Err(detail) = check_value(parameter, value, None) {
            violations.push(Violation::Value {
                parameter: name.clone(),
                value: value.clone(),
                detail,
            });
        }
    }
}

fn check_prebuilds(prebuilds: &Prebuilds) -> Vec<Violation> {
    let mut violations = Vec::new();
    if prebuilds.instances < 0 {
        violations.push(Violation::NegativeInstances { instances: prebuilds.instances });
    }
    let ttl = prebuilds.ttl_seconds;
    if ttl != 0 && !(TTL_MIN_SECONDS..=TTL_MAX_SECONDS).contains(&ttl) {
        violations.push(Violation::Ttl { ttl });
    }
    let zone = prebuilds.timezone.as_str();
    let has_zone = !zone.is_empty() || !prebuilds.schedules.is_empty();
    if has_zone && timezone(zone).is_err() {
        violations.push(Violation::Timezone { timezone: zone.to_owned() });
    }
    let mut read: Vec<(&str, Schedule)> = Vec::new();
    for schedule in &prebuilds.schedules {
        let cron = schedule.cron.as_str();
        if schedule.instances < 0 {
            violations.push(Violation::NegativeScheduledInstances {
                cron: cron.to_owned(),
                instances: schedule.instances,
            });
        }
        // In UTC: the timezone had its turn, and does not matter for the cron.
        match Schedule::new(cron, "UTC", 0) {
            Ok(parsed) => read.push((cron, parsed)),
            Err(ScheduleError::Cron { reason, .. }) => {
                violations.push(Violation::Cron { cron: cron.to_owned(), reason });
            }
            Err(ScheduleError::Timezone { .. }) => {}
        }
    }
    for (at, (first, one)) in read.iter().enumerate() {
        for (second, other) in &read[at + 1..] {
            if one.cron.overlaps(&other.cron) {
                violations.push(Violation::Overlap {
                    first: (*first).to_owned(),
                    second: (*second).to_owned(),
                });
            }
        }
    }
    violations
}
