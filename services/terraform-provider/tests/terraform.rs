//! The provider under a real Terraform. Skipped, with a line that says so, where there is none.

#![expect(clippy::unwrap_used, reason = "all of it is test code")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// A directory with a template, a mirror that leads to the provider, and an environment.
struct Template {
    tool: &'static str,
    dir: tempfile::TempDir,
    env: BTreeMap<String, String>,
}

/// Holds a test with Terraform and with OpenTofu, whichever is there; says so of the one that is not.
fn each_tool(test: impl Fn(&'static str)) {
    for tool in ["terraform", "tofu"] {
        if Command::new(tool).arg("version").output().is_ok() {
            test(tool);
        } else {
            println!("skipped: {tool} is not on PATH");
        }
    }
}

/// The provider's address, as the tool writes it.
fn address(tool: &str) -> &'static str {
    match tool {
        "tofu" => "registry.opentofu.org/coder/coder",
        _ => "registry.terraform.io/coder/coder",
    }
}

/// The program that `examples/serve.rs` becomes, beside the directory of this test's program.
fn provider() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let provider = tests.parent().and_then(Path::parent).unwrap().join("examples/serve");
    assert!(provider.exists(), "{} is missing: `cargo build --examples`", provider.display());
    provider
}

fn hashed(prefix: &str, name: &str) -> String {
    format!("{prefix}_{}", hex::encode(Sha256::digest(name)))
}

impl Template {
    /// Writes the template and initialises it.
    fn new(tool: &'static str, hcl: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mirror = dir.path().join("mirror");
        berth_terraform_provider::mirror(&mirror, &provider()).unwrap();
        let config = format!(
            "provider_installation {{\n  filesystem_mirror {{\n    path = \"{}\"\n  }}\n}}\n",
            mirror.display()
        );
        std::fs::write(dir.path().join("terraform.rc"), config).unwrap();
        let head = "terraform {\n  required_providers {\n    coder = { source = \"coder/coder\" }\n  }\n}\n";
        std::fs::write(dir.path().join("main.tf"), format!("{head}{hcl}")).unwrap();
        let template = Self { tool, dir, env: BTreeMap::new() };
        template.succeed(&["init"]);
        template
    }

    fn set(&mut self, name: &str, value: &str) {
        self.env.insert(name.to_owned(), value.to_owned());
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let path = std::env::var_os("PATH").unwrap();
        Command::new(self.tool)
            .args(arguments)
            .current_dir(self.dir.path())
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.dir.path())
            .env("CHECKPOINT_DISABLE", "1")
            .env("TF_IN_AUTOMATION", "1")
            .env("TF_INPUT", "0")
            .env("TF_CLI_CONFIG_FILE", self.dir.path().join("terraform.rc"))
            .envs(&self.env)
            .output()
            .unwrap()
    }

    #[track_caller]
    fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "terraform {arguments:?}:\n{stdout}\n{stderr}");
        stdout
    }

    /// What Terraform says of a command that fails, without line breaks.
    #[track_caller]
    fn fail(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(!output.status.success(), "terraform {arguments:?} succeeded");
        let stderr = String::from_utf8_lossy(&output.stderr).replace(['│', '\n'], " ");
        stderr.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn apply(&self) {
        self.succeed(&["apply", "-no-color", "-auto-approve"]);
    }

    /// The actions that a plan would take, by address.
    fn planned(&self) -> BTreeMap<String, Vec<String>> {
        self.succeed(&["plan", "-no-color", "-out=plan"]);
        let plan: Value = serde_json::from_str(&self.succeed(&["show", "-json", "plan"])).unwrap();
        let mut actions = BTreeMap::new();
        for change in plan["resource_changes"].as_array().into_iter().flatten() {
            let taken: Vec<String> =
                serde_json::from_value(change["change"]["actions"].clone()).unwrap();
            if taken != ["no-op"] {
                actions.insert(change["address"].as_str().unwrap().to_owned(), taken);
            }
        }
        actions
    }

    /// The values of a resource or data source in the state.
    fn values(&self, address: &str) -> Value {
        let state: Value = serde_json::from_str(&self.succeed(&["show", "-json"])).unwrap();
        let resources = state["values"]["root_module"]["resources"].as_array().unwrap();
        let found = resources.iter().find(|resource| resource["address"] == address);
        found.unwrap_or_else(|| panic!("{address} is not in the state"))["values"].clone()
    }
}

const WORKSPACE: &str = r#"
data "coder_workspace" "me" {}
data "coder_workspace_owner" "me" {}
data "coder_provisioner" "me" {}

data "coder_parameter" "region" {
  name    = "region"
  type    = "string"
  default = "eu"
  option {
    name  = "Europe"
    value = "eu"
  }
  option {
    name  = "America"
    value = "us"
  }
}

data "coder_parameter" "size" {
  name    = "size"
  type    = "number"
  default = 2
  mutable = true
  validation {
    min       = 1
    max       = 8
    monotonic = "increasing"
    error     = "{value} is not {min} to {max}."
  }
}

data "coder_workspace_preset" "small" {
  name       = "small"
  parameters = { region = "eu", size = "1" }
  prebuilds {
    instances = 2
    expiration_policy {
      ttl = 86400
    }
    scheduling {
      timezone = "Europe/Zurich"
      schedule {
        cron      = "* 9-18 * * 1-5"
        instances = 5
      }
    }
  }
}

data "coder_workspace_tags" "tags" {
  tags = { cluster = data.coder_parameter.region.value }
}

resource "coder_agent" "main" {
  os             = data.coder_provisioner.me.os
  arch           = data.coder_provisioner.me.arch
  startup_script = "echo ${data.coder_parameter.region.value}"
  env            = { WORKSPACE = data.coder_workspace.me.name }
  metadata {
    key      = "cpu"
    script   = "cat /proc/loadavg"
    interval = 10
  }
  resources_monitoring {
    memory {
      enabled   = true
      threshold = 80
    }
    volume {
      path      = "/home"
      enabled   = true
      threshold = 90
    }
    volume {
      path      = "/data"
      enabled   = false
      threshold = 50
    }
  }
}

resource "coder_script" "hello" {
  agent_id     = coder_agent.main.id
  display_name = "Hello"
  script       = "echo hello"
  run_on_start = true
}

resource "coder_app" "code" {
  agent_id = coder_agent.main.id
  slug     = "code"
  url      = "http://localhost:8080"
  healthcheck {
    url       = "http://localhost:8080/healthz"
    interval  = 5
    threshold = 6
  }
}

resource "coder_env" "editor" {
  agent_id = coder_agent.main.id
  name     = "EDITOR"
  value    = "vim"
}

resource "terraform_data" "machine" {
  count = data.coder_workspace.me.start_count
  input = coder_agent.main.token
}

resource "coder_metadata" "machine" {
  count       = data.coder_workspace.me.start_count
  resource_id = terraform_data.machine[0].id
  daily_cost  = 3
  item {
    key   = "token"
    value = coder_agent.main.token
  }
  item {
    key = "nothing"
  }
}
"#;

#[test]
fn a_template_is_applied_planned_without_changes_and_destroyed() {
    each_tool(|tool| {
        let mut template = Template::new(tool, WORKSPACE);
        template.set("CODER_AGENT_SCRIPT_linux_amd64", "connect ${ACCESS_URL} by ${AUTH_TYPE}");
        template.set("CODER_AGENT_URL", "https://berth.example:8443");
        template.apply();

        let agent = template.values("coder_agent.main");
        assert_eq!(agent["auth"], "token");
        assert_eq!(agent["connection_timeout"], 120);
        assert_eq!(agent["startup_script"], "echo eu");
        assert_eq!(agent["startup_script_behavior"], "non-blocking");
        assert_eq!(agent["display_apps"][0]["web_terminal"], true);
        assert_eq!(agent["display_apps"][0]["vscode_insiders"], false);
        if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            assert_eq!(agent["init_script"], "connect https://berth.example:8443/ by token");
        }
        for computed in ["id", "token"] {
            assert!(agent[computed].as_str().unwrap().parse::<uuid::Uuid>().is_ok());
        }
        assert_eq!(template.values("coder_script.hello")["agent_id"], agent["id"]);
        let app = template.values("coder_app.code");
        assert_eq!((&app["share"], &app["open_in"]), (&"owner".into(), &"slim-window".into()));
        assert_eq!(template.values("coder_env.editor")["merge_strategy"], "replace");
        let items = template.values("coder_metadata.machine[0]")["item"].clone();
        assert_eq!((&items[0]["is_null"], &items[1]["is_null"]), (&false.into(), &true.into()));
        let size = template.values("data.coder_parameter.size");
        assert_eq!((&size["value"], &size["optional"]), (&"2".into(), &true.into()));
        assert_eq!(size["validation"][0]["min_disabled"], false);
        let workspace = template.values("data.coder_workspace.me");
        assert_eq!(
            (&workspace["name"], &workspace["access_port"]),
            (&"default".into(), &8443.into())
        );

        assert_eq!(template.planned(), BTreeMap::new());
        template.succeed(&["destroy", "-no-color", "-auto-approve"]);
        assert_eq!(template.succeed(&["state", "list"]), "");
    });
}

#[test]
fn stopping_removes_the_machine_and_keeps_the_agent() {
    each_tool(|tool| {
        let mut template = Template::new(tool, WORKSPACE);
        template.apply();
        template.set("CODER_WORKSPACE_TRANSITION", "stop");
        let delete = vec!["delete".to_owned()];
        assert_eq!(
            template.planned(),
            BTreeMap::from([
                ("coder_metadata.machine[0]".to_owned(), delete.clone()),
                ("terraform_data.machine[0]".to_owned(), delete),
            ])
        );
    });
}

#[test]
fn a_claim_keeps_the_agents_token_and_replaces_nothing() {
    each_tool(|tool| {
        let mut template = Template::new(tool, WORKSPACE);
        template.set("CODER_WORKSPACE_IS_PREBUILD", "true");
        template.set("CODER_WORKSPACE_OWNER", "prebuilds");
        template.apply();
        assert_eq!(template.values("data.coder_workspace.me")["prebuild_count"], 1);
        let prebuilt = template.values("coder_agent.main");

        let (id, token) = (prebuilt["id"].as_str().unwrap(), prebuilt["token"].as_str().unwrap());
        template.set("CODER_WORKSPACE_IS_PREBUILD", "false");
        template.set("CODER_WORKSPACE_IS_PREBUILD_CLAIM", "true");
        template.set("CODER_WORKSPACE_OWNER", "alice");
        template.set(&hashed("CODER_RUNNING_WORKSPACE_AGENT_TOKEN", id), token);
        assert_eq!(template.planned(), BTreeMap::new());
        template.apply();
        assert_eq!(template.values("coder_agent.main"), prebuilt);
        assert_eq!(template.values("data.coder_workspace.me")["is_prebuild_claim"], true);
        assert_eq!(template.values("data.coder_workspace_owner.me")["name"], "alice");
    });
}

/// Another provider wrote another token into the state than the agent runs with.
#[test]
fn a_claim_gives_the_agent_the_token_it_runs_with() {
    each_tool(|tool| {
        let mut template = Template::new(tool, WORKSPACE);
        template.apply();
        let id = template.values("coder_agent.main")["id"].as_str().unwrap().to_owned();
        template.set(&hashed("CODER_RUNNING_WORKSPACE_AGENT_TOKEN", &id), "running");
        template.apply();
        assert_eq!(template.values("coder_agent.main")["token"], "running");
        assert_eq!(template.values("terraform_data.machine[0]")["input"], "running");
    });
}

#[test]
fn a_changed_argument_replaces_the_agent_and_what_hangs_on_it() {
    each_tool(|tool| {
        let mut template = Template::new(tool, WORKSPACE);
        template.apply();
        template.set(&hashed("CODER_PARAMETER", "region"), "us");
        let planned = template.planned();
        let replaced = vec!["delete".to_owned(), "create".to_owned()];
        for address in
            ["coder_agent.main", "coder_app.code", "coder_script.hello", "coder_env.editor"]
        {
            assert_eq!(planned.get(address), Some(&replaced), "{address}");
        }
        let before = template.values("coder_agent.main");
        template.succeed(&["apply", "-no-color", "plan"]);
        let after = template.values("coder_agent.main");
        assert_eq!(after["startup_script"], "echo us");
        assert_ne!(before["id"], after["id"]);
        assert_eq!(template.planned(), BTreeMap::new());
    });
}

#[test]
fn a_bad_parameter_value_fails_with_parameter_and_value() {
    each_tool(|tool| {
        let mut template = Template::new(tool, WORKSPACE);
        for (name, value, expected) in [
            ("region", "mars", r#"Invalid value for parameter "region""#),
            ("region", "mars", r#""mars" is not one of the options; choose "eu", "us"."#),
            ("size", "9", r#"The value "9" cannot be used: 9 is not 1 to 8."#),
            ("size", "big", r#""big" is not a decimal number."#),
        ] {
            template.env.clear();
            template.set(&hashed("CODER_PARAMETER", name), value);
            let message = template.fail(&["plan", "-no-color"]);
            assert!(message.contains(expected), "{message}");
        }
        template.env.clear();
        template.set(&hashed("CODER_PARAMETER", "size"), "3");
        template.set(&hashed("CODER_PARAMETER_PREVIOUS", "size"), "4");
        let message = template.fail(&["plan", "-no-color"]);
        assert!(message.contains(r#"The value "3" cannot be used"#), "{message}");
    });
}

#[test]
fn a_bad_template_fails_with_the_place_and_the_reason() {
    each_tool(|tool| {
        for (hcl, expected) in [
            (
                r#"resource "coder_agent" "a" {
                os   = "linux"
                arch = "sparc"
            }"#,
                r#""sparc" is none of "amd64", "armv7", "arm64"."#,
            ),
            (
                r#"resource "coder_script" "s" {
                agent_id     = "x"
                display_name = "s"
                script       = "true"
            }"#,
                r#"Set at least one of "run_on_start", "run_on_stop" and "cron"."#,
            ),
            (
                r#"data "coder_workspace_preset" "p" {
                name = "night"
                prebuilds {
                    instances = 1
                    expiration_policy { ttl = 60 }
                }
            }"#,
                r#"preset "night" has an expiration ttl of 60 s"#,
            ),
            (
                r#"data "coder_workspace_preset" "p" {
                name = "night"
                prebuilds {
                    instances = 1
                    scheduling {
                        timezone = "Mars/Olympus"
                        schedule {
                            cron      = "0 9 * * *"
                            instances = 1
                        }
                    }
                }
            }"#,
                r#"unknown timezone "Mars/Olympus""#,
            ),
        ] {
            let template = Template::new(tool, hcl);
            let message = template.fail(&["plan", "-no-color"]);
            assert!(message.contains(expected), "{message}");
            assert!(message.contains("on main.tf line"), "the place is missing: {message}");
        }
    });
}

/// The template of the state that `public-state.json` holds, which has the shape in which the public
/// provider writes it: `coder_env.path` is from before `merge_strategy`.
const PUBLIC: &str = r#"
resource "coder_agent" "main" {
  os             = "linux"
  arch           = "amd64"
  startup_script = "echo hello"
  env            = { EDITOR = "vi" }
  metadata {
    key          = "cpu"
    display_name = "CPU"
    script       = "cat /proc/loadavg"
    interval     = 10
  }
  resources_monitoring {
    memory {
      enabled   = true
      threshold = 80
    }
  }
}
resource "coder_app" "web" {
  agent_id     = coder_agent.main.id
  slug         = "web"
  display_name = "Web"
  url          = "http://localhost:8080"
  healthcheck {
    url       = "http://localhost:8080/healthz"
    interval  = 5
    threshold = 6
  }
}
resource "coder_script" "hello" {
  agent_id     = coder_agent.main.id
  display_name = "Hello"
  script       = "echo hello"
  run_on_start = true
}
resource "coder_env" "path" {
  agent_id = coder_agent.main.id
  name     = "TOOLS"
  value    = "/opt/tools"
}
resource "coder_env" "mode" {
  agent_id       = coder_agent.main.id
  name           = "TOOLS"
  value          = "/opt/more"
  merge_strategy = "append"
}
resource "coder_agent_instance" "vm" {
  agent_id    = coder_agent.main.id
  instance_id = "i-0123"
}
resource "coder_devcontainer" "dc" {
  agent_id         = coder_agent.main.id
  workspace_folder = "/work"
}
resource "coder_metadata" "main" {
  resource_id = coder_agent.main.id
  daily_cost  = 3
  item {
    key   = "region"
    value = "eu"
  }
  item {
    key = "nothing"
  }
}
"#;

fn public_state(tool: &str) -> Value {
    let provider = format!("provider[\\\"{}\\\"]", address(tool));
    let state = include_str!("public-state.json").replace("PROVIDER", &provider);
    serde_json::from_str(&state).unwrap()
}

/// A workspace may change between the two providers in the middle of its life.
#[test]
fn a_state_of_the_public_provider_is_refreshed_without_changes_and_destroyed() {
    each_tool(|tool| {
        let template = Template::new(tool, PUBLIC);
        let state = public_state(tool);
        let file = template.dir.path().join("terraform.tfstate");
        std::fs::write(&file, serde_json::to_vec(&state).unwrap()).unwrap();
        assert_eq!(template.planned(), BTreeMap::new());
        template.apply();
        let agent = template.values("coder_agent.main");
        assert_eq!(agent["token"], state["resources"][0]["instances"][0]["attributes"]["token"]);
        assert_eq!(template.values("coder_env.path")["merge_strategy"], "replace");
        template.succeed(&["destroy", "-no-color", "-auto-approve"]);
        assert_eq!(template.succeed(&["state", "list"]), "");
    });
}

/// What we write has the public provider's layout: its version, which it refuses to be newer than its
/// own, and every attribute, of the same types.
#[test]
fn our_state_has_the_shape_of_the_public_providers() {
    each_tool(|tool| {
        let template = Template::new(tool, PUBLIC);
        template.apply();
        let file = template.dir.path().join("terraform.tfstate");
        let ours: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let instance = |state: &Value, kind: &Value, name: &Value| {
            let resources = state["resources"].as_array().unwrap();
            let found = resources.iter().find(|it| it["type"] == *kind && it["name"] == *name);
            found.unwrap_or_else(|| panic!("{kind} {name}"))["instances"][0].clone()
        };
        for public in public_state(tool)["resources"].as_array().unwrap() {
            let (kind, name) = (&public["type"], &public["name"]);
            let ours = instance(&ours, kind, name);
            let public = &public["instances"][0];
            assert_eq!(ours["schema_version"], public["schema_version"], "{kind}");
            for (attribute, value) in public["attributes"].as_object().unwrap() {
                let ours = &ours["attributes"][attribute];
                let is_made =
                    attribute == "id" || attribute.ends_with("_id") || attribute == "token";
                if is_made && value.is_string() {
                    assert!(ours.is_string(), "{kind}.{attribute}");
                } else {
                    assert_eq!(ours, value, "{kind}.{attribute}");
                }
            }
        }
    });
}

#[test]
fn a_template_is_validated_without_a_plan() {
    each_tool(|tool| {
        let template = Template::new(tool, WORKSPACE);
        template.succeed(&["validate", "-no-color"]);
        let bad = "resource \"coder_agent\" \"a\" {\n  os   = \"plan9\"\n  arch = \"amd64\"\n}\n";
        let template = Template::new(tool, bad);
        let message = template.fail(&["validate", "-no-color"]);
        assert!(message.contains("\"plan9\" is none of"), "{message}");
        let unknown =
            "resource \"coder_env\" \"a\" {\n  agent_id = \"x\"\n  name = \"A\"\n  colour = 1\n}\n";
        let message = Template::new(tool, unknown).fail(&["validate", "-no-color"]);
        assert!(message.contains("\"colour\" is not expected here"), "{message}");
    });
}

#[test]
fn nothing_can_be_imported_and_the_error_says_why() {
    each_tool(|tool| {
        let template =
            Template::new(tool, "resource \"coder_external_agent\" \"a\" { agent_id = \"x\" }\n");
        let message = template.fail(&["import", "-no-color", "coder_external_agent.a", "some-id"]);
        assert!(message.contains("exists in Terraform's state only"), "{message}");
    });
}

#[test]
fn the_schema_is_that_of_the_reference() {
    each_tool(|tool| {
        let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/reference");
        let Ok(reference) = std::fs::read(shared.join("terraform-provider.json")) else {
            println!("skipped: ../shared/reference/terraform-provider.json is not there");
            return;
        };
        let reference: Value = serde_json::from_slice(&reference).unwrap();
        let template = Template::new(tool, "");
        let schemas: Value =
            serde_json::from_str(&template.succeed(&["providers", "schema", "-json"])).unwrap();
        let ours = &schemas["provider_schemas"][address(tool)];
        check_block(&ours["provider"]["block"], &reference["provider"], "root", "provider");
        for (kind, schemas) in
            [("data_sources", "data_source_schemas"), ("resources", "resource_schemas")]
        {
            let names = |value: &Value| -> BTreeSet<String> {
                value.as_object().unwrap().keys().cloned().collect()
            };
            assert_eq!(names(&ours[schemas]), names(&reference[kind]), "{kind}");
            for (name, expected) in reference[kind].as_object().unwrap() {
                check_block(&ours[schemas][name]["block"], expected, "root", name);
            }
        }
    });
}

/// Holds one block of ours, and the blocks inside it, against the reference's.
fn check_block(ours: &Value, reference: &Value, block: &str, place: &str) {
    let mut names = BTreeSet::new();
    for usage in ["required", "optional", "read_only"] {
        for (name, expected) in reference[block][usage].as_object().into_iter().flatten() {
            names.insert(name.clone());
            let place = format!("{place}.{name}");
            let expected = expected.as_str().unwrap();
            if expected.starts_with("Block") {
                let ours = &ours["block_types"][name];
                check_nested(ours, expected, &place);
                let inner = if block == "root" { name.clone() } else { format!("{block}.{name}") };
                check_block(&ours["block"], reference, &inner, &place);
            } else {
                check_attribute(&ours["attributes"][name], expected, usage, &place);
            }
        }
    }
    let keys = |value: &Value| {
        value.as_object().map(|it| it.keys().cloned().collect::<BTreeSet<_>>()).unwrap_or_default()
    };
    let ours: BTreeSet<_> =
        keys(&ours["attributes"]).union(&keys(&ours["block_types"])).cloned().collect();
    assert_eq!(ours, names, "{place}");
}

fn check_nested(ours: &Value, expected: &str, place: &str) {
    let parts: Vec<_> = expected.split(", ").collect();
    let nesting = if parts[0] == "Block List" { "list" } else { "set" };
    assert_eq!(ours["nesting_mode"], nesting, "{place}");
    let bound = |name: &str| {
        let bound = parts.iter().find_map(|part| part.strip_prefix(name));
        bound.map_or(0, |bound| bound.parse::<u64>().unwrap())
    };
    assert_eq!(ours["min_items"].as_u64().unwrap_or(0), bound("Min: "), "{place}");
    assert_eq!(ours["max_items"].as_u64().unwrap_or(0), bound("Max: "), "{place}");
    let deprecated = ours["block"]["deprecated"] == true;
    assert_eq!(deprecated, parts.contains(&"Deprecated"), "{place}");
}

fn check_attribute(ours: &Value, expected: &str, usage: &str, place: &str) {
    let parts: Vec<_> = expected.split(", ").collect();
    let is = |flag: &str| ours[flag] == true;
    match usage {
        "required" => assert!(is("required"), "{place} is required"),
        "optional" => assert!(is("optional"), "{place} is optional"),
        _ => assert!(is("computed") && !is("optional"), "{place} is read-only"),
    }
    let kind = match parts[0] {
        "String" => serde_json::json!("string"),
        "Number" => serde_json::json!("number"),
        "Boolean" => serde_json::json!("bool"),
        "List of String" => serde_json::json!(["list", "string"]),
        "Map of String" => serde_json::json!(["map", "string"]),
        "List of Object" => {
            serde_json::json!(["list", ["object", {"name": "string", "org_id": "string"}]])
        }
        other => panic!("{place}: the reference has an unknown type {other:?}"),
    };
    assert_eq!(ours["type"], kind, "{place}");
    assert_eq!(is("sensitive"), parts.contains(&"Sensitive"), "{place}");
    assert_eq!(is("deprecated"), parts.contains(&"Deprecated"), "{place}");
}
