use super::*;
use crate::parameter::ParameterKind;

#[test]
fn one_bad_preset_fails_the_import_and_an_unknown_parameter_only_warns() {
    let mut parameter = Parameter::new("size", ParameterKind::Number);
    parameter.required = false;
    parameter.default_value = "1".to_owned();
    let preset = |name: &str, key: &str, value: &str| PresetSpec {
        name: name.to_owned(),
        parameters: [(key.to_owned(), value.to_owned())].into(),
        ..PresetSpec::default()
    };
    let import = Import {
        parameters: vec![parameter],
        presets: vec![preset("big", "size", "huge"), preset("odd", "colour", "red")],
        variables: Vec::new(),
    };
    let findings = check(&import);
    assert_eq!(findings.errors.len(), 1, "{findings:?}");
    for part in ["\"big\"", "\"size\"", "\"huge\""] {
        assert!(findings.errors[0].contains(part), "{findings:?}");
    }
    assert_eq!(findings.warnings.len(), 1);
    assert!(findings.warnings[0].contains("colour"));
}

#[test]
fn bad_definitions_fail_the_import() {
    let mut parameter = Parameter::new("size", ParameterKind::String);
    parameter.validation.regex = Some("(".to_owned());
    let twice = Parameter::new("size", ParameterKind::String);
    let import = Import { parameters: vec![parameter, twice], ..Import::default() };
    assert_eq!(check(&import).errors.len(), 2);
}
