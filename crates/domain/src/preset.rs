//! Presets: checks at import (10-prebuilds "Preset configuration") and which one a request matches
//! (20-claims "Which preset").

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::PresetId;
use crate::parameter::{Parameter, Value, complete};

mod check;
#[cfg(test)]
mod tests;

pub use check::{Checked, PresetError, PresetWarning, Violation, check};

/// Most characters of a preset's description.
pub const DESCRIPTION_MAX: usize = 128;
/// Most characters of a preset's icon.
pub const ICON_MAX: usize = 256;
/// Shortest time to live of a prebuild that has one, in seconds.
pub const TTL_MIN_SECONDS: i64 = 3_600;
/// Longest time to live of a prebuild, in seconds.
pub const TTL_MAX_SECONDS: i64 = 31_536_000;

/// One line of a preset's schedule: another number of instances at certain hours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PresetSchedule {
    /// `* HOUR DOM MONTH DOW`.
    pub cron: String,
    /// Instances while it holds; not negative.
    pub instances: i32,
}

/// The prebuild configuration of a preset. A preset without one is no pool.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prebuilds {
    /// Instances where no schedule holds; not negative.
    pub instances: i32,
    /// Seconds after which an unclaimed prebuild expires; 0: never.
    #[serde(default)]
    pub ttl_seconds: i64,
    /// Timezone of the schedules, an IANA name; empty where there are none.
    #[serde(default)]
    pub timezone: String,
    /// The schedules, in order of precedence.
    #[serde(default)]
    pub schedules: Vec<PresetSchedule>,
}

/// A preset as a template defines it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PresetSpec {
    /// Its name, unique in the version.
    pub name: String,
    /// What it is for, at most 128 characters.
    #[serde(default)]
    pub description: String,
    /// Path or URL of an icon, at most 256 characters.
    #[serde(default)]
    pub icon: String,
    /// Chosen where nothing else is.
    #[serde(default, rename = "default")]
    pub is_default: bool,
    /// Values by parameter name.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// The pool, if there is to be one.
    #[serde(default)]
    pub prebuilds: Option<Prebuilds>,
}

impl PresetSpec {
    /// Its values in the form that builds use, by name.
    #[must_use]
    pub fn values(&self) -> Vec<Value> {
        self.parameters.iter().map(|(name, value)| Value::new(name, value)).collect()
    }
}

/// A preset of a stored template version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preset {
    /// Its id; also the key of its pool.
    pub id: PresetId,
    /// What the template says.
    #[serde(flatten)]
    pub spec: PresetSpec,
}

/// A parameter whose value is one in the preset and another in the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Name of the parameter.
    pub name: String,
    /// The preset's value; its default, where the preset leaves it open.
    pub preset: Option<String>,
    /// The completed request's value; `None` where it has none.
    pub requested: Option<String>,
}

/// The preset that came closest to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nearest {
    /// Its id.
    pub id: PresetId,
    /// Its name.
    pub name: String,
    /// What would have to change in the request, by parameter name.
    pub differing: Vec<Difference>,
}

/// Which preset a request without one means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match<'a> {
    /// This one.
    Preset(&'a Preset),
    /// None; the nearest one explains the miss. `None` where the version has no presets.
    Miss(Option<Nearest>),
}

impl<'a> Match<'a> {
    /// The matching preset, if any.
    #[must_use]
    pub const fn preset(&self) -> Option<&'a Preset> {
        match self {
            Self::Preset(preset) => Some(preset),
            Self::Miss(_) => None,
        }
    }
}

/// Finds the preset that a request means. The request is completed with the parameters' defaults;
/// of the presets all of whose values are in it, the one with most parameters wins, then the
/// default preset, then the first by name. A preset without parameters matches only a request in
/// which every parameter is at its default. Values for parameters that the template does not define
/// were warned of at import and count for nothing. The same inputs give the same preset, whatever
/// the order of `presets`.
#[must_use]
pub fn matching<'a>(
    presets: &'a [Preset],
    requested: &[Value],
    parameters: &[Parameter],
) -> Match<'a> {
    let request = complete(parameters, requested);
    let compared: Vec<(&Preset, usize, Vec<Difference>)> = presets
        .iter()
        .map(|preset| {
            let defined = parameters
                .iter()
                .filter(|it| preset.spec.parameters.contains_key(&it.name))
                .count();
            (preset, defined, differences(preset, &request, parameters, defined == 0))
        })
        .collect();

    let rank = |preset: &Preset, defined: usize| {
        (Reverse(defined), !preset.spec.is_default, preset.spec.name.clone(), preset.id)
    };
    let best = compared
        .into_iter()
        .min_by_key(|(preset, defined, differing)| (differing.len(), rank(preset, *defined)));
    match best {
        Some((preset, _, differing)) if differing.is_empty() => Match::Preset(preset),
        Some((preset, _, differing)) => {
            Match::Miss(Some(Nearest { id: preset.id, name: preset.spec.name.clone(), differing }))
        }
        None => Match::Miss(None),
    }
}

/// What keeps a preset from matching; `at_defaults`: the preset names nothing that is defined, and
/// stands for the defaults.
fn differences(
    preset: &Preset,
    request: &BTreeMap<&str, &str>,
    parameters: &[Parameter],
    at_defaults: bool,
) -> Vec<Difference> {
    let mut differing: Vec<Difference> = parameters
        .iter()
        .filter_map(|parameter| {
            let name = parameter.name.as_str();
            let wanted = match preset.spec.parameters.get(name) {
                Some(value) => Some(value.as_str()),
                None if at_defaults => parameter.default(),
                None => return None,
            };
            let got = request.get(name).copied();
            let is_same = match (wanted, got) {
                (Some(wanted), Some(got)) => parameter.same_value(wanted, got),
                // A parameter without default is never at its default.
                (None, _) | (_, None) => false,
            };
            (!is_same).then(|| Difference {
                name: name.to_owned(),
                preset: wanted.map(str::to_owned),
                requested: got.map(str::to_owned),
            })
        })
        .collect();
    differing.sort_by(|a, b| a.name.cmp(&b.name));
    differing
}
