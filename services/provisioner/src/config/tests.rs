use super::*;

fn config() -> ProvisionerConfig {
    ProvisionerConfig { key: "secret-key".into(), name: "one".into(), ..Default::default() }
}

#[track_caller]
fn check_refused(config: ProvisionerConfig, expected: &str) {
    let error = config.checked().unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_daemon_needs_a_key_a_capacity_and_a_name_that_can_be_a_directory() {
    config().checked().unwrap();
    check_refused(ProvisionerConfig { key: "".into(), ..config() }, "BERTH_PROVISIONER__KEY");
    check_refused(ProvisionerConfig { capacity: 0, ..config() }, "`provisioner.capacity` is 0");
    for name in ["../x", ".", "a/b", "a b", "ü"] {
        check_refused(ProvisionerConfig { name: name.into(), ..config() }, "provisioner.name");
    }
}

#[test]
fn a_certificate_stands_in_for_a_key_over_tls_alone_and_with_its_own_key() {
    let shown = || ProvisionerConfig {
        key: "".into(),
        broker_url: "https://broker".into(),
        client_cert_file: Some("cert.pem".into()),
        client_key_file: Some("key.pem".into()),
        ..config()
    };
    let checked = shown().checked().unwrap();
    assert!(checked.client_cert_file.unwrap().is_absolute());
    let plain = ProvisionerConfig { broker_url: "http://broker".into(), ..shown() };
    check_refused(plain, "to an https:// broker alone");
    check_refused(ProvisionerConfig { client_key_file: None, ..shown() }, "go together");
    check_refused(ProvisionerConfig { client_cert_file: None, ..shown() }, "go together");
}

#[test]
fn relative_directories_become_absolute() {
    let config = ProvisionerConfig { mirrors: vec!["mirror".into()], ..config() };
    assert!(config.checked().unwrap().mirrors[0].is_absolute());
}

#[test]
fn the_key_never_shows() {
    assert!(!format!("{:?}", config()).contains("secret-key"));
}

#[test]
fn defaults_survive_a_round_trip() {
    let text = toml::to_string(&Config::default()).unwrap();
    assert_eq!(toml::from_str::<Config>(&text).unwrap(), Config::default());
}

/// An environment variable carries a map as an inline table, with the case of its keys.
#[test]
fn template_env_can_be_written_as_an_inline_table() {
    let value: toml::Value = r#"{ TF_VAR_local_root = "/w", PIDFILE = "p" }"#.parse().unwrap();
    let env: BTreeMap<String, String> = value.try_into().unwrap();
    assert_eq!(env["TF_VAR_local_root"], "/w");
}
