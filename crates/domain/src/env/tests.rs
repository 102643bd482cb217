use super::*;

fn var(address: &str, value: &str, strategy: MergeStrategy) -> EnvVar {
    EnvVar {
        address: address.to_owned(),
        name: "PATH".to_owned(),
        value: value.to_owned(),
        strategy,
    }
}

#[track_caller]
fn check(vars: &[EnvVar], expected: &str) {
    let merged = merge(&BTreeMap::new(), vars).unwrap();
    assert_eq!(merged["PATH"], expected);
}

#[test]
fn the_last_address_wins_by_default() {
    let (a, b) = (
        var("coder_env.a", "1", MergeStrategy::Replace),
        var("coder_env.b", "2", MergeStrategy::Replace),
    );
    check(&[a.clone(), b.clone()], "2");
    check(&[b, a], "2");
}

#[test]
fn append_and_prepend_join_what_is_not_empty() {
    let first = |value| var("coder_env.a", value, MergeStrategy::Replace);
    check(&[first("1"), var("coder_env.b", "2", MergeStrategy::Append)], "1:2");
    check(&[first("1"), var("coder_env.b", "2", MergeStrategy::Prepend)], "2:1");
    check(&[first(""), var("coder_env.b", "2", MergeStrategy::Append)], "2");
    check(&[first("1"), var("coder_env.b", "", MergeStrategy::Prepend)], "1");
    check(&[var("coder_env.b", "2", MergeStrategy::Append)], "2");
}

#[test]
fn error_refuses_an_earlier_definition_and_names_both() {
    let lone = var("coder_env.a", "1", MergeStrategy::Error);
    check(std::slice::from_ref(&lone), "1");
    let error = merge(&BTreeMap::new(), &[var("coder_env.b", "2", MergeStrategy::Error), lone])
        .unwrap_err();
    assert_eq!((error.first.as_str(), error.second.as_str()), ("coder_env.a", "coder_env.b"));
    let text = error.to_string();
    assert!(text.contains("coder_env.a") && text.contains("coder_env.b") && text.contains("PATH"));
}

#[test]
fn the_agents_own_env_is_applied_last() {
    let own = BTreeMap::from([("PATH".to_owned(), "own".to_owned())]);
    let merged = merge(&own, &[var("coder_env.z", "2", MergeStrategy::Append)]).unwrap();
    assert_eq!(merged["PATH"], "own");
}
