use std::io::Write;

use super::*;
use crate::Secret;

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    process: Process,
    database: Database,
    replicas: u16,
    region: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Database {
    user: String,
    password: Secret,
    timeout: Period,
}

impl Default for Database {
    fn default() -> Self {
        Self { user: "berth".into(), password: Secret::default(), timeout: Period::from_secs(5) }
    }
}

fn read(file: Option<&str>, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let environment = environment.iter().map(|(name, value)| (name.into(), value.into()));
    let Some(text) = file else { return load_from(None, environment) };
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    load_from(Some(file.path()), environment)
}

#[track_caller]
fn check_error(file: Option<&str>, environment: &[(&str, &str)], expected: &[&str]) {
    let error = read(file, environment).unwrap_err().to_string();
    for part in expected {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

#[test]
fn defaults_stand_when_nothing_is_set() {
    let config = read(None, &[]).unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(config.process.grace, Period::from_secs(20));
    assert_eq!(config.process.admin_addr.to_string(), "127.0.0.1:0");
}

#[test]
fn the_file_overrides_defaults_and_the_environment_overrides_the_file() {
    let file = "replicas = 2\n[database]\nuser = \"file\"\ntimeout = \"7s\"\n";
    let config = read(Some(file), &[("BERTH_DATABASE__USER", "environment")]).unwrap();
    assert_eq!(config.replicas, 2);
    assert_eq!(config.database.user, "environment");
    assert_eq!(config.database.timeout, Period::from_secs(7));
    assert_eq!(config.database.password, Secret::default());
}

#[test]
fn values_from_the_environment_have_the_type_of_their_key() {
    let config = read(
        None,
        &[
            ("BERTH_REPLICAS", "3"),
            ("BERTH_DATABASE__PASSWORD", "0123"),
            ("BERTH_DATABASE__USER", "true"),
            ("BERTH_DATABASE__TIMEOUT", "1m"),
            ("BERTH_PROCESS__LOG__FORMAT", "json"),
            ("BERTH_REGION", "north"),
        ],
    )
    .unwrap();
    assert_eq!(config.replicas, 3);
    assert_eq!(config.database.password.expose(), "0123");
    assert_eq!(config.database.user, "true");
    assert_eq!(config.database.timeout, Period::from_secs(60));
    assert_eq!(config.process.log.format, LogFormat::Json);
    assert_eq!(config.region.as_deref(), Some("north"));
}

#[test]
fn variables_for_others_are_left_alone() {
    let others =
        [("BERTH_URL", "x"), ("BERTH_TOKEN", "y"), ("BERTH_SWEEP__EVERY", "1m"), ("PATH", "")];
    assert_eq!(read(None, &others).unwrap(), Config::default());
}

#[test]
fn an_unknown_key_is_named_with_its_place() {
    check_error(
        Some("[database]\nusr = \"x\"\n"),
        &[],
        &["database.usr", "unknown field", "`user`"],
    );
    check_error(Some("databse = 1\n"), &[], &["unknown field", "databse"]);
    check_error(
        None,
        &[("BERTH_DATABASE__USR", "x")],
        &["database.usr", "unknown field", "BERTH_DATABASE__USR"],
    );
}

#[test]
fn a_wrong_value_is_named_with_its_place() {
    check_error(None, &[("BERTH_REPLICAS", "many")], &["`replicas`", "many", "BERTH_REPLICAS"]);
    check_error(
        None,
        &[("BERTH_DATABASE__TIMEOUT", "30")],
        &["`database.timeout`", "`30` is not a length of time", "BERTH_DATABASE__TIMEOUT"],
    );
}

#[test]
fn a_secret_is_never_repeated_in_an_error() {
    for file in ["[database]\npassword = 90125\n", "[database]\npassword = \"90125\n"] {
        let error = read(Some(file), &[]).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("90125"), "{error:?}");
    }
}

#[test]
fn a_file_that_is_not_toml_is_refused_with_the_line() {
    check_error(Some("replicas = 1\nreplicas = = 2\n"), &[], &["line 2"]);
}

#[test]
fn a_file_that_is_not_there_is_an_error() {
    let error = load::<Config>(Some(Path::new("/nowhere/berth.toml"))).unwrap_err();
    assert_eq!(error.to_string(), "cannot read the configuration file /nowhere/berth.toml");
}

#[test]
fn the_defaults_survive_a_round_trip_through_the_file() {
    let written =
        toml::to_string(&Config { region: Some("x".into()), ..Config::default() }).unwrap();
    let read = read(Some(&written), &[]).unwrap();
    assert_eq!(Config { region: None, ..read }, Config::default());
}
