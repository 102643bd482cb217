use super::*;

#[test]
fn a_secret_never_shows_itself() {
    let secret = Secret::from("hunter2");
    assert_eq!(format!("{secret:?}"), "Secret(redacted)");
    assert_eq!(serde_json::to_string(&secret).unwrap(), r#""""#);
    assert_eq!(secret.expose(), "hunter2");
}

#[test]
fn a_secret_of_the_wrong_type_is_refused_without_repeating_it() {
    for wrong in ["90125", "true", "-4711", "1.5e9"] {
        let error = serde_json::from_str::<Secret>(wrong).unwrap_err().to_string();
        assert!(error.contains(NOT_A_STRING), "{error}");
        assert!(!error.contains(wrong), "{error}");
    }
}
