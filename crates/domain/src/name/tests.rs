use super::*;

#[track_caller]
fn check(rule: fn(&str) -> Result<(), NameError>, good: &[&str], bad: &[&str]) {
    for name in good {
        assert_eq!(rule(name), Ok(()), "{name:?}");
    }
    for name in bad {
        assert!(rule(name).is_err(), "{name:?} passed");
    }
}

#[test]
fn names_are_letters_and_digits_with_single_hyphens_between_them() {
    let good = ["a", "7", "my-ws", "A-1-b", "prebuild-abc"];
    let bad = ["", "-a", "a-", "a--b", "a_b", "a.b", "a b", "ä", "a\n"];
    for rule in [workspace, user, organization, template, group] {
        check(rule, &good, &bad);
    }
}

#[test]
fn each_kind_of_name_has_its_length() {
    let name = |len: usize| "x".repeat(len);
    for rule in [workspace, user, organization, template] {
        check(rule, &[&name(32)], &[&name(33)]);
    }
    check(template_version, &[&name(64)], &[&name(65)]);
    check(group, &[&name(255)], &[&name(256)]);
    check(display, &[&name(64)], &[&name(65)]);
    check(full, &[&name(128)], &[&name(129)]);
}

#[test]
fn names_that_paths_use_are_reserved() {
    check(user, &["mew"], &["me", "Me", "new", "create"]);
    check(workspace, &["me"], &["new", "create"]);
    check(organization, &["me"], &["default", "new"]);
}

#[test]
fn versions_may_have_dots_and_underscores() {
    check(template_version, &["v1.2.3", "a_b-c.d"], &["", ".a", "a..b", "a-", "a b"]);
}

#[test]
fn shown_names_may_be_empty_and_have_blanks_inside_only() {
    check(display, &["", "My workspace", "ä"], &[" a", "a ", "a\nb"]);
    check(full, &["", "Ada Lovelace"], &[" Ada"]);
}

#[test]
fn an_error_names_the_thing_the_value_and_the_rule() {
    let error = workspace(&"x".repeat(33)).unwrap_err().to_string();
    assert!(error.contains("workspace name") && error.contains("33") && error.contains("32"));
    let error = workspace("a_b").unwrap_err().to_string();
    assert!(error.contains("\"a_b\"") && error.contains("hyphens"), "{error}");
}

#[test]
fn a_prebuild_name_is_the_prefix_and_15_characters_of_base32() {
    for random in [[0; 9], [255; 9], [1, 2, 3, 4, 5, 6, 7, 8, 9]] {
        let name = prebuild_name(random);
        let rest = name.strip_prefix(PREBUILD_PREFIX).unwrap();
        assert_eq!(rest.len(), 15);
        assert!(rest.bytes().all(|it| matches!(it, b'a'..=b'z' | b'2'..=b'7')), "{name}");
        assert_eq!(workspace(&name), Ok(()));
    }
    assert_ne!(prebuild_name([0; 9]), prebuild_name([1; 9]));
}
