//! The API dies between a claim and its completion.

use std::path::Path;

use berth_testkit::{SOON, Service, TestStack, User, wait_until};
use serde_json::Value;

use crate::{BERTH, template};

/// Owners for whom the workspace's startup script ran, in order.
pub(crate) fn starts(stack: &TestStack, workspace: &Value) -> Vec<String> {
    let id = workspace["id"].as_str().expect("an id");
    let text = std::fs::read_to_string(stack.workspaces().join(id).join("starts"));
    text.unwrap_or_default().lines().map(ToOwned::to_owned).collect()
}

/// Waits until the startup script has run for the new owner too.
pub(crate) async fn reinitialised(stack: &TestStack, workspace: &Value, user: &User) {
    wait_until("the agent reinitialises", SOON, async || {
        starts(stack, workspace).contains(&user.name).then_some(())
    })
    .await;
}

/// Claims a prebuild of `template`, which must be there.
pub(crate) async fn claim(stack: &TestStack, user: &User, template: &Value, name: &str) -> Value {
    let preset = stack.app.preset(user, template, "small").await;
    let workspace = stack.app.create_workspace(user, template, Some(&preset), name).await.ok();
    assert_eq!(workspace["prebuild_claim"]["outcome"], "hit", "{workspace:#}");
    assert_eq!(workspace["owner_name"], user.name.as_str());
    workspace
}

/// Its agent reinitialises for the new owner all the same: once, and not again when the API is
/// restarted a second time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_killed_between_claim_and_completion_costs_the_agent_nothing() {
    let mut stack = TestStack::builder(BERTH).start().await;
    let pushed = stack.given_template("agents", template::with_agent(&[("small", 1)])).await;
    let alice = stack.user("alice").await;
    stack.pool_has(&pushed, 1).await;
    hold(stack.dir());

    let workspace = claim(&stack, &alice, &pushed, "mine").await;
    let id = workspace["id"].as_str().unwrap().to_owned();
    job_is(&stack, &id, "running").await;
    assert_eq!(starts(&stack, &workspace), ["prebuilds"]);
    let agent = agent_process(&stack, &workspace);
    stack.kill9(Service::Api, 0).await;
    std::fs::remove_file(stack.dir().join("hold")).unwrap();
    job_is(&stack, &id, "succeeded").await;
    assert_eq!(starts(&stack, &workspace), ["prebuilds"], "nobody could tell the agent yet");

    stack.restart(Service::Api, 0).await;
    reinitialised(&stack, &workspace, &alice).await;
    stack.kill9(Service::Api, 0).await;
    stack.restart(Service::Api, 0).await;
    asked_again(&stack).await;
    stack.settled().await;
    assert_eq!(starts(&stack, &workspace), ["prebuilds", "alice"]);
    assert_eq!(agent_process(&stack, &workspace), agent, "it is the same process all along");
    let workspace = stack.app.built(&alice, &workspace).await;
    assert_eq!(workspace["latest_build"]["resources"][0]["agents"][0]["lifecycle_state"], "ready");
}

fn hold(dir: &Path) {
    std::fs::write(dir.join("hold"), "").expect("a file can be made");
}

fn agent_process(stack: &TestStack, workspace: &Value) -> String {
    let id = workspace["id"].as_str().expect("an id");
    let path = stack.workspaces().join(id).join("agent.pid");
    std::fs::read_to_string(path).expect("the agent runs").trim().to_owned()
}

/// Waits for a state of the claim build's job, without asking the API.
async fn job_is(stack: &TestStack, workspace: &str, status: &str) {
    let sql = format!(
        "select count(*) from workspace_builds b join provisioner_jobs j on j.id = b.job_id
         where b.workspace_id = '{workspace}' and b.stage = 'claim' and j.status = '{status}'"
    );
    wait_until(&format!("the claim build is {status}"), SOON, async || {
        (stack.database().count(&sql).await == 1).then_some(())
    })
    .await;
}

/// Waits until the agent has come back to ask the restarted API, was answered, and asks again.
async fn asked_again(stack: &TestStack) {
    let labels = [r#"route="/api/v2/workspaceagents/me/reinit""#, r#"status="2xx""#];
    wait_until("the agent asks the new API again", SOON, async || {
        let name = "berth_http_request_seconds_count";
        (stack.metric(Service::Api, 0, name, &labels).await >= 2.0).then_some(())
    })
    .await;
}
