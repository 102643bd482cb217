//! Real Terraform, from the API to the state: what it is given of the owner and of running agents.
//! They need a `terraform` on PATH and say so where there is none.

use std::path::Path;
use std::time::Duration;

use berth_testkit::{Archive, SOON, Service, TestStack, User, wait_until};
use serde_json::{Value, json};

use crate::BERTH;

/// An import of a debug build of the provider takes its time.
const IMPORT: Duration = Duration::from_mins(2);

/// The template, or `None` and a word about it.
pub(crate) async fn given(stack: &TestStack, name: &str, main: &str) -> Option<Value> {
    let found =
        std::env::split_paths(&std::env::var_os("PATH")?).any(|it| it.join("terraform").is_file());
    if !found {
        eprintln!("skipped: there is no terraform on PATH");
        return None;
    }
    let archive = Archive::default().file("main.tf", main).bytes();
    let version = stack.app.given_version(&stack.owner, archive, "terraform", None).await;
    let version = stack.app.imported(&stack.owner, &version, IMPORT).await;
    assert_eq!(version["job"]["status"], "succeeded", "{version:#}");
    let body = json!({ "name": name, "template_version_id": version["id"] });
    let path = format!("/organizations/{}/templates", stack.owner.organization);
    Some(stack.app.post(&stack.owner, &path, body).await.ok())
}

const WITH_SECRET: &str = r#"
terraform {
  required_providers { coder = { source = "coder/coder" } }
}
data "coder_workspace" "me" {}
data "coder_secret" "token" {
  env          = "DEPLOY_TOKEN"
  help_message = "Store your deploy token."
}
data "coder_secret" "key" {
  file         = "~/.deploy/key"
  help_message = "Store your deploy key."
}
resource "terraform_data" "uses" {
  count            = data.coder_workspace.me.start_count
  input            = nonsensitive(sha256("${data.coder_secret.token.value}${data.coder_secret.key.value}"))
  triggers_replace = timestamp()
  provisioner "local-exec" { command = "env | sort > $E2E_DIR/apply.env" }
}
"#;

/// Put together here, so that no log of this program's own has it.
fn value() -> String {
    ["opal", "-7f3a", "-deploy"].concat()
}

async fn store(stack: &TestStack, user: &User) {
    let path = "/users/me/secrets";
    let body = json!({ "name": "deploy", "env_name": "DEPLOY_TOKEN", "value": value() });
    let made = stack.app.post(user, path, body.clone()).await.expect(201);
    assert!(made.get("value").is_none(), "{made}");
    assert_eq!(stack.app.post(user, path, body).await.status, 409);
    let body = json!({ "name": "key", "file_path": "~/.deploy/key", "value": "x" });
    stack.app.post(user, path, body).await.expect(201);
    let reserved = json!({ "name": "bad", "env_name": "CODER_AGENT_TOKEN", "value": "x" });
    assert_eq!(stack.app.post(user, path, reserved).await.status, 400);
}

async fn build(stack: &TestStack, user: &User, workspace: &Value, transition: &str) -> Value {
    let id = workspace["id"].as_str().expect("an id");
    let path = format!("/workspaces/{id}/builds");
    stack.app.post(user, &path, json!({ "transition": transition })).await.ok();
    stack.app.built(user, workspace).await
}

/// The value is in the plan and nowhere else: not in apply, logs, events, spans, answers, or
/// anywhere readable in the database; other users neither see nor change it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_secret_reaches_the_plan_of_a_start_and_is_readable_nowhere() {
    let stack = TestStack::builder(BERTH).start().await;
    let Some(template) = given(&stack, "deploys", WITH_SECRET).await else { return };
    let (alice, bob) = (stack.user("alice").await, stack.user("bob").await);
    let without = stack.app.create_workspace(&alice, &template, None, "without").await.ok();
    let without = stack.app.built(&alice, &without).await;
    let error = without["latest_build"]["job"]["error"].as_str().unwrap_or_default().to_owned();
    assert!(error.contains("Store your deploy token."), "{without:#}");

    store(&stack, &alice).await;
    let mine = stack.app.create_workspace(&alice, &template, None, "mine").await.ok();
    let mine = stack.app.built(&alice, &mine).await;
    assert_eq!(mine["latest_build"]["job"]["status"], "succeeded", "{mine:#}");
    let env = std::fs::read_to_string(stack.dir().join("apply.env")).expect("apply ran");
    assert!(env.contains("CODER_WORKSPACE_OWNER=alice") && !env.contains("CODER_SECRET"), "{env}");
    for transition in ["stop", "start", "delete"] {
        let it = build(&stack, &alice, &mine, transition).await;
        assert_eq!(it["latest_build"]["job"]["status"], "succeeded", "{transition}: {it:#}");
    }

    let path = format!("/users/{}/secrets", alice.id);
    assert_eq!(stack.app.get(&bob, &path).await.status, 404);
    assert_eq!(stack.app.delete(&bob, &format!("{path}/deploy")).await.status, 404);
    let seen = stack.app.get(&alice, &path).await.expect(200);
    assert_eq!(seen.as_array().map(Vec::len), Some(2), "{seen}");
    let found = stack.database().tables_with(&value()).await;
    assert!(found.is_empty(), "readable in {found:?}");
    let read = files_with(stack.dir(), &value());
    assert!(read.is_empty(), "readable in {read:?}");
    stack.app.delete(&alice, "/users/me/secrets/deploy").await.expect(204);
    assert_eq!(stack.app.get(&alice, "/users/me/secrets/deploy").await.status, 404);
}

/// Files below a folder, which has the logs of all processes, that hold the text.
pub(crate) fn files_with(dir: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(path),
                Ok(kind) if kind.is_file() => {
                    let bytes = std::fs::read(&path).unwrap_or_default();
                    if bytes.windows(text.len()).any(|it| it == text.as_bytes()) {
                        found.push(path.display().to_string());
                    }
                }
                _ => {}
            }
        }
    }
    found
}

/// Two agents as processes, and a note of how many tokens the tool was given.
const TWO_AGENTS: &str = r#"
terraform {
  required_providers { coder = { source = "coder/coder" } }
}
variable "local_root" {}
variable "berth" {}
data "coder_workspace" "me" {}
data "coder_workspace_owner" "me" {}
data "coder_workspace_preset" "small" {
  name       = "small"
  parameters = {}
  prebuilds { instances = 1 }
}
locals { names = toset(["one", "two"]) }
resource "coder_agent" "one" {
  os   = "linux"
  arch = "amd64"
}
resource "coder_agent" "two" {
  os   = "linux"
  arch = "amd64"
}
locals { tokens = { one = coder_agent.one.token, two = coder_agent.two.token } }
resource "terraform_data" "runs" {
  for_each = data.coder_workspace.me.start_count == 0 ? [] : local.names
  input    = { berth = var.berth, dir = "${var.local_root}/${data.coder_workspace.me.id}-${each.key}" }
  provisioner "local-exec" {
    command = "mkdir -p \"$DIR\" && \"$BERTH\" agent --detach --dir \"$DIR\""
    environment = {
      BERTH             = self.input.berth
      DIR               = self.input.dir
      BERTH_AGENT_URL   = data.coder_workspace.me.access_url
      BERTH_AGENT_TOKEN = local.tokens[each.key]
    }
  }
  provisioner "local-exec" {
    when    = destroy
    command = "\"$BERTH\" agent --stop --dir \"$DIR\""
    environment = { BERTH = self.input.berth, DIR = self.input.dir }
  }
}
resource "terraform_data" "noted" {
  triggers_replace = data.coder_workspace_owner.me.name
  provisioner "local-exec" {
    command = "env | grep -c ^CODER_RUNNING_WORKSPACE_AGENT_TOKEN_ > $E2E_DIR/tokens-$CODER_WORKSPACE_OWNER || true"
  }
}
"#;

/// Each token is passed under its own agent's name, and each agent is the same one afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_agents_of_a_prebuild_keep_their_tokens_when_it_is_claimed() {
    let stack = TestStack::builder(BERTH).start().await;
    let Some(template) = given(&stack, "two", TWO_AGENTS).await else { return };
    let alice = stack.user("alice").await;
    stack.pool_has(&template, 1).await;
    let tokens = |stage: &str| {
        format!(
            "select concat_ws(' ', a.name, a.state_id, a.auth_token)
             from workspace_agents a join workspace_builds b on b.id = a.build_id
             where b.stage = '{stage}' order by 1"
        )
    };
    let before = stack.database().rows(&tokens("prebuild")).await;
    assert_eq!(before.len(), 2, "{before:?}");
    let preset = stack.app.preset(&alice, &template, "small").await;
    let mine = stack.app.create_workspace(&alice, &template, Some(&preset), "mine").await.ok();
    assert_eq!(mine["prebuild_claim"]["outcome"], "hit", "{mine:#}");
    let mine = stack.app.built(&alice, &mine).await;
    assert_eq!(mine["latest_build"]["job"]["status"], "succeeded", "{mine:#}");
    let after = stack.database().rows(&tokens("claim")).await;
    let of_claimed: Vec<_> = before.iter().filter(|row| after.contains(row)).collect();
    assert_eq!((after.len(), of_claimed.len()), (2, 2), "{before:?} became {after:?}");
    let noted = |owner: &str| {
        std::fs::read_to_string(stack.dir().join(format!("tokens-{owner}"))).unwrap_or_default()
    };
    assert_eq!((noted("prebuilds").trim(), noted("alice").trim()), ("0", "2"));
    wait_until("both agents are ready for their owner", SOON, async || {
        let path = format!("/workspaces/{}", mine["id"].as_str().unwrap());
        let workspace = stack.app.get(&alice, &path).await.expect(200);
        let text = workspace["latest_build"]["resources"].to_string();
        (text.matches("\"lifecycle_state\":\"ready\"").count() == 2).then_some(())
    })
    .await;
}

/// While an apply is under way the daemon is killed and comes back: the broker ends the job once its
/// lease is over, says that resources may exist, and the next build runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_killed_while_it_applies_costs_the_build_and_nothing_else() {
    const SLOW: &str = r#"
resource "terraform_data" "slow" {
  provisioner "local-exec" {
    command = "echo $$ > $E2E_DIR/child; if [ ! -e $E2E_DIR/go ]; then setsid sleep 600 & echo $! > $E2E_DIR/detached; fi; while [ ! -e $E2E_DIR/go ]; do sleep 0.1; done"
  }
}
"#;
    let mut stack = TestStack::builder(BERTH)
        // A lease is never cut short, so the one that runs when apply begins counts too.
        .set(Service::Broker, "BERTH_LIMITS__LEASE", "5s")
        .set(Service::Broker, "BERTH_LIMITS__APPLY_LEASE", "5s")
        .set(Service::Broker, "BERTH_LIMITS__REAP", "200ms")
        .start()
        .await;
    let Some(template) = given(&stack, "slow", SLOW).await else { return };
    let alice = stack.user("alice").await;
    let mine = stack.app.create_workspace(&alice, &template, None, "mine").await.ok();
    let detached = stack.dir().join("detached");
    let pid = wait_until("apply runs", SOON, async || {
        std::fs::read_to_string(&detached).ok().filter(|it| it.ends_with('\n'))
    })
    .await;
    stack.kill9(Service::Provisioner, 0).await;
    std::fs::write(stack.dir().join("go"), "").expect("a file can be made");
    stack.restart(Service::Provisioner, 0).await;
    let process = format!("/proc/{}/stat", pid.trim());
    wait_until("what it left is gone", SOON, async || {
        let stat = std::fs::read_to_string(&process);
        stat.map_or(true, |stat| stat.contains(") Z ")).then_some(())
    })
    .await;
    let lost = stack.app.built(&alice, &mine).await;
    assert_eq!(lost["latest_build"]["job"]["status"], "failed", "{lost:#}");
    let next = build(&stack, &alice, &mine, "start").await;
    assert_eq!(next["latest_build"]["job"]["status"], "succeeded", "{next:#}");
    let twice = "select count(*) from provisioner_jobs where attempts > 1";
    assert_eq!(stack.database().count(twice).await, 0, "an apply ran again by itself");
}
