//! A claim that replaces a resource is told to those who can mend the template.

use berth_testkit::{SOON, TestStack, wait_until};
use serde_json::Value;

use crate::reinit::claim;
use crate::{BERTH, template};

/// "Resource replaced" of 70-notifications.
const RESOURCE_REPLACED: &str = "89d9745a-816e-4695-a17f-3d0a229e2b8d";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_replaces_a_resource_reaches_the_template_admins_inbox() {
    let stack = TestStack::builder(BERTH).start().await;
    let pushed = stack.given_template("disky", template::replacing(&[("small", 1)])).await;
    let alice = stack.user("alice").await;
    stack.pool_has(&pushed, 1).await;

    let workspace = claim(&stack, &alice, &pushed, "mine").await;
    let built = stack.app.built(&alice, &workspace).await;
    assert_eq!(built["latest_build"]["job"]["status"], "succeeded", "{built:#}");
    let message = wait_until("the owner's inbox has the message", SOON, async || {
        let inbox = stack.app.get(&stack.owner, "/notifications/inbox").await.expect(200);
        let all = inbox["notifications"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|it| it["template_id"] == RESOURCE_REPLACED)
    })
    .await;
    let text = format!("{} {}", message["title"], message["content"]);
    for part in ["e2e_disk.home", "owner", "disky"] {
        assert!(text.contains(part), "the message does not say {part:?}: {message:#}");
    }
    let log = build_log(&stack, &built).await;
    assert!(log.contains("e2e_disk.home"), "the build log does not name the resource: {log}");

    // Alice can do nothing about the template: it is not for her.
    let hers = stack.app.get(&alice, "/notifications/inbox").await.expect(200);
    let hers = hers["notifications"].as_array().cloned().unwrap_or_default();
    assert!(hers.iter().all(|it| it["template_id"] != RESOURCE_REPLACED), "{hers:?}");
    stack.settled().await;
}

async fn build_log(stack: &TestStack, workspace: &Value) -> String {
    let build = workspace["latest_build"]["id"].as_str().expect("an id");
    let log =
        stack.app.get(&stack.owner, &format!("/workspacebuilds/{build}/logs")).await.expect(200);
    log.to_string()
}
