//! What is hidden, and what stays readable.

use proptest::prelude::*;

use super::*;

#[test]
fn secrets_are_hidden_wherever_they_stand_and_the_rest_stays() {
    let veil = Veil::of(["opal-7f3a", "two words"]);
    for (text, expected) in [
        ("", ""),
        ("nothing here", "nothing here"),
        ("opal-7f3a", "(secret)"),
        ("token=opal-7f3a, again opal-7f3a.", "token=(secret), again (secret)."),
        ("{\"a\": \"two words\"}", "{\"a\": \"(secret)\"}"),
        ("opal-7f3 two  words", "opal-7f3 two  words"),
    ] {
        assert_eq!(veil.over(text), expected);
    }
    assert!(matches!(veil.over("nothing here"), Cow::Borrowed(_)));
}

#[test]
fn the_longer_of_two_secrets_is_hidden_whole() {
    let veil = Veil::of(["opal", "opal-7f3a-deploy", "deploy"]);
    assert_eq!(veil.over("opal-7f3a-deploy opal"), "(secret) (secret)");
}

#[test]
fn what_is_too_short_to_be_told_from_words_is_not_hidden() {
    let veil = Veil::of(["", "  ", "eu", "abc", "yes\n"]);
    assert_eq!(veil.over("eu abc yes"), "eu abc yes");
    assert_eq!(Veil::of(["four"]).over("four"), "(secret)");
}

#[test]
fn a_secret_of_several_lines_is_hidden_line_by_line_and_as_json_writes_it() {
    let veil = Veil::of(["-----BEGIN KEY-----\nMIIEpAIBAAKCAQEA\n}\nlast-line-of-it\n"]);
    assert_eq!(veil.over("MIIEpAIBAAKCAQEA"), "(secret)");
    assert_eq!(veil.over("a } b"), "a } b");
    let json = r#"{"key":"-----BEGIN KEY-----\nMIIEpAIBAAKCAQEA\n}\nlast-line-of-it\n"}"#;
    assert_eq!(veil.over(json), r#"{"key":"(secret)\n"}"#);
    let veil = Veil::of(["say \"hush\""]);
    assert_eq!(veil.over(r#"it is say \"hush\""#), "it is (secret)");
}

fn variable(name: &str, value: &str, sensitive: bool) -> v1::VariableValue {
    v1::VariableValue { name: name.into(), value: value.into(), sensitive }
}

#[test]
fn everything_secret_that_comes_with_a_build_is_hidden() {
    let build = v1::WorkspaceBuild {
        metadata: Some(v1::Metadata {
            owner_session_token: "session-token".into(),
            owner_name: "alice".into(),
            ..v1::Metadata::default()
        }),
        running_agents: vec![v1::RunningAgent {
            token: "agent-token".into(),
            ..Default::default()
        }],
        user_secrets: vec![v1::UserSecret { value: "user-secret".into(), ..Default::default() }],
        ..v1::WorkspaceBuild::default()
    };
    let job = v1::Job {
        variables: vec![variable("region", "europe", false), variable("key", "cloud-key", true)],
        input: Some(v1::job::Input::WorkspaceBuild(build)),
        ..v1::Job::default()
    };
    let text = "session-token agent-token user-secret cloud-key europe alice";
    assert_eq!(Veil::of_job(&job).over(text), "(secret) (secret) (secret) (secret) europe alice");
}

#[test]
fn an_import_hides_all_values_until_it_is_known_which_are_secret() {
    let job = v1::Job {
        variables: vec![variable("region", "europe", false), variable("key", "cloud-key", false)],
        input: Some(v1::job::Input::TemplateImport(v1::TemplateImport::default())),
        ..v1::Job::default()
    };
    assert_eq!(Veil::of_job(&job).over("europe cloud-key"), "(secret) (secret)");
    let declared = |name: &str, sensitive| v1::TemplateVariable {
        name: name.into(),
        sensitive,
        ..v1::TemplateVariable::default()
    };
    let known = [declared("region", false), declared("key", true)];
    assert_eq!(Veil::declared(&job, &known).over("europe cloud-key"), "europe (secret)");
    let known = [declared("region", false)];
    assert_eq!(Veil::declared(&job, &known).over("europe cloud-key"), "europe (secret)");
}

proptest! {
    #[test]
    fn no_secret_is_left_in_any_text(
        secrets in prop::collection::vec("[a-c]{4,7}", 1..6),
        text in "[a-d ]{0,60}",
    ) {
        let veil = Veil::of(secrets.iter().map(String::as_str));
        let veiled = veil.over(&text);
        for secret in &secrets {
            prop_assert!(!veiled.contains(secret.as_str()), "{secret:?} is in {veiled:?}");
        }
    }
}
