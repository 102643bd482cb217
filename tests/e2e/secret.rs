//! Provisioner state has in it whatever a template made. It is readable to those alone who may
//! change the template, and to nobody in the database.

use berth_testkit::{SOON, TestStack, wait_until};
use serde_json::{Value, json};

use crate::{BERTH, template};

/// What the template keeps in its state.
const SECRET: &str = template::SECRET;

async fn workspace(stack: &TestStack, user: &berth_testkit::User, template: &Value) -> Value {
    let made = stack.app.create_workspace(user, template, None, "mine").await.ok();
    let made = stack.app.built(user, &made).await;
    assert_eq!(made["latest_build"]["job"]["status"], "succeeded", "{made:#}");
    made
}

/// The template's admins get the state, and the log says so; the workspace's owner does not; the
/// database shows none of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_is_sealed_and_shown_to_the_templates_admins_alone() {
    let stack = TestStack::builder(BERTH).start().await;
    let template = stack.given_template("secretive", template::secretive()).await;
    let alice = stack.user("alice").await;
    let mine = workspace(&stack, &alice, &template).await;
    let path = format!("/workspacebuilds/{}/state", mine["latest_build"]["id"].as_str().unwrap());

    let state = stack.app.get(&stack.owner, &path).await.expect(200);
    assert_eq!(state, json!({ "password": SECRET }));
    let refused = stack.app.get(&alice, &path).await;
    assert!([403, 404].contains(&refused.status), "{refused:?}");
    let audited = "select count(*) from audit_logs where resource_type = 'workspace_build_state'";
    assert_eq!(stack.database().count(audited).await, 1);

    let found = stack.database().tables_with(SECRET).await;
    assert!(found.is_empty(), "readable in {found:?}");
    // The search itself finds what is there.
    assert!(!stack.database().tables_with("alice").await.is_empty());

    // The next build gets it back, in another process than the one that sealed it.
    let path = format!("/workspaces/{}/builds", mine["id"].as_str().unwrap());
    stack.app.post(&alice, &path, json!({ "transition": "stop" })).await.ok();
    let log = wait_until("the next build has read the state", SOON, async || {
        let workspace = stack.app.built(&alice, &mine).await;
        (workspace["latest_build"]["transition"] == "stop").then_some(workspace)
    })
    .await;
    assert_eq!(log["latest_build"]["job"]["status"], "succeeded", "{log:#}");
    stack.settled().await;
}
