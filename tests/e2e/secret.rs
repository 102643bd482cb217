//! Provisioner state has in it whatever a template made. It is readable to those alone who may
//! change the template, and to nobody in the database.

use berth_testkit::{SOON, TestStack, wait_until};
use serde_json::{Value, json};

use crate::{BERTH, template};

/// What the template keeps in its state.
const SECRET: &str = template::SECRET;

/// Every table whose rows show this text, as text or as bytes.
pub(crate) async fn tables_with(stack: &TestStack, text: &str) -> Vec<String> {
    let tables = stack
        .database()
        .rows("select tablename from pg_tables where schemaname = 'public' order by 1")
        .await;
    let bytes = stack.database().value(&format!("select encode('{text}'::bytea, 'hex')")).await;
    let mut found = Vec::new();
    for table in tables.into_iter().flatten() {
        let sql = format!(
            "select count(*) from \"{table}\" t where t::text like '%{text}%' or t::text like '%{bytes}%'"
        );
        if stack.database().count(&sql).await > 0 {
            found.push(table);
        }
    }
    found
}

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

    let found = tables_with(&stack, SECRET).await;
    assert!(found.is_empty(), "readable in {found:?}");
    // The search itself finds what is there.
    assert!(!tables_with(&stack, "alice").await.is_empty());

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
