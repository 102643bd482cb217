use berth_domain::parameter::{Monotonic, ParameterOption, Validation};

use super::*;

fn size(kind: ParameterKind) -> Parameter {
    Parameter::new("size", kind)
}

fn or(default: &str, parameter: Parameter) -> Parameter {
    Parameter { default_value: default.to_owned(), required: false, ..parameter }
}

fn of(options: &[&str], parameter: Parameter) -> Parameter {
    let option = |value: &&str| ParameterOption {
        name: value.to_uppercase(),
        value: (*value).to_owned(),
        ..ParameterOption::default()
    };
    Parameter { options: options.iter().map(option).collect(), ..parameter }
}

fn by(form_type: FormType, parameter: Parameter) -> Parameter {
    Parameter { form_type, ..parameter }
}

fn validated(validation: Validation, parameter: Parameter) -> Parameter {
    Parameter { validation, ..parameter }
}

fn between(min: i64, max: i64) -> Validation {
    Validation { min: Some(min), max: Some(max), ..Validation::default() }
}

fn matching(regex: &str, error: &str) -> Validation {
    Validation { regex: Some(regex.to_owned()), error: error.to_owned(), ..Validation::default() }
}

fn going(monotonic: Monotonic) -> Validation {
    Validation { monotonic: Some(monotonic), ..Validation::default() }
}

#[track_caller]
fn accepted(parameter: &Parameter, input: Option<&str>, value: &str) {
    let resolved = resolve(parameter, input, None).map(|resolved| resolved.value);
    assert_eq!(resolved, Ok(value.to_owned()));
}

#[track_caller]
fn refused(parameter: &Parameter, input: Option<&str>, reason: &str) -> Refused {
    let refused = resolve(parameter, input, None).expect_err("a refusal");
    assert!(refused.summary.contains("\"size\""), "the parameter is not named: {refused:?}");
    assert!(refused.detail.contains(reason), "{reason} is not the reason: {refused:?}");
    if let Some(input) = input {
        assert!(refused.detail.contains(&format!("{input:?}")), "no value: {refused:?}");
    }
    refused
}

#[test]
fn input_comes_before_the_default() {
    let text = or("a", size(ParameterKind::String));
    accepted(&text, Some("b"), "b");
    accepted(&text, Some(""), "");
    accepted(&text, None, "a");
}

#[test]
fn without_input_and_default_there_is_nothing_to_judge() {
    accepted(&validated(between(1, 3), size(ParameterKind::Number)), None, "");
    accepted(&of(&["a"], size(ParameterKind::String)), None, "");
}

#[test]
fn a_value_that_does_not_fit_is_refused_with_parameter_and_value() {
    let number = || size(ParameterKind::Number);
    refused(&number(), Some("big"), "not a decimal number");
    refused(&validated(between(1, 10), number()), Some("11"), "more than 10");
    refused(&of(&["eu", "us"], size(ParameterKind::String)), Some("mars"), r#"choose "eu", "us""#);
    refused(&size(ParameterKind::Bool), Some("yes"), "true or false");
    let tools = of(&["vim", "emacs"], size(ParameterKind::ListString));
    let tools = by(FormType::MultiSelect, tools);
    accepted(&tools, Some(r#"["vim"]"#), r#"["vim"]"#);
    refused(&tools, Some(r#"["vim","ed"]"#), r#""ed" is not one"#);
}

/// The template's own words need not say which value they are about.
#[test]
fn the_templates_own_words_come_with_the_value() {
    let greeting = validated(matching("^hello", "Say hello."), size(ParameterKind::String));
    accepted(&greeting, Some("hello you"), "hello you");
    refused(&greeting, Some("bye"), "Say hello.");
}

#[test]
fn a_monotonic_number_only_moves_one_way() {
    let grows = validated(going(Monotonic::Increasing), size(ParameterKind::Number));
    for (value, previous, fine) in [("3", "3", true), ("10", "9", true), ("2", "3", false)] {
        let resolved = resolve(&grows, Some(value), Some(previous));
        assert_eq!(resolved.is_ok(), fine, "{value} after {previous}");
    }
}

#[test]
fn a_default_that_does_not_fit_is_a_mistake_of_the_template() {
    let refused = refused(&or("a", size(ParameterKind::Number)), None, "default: \"a\"");
    assert!(refused.summary.contains("definition"));
}

#[test]
fn rules_that_make_no_sense_are_refused() {
    let text = || size(ParameterKind::String);
    let number = || size(ParameterKind::Number);
    refused(&validated(between(1, 2), text()), None, "\"min\" is for numbers");
    refused(&validated(going(Monotonic::Decreasing), text()), None, "\"monotonic\" is for numbers");
    refused(&validated(matching(".", "e"), number()), None, "\"regex\" is for strings");
    refused(&validated(matching(".", ""), text()), None, "needs \"error\"");
    refused(&validated(matching("(", "e"), text()), None, "not usable");
    refused(&validated(between(3, 2), number()), None, "above the largest");
}

#[test]
fn options_have_names_and_values_of_their_own() {
    let mut same_name = of(&["a", "b"], size(ParameterKind::String));
    same_name.options[1].name = "A".to_owned();
    assert_eq!(refused(&same_name, None, "name \"A\"").argument, Some("option"));
    let mut same_value = of(&["a", "b"], size(ParameterKind::String));
    same_value.options[1].value = "a".to_owned();
    refused(&same_value, None, "value \"a\"");
    refused(&of(&["1", "a"], size(ParameterKind::Number)), None, "option \"A\"");
}

#[test]
fn an_ephemeral_parameter_is_mutable_and_has_a_default() {
    let mut ephemeral = Parameter { ephemeral: true, ..or("a", size(ParameterKind::String)) };
    assert_eq!(refused(&ephemeral, None, "mutable").argument, Some("ephemeral"));
    ephemeral.mutable = true;
    accepted(&ephemeral, None, "a");
    ephemeral.required = true;
    refused(&ephemeral, None, "default");
}

#[test]
fn the_form_follows_from_type_and_options() {
    let form = |parameter: Parameter| resolve(&parameter, None, None).map(|it| it.form_type);
    for (kind, option, free) in [
        (ParameterKind::String, "a", FormType::Input),
        (ParameterKind::Number, "1", FormType::Input),
        (ParameterKind::Bool, "true", FormType::Checkbox),
        (ParameterKind::ListString, "[]", FormType::TagSelect),
    ] {
        assert_eq!(form(size(kind)), Ok(free));
        assert_eq!(form(of(&[option], size(kind))), Ok(FormType::Radio));
    }
    for (kind, named) in [
        (ParameterKind::Number, FormType::Slider),
        (ParameterKind::String, FormType::Textarea),
        (ParameterKind::Bool, FormType::Switch),
    ] {
        assert_eq!(form(by(named, size(kind))), Ok(named));
    }
    let text = || size(ParameterKind::String);
    assert_eq!(form(by(FormType::Dropdown, of(&["a"], text()))), Ok(FormType::Dropdown));
    refused(&by(FormType::Slider, text()), None, "\"slider\"");
    refused(&by(FormType::Dropdown, text()), None, "without options");
}
