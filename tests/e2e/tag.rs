//! Tags that depend on parameters, with real Terraform: whose daemons may build a workspace is decided
//! by the values that it has, not by those that the import planned with.

use berth_testkit::{SOON, TestStack, wait_until};
use serde_json::{Value, json};

use crate::{BERTH, terraform};

const ZONED: &str = r#"
terraform {
  required_providers { coder = { source = "coder/coder" } }
}
data "coder_parameter" "where" {
  name    = "Zone"
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
data "coder_workspace_tags" "tags" {
  tags = {
    zone = "z-${data.coder_parameter.where.value}"
    tier = lower(data.coder_parameter.where.value)
    kind = "box"
  }
}
data "coder_workspace_preset" "america" {
  name       = "america"
  parameters = { (data.coder_parameter.where.name) = "us" }
  prebuilds { instances = 1 }
}
"#;

/// The import runs on a daemon without tags, which is the only one here: everything else waits for one
/// that has them, and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workspaces_values_decide_whose_daemons_may_build_it() {
    let stack = TestStack::builder(BERTH).start().await;
    let Some(template) = terraform::given(&stack, "zoned", ZONED).await else { return };
    let version = template["active_version_id"].as_str().unwrap();
    let logs = stack.app.get(&stack.owner, &format!("/templateversions/{version}/logs")).await;
    let logs = logs.expect(200).to_string();
    assert!(logs.contains("the tag \\\"tier\\\" is \\\"eu\\\" for every workspace"), "{logs}");

    // The pool's own value, not the default; and it is told what is missing.
    wait_until("the pool says what it waits for", SOON, async || {
        let pools = stack.app.get(&stack.owner, "/prebuilds/pools").await.expect(200).to_string();
        pools.contains("takes terraform jobs with kind=box tier=eu zone=z-us").then_some(())
    })
    .await;
    let daemon = json!({ "zone": "z-us", "kind": "box", "tier": "eu" });
    stack.database().rows(&joined(&daemon)).await;
    stack.database().rows("insert into prebuild_pool_marks (preset_id, created_at) select preset_id, now() from prebuild_pools").await;
    let pooled = "select j.tags ->> 'zone' from provisioner_jobs j
                  join workspace_builds b on b.job_id = j.id where b.stage = 'prebuild'";
    wait_until("a prebuild is ordered", SOON, async || {
        (stack.database().rows(pooled).await == [["z-us"]]).then_some(())
    })
    .await;

    let alice = stack.user("alice").await;
    for (name, values, zone) in [
        ("ordinary", json!([]), "z-eu"),
        ("chosen", json!([{ "name": "Zone", "value": "us" }]), "z-us"),
    ] {
        let body = json!({
            "template_id": template["id"], "name": name, "rich_parameter_values": values
        });
        let mine = stack.app.post(&alice, "/users/me/workspaces", body).await.ok();
        assert_eq!(
            tags(&mine),
            json!({
                "scope": "organization", "owner": "", "kind": "box", "tier": "eu", "zone": zone
            })
        );
        // What was built somewhere is deleted there.
        let path =
            format!("/workspacebuilds/{}/cancel", mine["latest_build"]["id"].as_str().unwrap());
        stack.app.patch(&alice, &path, json!({})).await.ok();
        let path = format!("/workspaces/{}/builds", mine["id"].as_str().unwrap());
        let body = json!({ "transition": "delete" });
        let build = stack.app.post(&alice, &path, body).await.ok();
        assert_eq!(build["job"]["tags"]["zone"], zone, "{build:#}");
    }
}

fn tags(workspace: &Value) -> Value {
    workspace["latest_build"]["job"]["tags"].clone()
}

/// A daemon with these tags that lives, as far as the pools can tell.
fn joined(tags: &Value) -> String {
    format!(
        "update provisioner_daemons
         set tags = tags || '{tags}', last_seen_at = now() + interval '1 hour'"
    )
}
