//! `template.toml`: what an exec template asks for and which programs it has.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, ensure};
use berth_proto::v1;
use serde::Deserialize;

use crate::report::Findings;

/// The contract's version.
const VERSION: u32 = 1;

/// A template's manifest.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    version: u32,
    /// Relative to the template.
    pub(crate) plan: PathBuf,
    /// Relative to the template.
    pub(crate) apply: PathBuf,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    #[serde(default)]
    variables: Vec<Variable>,
    #[serde(default)]
    parameters: Vec<Parameter>,
    #[serde(default)]
    presets: Vec<Preset>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Variable {
    name: String,
    #[serde(default)]
    description: String,
    #[serde(rename = "type", default = "string")]
    kind: String,
    /// None: it has to be given.
    default: Option<String>,
    #[serde(default)]
    sensitive: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameter {
    name: String,
    #[serde(default)]
    display_name: String,
    #[serde(default)]
    description: String,
    #[serde(rename = "type", default = "string")]
    kind: String,
    #[serde(default)]
    form_type: String,
    #[serde(default)]
    mutable: bool,
    /// None: it has to be given.
    default: Option<String>,
    #[serde(default)]
    ephemeral: bool,
    #[serde(default)]
    icon: String,
    #[serde(default)]
    options: Vec<ParameterOption>,
    #[serde(default)]
    validation: Validation,
    #[serde(default)]
    order: i32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ParameterOption {
    name: String,
    value: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    icon: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Validation {
    regex: String,
    error: String,
    min: Option<i64>,
    max: Option<i64>,
    monotonic: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Preset {
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    icon: String,
    #[serde(default)]
    default: bool,
    #[serde(default)]
    parameters: BTreeMap<String, String>,
    prebuilds: Option<Prebuilds>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Prebuilds {
    instances: i32,
    #[serde(default)]
    ttl_seconds: i64,
    #[serde(default)]
    timezone: String,
    #[serde(default)]
    schedules: Vec<Schedule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Schedule {
    cron: String,
    instances: i32,
}

fn string() -> String {
    "string".to_owned()
}

impl Manifest {
    /// Reads a manifest; the error says what is wrong where.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let manifest: Self = toml::from_str(text)?;
        ensure!(
            manifest.version == VERSION,
            "`version` is {}; this daemon knows version {VERSION}",
            manifest.version
        );
        for (name, path) in [("plan", &manifest.plan), ("apply", &manifest.apply)] {
            check_program(path).with_context(|| format!("`{name}`"))?;
        }
        Ok(manifest)
    }

    /// What variables are when nobody sets them.
    pub(crate) fn variable_defaults(&self) -> impl Iterator<Item = (String, String)> {
        self.variables.iter().filter_map(|it| Some((it.name.clone(), it.default.clone()?)))
    }

    /// What parameters are when nobody sets them.
    pub(crate) fn parameter_defaults(&self) -> impl Iterator<Item = (String, String)> {
        self.parameters.iter().filter_map(|it| Some((it.name.clone(), it.default.clone()?)))
    }

    pub(crate) fn parameters(&self) -> Vec<v1::Parameter> {
        self.parameters.iter().map(Parameter::to_wire).collect()
    }

    pub(crate) fn presets(&self) -> Vec<v1::Preset> {
        self.presets.iter().map(Preset::to_wire).collect()
    }

    pub(crate) fn findings(&self) -> Findings {
        let variable = |it: &Variable| v1::TemplateVariable {
            name: it.name.clone(),
            description: it.description.clone(),
            r#type: it.kind.clone(),
            default_value: it.default.clone().filter(|_| !it.sensitive).unwrap_or_default(),
            required: it.default.is_none(),
            sensitive: it.sensitive,
        };
        Findings {
            readme: None,
            variables: self.variables.iter().map(variable).collect(),
            tags: self.tags.clone().into_iter().collect(),
            ..Findings::default()
        }
    }
}

/// A program is part of the template: relative, and without a way out.
fn check_program(path: &Path) -> anyhow::Result<()> {
    let inside =
        path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    ensure!(
        inside && path.file_name().is_some(),
        "{:?} is not a path inside the template, such as \"apply.sh\"",
        path.display().to_string()
    );
    Ok(())
}

impl Parameter {
    fn to_wire(&self) -> v1::Parameter {
        let option = |it: &ParameterOption| v1::ParameterOption {
            name: it.name.clone(),
            value: it.value.clone(),
            description: it.description.clone(),
            icon: it.icon.clone(),
        };
        v1::Parameter {
            name: self.name.clone(),
            display_name: self.display_name.clone(),
            description: self.description.clone(),
            r#type: self.kind.clone(),
            form_type: self.form_type.clone(),
            mutable: self.mutable,
            default_value: self.default.clone().unwrap_or_default(),
            required: self.default.is_none(),
            ephemeral: self.ephemeral,
            icon: self.icon.clone(),
            options: self.options.iter().map(option).collect(),
            validation_regex: self.validation.regex.clone(),
            validation_error: self.validation.error.clone(),
            validation_min: self.validation.min,
            validation_max: self.validation.max,
            validation_monotonic: self.validation.monotonic.clone(),
            order: self.order,
        }
    }
}

impl Preset {
    fn to_wire(&self) -> v1::Preset {
        let value = |(name, value): (&String, &String)| v1::ParameterValue {
            name: name.clone(),
            value: value.clone(),
        };
        let schedule =
            |it: &Schedule| v1::Schedule { cron: it.cron.clone(), instances: it.instances };
        v1::Preset {
            name: self.name.clone(),
            description: self.description.clone(),
            icon: self.icon.clone(),
            is_default: self.default,
            parameters: self.parameters.iter().map(value).collect(),
            prebuilds: self.prebuilds.as_ref().map(|it| v1::Prebuilds {
                instances: it.instances,
                ttl_seconds: it.ttl_seconds,
                timezone: it.timezone.clone(),
                schedules: it.schedules.iter().map(schedule).collect(),
            }),
        }
    }
}
