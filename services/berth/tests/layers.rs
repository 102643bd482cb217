//! Who may depend on whom: the rules of ARCHITECTURE.md, held against `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Crates that do input or output, or that run those who do. `domain` names none of them.
const IO: [&str; 14] = [
    "async-nats",
    "axum",
    "figment",
    "reqwest",
    "rustix",
    "rustls",
    "sqlx",
    "tempfile",
    "tokio",
    "tokio-util",
    "tonic",
    "tower",
    "tracing",
    "tracing-subscriber",
];

/// The only members that may name a crate, beside test code.
const WRAPPED: [(&str, &[&str]); 4] = [
    ("sqlx", &["berth-db"]),
    ("jiff-sqlx", &["berth-db"]),
    ("async-nats", &["berth-bus"]),
    ("figment", &["berth-service-kit"]),
];

/// Ours that a crate may use. Services and workers are in `SERVICE`.
const CRATES: [(&str, &[&str]); 8] = [
    ("berth-domain", &[]),
    ("berth-service-kit", &[]),
    ("berth-devstack", &[]),
    ("berth-db", &["berth-domain"]),
    ("berth-bus", &["berth-domain"]),
    ("berth-proto", &["berth-domain"]),
    ("berth-backbone", &["berth-bus", "berth-db", "berth-domain", "berth-service-kit"]),
    ("berth-testkit", &["berth-bus", "berth-db", "berth-devstack", "berth-domain"]),
];

/// Ours that a service or a worker may use.
const SERVICE: [&str; 6] =
    ["berth-backbone", "berth-bus", "berth-db", "berth-domain", "berth-proto", "berth-service-kit"];

/// A member of the workspace and what it depends on outside of tests.
struct Member {
    folder: String,
    normal: BTreeSet<String>,
}

impl Member {
    fn ours(&self) -> impl Iterator<Item = &str> {
        let ours = |name: &&str| *name == "berth" || name.starts_with("berth-");
        self.normal.iter().map(String::as_str).filter(ours)
    }
}

fn members() -> BTreeMap<String, Member> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let member = |package: &Value| {
        let manifest = package["manifest_path"].as_str().unwrap();
        let folder = manifest.rsplit('/').nth(2).unwrap().to_owned();
        let normal = package["dependencies"].as_array().unwrap().iter();
        let normal = normal
            .filter(|it| it["kind"] != "dev")
            .map(|it| it["name"].as_str().unwrap().to_owned());
        let member = Member { folder, normal: normal.collect() };
        (package["name"].as_str().unwrap().to_owned(), member)
    };
    metadata["packages"].as_array().unwrap().iter().map(member).collect()
}

#[test]
fn the_domain_does_no_input_or_output() {
    let domain = &members()["berth-domain"];
    for name in IO {
        assert!(!domain.normal.contains(name), "berth-domain depends on {name}");
    }
}

#[test]
fn only_their_wrappers_name_the_stores_and_the_configuration_library() {
    for (member, it) in members() {
        for (wrapped, wrappers) in WRAPPED {
            assert!(
                !it.normal.contains(wrapped) || wrappers.contains(&member.as_str()),
                "{member} names {wrapped}: only {wrappers:?} may"
            );
        }
    }
}

#[test]
fn every_crate_depends_on_those_below_it_alone() {
    let members = members();
    let known: BTreeSet<&str> = CRATES.iter().map(|(name, _)| *name).collect();
    for (name, it) in members.iter().filter(|(_, it)| it.folder == "crates") {
        assert!(known.contains(name.as_str()), "{name} is new: say in CRATES what it may use");
        let (_, allowed) = CRATES.iter().find(|(known, _)| known == name).unwrap();
        for used in it.ours() {
            assert!(allowed.contains(&used), "{name} depends on {used}: it may use {allowed:?}");
        }
    }
}

#[test]
fn no_service_depends_on_a_service_but_the_binary() {
    for (name, it) in members() {
        if it.folder != "services" || name == "berth" {
            continue;
        }
        for used in it.ours() {
            assert!(SERVICE.contains(&used), "{name} depends on {used}: it may use {SERVICE:?}");
        }
    }
}

#[test]
fn the_testkit_is_for_tests_alone() {
    for (name, it) in members() {
        assert!(!it.normal.contains("berth-testkit"), "{name} depends on berth-testkit");
    }
}
