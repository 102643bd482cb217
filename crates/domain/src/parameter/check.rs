//! Whether a text is a value of a parameter, and whether a definition makes sense.

use std::collections::BTreeSet;

use regex::RegexBuilder;

use super::{FieldError, FormType, Monotonic, Parameter, ParameterKind, Validation};

/// Bytes that a compiled pattern may take: a template's author chooses it, our memory pays for it.
const REGEX_SIZE_LIMIT: usize = 1 << 20;

/// Reads a number: decimal, finite.
pub(super) fn number(text: &str) -> Option<f64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    // `parse` also takes "inf", "nan" and "+1".
    if !digits.starts_with(|it: char| it.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|it: &f64| it.is_finite())
}

/// Reads a list: a JSON array of texts.
pub(super) fn list(text: &str) -> Option<Vec<String>> {
    serde_json::from_str(text).ok()
}

/// Checks one value: type, options, pattern, bounds, and its direction from the `previous` value.
/// The error says what is wrong, without the parameter's name.
pub fn check_value(
    parameter: &Parameter,
    value: &str,
    previous: Option<&str>,
) -> Result<(), String> {
    check_type(parameter, value)?;
    check_options(parameter, value)?;
    let validation = &parameter.validation;
    match parameter.kind {
        ParameterKind::String => check_regex(validation, value),
        ParameterKind::Number => {
            check_bounds(validation, value)?;
            direction(validation, value, previous)
        }
        ParameterKind::Bool | ParameterKind::ListString => Ok(()),
    }
}

fn check_type(parameter: &Parameter, value: &str) -> Result<(), String> {
    let (fits, wanted) = match parameter.kind {
        ParameterKind::String => (true, ""),
        ParameterKind::Number => (number(value).is_some(), "a decimal number"),
        ParameterKind::Bool => (matches!(value, "true" | "false"), "true or false"),
        ParameterKind::ListString => (list(value).is_some(), "a JSON array of texts"),
    };
    if fits { Ok(()) } else { Err(format!("{value:?} is not {wanted}")) }
}

fn check_options(parameter: &Parameter, value: &str) -> Result<(), String> {
    if parameter.options.is_empty() {
        return Ok(());
    }
    let is_option =
        |value: &str| parameter.options.iter().any(|it| parameter.same_value(&it.value, value));
    let stray = if parameter.form_type == FormType::MultiSelect {
        // Each item is an option's value, which is a plain text then.
        let items = list(value).unwrap_or_default();
        items.into_iter().find(|item| !parameter.options.iter().any(|it| it.value == *item))
    } else {
        (!is_option(value)).then(|| value.to_owned())
    };
    let Some(stray) = stray else { return Ok(()) };
    let options: Vec<String> =
        parameter.options.iter().map(|it| format!("{:?}", it.value)).collect();
    Err(format!("{stray:?} is not one of the options; choose {}", options.join(", ")))
}

fn check_regex(validation: &Validation, value: &str) -> Result<(), String> {
    let Some(pattern) = &validation.regex else { return Ok(()) };
    let regex = RegexBuilder::new(pattern)
        .size_limit(REGEX_SIZE_LIMIT)
        .build()
        .map_err(|_| format!("the template's validation pattern {pattern:?} is not usable"))?;
    if regex.is_match(value) {
        return Ok(());
    }
    Err(message(validation, value, || format!("{value:?} does not match {pattern:?}")))
}

#[expect(
    clippy::cast_precision_loss,
    reason = "bounds beyond 2^53 are compared as closely as the value itself is read"
)]
fn check_bounds(validation: &Validation, value: &str) -> Result<(), String> {
    let Some(read) = number(value) else { return Ok(()) };
    if let Some(min) = validation.min.filter(|min| read < *min as f64) {
        return Err(message(validation, value, || format!("{value} is less than {min}")));
    }
    if let Some(max) = validation.max.filter(|max| read > *max as f64) {
        return Err(message(validation, value, || format!("{value} is more than {max}")));
    }
    Ok(())
}

/// Checks which way a number goes from the build before.
pub(super) fn direction(
    validation: &Validation,
    value: &str,
    previous: Option<&str>,
) -> Result<(), String> {
    let Some(direction) = validation.monotonic else { return Ok(()) };
    // A previous value that is no number belongs to an older version with another type.
    let (Some(new), Some(old)) = (number(value), previous.and_then(number)) else { return Ok(()) };
    let (fits, words) = match direction {
        Monotonic::Increasing => (new >= old, "equal or greater"),
        Monotonic::Decreasing => (new <= old, "equal or less"),
    };
    if fits {
        return Ok(());
    }
    let before = previous.unwrap_or_default();
    Err(message(validation, value, || format!("{value} must be {words} than the last: {before}")))
}

fn message(validation: &Validation, value: &str, ours: impl FnOnce() -> String) -> String {
    if validation.error.is_empty() {
        return ours();
    }
    let bound = |it: Option<i64>| it.map(|it| it.to_string()).unwrap_or_default();
    validation
        .error
        .replace("{min}", &bound(validation.min))
        .replace("{max}", &bound(validation.max))
        .replace("{value}", value)
}

/// Checks the definitions themselves: names given and unique, patterns usable, bounds in order,
/// options and defaults of the right type and unique.
#[must_use]
pub fn check_definitions(parameters: &[Parameter]) -> Vec<FieldError> {
    let mut names = BTreeSet::new();
    let mut errors = Vec::new();
    for parameter in parameters {
        let name = parameter.name.as_str();
        if name.is_empty() {
            errors.push(FieldError::new("parameter", "a parameter has no name; give it one"));
        } else if !names.insert(name.to_lowercase()) {
            let detail = "defined more than once; names must be unique, whatever their case";
            errors.push(FieldError::new(name, detail));
        }
        if let Err(detail) = check_definition(parameter) {
            errors.push(FieldError::new(name, detail));
        }
    }
    errors
}

fn check_definition(parameter: &Parameter) -> Result<(), String> {
    let validation = &parameter.validation;
    if let Some(pattern) = &validation.regex {
        RegexBuilder::new(pattern).size_limit(REGEX_SIZE_LIMIT).build().map_err(|error| {
            format!("the validation pattern {pattern:?} is not usable: {error}")
        })?;
    }
    if let (Some(min), Some(max)) = (validation.min, validation.max)
        && min > max
    {
        return Err(format!("the least value {min} is above the largest {max}"));
    }
    let is_multi = parameter.form_type == FormType::MultiSelect;
    let mut values = BTreeSet::new();
    for option in &parameter.options {
        if !is_multi {
            check_type(parameter, &option.value)
                .map_err(|detail| format!("option {:?}: {detail}", option.name))?;
        }
        if !values.insert(option.value.as_str()) {
            return Err(format!("the option value {:?} appears twice", option.value));
        }
    }
    if parameter.ephemeral && parameter.required {
        return Err("ephemeral and without default: give it a default".to_owned());
    }
    match parameter.default() {
        Some(value) => {
            check_value(parameter, value, None).map_err(|detail| format!("default: {detail}"))
        }
        None => Ok(()),
    }
}
