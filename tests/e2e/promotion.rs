//! Another version becomes the active one, and nobody meets an empty pool.

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use berth_testkit::{SOON, TestStack, User, wait_until};
use serde_json::{Value, json};

use crate::{BERTH, template};

const POOL: i32 = 3;

/// Prebuilds that claims may have, of every version.
const CLAIMABLE: &str = "
    select count(*) from workspaces w
    join prebuild_pools p on p.preset_id = w.pool_preset_id
    join templates t on t.id = p.template_id
    where is_claimable(w, p, t, now())";

/// Pushes another version of a template. Answers with it.
async fn pushed(stack: &TestStack, template: &Value, archive: Vec<u8>) -> Value {
    let version = stack.app.given_version(&stack.owner, archive, "exec", Some(template)).await;
    let version = stack.app.imported(&stack.owner, &version, SOON).await;
    assert_eq!(version["job"]["status"], "succeeded", "{version:#}");
    version
}

/// `berth templates promote --warm`: whether it went well, and what it says.
async fn promote(stack: &TestStack, template: &Value, version: &Value) -> (bool, String) {
    let text = |value: &Value| value["name"].as_str().expect("a name").to_owned();
    let output = tokio::process::Command::new(BERTH)
        .args(["templates", "promote", &text(template), &text(version)])
        .args(["--warm", "--ready", "100%", "--timeout", "5m"])
        .env("BERTH_URL", stack.app.url())
        .env("BERTH_TOKEN", stack.owner.token())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_mins(2), output).await;
    let output = output.expect("it comes back").expect("berth can be run");
    let told = [&output.stdout[..], &output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&told).into_owned())
}

/// Asks for a workspace by its values, as somebody does who knows nothing of versions.
async fn ask(stack: &TestStack, user: &User, template: &Value, name: &str) -> Value {
    let body = json!({
        "name": name, "template_id": template["id"],
        "rich_parameter_values": [{ "name": "size", "value": "small" }],
    });
    let path = format!("/organizations/{}/members/{}/workspaces", user.organization, user.id);
    stack.app.post(user, &path, body).await.ok()
}

async fn claimable(stack: &TestStack, count: i64) {
    wait_until(&format!("{count} claimable prebuilds"), SOON, async || {
        (stack.database().count(CLAIMABLE).await == count).then_some(())
    })
    .await;
}

/// A version that only fails is called off and leaves the old pool whole; one that works takes over
/// while people go on claiming, and each of them gets a prebuild.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_takes_over_without_an_empty_pool_and_a_bad_one_does_not() {
    let stack = TestStack::builder(BERTH).start().await;
    let pools = [("small", POOL)];
    let template = stack.given_template("warm", template::plain(&pools)).await;
    claimable(&stack, POOL.into()).await;

    let bad = pushed(&stack, &template, template::failing(&pools)).await;
    let (went_well, told) = promote(&stack, &template, &bad).await;
    assert!(!went_well, "{told}");
    assert!(told.contains("failed too often in a row"), "{told}");
    let path = format!("/templates/{}/promotion", template["id"].as_str().expect("an id"));
    let promotion = stack.app.get(&stack.owner, &path).await.expect(200);
    assert_eq!(promotion["outcome"], "called_off", "{promotion:#}");
    assert_eq!(stack.database().count(CLAIMABLE).await, i64::from(POOL));
    wait_until("the owner is told why", SOON, async || {
        let inbox = stack.app.get(&stack.owner, "/notifications/inbox").await.expect(200);
        inbox.to_string().contains("was called off").then_some(())
    })
    .await;

    let good = pushed(&stack, &template, template::plain(&pools)).await;
    let done = AtomicBool::new(false);
    let (first, then, ()) = tokio::join!(
        async {
            let promoted = promote(&stack, &template, &good).await;
            done.store(true, Ordering::Release);
            promoted
        },
        claim_until(&stack, &template, &done),
        never_empty(&stack, &done)
    );
    assert!(first.0, "{}", first.1);
    assert!(then >= 2, "{then} claims");
    let now = stack.app.get(&stack.owner, &path.replace("/promotion", "")).await.expect(200);
    assert_eq!(now["active_version_id"], good["id"], "{now:#}");
    stack.pool_has(&template, POOL.into()).await;
    wait_until("the old pools are gone", SOON, async || {
        let old = format!(
            "select count(*) from workspaces w join prebuild_pools p on p.preset_id = w.pool_preset_id
             where not w.deleted and w.pool_state <> 'failed'
               and p.template_version_id <> '{}'",
            good["id"].as_str().expect("an id")
        );
        (stack.database().count(&old).await == 0).then_some(())
    })
    .await;
    let misses = "select count(*) from claim_attempts where outcome = 'miss'";
    assert_eq!(stack.database().count(misses).await, 0);
    stack.settled().await;
}

/// Claims one after the other, leaving the pool the time to refill, until `done` and once more.
async fn claim_until(stack: &TestStack, template: &Value, done: &AtomicBool) -> usize {
    let mut number = 0;
    loop {
        let last = done.load(Ordering::Acquire);
        let made = ask(stack, &stack.owner, template, &format!("w{number}")).await;
        assert_eq!(made["prebuild_claim"]["outcome"], "hit", "{:#}", made["prebuild_claim"]);
        number += 1;
        if last {
            return number;
        }
        wait_until("the pool is nearly full again", SOON, async || {
            (stack.database().count(CLAIMABLE).await >= i64::from(POOL) - 1).then_some(())
        })
        .await;
    }
}

async fn never_empty(stack: &TestStack, done: &AtomicBool) {
    while !done.load(Ordering::Acquire) {
        assert!(stack.database().count(CLAIMABLE).await > 0, "nothing can be claimed");
        tokio::task::yield_now().await;
    }
}

/// Where the pool policy allows it, the old version serves until the new one can, and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_previous_version_serves_where_that_is_allowed() {
    let stack = TestStack::builder(BERTH).start().await;
    let pools = [("small", 2)];
    let template = stack.given_template("kept", template::plain(&pools)).await;
    claimable(&stack, 2).await;
    let policy = r#"update prebuild_pools set policy = '{"allow_previous_version": true}'"#;
    stack.database().rows(policy).await;
    let hold = stack.dir().join("hold");
    std::fs::write(&hold, "").expect("a file");
    let next = pushed(&stack, &template, template::held(&pools)).await;
    refusals(&stack, &template, &next).await;
    let path = format!("/templates/{}/versions", template["id"].as_str().expect("an id"));
    stack.app.patch(&stack.owner, &path, json!({ "id": next["id"] })).await.expect(200);

    let made = ask(&stack, &stack.owner, &template, "early").await;
    let claim = &made["prebuild_claim"];
    assert_eq!((&claim["outcome"], &claim["previous_version"]), (&json!("hit"), &json!(true)));
    assert_eq!(claim["version_id"], template["active_version_id"], "{claim:#}");
    let built = &made["latest_build"]["template_version_id"];
    assert_eq!(*built, template["active_version_id"], "{made:#}");

    std::fs::remove_file(&hold).expect("the file");
    let new = format!(
        "{CLAIMABLE} and p.template_version_id = '{}'",
        next["id"].as_str().expect("an id")
    );
    wait_until("a new one is ready", SOON, async || {
        (stack.database().count(&new).await > 0).then_some(())
    })
    .await;
    let made = ask(&stack, &stack.owner, &template, "late").await;
    let claim = &made["prebuild_claim"];
    assert_eq!((&claim["outcome"], &claim["previous_version"]), (&json!("hit"), &Value::Null));
    assert_eq!(made["latest_build"]["template_version_id"], next["id"], "{made:#}");
    stack.settled().await;
}

/// What is out of bounds, of another template, or asked by somebody who may not.
async fn refusals(stack: &TestStack, template: &Value, version: &Value) {
    let other = stack.given_template("other", template::plain(&[])).await;
    let alice = stack.user("alice").await;
    let id = template["id"].as_str().expect("an id");
    let (versions, promotion) =
        (format!("/templates/{id}/versions"), format!("/templates/{id}/promotion"));
    let warm = |field: &str, value: i64| {
        let mut body = json!({ "id": version["id"], "prewarm": true });
        body[field] = value.into();
        body
    };
    let cases = [
        ("ready_percent", warm("ready_percent", 0)),
        ("ready_percent", warm("ready_percent", 101)),
        ("timeout_seconds", warm("timeout_seconds", 59)),
        ("timeout_seconds", warm("timeout_seconds", 86_401)),
        ("id", json!({ "id": other["active_version_id"], "prewarm": true })),
        ("id", json!({ "id": other["active_version_id"] })),
        ("id", json!({ "id": template["active_version_id"], "prewarm": true })),
    ];
    for (field, body) in cases {
        let refused = stack.app.patch(&stack.owner, &versions, body.clone()).await;
        assert_eq!(refused.status, 400, "{body}: {refused:?}");
        assert!(refused.complaint().contains(field), "{body}: {refused:?}");
    }
    let body = json!({ "id": version["id"], "prewarm": true });
    let (user, nobody) = (&alice, &stack.nobody);
    let strangers = [(user, [403, 404]), (nobody, [401, 401])];
    for (who, expected) in strangers {
        for answer in [
            stack.app.patch(who, &versions, body.clone()).await,
            stack.app.get(who, &promotion).await,
            stack.app.delete(who, &promotion).await,
        ] {
            assert!(expected.contains(&answer.status), "{answer:?}");
        }
    }
    stack.app.get(&stack.owner, &promotion).await.expect(404);
    stack.app.delete(&stack.owner, &promotion).await.expect(409);
}
