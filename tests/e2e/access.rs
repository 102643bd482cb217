//! What may not be read does not seem to exist.

use berth_testkit::{TestStack, User};
use serde_json::{Value, json};

use crate::{BERTH, template};

fn id(value: &Value) -> &str {
    value["id"].as_str().expect("an id")
}

/// Everything of alice's workspace that has a path of its own.
fn private_paths(alice: &User, workspace: &Value) -> Vec<String> {
    let build = id(&workspace["latest_build"]);
    let workspace_id = id(workspace);
    let agent = id(&workspace["latest_build"]["resources"][0]["agents"][0]);
    vec![
        format!("/workspaces/{workspace_id}"),
        format!("/workspaces/{workspace_id}/builds"),
        format!("/workspaces/{workspace_id}/watch"),
        format!("/users/{}/workspace/mine", alice.name),
        format!("/workspacebuilds/{build}"),
        format!("/workspacebuilds/{build}/logs"),
        format!("/workspacebuilds/{build}/resources"),
        format!("/workspacebuilds/{build}/parameters"),
        format!("/workspaceagents/{agent}"),
        format!("/workspaceagents/{agent}/logs"),
    ]
}

/// Another member's workspace: 404 on every path, absent from every list, and not to be changed.
/// Another organization's template: the same. No token, or one that is none: 401.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_reads_nothing() {
    let stack = TestStack::builder(BERTH).start().await;
    let pushed = stack.given_template("agents", template::with_agent(&[])).await;
    let (alice, eve) = (stack.user("alice").await, stack.user("eve").await);
    let workspace = stack.app.create_workspace(&alice, &pushed, None, "mine").await.ok();
    let workspace = stack.app.built(&alice, &workspace).await;
    assert_eq!(workspace["latest_build"]["job"]["status"], "succeeded", "{workspace:#}");

    let guess = User::with_token("abcdefghij-abcdefghijklmnopqrstuv");
    for path in private_paths(&alice, &workspace) {
        if !path.ends_with("/watch") {
            stack.app.get(&alice, &path).await.expect(200);
        }
        stack.app.get(&eve, &path).await.expect(404);
        stack.app.get(&stack.nobody, &path).await.expect(401);
        stack.app.get(&guess, &path).await.expect(401);
    }
    hidden_from_lists(&stack, &eve, &workspace).await;
    not_to_be_changed(&stack, &eve, &workspace).await;
    another_organization(&stack, &eve).await;
    stack.settled().await;
}

async fn hidden_from_lists(stack: &TestStack, eve: &User, workspace: &Value) {
    for path in ["/workspaces", "/workspaces?q=owner:alice", "/workspaces?q=name:mine"] {
        let list = stack.app.get(eve, path).await.expect(200);
        let none = list["workspaces"].as_array().is_some_and(Vec::is_empty);
        assert!(none && list["count"] == 0, "{path}: {list:#}");
        let all = stack.app.get(&stack.owner, path).await.expect(200);
        let seen = all["workspaces"]
            .as_array()
            .is_some_and(|it| it.iter().any(|it| id(it) == id(workspace)));
        assert!(seen, "the owner of the deployment sees it in {path}: {all:#}");
    }
}

async fn not_to_be_changed(stack: &TestStack, eve: &User, workspace: &Value) {
    let path = format!("/workspaces/{}/builds", id(workspace));
    stack.app.post(eve, &path, json!({ "transition": "stop" })).await.expect(404);
    stack.app.post(&stack.nobody, &path, json!({ "transition": "stop" })).await.expect(401);
    let body = json!({ "name": "taken" });
    stack.app.patch(eve, &format!("/workspaces/{}", id(workspace)), body).await.expect(404);
    let builds =
        format!("select count(*) from workspace_builds where workspace_id = '{}'", id(workspace));
    assert_eq!(stack.database().count(&builds).await, 1);
    // A member who administers nothing.
    let settings = json!({ "reconciliation_paused": true });
    let refused = stack.app.put(eve, "/prebuilds/settings", settings).await;
    assert!(matches!(refused.status, 403 | 404), "{refused:?}");
    let keys = format!("/organizations/{}/provisionerkeys", eve.organization);
    let refused = stack.app.post(eve, &keys, json!({ "name": "mine" })).await;
    assert!(matches!(refused.status, 403 | 404), "{refused:?}");
}

async fn another_organization(stack: &TestStack, eve: &User) {
    let body = json!({ "name": "elsewhere", "display_name": "Elsewhere" });
    let made = stack.app.post(&stack.owner, "/organizations", body).await.expect(201);
    let mut there = stack.owner.clone();
    id(&made).clone_into(&mut there.organization);
    let archive = template::plain(&[]);
    let version = stack.app.given_version(&there, archive, "exec", None).await;
    for path in [
        format!("/organizations/{}", id(&made)),
        format!("/organizations/{}/templates", id(&made)),
        format!("/templateversions/{}", id(&version)),
        format!("/templateversions/{}/logs", id(&version)),
        format!("/templateversions/{}/presets", id(&version)),
    ] {
        stack.app.get(&stack.owner, &path).await.expect(200);
        stack.app.get(eve, &path).await.expect(404);
        stack.app.get(&stack.nobody, &path).await.expect(401);
    }
    let seen = stack.app.get(eve, "/organizations").await.expect(200);
    assert!(seen.as_array().is_some_and(|it| it.iter().all(|it| id(it) != id(&made))), "{seen:#}");
}
