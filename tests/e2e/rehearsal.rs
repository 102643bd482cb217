//! With a real Terraform: what a claim would replace is known before anybody claims, and the
//! environment of several `coder_env` is merged in the order of their addresses.

use std::time::Duration;

use berth_testkit::{Archive, SOON, TestStack, wait_until};
use serde_json::{Value, json};

use crate::BERTH;

/// Terraform's `init` and its plans take a while on a busy machine.
const LONG: Duration = Duration::from_mins(2);
/// "Resource replaced" of 70-notifications.
const RESOURCE_REPLACED: &str = "89d9745a-816e-4695-a17f-3d0a229e2b8d";

const HEAD: &str = r#"
terraform {
  required_providers {
    coder = {
      source = "coder/coder"
    }
  }
}
data "coder_workspace" "me" {}
data "coder_workspace_owner" "me" {}
"#;

/// The folder follows the owner, and the machine the folder; the note only changes.
const OWNED: &str = r#"
variable "region" { type = string }
variable "token" {
  type      = string
  sensitive = true
  default   = "none"
}
data "coder_workspace_preset" "small" {
  name = "small"
  prebuilds { instances = 1 }
}
resource "terraform_data" "folder" {
  triggers_replace = data.coder_workspace_owner.me.id
  input            = "${var.region}-${nonsensitive(var.token)}"
}
resource "terraform_data" "machine" {
  count            = data.coder_workspace.me.start_count
  triggers_replace = { folder = terraform_data.folder.id, size = 1 }
}
resource "terraform_data" "note" {
  input = data.coder_workspace_owner.me.name
}
"#;

const ENVS: &str = r#"
resource "coder_agent" "main" {
  os   = "linux"
  arch = "amd64"
  env  = { OWN = "agent" }
}
resource "coder_env" "c" {
  agent_id       = coder_agent.main.id
  name           = "TOOLS"
  value          = "/c"
  merge_strategy = "append"
}
resource "coder_env" "a" {
  agent_id = coder_agent.main.id
  name     = "TOOLS"
  value    = "/a"
}
resource "coder_env" "b" {
  agent_id       = coder_agent.main.id
  name           = "TOOLS"
  value          = "/b"
  merge_strategy = "prepend"
}
resource "coder_env" "own" {
  agent_id = coder_agent.main.id
  name     = "OWN"
  value    = "env"
}
resource "coder_env" "many" {
  count          = 11
  agent_id       = coder_agent.main.id
  name           = "MANY"
  value          = count.index
  merge_strategy = "append"
}
resource "coder_agent" "side" {
  os   = "linux"
  arch = "amd64"
}
resource "coder_env" "side" {
  agent_id       = coder_agent.side.id
  name           = "TOOLS"
  value          = "/side"
  merge_strategy = "error"
}
resource "terraform_data" "machine" {
  count = data.coder_workspace.me.start_count
  input = [coder_agent.main.id, coder_agent.side.id]
}
"#;

fn archive(main: &str) -> Vec<u8> {
    Archive::default().file("main.tf", &format!("{HEAD}{main}")).bytes()
}

pub(crate) fn has_terraform() -> bool {
    let has = std::process::Command::new("terraform").arg("version").output().is_ok();
    if !has {
        eprintln!("skipped: terraform is not on PATH");
    }
    has
}

/// Pushes a version and waits for the end of its import.
pub(crate) async fn push(stack: &TestStack, main: &str, more: Value) -> Value {
    let (app, owner) = (&stack.app, &stack.owner);
    let file = app.upload(owner, archive(main)).await.ok();
    let mut body = json!({
        "file_id": file["hash"], "storage_method": "file", "provisioner": "terraform",
    });
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    let path = format!("/organizations/{}/templateversions", owner.organization);
    let version = app.post(owner, &path, body).await.expect(201);
    app.imported(owner, &version, LONG).await
}

async fn template(stack: &TestStack, name: &str, version: &Value) -> Value {
    let body = json!({ "name": name, "template_version_id": version["id"] });
    let path = format!("/organizations/{}/templates", stack.owner.organization);
    stack.app.post(&stack.owner, &path, body).await.ok()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rehearsal_finds_what_depends_on_the_owner_before_anybody_claims() {
    if !has_terraform() {
        return;
    }
    let stack = TestStack::builder(BERTH).start().await;
    let (app, owner) = (&stack.app, &stack.owner);
    let refused = push(&stack, OWNED, json!({})).await;
    assert_eq!(refused["job"]["error_code"], "REQUIRED_TEMPLATE_VARIABLES", "{refused:#}");
    assert!(text(&refused["job"]["error"]).contains("region"), "{refused:#}");

    let values =
        json!([{ "name": "region", "value": "eu" }, { "name": "token", "value": "opal-hush" }]);
    let version = push(&stack, OWNED, json!({ "user_variable_values": values })).await;
    assert_eq!(version["job"]["status"], "succeeded", "{version:#}");
    let template = template(&stack, "owned", &version).await;
    let path = format!("/templateversions/{}", text(&version["id"]));
    let rehearsal = wait_until("the pool was rehearsed", LONG, async || {
        let version = app.get(owner, &path).await.expect(200);
        let rehearsal = version["rehearsals"][0].clone();
        (!rehearsal["outcome"].is_null()).then_some(rehearsal)
    })
    .await;
    assert_eq!(rehearsal["outcome"], "replaces", "{rehearsal:#}");
    assert_eq!(rehearsal["preset_name"], "small");
    assert_eq!(
        rehearsal["replacements"],
        json!({
            "terraform_data.folder": ["triggers_replace"],
            "terraform_data.machine[0]": ["triggers_replace"],
        }),
        "the note changes in place: {rehearsal:#}"
    );
    let message = wait_until("the owner's inbox has the message", SOON, async || {
        let inbox = app.get(owner, "/notifications/inbox").await.expect(200);
        let all = inbox["notifications"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|it| it["template_id"] == RESOURCE_REPLACED)
    })
    .await;
    assert!(text(&message["content"]).contains("terraform_data.folder"), "{message:#}");
    let claims = "select count(*) from claim_attempts";
    assert_eq!(stack.database().count(claims).await, 0, "nobody has claimed");
    stack.pool_has(&template, 1).await;
    let states = "select count(*) from workspace_builds";
    assert_eq!(stack.database().count(states).await, 1, "nothing was built for it");

    let explained = format!("/templates/{}/prebuilds/explain", text(&template["id"]));
    let explained = app.get(owner, &explained).await.expect(200);
    assert_eq!(explained["pools"][0]["rehearsal"]["outcome"], "replaces");
    keeps_variables(&stack, &template, &path).await;
}

/// Another version keeps the values; what is secret is never shown.
async fn keeps_variables(stack: &TestStack, template: &Value, first: &str) {
    let (app, owner) = (&stack.app, &stack.owner);
    let next = push(stack, OWNED, json!({ "template_id": template["id"] })).await;
    assert_eq!(next["job"]["status"], "succeeded", "{next:#}");
    for path in [first, &format!("/templateversions/{}", text(&next["id"]))] {
        let variables = app.get(owner, &format!("{path}/variables")).await.expect(200);
        let shown = |index: usize| {
            let it = &variables[index];
            (text(&it["name"]).to_owned(), text(&it["value"]).to_owned(), it["sensitive"] == true)
        };
        assert_eq!(shown(0), ("region".to_owned(), "eu".to_owned(), false));
        assert_eq!(shown(1), ("token".to_owned(), String::new(), true));
    }
    let kept = "select count(*) from template_version_variables where name = 'token' and sealed is not null";
    assert_eq!(stack.database().count(kept).await, 2, "it is kept all the same");
    let found = stack.database().tables_with("opal-hush").await;
    assert!(found.is_empty(), "readable in {found:?}");
    let tpyo = json!({
        "template_id": template["id"],
        "user_variable_values": [{ "name": "reigon", "value": "eu" }],
    });
    let refused = push(stack, OWNED, tpyo).await;
    assert!(text(&refused["job"]["error"]).contains("reigon"), "{refused:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn environments_are_merged_by_address_and_a_dry_run_shows_what_would_be() {
    if !has_terraform() {
        return;
    }
    let stack = TestStack::builder(BERTH).start().await;
    let (app, owner) = (&stack.app, &stack.owner);
    let version = push(&stack, ENVS, json!({})).await;
    assert_eq!(version["job"]["status"], "succeeded", "{version:#}");
    let template = template(&stack, "envs", &version).await;
    let made = app.create_workspace(owner, &template, None, "mine").await.ok();
    let path = format!("/workspaces/{}", text(&made["id"]));
    let built = wait_until("the workspace is built", LONG, async || {
        let workspace = app.get(owner, &path).await.expect(200);
        let status = text(&workspace["latest_build"]["job"]["status"]).to_owned();
        assert!(!["failed", "canceled"].contains(&&*status), "{workspace:#}");
        (status == "succeeded").then_some(workspace)
    })
    .await;
    let resources = built["latest_build"]["resources"].as_array().cloned().unwrap_or_default();
    let agents: Vec<_> =
        resources.iter().filter_map(|it| it["agents"].as_array()).flatten().collect();
    let env = |name: &str| {
        let agent = agents.iter().find(|it| it["name"] == name);
        agent.unwrap_or_else(|| panic!("no agent {name}: {built:#}"))["environment_variables"]
            .clone()
    };
    // As texts: [10] comes between [1] and [2].
    let many = "0:10:1:2:3:4:5:6:7:8:9";
    assert_eq!(env("main"), json!({ "TOOLS": "/b:/a:/c", "OWN": "agent", "MANY": many }));
    assert_eq!(env("side"), json!({ "TOOLS": "/side" }), "another agent's is its own");

    let conflict = ENVS.replace("\"prepend\"", "\"error\"");
    let refused = push(&stack, &conflict, json!({ "template_id": template["id"] })).await;
    let error = text(&refused["job"]["error"]);
    assert!(error.contains("coder_env.a") && error.contains("coder_env.b"), "{error}");
    dry_run(&stack, &version).await;
}

async fn dry_run(stack: &TestStack, version: &Value) {
    let (app, owner) = (&stack.app, &stack.owner);
    let path = format!("/templateversions/{}/dry-run", text(&version["id"]));
    let unknown = json!({ "rich_parameter_values": [{ "name": "size", "value": "1" }] });
    app.post(owner, &path, unknown).await.expect(400);
    let job = app.post(owner, &path, json!({ "workspace_name": "trial" })).await.expect(201);
    assert_eq!(job["type"], "template_version_dry_run");
    let path = format!("{path}/{}", text(&job["id"]));
    let job = wait_until("the dry run ends", LONG, async || {
        let job = app.get(owner, &path).await.expect(200);
        (!job["completed_at"].is_null()).then_some(job)
    })
    .await;
    assert_eq!(job["status"], "succeeded", "{job:#}");
    let resources = app.get(owner, &format!("{path}/resources")).await.expect(200);
    assert_eq!(resources[0]["agents"][0]["name"], "main", "{resources:#}");
    let logs = app.get(owner, &format!("{path}/logs")).await.expect(200);
    assert!(!logs.as_array().expect("lines").is_empty());
    let alice = stack.user("alice").await;
    app.get(&alice, &path).await.expect(404);
}
