//! What a template may say of a parameter beyond the domain's rules, and the value it has in a
//! build. Pure.

use std::collections::BTreeSet;

use berth_domain::parameter::{FormType, Parameter, ParameterKind, check_definitions, check_value};

use crate::check::quoted;

/// A parameter with its value.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// The value; empty when there is neither input nor default, as in an import.
    pub(crate) value: String,
    /// How a page asks for it.
    pub(crate) form_type: FormType,
}

/// Why a definition or a value is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// The argument of the template it is about; none when that is the input, or several.
    pub(crate) argument: Option<&'static str>,
    /// One line: what is wrong.
    pub(crate) summary: String,
    /// The value, the bound, and what to do.
    pub(crate) detail: String,
}

/// The parameter's value: the input, else the default. `previous` is its value in the build
/// before, for numbers that may only go one way.
pub(crate) fn resolve(
    parameter: &Parameter,
    input: Option<&str>,
    previous: Option<&str>,
) -> Result<Resolved, Refused> {
    let parameter = &checked(parameter)?;
    let form_type = parameter.form_type;
    let Some(value) = input.or_else(|| parameter.default()) else {
        // Nothing to judge yet: an import asks for no values, and the server refuses a build that
        // lacks one.
        return Ok(Resolved { value: String::new(), form_type });
    };
    check_value(parameter, value, previous).map_err(|why| Refused {
        argument: None,
        summary: format!("Invalid value for parameter {:?}", parameter.name),
        // The template may have put its own words there, which need not say what was given.
        detail: format!("The value {value:?} cannot be used: {why}."),
    })?;
    Ok(Resolved { value: value.to_owned(), form_type })
}

/// Checks what does not depend on any input. Gives the parameter with the form type it has.
pub(crate) fn checked(parameter: &Parameter) -> Result<Parameter, Refused> {
    let refused = |argument, detail| Refused {
        argument,
        summary: format!("Invalid definition of parameter {:?}", parameter.name),
        detail,
    };
    if parameter.ephemeral && !parameter.mutable {
        let detail = "An ephemeral parameter changes from build to build, so \"mutable\" has to be \
                      true.";
        return Err(refused(Some("ephemeral"), detail.to_owned()));
    }
    let form_type = form_type(parameter).map_err(|why| refused(Some("form_type"), why))?;
    check_option_names(parameter).map_err(|why| refused(Some("option"), why))?;
    check_rules(parameter).map_err(|why| refused(Some("validation"), why))?;
    let parameter = Parameter { form_type, ..parameter.clone() };
    match check_definitions(std::slice::from_ref(&parameter)).first() {
        None => Ok(parameter),
        Some(error) => Err(refused(None, format!("{}.", error.detail))),
    }
}

/// How a page can ask for such a parameter; the first way when the template names none.
fn form_type(parameter: &Parameter) -> Result<FormType, String> {
    use FormType::{
        Checkbox, Dropdown, Input, MultiSelect, Radio, Slider, Switch, TagSelect, Textarea,
    };
    let has_options = !parameter.options.is_empty();
    let allowed: &[FormType] = match (parameter.kind, has_options) {
        (ParameterKind::String | ParameterKind::Number, true) => &[Radio, Dropdown],
        (ParameterKind::String, false) => &[Input, Textarea],
        (ParameterKind::Number, false) => &[Input, Slider],
        (ParameterKind::Bool, true) => &[Radio],
        (ParameterKind::Bool, false) => &[Checkbox, Switch],
        (ParameterKind::ListString, true) => &[Radio, MultiSelect],
        (ParameterKind::ListString, false) => &[TagSelect],
    };
    match parameter.form_type {
        FormType::Auto => Ok(allowed[0]),
        named if allowed.contains(&named) => Ok(named),
        named => {
            let (named, kind) = (named.as_str(), parameter.kind.as_str());
            let which = if has_options { "with" } else { "without" };
            let allowed: Vec<_> = allowed.iter().map(|it| it.as_str()).collect();
            let allowed = quoted(&allowed);
            Err(format!("{named:?} is no way to ask for a {kind} {which} options; use {allowed}."))
        }
    }
}

fn check_option_names(parameter: &Parameter) -> Result<(), String> {
    let mut names = BTreeSet::new();
    match parameter.options.iter().find(|option| !names.insert(option.name.as_str())) {
        Some(option) => {
            Err(format!("Two options have the name {:?}; names must be unique.", option.name))
        }
        None => Ok(()),
    }
}

/// Rules are for values of one type, and whoever gives a value that does not match a pattern
/// learns from the template what would.
fn check_rules(parameter: &Parameter) -> Result<(), String> {
    let rules = &parameter.validation;
    let kind = parameter.kind.as_str();
    let numeric = [
        ("min", rules.min.is_some()),
        ("max", rules.max.is_some()),
        ("monotonic", rules.monotonic.is_some()),
    ];
    if let Some((name, _)) = numeric.iter().find(|(_, is_set)| *is_set)
        && parameter.kind != ParameterKind::Number
    {
        return Err(format!("{name:?} is for numbers; the type is {kind}."));
    }
    if rules.regex.is_some() && parameter.kind != ParameterKind::String {
        return Err(format!("\"regex\" is for strings; the type is {kind}."));
    }
    if rules.regex.is_some() && rules.error.is_empty() {
        return Err("\"regex\" needs \"error\": what to tell who gives another value.".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
