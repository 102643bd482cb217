use super::*;

fn text(name: &str) -> Parameter {
    Parameter { mutable: true, ..optional(name, ParameterKind::String, "d") }
}

fn optional(name: &str, kind: ParameterKind, default: &str) -> Parameter {
    Parameter { required: false, default_value: default.to_owned(), ..Parameter::new(name, kind) }
}

fn options(values: &[&str]) -> Vec<ParameterOption> {
    let option = |it: &&str| ParameterOption {
        name: it.to_uppercase(),
        value: (*it).to_owned(),
        ..ParameterOption::default()
    };
    values.iter().map(option).collect()
}

fn values(pairs: &[(&str, &str)]) -> Vec<Value> {
    pairs.iter().map(|(name, value)| Value::new(*name, *value)).collect()
}

/// Resolves the one parameter from what each source says about it.
fn resolve_one(
    parameter: &Parameter,
    [previous, requested, preset]: [Option<&str>; 3],
    occasion: Occasion,
) -> Result<String, String> {
    let list =
        |it: Option<&str>| it.map(|it| Value::new(&parameter.name, it)).into_iter().collect();
    let (previous, requested, preset): (Vec<_>, Vec<_>, Vec<_>) =
        (list(previous), list(requested), list(preset));
    let resolution = Resolution {
        parameters: std::slice::from_ref(parameter),
        requested: &requested,
        previous: &previous,
        preset: &preset,
        occasion,
    };
    validate(&resolution)
        .map(|it| it[0].value.clone())
        .map_err(|it| it.iter().map(ToString::to_string).collect())
}

#[track_caller]
fn refused(parameter: &Parameter, value: &str, word: &str) {
    let error = check_value(parameter, value, None).unwrap_err();
    assert!(error.contains(word), "{error}");
}

#[test]
fn previous_gives_way_to_requested_and_that_to_the_preset() {
    let it = text("it");
    let table = [
        ([None, None, None], "d"),
        ([Some("1"), None, None], "1"),
        ([Some("1"), Some("2"), None], "2"),
        ([Some("1"), Some("2"), Some("3")], "3"),
        ([None, Some("2"), Some("3")], "3"),
        ([Some("1"), None, Some("3")], "3"),
    ];
    for (sources, expected) in table {
        let got = resolve_one(&it, sources, Occasion::Later);
        assert_eq!(got.as_deref(), Ok(expected), "{sources:?}");
    }
}

#[test]
fn a_required_parameter_needs_a_value_from_somewhere() {
    let it = Parameter::new("it", ParameterKind::String);
    assert!(resolve_one(&it, [None; 3], Occasion::First).unwrap_err().contains("required"));
    for sources in [[Some("x"), None, None], [None, Some("x"), None], [None, None, Some("x")]] {
        assert_eq!(resolve_one(&it, sources, Occasion::First).as_deref(), Ok("x"));
    }
}

#[test]
fn ephemeral_values_are_not_carried_over() {
    let it = Parameter { ephemeral: true, ..text("it") };
    let later = |sources| resolve_one(&it, sources, Occasion::Later);
    assert_eq!(later([Some("1"), None, None]).as_deref(), Ok("d"));
    assert_eq!(later([Some("1"), Some("2"), None]).as_deref(), Ok("2"));
}

#[test]
fn an_immutable_parameter_keeps_its_value_and_may_be_given_it_again() {
    let it = optional("it", ParameterKind::Number, "1");
    let later = |sources| resolve_one(&it, sources, Occasion::Later);
    assert_eq!(later([Some("5"), Some("5"), None]).as_deref(), Ok("5"));
    assert_eq!(later([Some("5"), Some("5.0"), None]).as_deref(), Ok("5.0"));
    assert_eq!(later([Some("5"), None, None]).as_deref(), Ok("5"));
    let error = later([Some("5"), Some("6"), None]).unwrap_err();
    assert!(error.contains("immutable") && error.contains("\"5\"") && error.contains("\"6\""));
    // New in this version: it has no value that could change.
    assert_eq!(later([None, Some("6"), None]).as_deref(), Ok("6"));
    assert_eq!(resolve_one(&it, [None, Some("6"), None], Occasion::First).as_deref(), Ok("6"));
}

#[test]
fn a_claim_is_the_first_build_of_its_new_owner() {
    let it = optional("it", ParameterKind::String, "d");
    let claim = |sources| resolve_one(&it, sources, Occasion::Claim);
    assert_eq!(claim([Some("d"), Some("mine"), None]).as_deref(), Ok("mine"));
    assert_eq!(claim([Some("d"), None, None]).as_deref(), Ok("d"));
}

#[test]
fn what_the_preset_sets_was_checked_at_import() {
    let strict = Parameter { options: options(&["a", "b"]), mutable: true, ..text("it") };
    for &occasion in &[Occasion::First, Occasion::Later, Occasion::Claim, Occasion::Delete] {
        let got = resolve_one(&strict, [Some("a"), None, Some("gone")], occasion);
        assert_eq!(got.as_deref(), Ok("gone"), "{occasion:?}");
    }
}

#[test]
fn a_preset_of_a_later_build_changes_nothing_that_must_stay() {
    let fixed = optional("it", ParameterKind::Number, "1");
    let mut rising = Parameter { mutable: true, ..fixed.clone() };
    rising.validation.monotonic = Some(Monotonic::Increasing);
    let check = |it: &Parameter, value: &str, occasion| {
        resolve_one(it, [Some("5"), None, Some(value)], occasion).is_ok()
    };
    for it in [&fixed, &rising] {
        assert!(check(it, "5.0", Occasion::Later));
        assert!(!check(it, "4", Occasion::Later));
        for occasion in [Occasion::First, Occasion::Claim, Occasion::Delete] {
            assert!(check(it, "4", occasion), "{occasion:?}");
        }
    }
    assert!(check(&rising, "6", Occasion::Later) && !check(&fixed, "6", Occasion::Later));
}

#[test]
fn a_delete_never_fails_on_values_that_the_template_no_longer_takes() {
    let strict =
        Parameter { options: options(&["a"]), ..Parameter::new("it", ParameterKind::String) };
    let delete = |sources| resolve_one(&strict, sources, Occasion::Delete);
    assert_eq!(delete([Some("gone"), None, None]).as_deref(), Ok("gone"));
    let nothing = Resolution {
        parameters: &[strict],
        requested: &[],
        previous: &[],
        preset: &[],
        occasion: Occasion::Delete,
    };
    assert_eq!(validate(&nothing), Ok(Vec::new()));
}

#[test]
fn every_refused_field_is_named() {
    let parameters = [
        Parameter::new("must", ParameterKind::String),
        optional("count", ParameterKind::Number, "1"),
        text("fine"),
    ];
    let requested = values(&[("count", "many"), ("typo", "x"), ("fine", "1"), ("fine", "2")]);
    let resolution = Resolution {
        parameters: &parameters,
        requested: &requested,
        previous: &[],
        preset: &[],
        occasion: Occasion::First,
    };
    let errors = validate(&resolution).unwrap_err();
    let fields: Vec<&str> = errors.iter().map(|it| it.field.as_str()).collect();
    assert_eq!(fields, ["typo", "fine", "must", "count"]);
    assert!(errors[0].detail.contains("must, count, fine") || errors[0].detail.contains("count"));
}

#[test]
fn previous_values_of_parameters_that_are_gone_are_dropped() {
    let parameters = [text("kept")];
    let previous = values(&[("kept", "1"), ("gone", "2")]);
    let resolution = Resolution {
        parameters: &parameters,
        requested: &[],
        previous: &previous,
        preset: &[],
        occasion: Occasion::Later,
    };
    assert_eq!(validate(&resolution), Ok(values(&[("kept", "1")])));
}

#[test]
fn values_have_the_type_of_their_parameter() {
    let of = |kind| Parameter::new("it", kind);
    let table: [(ParameterKind, &[&str], &[&str]); 3] = [
        (
            ParameterKind::Number,
            &["0", "-3", "1.5"],
            &["", "x", "inf", "nan", "+1", "1e999", "0x1"],
        ),
        (ParameterKind::Bool, &["true", "false"], &["", "True", "1", "yes"]),
        (ParameterKind::ListString, &["[]", r#"["a"]"#], &["", "a", "[1]", r#"{"a":1}"#]),
    ];
    for (kind, good, bad) in table {
        for value in good {
            assert_eq!(check_value(&of(kind), value, None), Ok(()), "{value}");
        }
        for value in bad {
            assert!(check_value(&of(kind), value, None).is_err(), "{kind} took {value:?}");
        }
    }
}

#[test]
fn a_value_is_one_of_the_options() {
    let it =
        Parameter { options: options(&["1", "2"]), ..Parameter::new("it", ParameterKind::Number) };
    assert_eq!(check_value(&it, "2.0", None), Ok(()));
    refused(&it, "3", "\"1\", \"2\"");
    let multi = Parameter {
        options: options(&["a", "b"]),
        form_type: FormType::MultiSelect,
        ..Parameter::new("it", ParameterKind::ListString)
    };
    assert_eq!(check_value(&multi, r#"["b","a"]"#, None), Ok(()));
    assert_eq!(check_value(&multi, "[]", None), Ok(()));
    refused(&multi, r#"["a","c"]"#, "\"c\"");
    let list = Parameter {
        options: options(&[r#"["a"]"#]),
        ..Parameter::new("it", ParameterKind::ListString)
    };
    assert_eq!(check_value(&list, r#"[ "a" ]"#, None), Ok(()));
    refused(&list, "[]", "options");
}

#[test]
fn texts_match_the_pattern_and_the_authors_message_is_used() {
    let mut it = text("it");
    it.validation.regex = Some("^[a-z]+$".to_owned());
    assert_eq!(check_value(&it, "abc", None), Ok(()));
    refused(&it, "ABC", "^[a-z]+$");
    it.validation.error = "{value} is not lower case".to_owned();
    assert_eq!(check_value(&it, "ABC", None), Err("ABC is not lower case".to_owned()));
    it.validation.regex = Some("(".to_owned());
    refused(&it, "abc", "not usable");
}

#[test]
fn numbers_keep_their_bounds() {
    let mut it = optional("it", ParameterKind::Number, "3");
    it.validation = Validation { min: Some(2), max: Some(4), ..Validation::default() };
    for value in ["2", "3", "4", "2.5"] {
        assert_eq!(check_value(&it, value, None), Ok(()), "{value}");
    }
    refused(&it, "1.9", "less than 2");
    refused(&it, "4.1", "more than 4");
    it.validation.error = "{min} to {max}, not {value}".to_owned();
    assert_eq!(check_value(&it, "9", None), Err("2 to 4, not 9".to_owned()));
}

#[test]
fn monotonic_numbers_go_one_way_or_stay() {
    let mut it = Parameter { mutable: true, ..optional("it", ParameterKind::Number, "1") };
    for (direction, up, down) in
        [(Monotonic::Increasing, true, false), (Monotonic::Decreasing, false, true)]
    {
        it.validation.monotonic = Some(direction);
        assert_eq!(check_value(&it, "6", Some("5")).is_ok(), up, "{direction}");
        assert_eq!(check_value(&it, "4", Some("5")).is_ok(), down, "{direction}");
        assert!(check_value(&it, "5", Some("5")).is_ok());
        assert!(check_value(&it, "4", None).is_ok());
    }
}

#[test]
fn definitions_are_checked() {
    let fine =
        Parameter { options: options(&["a"]), ..optional("fine", ParameterKind::String, "a") };
    assert_eq!(check_definitions(std::slice::from_ref(&fine)), []);
    let mut bounds = optional("bounds", ParameterKind::Number, "1");
    bounds.validation = Validation { min: Some(2), max: Some(1), ..Validation::default() };
    let bad = [
        Parameter::new("", ParameterKind::String),
        Parameter { options: options(&["x"]), ..Parameter::new("number", ParameterKind::Number) },
        Parameter {
            options: options(&["x", "x"]),
            ..Parameter::new("twice", ParameterKind::String)
        },
        Parameter { ephemeral: true, ..Parameter::new("ephemeral", ParameterKind::String) },
        optional("default", ParameterKind::Bool, "maybe"),
        bounds,
    ];
    for parameter in bad {
        let errors = check_definitions(std::slice::from_ref(&parameter));
        assert_eq!(errors.len(), 1, "{parameter:?}: {errors:?}");
    }
    assert_eq!(check_definitions(&[fine.clone(), fine]).len(), 1);
}

#[test]
fn a_definition_reads_as_the_contract_spells_it() {
    let json = r#"{"name":"cpus","type":"number","default_value":"2","mutable":true,
        "validation":{"min":1,"monotonic":"increasing"},"form_type":"slider"}"#;
    let it: Parameter = serde_json::from_str(json).unwrap();
    assert_eq!(
        (it.kind, it.form_type, it.required),
        (ParameterKind::Number, FormType::Slider, false)
    );
    assert_eq!(it.validation.monotonic, Some(Monotonic::Increasing));
    let again: Parameter = serde_json::from_str(&serde_json::to_string(&it).unwrap()).unwrap();
    assert_eq!(it, again);
}
