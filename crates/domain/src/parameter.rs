//! Parameters of a template version: their definitions, and how a build's values come about
//! (20-claims "Creating a workspace", 30-provisioning "Builds").

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

mod check;
#[cfg(test)]
mod tests;

pub use check::{check_definitions, check_value};

closed_set! {
    /// Type of a parameter's value. Values travel as text.
    ParameterKind {
        /// Any text.
        String = "string",
        /// A decimal number.
        Number = "number",
        /// `true` or `false`.
        Bool = "bool",
        /// A JSON array of texts.
        ListString = "list(string)",
    }
}

closed_set! {
    /// How a form asks for a parameter.
    FormType {
        /// Whatever suits the type.
        Auto = "",
        /// One of the options, all visible.
        Radio = "radio",
        /// One of the options, from a menu.
        Dropdown = "dropdown",
        /// One line of text.
        Input = "input",
        /// Several lines of text.
        Textarea = "textarea",
        /// A number between two bounds.
        Slider = "slider",
        /// On or off.
        Checkbox = "checkbox",
        /// On or off.
        Switch = "switch",
        /// Any list of texts.
        TagSelect = "tag-select",
        /// Several of the options.
        MultiSelect = "multi-select",
        /// The form cannot ask for it.
        Error = "error",
    }
}

closed_set! {
    /// Which way a number may go from build to build; staying is always allowed.
    Monotonic {
        /// Never smaller than before.
        Increasing = "increasing",
        /// Never larger than before.
        Decreasing = "decreasing",
    }
}

/// One of the values that a parameter with options may have.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ParameterOption {
    /// What people see.
    pub name: String,
    /// What it means.
    #[serde(default)]
    pub description: String,
    /// The value it stands for.
    pub value: String,
    /// Path or URL of an icon.
    #[serde(default)]
    pub icon: String,
}

/// What a value must satisfy beyond its type.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Validation {
    /// A pattern that the text must contain a match of. Texts only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
    /// Least value. Numbers only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<i64>,
    /// Largest value. Numbers only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<i64>,
    /// Which way the value may go. Numbers only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monotonic: Option<Monotonic>,
    /// The author's message for a refused value; `{min}`, `{max}` and `{value}` are filled in. Empty:
    /// ours.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// Definition of a parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameter {
    /// Its name, unique in the version.
    pub name: String,
    /// What people see; empty: the name.
    #[serde(default)]
    pub display_name: String,
    /// What it is for.
    #[serde(default)]
    pub description: String,
    /// Type of its value.
    #[serde(rename = "type")]
    pub kind: ParameterKind,
    /// Whether a later build may change it.
    #[serde(default)]
    pub mutable: bool,
    /// Its value where none is given; nothing where `required`.
    #[serde(default)]
    pub default_value: String,
    /// Path or URL of an icon.
    #[serde(default)]
    pub icon: String,
    /// The only values it may have; empty: any.
    #[serde(default)]
    pub options: Vec<ParameterOption>,
    /// What a value must satisfy.
    #[serde(default)]
    pub validation: Validation,
    /// Has no default: a value must be given.
    #[serde(default)]
    pub required: bool,
    /// Holds for one build and is never carried to the next.
    #[serde(default)]
    pub ephemeral: bool,
    /// How a form asks for it.
    #[serde(default = "FormType::auto")]
    pub form_type: FormType,
    /// Place in the form, ascending.
    #[serde(default)]
    pub order: i32,
}

impl FormType {
    const fn auto() -> Self {
        Self::Auto
    }
}

impl Parameter {
    /// A required immutable parameter without options or validation; the start of a definition.
    #[must_use]
    pub fn new(name: impl Into<String>, kind: ParameterKind) -> Self {
        Self {
            name: name.into(),
            display_name: String::new(),
            description: String::new(),
            kind,
            mutable: false,
            default_value: String::new(),
            icon: String::new(),
            options: Vec::new(),
            validation: Validation::default(),
            required: true,
            ephemeral: false,
            form_type: FormType::Auto,
            order: 0,
        }
    }

    /// Its default, `None` where a value must be given.
    #[must_use]
    pub fn default(&self) -> Option<&str> {
        (!self.required).then_some(self.default_value.as_str())
    }

    /// Whether two texts are the same value of this type: `1` is `1.0`, blanks in a list do not
    /// count.
    #[must_use]
    pub fn same_value(&self, a: &str, b: &str) -> bool {
        if a == b {
            return true;
        }
        match self.kind {
            ParameterKind::String | ParameterKind::Bool => false,
            ParameterKind::Number => {
                let equal = Some(Ordering::Equal);
                check::number(a)
                    .zip(check::number(b))
                    .is_some_and(|(a, b)| a.partial_cmp(&b) == equal)
            }
            ParameterKind::ListString => {
                matches!((check::list(a), check::list(b)), (Some(a), Some(b)) if a == b)
            }
        }
    }
}

/// A parameter's value in a build.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Value {
    /// Name of the parameter.
    pub name: String,
    /// Its value, as text.
    pub value: String,
}

impl Value {
    /// A value of the parameter `name`.
    #[must_use]
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self { name: name.into(), value: value.into() }
    }
}

/// A refused field of a request: which one, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{field}: {detail}")]
pub struct FieldError {
    /// The field; for parameters the parameter's name.
    pub field: String,
    /// What is wrong with it.
    pub detail: String,
}

impl FieldError {
    /// A complaint about `field`.
    #[must_use]
    pub fn new(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { field: field.into(), detail: detail.into() }
    }
}

/// Which build the values are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// The first build of a workspace, a prebuild's included.
    First,
    /// A later start or stop.
    Later,
    /// The build that hands a prebuild over. For the new owner it is the first: immutable
    /// parameters that the preset left open may get a value.
    Claim,
    /// A delete: values are carried over as they are, so that a template that changed can never
    /// keep a workspace from going away.
    Delete,
}

/// Everything that decides the values of one build.
#[derive(Debug, Clone, Copy)]
pub struct Resolution<'a> {
    /// Definitions of the version that the build uses.
    pub parameters: &'a [Parameter],
    /// What the request names.
    pub requested: &'a [Value],
    /// The values of the previous build; empty for the first.
    pub previous: &'a [Value],
    /// What the preset names; it wins over the request.
    pub preset: &'a [Value],
    /// Which build it is.
    pub occasion: Occasion,
}

/// Resolves and checks the values of a build, one for each parameter in the order of the
/// definitions. Previous values give way to requested ones, those to the preset's; what none of
/// them names gets its default. Ephemeral parameters ignore the previous build. Values that the
/// preset sets were checked at import; all that is asked of them here is what holds between builds:
/// immutable ones stay, monotonic ones go their way. Errors name every refused parameter.
pub fn validate(resolution: &Resolution<'_>) -> Result<Vec<Value>, Vec<FieldError>> {
    let mut errors = unknown_or_doubled(resolution);
    let requested = by_name(resolution.requested);
    let previous = by_name(resolution.previous);
    let preset = by_name(resolution.preset);

    let mut values = Vec::with_capacity(resolution.parameters.len());
    for parameter in resolution.parameters {
        let name = parameter.name.as_str();
        let sources = Sources {
            requested: requested.get(name).copied(),
            previous: previous.get(name).copied().filter(|_| !parameter.ephemeral),
            preset: preset.get(name).copied(),
        };
        match resolve(parameter, sources, resolution.occasion) {
            Ok(Some(value)) => values.push(Value::new(name, value)),
            Ok(None) => {}
            Err(detail) => errors.push(FieldError::new(name, detail)),
        }
    }
    if errors.is_empty() { Ok(values) } else { Err(errors) }
}

/// Where the value of one parameter may come from.
#[derive(Clone, Copy)]
struct Sources<'a> {
    requested: Option<&'a str>,
    previous: Option<&'a str>,
    preset: Option<&'a str>,
}

fn resolve<'a>(
    parameter: &'a Parameter,
    sources: Sources<'a>,
    occasion: Occasion,
) -> Result<Option<&'a str>, String> {
    if occasion == Occasion::Delete {
        let carried = sources.requested.or(sources.previous).or(parameter.default());
        return Ok(sources.preset.or(carried));
    }
    if let Some(value) = sources.preset {
        if occasion == Occasion::Later {
            check_fixed(parameter, value, sources.previous)?;
            check::direction(&parameter.validation, value, sources.previous)?;
        }
        return Ok(Some(value));
    }
    let Some(value) = sources.requested.or(sources.previous).or(parameter.default()) else {
        return Err("a value is required: this parameter has no default".to_owned());
    };
    if occasion == Occasion::Later {
        check_fixed(parameter, value, sources.previous)?;
    }
    check_value(parameter, value, sources.previous)?;
    Ok(Some(value))
}

/// Checks that an immutable parameter keeps its value; it may be given it again.
fn check_fixed(parameter: &Parameter, value: &str, previous: Option<&str>) -> Result<(), String> {
    let is_fixed = !parameter.mutable && !parameter.ephemeral;
    match previous.filter(|it| is_fixed && !parameter.same_value(it, value)) {
        None => Ok(()),
        Some(before) => Err(format!(
            "immutable: it is {before:?} since the workspace was created and cannot become \
             {value:?}; leave it out, or create another workspace"
        )),
    }
}

fn unknown_or_doubled(resolution: &Resolution<'_>) -> Vec<FieldError> {
    let known: BTreeSet<&str> = resolution.parameters.iter().map(|it| it.name.as_str()).collect();
    let mut seen = BTreeSet::new();
    let mut errors = Vec::new();
    for value in resolution.requested {
        let name = value.name.as_str();
        if !known.contains(name) {
            let list = known.iter().copied().collect::<Vec<_>>().join(", ");
            let list = if list.is_empty() { "none".to_owned() } else { list };
            errors.push(FieldError::new(
                name,
                format!("the template version has no such parameter; it has: {list}"),
            ));
        } else if !seen.insert(name) {
            errors.push(FieldError::new(name, "given more than once; give one value"));
        }
    }
    errors
}

fn by_name(values: &[Value]) -> BTreeMap<&str, &str> {
    values.iter().map(|it| (it.name.as_str(), it.value.as_str())).collect()
}

/// Completes a request with the defaults of the parameters it does not name. Parameters without
/// default stay open; names that no parameter has are left out.
#[must_use]
pub fn complete<'a>(
    parameters: &'a [Parameter],
    requested: &'a [Value],
) -> BTreeMap<&'a str, &'a str> {
    let requested = by_name(requested);
    parameters
        .iter()
        .filter_map(|it| {
            let name = it.name.as_str();
            Some((name, requested.get(name).copied().or(it.default())?))
        })
        .collect()
}
