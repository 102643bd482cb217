use super::*;

fn definition(kind: Kind) -> Definition {
    Definition {
        name: "size".to_owned(),
        kind,
        form_type: String::new(),
        mutable: false,
        ephemeral: false,
        default: None,
        options: Vec::new(),
        validation: None,
    }
}

impl Definition {
    fn or(mut self, default: &str) -> Self {
        self.default = Some(default.to_owned());
        self
    }

    fn options(mut self, values: &[&str]) -> Self {
        let choice =
            |value: &&str| Choice { name: value.to_uppercase(), value: (*value).to_owned() };
        self.options = values.iter().map(choice).collect();
        self
    }

    fn form(mut self, form_type: &str) -> Self {
        form_type.clone_into(&mut self.form_type);
        self
    }

    fn validated(mut self, validation: Validation) -> Self {
        self.validation = Some(validation);
        self
    }

    fn between(self, min: i64, max: i64) -> Self {
        self.validated(Validation { min: Some(min), max: Some(max), ..Validation::default() })
    }

    fn matching(self, pattern: &str) -> Self {
        self.validated(Validation {
            regex: Some(pattern.to_owned()),
            error: Some("Say hello.".to_owned()),
            ..Validation::default()
        })
    }

    fn monotonic(self, direction: &str) -> Self {
        let monotonic = Some(direction.to_owned());
        self.validated(Validation { monotonic, ..Validation::default() })
    }
}

#[track_caller]
fn accepted(definition: &Definition, input: Option<&str>, value: &str) {
    let resolved = definition.resolve(input, None).map(|resolved| resolved.value);
    assert_eq!(resolved, Ok(value.to_owned()));
}

#[track_caller]
fn refused(definition: &Definition, input: Option<&str>, reason: &str) -> Refused {
    let refused = definition.resolve(input, None).expect_err("a refusal");
    assert!(refused.summary.contains("\"size\""), "the parameter is not named: {refused:?}");
    assert!(refused.detail.contains(reason), "{reason} is not the reason: {refused:?}");
    refused
}

#[test]
fn input_comes_before_the_default() {
    accepted(&definition(Kind::Text).or("a"), Some("b"), "b");
    accepted(&definition(Kind::Text).or("a"), Some(""), "");
    accepted(&definition(Kind::Text).or("a"), None, "a");
}

#[test]
fn without_input_and_default_there_is_nothing_to_judge() {
    accepted(&definition(Kind::Number).between(1, 3), None, "");
    accepted(&definition(Kind::Text).options(&["a"]), None, "");
}

#[test]
fn a_value_has_the_type_of_its_parameter() {
    for (kind, good, bad) in [
        (Kind::Number, &["3", "-1.5", "0"][..], &["a", "", "NaN", "inf", "1,5"][..]),
        (Kind::Bool, &["true", "false", "1"], &["yes", "", "on"]),
        (Kind::TextList, &["[]", r#"["a"]"#], &["a", "", "[1]", "{}"]),
    ] {
        for good in good {
            accepted(&definition(kind), Some(good), good);
        }
        for bad in bad {
            let refused = refused(&definition(kind), Some(bad), kind.name());
            assert!(refused.detail.contains(&format!("{bad:?}")), "{refused:?}");
        }
    }
}

#[test]
fn a_value_is_one_of_the_options() {
    let region = definition(Kind::Text).options(&["eu", "us"]).or("eu");
    accepted(&region, Some("us"), "us");
    let refused_value = refused(&region, Some("mars"), r#"options are "eu", "us""#);
    assert_eq!(refused_value.argument, None);
    let refused_default = refused(&region.clone().or("mars"), None, "not a valid option");
    assert_eq!(refused_default.argument, Some("default"));
    accepted(&region.or("mars"), Some("eu"), "eu");
}

#[test]
fn options_are_unique_and_of_the_parameters_type() {
    refused(&definition(Kind::Text).options(&["a", "a"]), None, "must be unique");
    refused(&definition(Kind::Number).options(&["1", "a"]), Some("1"), "no number");
    let mut same_value = definition(Kind::Text).options(&["a", "b"]);
    same_value.options[1].value = "a".to_owned();
    refused(&same_value, None, "value \"a\"");
}

#[test]
fn a_list_is_put_together_from_options() {
    let tools = definition(Kind::TextList).options(&["vim", "emacs"]).form("multi-select");
    accepted(&tools, Some(r#"["vim"]"#), r#"["vim"]"#);
    refused(&tools, Some(r#"["vim","ed"]"#), r#"has "ed""#);
    refused(&tools, Some("vim"), "is not a list(string)");
    let whole = definition(Kind::TextList).options(&[r#"["a"]"#, r#"["b"]"#]);
    accepted(&whole, Some(r#"["a"]"#), r#"["a"]"#);
    refused(&whole, Some(r#"["c"]"#), "not a valid option");
}

#[test]
fn a_number_is_within_its_bounds() {
    let size = definition(Kind::Number).between(1, 10);
    for good in ["1", "5.5", "10"] {
        accepted(&size, Some(good), good);
    }
    refused(&size, Some("0"), r#""0" is less than the minimum, 1"#);
    refused(&size, Some("11"), r#""11" is more than the maximum, 10"#);
    assert_eq!(refused(&size.or("11"), None, "maximum").argument, Some("default"));
}

#[test]
fn the_templates_own_words_are_told_with_their_numbers() {
    let mut size = definition(Kind::Number).between(1, 10);
    if let Some(validation) = &mut size.validation {
        validation.error = Some("{value} is not {min} to {max}".to_owned());
    }
    refused(&size, Some("11"), "11 is not 1 to 10");
}

#[test]
fn text_matches_its_pattern() {
    let greeting = definition(Kind::Text).matching("^hello");
    accepted(&greeting, Some("hello you"), "hello you");
    let refused = refused(&greeting, Some("bye"), "Say hello.");
    assert!(refused.detail.contains("\"bye\"") && refused.detail.contains("^hello"));
}

#[test]
fn a_monotonic_number_only_moves_one_way() {
    let grows = definition(Kind::Number).monotonic("increasing");
    let shrinks = definition(Kind::Number).monotonic("decreasing");
    for (definition, value, previous, fine) in [
        (&grows, "3", "3", true),
        (&grows, "4", "3", true),
        (&grows, "10", "9", true),
        (&grows, "2", "3", false),
        (&shrinks, "2", "3", true),
        (&shrinks, "4", "3", false),
        (&grows, "2", "lots", true),
    ] {
        let resolved = definition.resolve(Some(value), Some(previous));
        assert_eq!(resolved.is_ok(), fine, "{value} after {previous}");
        if let Err(refused) = resolved {
            assert!(refused.detail.contains(previous), "{refused:?}");
        }
    }
}

#[test]
fn rules_that_make_no_sense_are_refused() {
    refused(&definition(Kind::Text).between(1, 2), Some("a"), "\"min\" is for numbers");
    refused(&definition(Kind::Text).monotonic("increasing"), None, "\"monotonic\" is for numbers");
    refused(&definition(Kind::Number).monotonic("up"), None, "\"up\"");
    refused(&definition(Kind::Number).matching("."), None, "\"regex\" is for strings");
    refused(&definition(Kind::Number).between(3, 2), None, "more than \"max\"");
    refused(&definition(Kind::Text).matching("("), None, "not a regular expression");
    let regex = Some(".".to_owned());
    let silent = Validation { regex, ..Validation::default() };
    refused(&definition(Kind::Text).validated(silent), None, "needs \"error\"");
}

#[test]
fn an_ephemeral_parameter_is_mutable_and_has_a_default() {
    let mut ephemeral = definition(Kind::Text).or("a");
    ephemeral.ephemeral = true;
    refused(&ephemeral, None, "mutable");
    ephemeral.mutable = true;
    accepted(&ephemeral, None, "a");
    ephemeral.default = None;
    refused(&ephemeral, None, "default");
}

#[test]
fn the_form_follows_from_type_and_options() {
    let form = |definition: Definition| definition.resolve(None, None).map(|it| it.form_type);
    for (kind, free, choice) in [
        (Kind::Text, "input", "radio"),
        (Kind::Number, "input", "radio"),
        (Kind::Bool, "checkbox", "radio"),
        (Kind::TextList, "tag-input", "radio"),
    ] {
        let option = if kind == Kind::TextList { "[]" } else { "1" };
        assert_eq!(form(definition(kind)), Ok(free));
        assert_eq!(form(definition(kind).options(&[option])), Ok(choice));
    }
    assert_eq!(form(definition(Kind::Number).form("slider")), Ok("slider"));
    assert_eq!(form(definition(Kind::Text).options(&["a"]).form("dropdown")), Ok("dropdown"));
    refused(&definition(Kind::Text).form("slider"), None, "\"slider\"");
    refused(&definition(Kind::Text).form("dropdown"), None, "without options");
}
