use super::*;

#[track_caller]
fn check(checked: fn(&Value) -> Checked, good: &[&str], bad: &[&str]) {
    for text in good {
        assert_eq!(checked(&Value::from(*text)), Ok(()), "{text}");
    }
    for text in bad {
        let reason = checked(&Value::from(*text)).expect_err(text);
        assert!(reason.contains(&format!("{text:?}")), "{text} is not named: {reason}");
    }
}

#[test]
fn slugs_are_parts_of_host_names() {
    check(slug, &["a", "code-server", "0-1-2"], &["", "-a", "a-", "a--b", "A", "a_b", "a\n"]);
}

#[test]
fn variables_have_names_that_a_shell_takes() {
    check(variable_name, &["PATH", "_x", "a1"], &["", "1a", "A-B", "A B"]);
}

#[test]
fn paths_are_those_of_the_workspace() {
    check(absolute_path, &["/", "/home/me", "C:\\Users", "d:/x"], &["", "home", "C:", "~/x"]);
}

#[test]
fn external_urls_have_scheme_and_host() {
    for good in ["https://example.com", "vscode://coder.coder-remote/open?x=1"] {
        assert_eq!(external_url(good), Ok(()), "{good}");
    }
    for bad in ["", "example.com", "/path", "https://", "https:///x", "://x"] {
        assert!(external_url(bad).is_err(), "{bad}");
    }
}

#[test]
fn numbers_are_held_against_both_bounds() {
    for good in [0, 50, 100] {
        assert_eq!(within(&Value::Int(good), 0, 100), Ok(()));
    }
    for bad in [-1, 101] {
        assert_eq!(within(&Value::Int(bad), 0, 100), Err(format!("{bad} is not within 0 to 100.")));
    }
}

#[test]
fn characters_are_counted_and_not_bytes() {
    assert_eq!(at_most_characters(&Value::from("äöü"), 3), Ok(()));
    assert!(at_most_characters(&Value::from("äöü!"), 3).is_err());
}

#[test]
fn a_word_outside_the_set_is_named_with_the_set() {
    assert_eq!(
        one_of(&Value::from("arm"), &["amd64", "arm64"]),
        Err(r#""arm" is none of "amd64", "arm64"."#.to_owned())
    );
}
