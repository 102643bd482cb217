//! Who may depend on whom: the rules of 00-architecture, held over `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Crates that do I/O, or that somebody would add in order to do some.
const IO: [&str; 16] = [
    "async-nats",
    "axum",
    "futures-util",
    "hyper",
    "jiff-sqlx",
    "reqwest",
    "rustix",
    "rustls",
    "sqlx",
    "tempfile",
    "tokio",
    "tokio-stream",
    "tokio-util",
    "tonic",
    "tower",
    "tower-http",
];

/// One crate of the workspace.
struct Crate {
    name: String,
    dir: PathBuf,
    /// What it is built from.
    normal: BTreeSet<String>,
    /// What its tests and build script use as well.
    other: BTreeSet<String>,
}

impl Crate {
    fn read(package: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let manifest = PathBuf::from(text(&package["manifest_path"]));
        let all = package["dependencies"].as_array().expect("dependencies");
        let (normal, other) =
            all.iter().partition::<Vec<&Value>, _>(|dependency| dependency["kind"].is_null());
        let names = |list: Vec<&Value>| list.into_iter().map(|it| text(&it["name"])).collect();
        Self {
            name: text(&package["name"]),
            dir: manifest.parent().map(Path::to_owned).unwrap_or_default(),
            normal: names(normal),
            other: names(other),
        }
    }

    fn is_service(&self) -> bool {
        self.dir.parent().is_some_and(|it| it.ends_with("services"))
    }

    fn ours(&self) -> BTreeSet<&str> {
        self.normal.iter().filter_map(|name| name.strip_prefix("berth-")).collect()
    }

    fn names(&self, dependency: &str) -> bool {
        self.normal.contains(dependency) || self.other.contains(dependency)
    }
}

fn workspace() -> BTreeMap<String, Crate> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline", "--manifest-path"])
        .arg(root().join("Cargo.toml"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("metadata is JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    packages.iter().map(Crate::read).map(|it| (it.name.clone(), it)).collect()
}

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("it exists")
}

#[test]
fn crates_depend_on_each_other_as_the_architecture_says() {
    let all = workspace();
    let at = |name: &str| all.get(name).unwrap_or_else(|| panic!("no crate {name}"));

    let domain = at("berth-domain");
    assert!(domain.ours().is_empty(), "domain depends on {:?}", domain.ours());
    let io: Vec<_> = IO.iter().filter(|name| domain.normal.contains(**name)).collect();
    assert!(io.is_empty(), "domain is pure, but depends on {io:?}");

    for name in ["berth-db", "berth-bus", "berth-proto"] {
        let ours = at(name).ours();
        assert!(ours.is_subset(&BTreeSet::from(["domain"])), "{name} depends on {ours:?}");
    }
    for name in ["berth-service-kit", "berth-devstack", "berth-vault"] {
        assert!(at(name).ours().is_empty(), "{name} depends on {:?}", at(name).ours());
    }
}

#[test]
fn a_service_never_depends_on_a_service() {
    let all = workspace();
    let services: BTreeSet<&str> =
        all.values().filter(|it| it.is_service()).map(|it| it.name.as_str()).collect();
    assert!(services.len() >= 10, "services are found: {services:?}");
    for one in all.values().filter(|it| it.name != "berth") {
        let met: Vec<_> = services.iter().filter(|name| one.names(name)).collect();
        assert!(met.is_empty(), "{} depends on {met:?}", one.name);
    }
}

#[test]
fn each_store_is_named_by_one_crate_and_testkit_by_tests_alone() {
    for one in workspace().values() {
        let sqlx = one.names("sqlx") || one.names("jiff-sqlx");
        assert!(!sqlx || one.name == "berth-db", "{} names sqlx", one.name);
        assert!(
            !one.names("async-nats") || one.name == "berth-bus",
            "{} names async-nats",
            one.name
        );
        assert!(!one.normal.contains("berth-testkit"), "{} is built with testkit", one.name);
    }
}
