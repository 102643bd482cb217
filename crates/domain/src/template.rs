//! What the import of a template version yields, and the checks that fail it.

use serde::{Deserialize, Serialize};

use crate::parameter::Parameter;
use crate::preset::{self, PresetSpec};

#[cfg(test)]
mod tests;

/// A variable that a template asks for at import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateVariable {
    /// Its name.
    pub name: String,
    /// What it is for.
    #[serde(default)]
    pub description: String,
    /// Its type, as the tool spells it.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// What is used when no value is given.
    #[serde(default)]
    pub default_value: String,
    /// Without a value the import fails.
    #[serde(default)]
    pub required: bool,
    /// Its value is never shown.
    #[serde(default)]
    pub sensitive: bool,
}

/// The parts of a version that people choose from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Import {
    /// The parameters, in order.
    #[serde(default)]
    pub parameters: Vec<Parameter>,
    /// The presets.
    #[serde(default)]
    pub presets: Vec<PresetSpec>,
    /// The variables.
    #[serde(default)]
    pub variables: Vec<TemplateVariable>,
}

/// What the checks of an import say: any error fails it, warnings go to its log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings {
    /// Violations, each a sentence that names the thing and the value.
    pub errors: Vec<String>,
    /// Oddities that do no harm.
    pub warnings: Vec<String>,
}

/// Checks everything that an import read: parameter definitions first, then presets against them.
#[must_use]
pub fn check(import: &Import) -> Findings {
    let mut errors: Vec<String> = crate::parameter::check_definitions(&import.parameters)
        .into_iter()
        .map(|it| it.to_string())
        .collect();
    let presets = preset::check(&import.presets, &import.parameters);
    errors.extend(presets.errors.iter().map(ToString::to_string));
    let warnings = presets.warnings.iter().map(ToString::to_string).collect();
    Findings { errors, warnings }
}
