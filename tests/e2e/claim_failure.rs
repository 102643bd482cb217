//! Claims whose build fails: what their owner, the agent and the pool see.

use berth_testkit::{SOON, Service, TestStack, User, wait_until};
use serde_json::{Value, json};

use crate::reinit::{claim, reinitialised, starts};
use crate::{BERTH, template};

/// The daemon dies in the middle of apply. The build fails, another one hands the workspace over, and
/// the agent, which heard nothing of the first, starts once for its new owner.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_whose_daemon_is_killed_in_apply_is_handed_over_by_the_next_one() {
    let mut stack = TestStack::builder(BERTH)
        .set(Service::Broker, "BERTH_LIMITS__LEASE", "15s")
        .set(Service::Broker, "BERTH_LIMITS__APPLY_LEASE", "10s")
        .set(Service::Broker, "BERTH_LIMITS__REAP", "200ms")
        .start()
        .await;
    let pushed = stack.given_template("agents", template::with_agent(&[("small", 1)])).await;
    let alice = stack.user("alice").await;
    stack.pool_has(&pushed, 1).await;
    std::fs::write(stack.dir().join("hold"), "").unwrap();
    let workspace = claim(&stack, &alice, &pushed, "mine").await;
    assert_eq!(session(&stack, &workspace), "", "the prebuilds user has none");
    let applying =
        "select count(*) from workspace_builds b join provisioner_jobs j on j.id = b.job_id
                    where b.stage = 'claim' and j.apply_started";
    wait_until("the claim is in apply", SOON, async || {
        (stack.database().count(applying).await == 1).then_some(())
    })
    .await;
    stack.kill9(Service::Provisioner, 0).await;
    let second = wait_until("another build takes its place", SOON, async || {
        let seen = seen(&stack, &alice, &workspace).await;
        (seen["latest_build"]["build_number"] == 3).then(|| seen["latest_build"].clone())
    })
    .await;
    assert_eq!((&second["stage"], &second["status"]), (&json!("claim"), &json!("pending")));
    assert_eq!(second["initiator_name"], "alice");
    let first = first_build(&stack, &alice).await;
    assert_eq!(
        (&first["status"], &first["error_class"]),
        (&json!("failed"), &json!("infrastructure"))
    );
    let log = log(&stack, &alice, &first).await;
    assert!(log.contains("Resources may exist") && log.contains("build 3"), "{log}");
    assert_eq!(starts(&stack, &workspace), ["prebuilds"], "nobody told the agent of the first");

    stack.restart(Service::Provisioner, 0).await;
    std::fs::remove_file(stack.dir().join("hold")).unwrap();
    reinitialised(&stack, &workspace, &alice).await;
    stack.settled().await;
    assert_eq!(starts(&stack, &workspace), ["prebuilds", "alice"]);
    let built = stack.app.built(&alice, &workspace).await;
    assert_eq!(built["latest_build"]["status"], "running");
    session_ends_with_the_workspace(&stack, &alice, &workspace).await;
    let attempt = attempt(&stack, &alice).await;
    assert_eq!(
        (&attempt["outcome"], &attempt["build_status"]),
        (&json!("hit"), &json!("succeeded"))
    );
    assert_eq!(attempt["detail"]["retried"]["build_number"], 2);
    assert_eq!(attempt["build_id"], second["id"]);
    pool_counts_nothing(&stack).await;
}

/// The template cannot make the workspace its new owner's. It stays, failed, with the log; the agent is
/// told and asks no more; the owner starts it again, and then it works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_fails_in_apply_is_its_owners_to_start_again() {
    let stack = TestStack::builder(BERTH).start().await;
    let pushed = stack.given_template("agents", template::with_agent(&[("small", 1)])).await;
    let alice = stack.user("alice").await;
    stack.pool_has(&pushed, 1).await;
    std::fs::write(stack.dir().join("fail"), "").unwrap();
    let workspace = claim(&stack, &alice, &pushed, "mine").await;
    let failed = stack.app.built(&alice, &workspace).await;
    let build = &failed["latest_build"];
    assert_eq!((&build["status"], &build["error_class"]), (&json!("failed"), &json!("template")));
    assert_eq!(build["build_number"], 2, "the same again would come to the same");
    assert_eq!(failed["owner_name"], "alice");
    let log = log(&stack, &alice, build).await;
    assert!(log.contains("no disk left for alice"), "{log}");
    assert_eq!(attempt(&stack, &alice).await["build_status"], "failed");
    let id = workspace["id"].as_str().unwrap();
    let heard = stack.workspaces().join(id).join("agent.log");
    wait_until("the agent is told", SOON, async || {
        let text = std::fs::read_to_string(&heard).unwrap_or_default();
        text.contains("The claim build failed").then_some(())
    })
    .await;
    assert_eq!(starts(&stack, &workspace), ["prebuilds"]);
    pool_counts_nothing(&stack).await;

    std::fs::remove_file(stack.dir().join("fail")).unwrap();
    let path = format!("/workspaces/{id}/builds");
    stack.app.post(&alice, &path, json!({ "transition": "start" })).await.ok();
    let again = stack.app.built(&alice, &workspace).await;
    assert_eq!(again["latest_build"]["status"], "running");
    reinitialised(&stack, &workspace, &alice).await;
    assert_eq!(starts(&stack, &workspace), ["prebuilds", "alice"]);
}

/// The session that the newest apply was given for the owner.
fn session(stack: &TestStack, workspace: &Value) -> String {
    let id = workspace["id"].as_str().expect("an id");
    std::fs::read_to_string(stack.workspaces().join(id).join("session")).expect("apply ran")
}

/// What runs in the workspace is its owner to the API, until the workspace stops. No log says how.
async fn session_ends_with_the_workspace(stack: &TestStack, owner: &User, workspace: &Value) {
    let token = session(stack, workspace);
    let inside = User::with_token(&token);
    let me = stack.app.get(&inside, "/users/me").await.ok();
    assert_eq!(me["username"], owner.name.as_str());
    let path = format!("/workspaces/{}/builds", workspace["id"].as_str().expect("an id"));
    stack.app.post(owner, &path, json!({ "transition": "stop" })).await.ok();
    let stopped = stack.app.built(owner, workspace).await;
    assert_eq!(stopped["latest_build"]["status"], "stopped");
    stack.app.get(&inside, "/users/me").await.expect(401);
    let secret = token.split_once('-').expect("an id and a secret").1;
    let files = std::fs::read_dir(stack.dir()).expect("the stack's folder");
    let paths = files.map(|it| it.expect("an entry").path());
    let logs = paths.filter(|it| it.extension().is_some_and(|it| it == "log"));
    let logs: String = logs.map(|it| std::fs::read_to_string(it).expect("a log")).collect();
    let id = workspace["id"].as_str().expect("an id");
    assert!(logs.contains(id) && !logs.contains(secret), "the logs tell of it all but the session");
}

async fn seen(stack: &TestStack, user: &User, workspace: &Value) -> Value {
    let path = format!("/workspaces/{}", workspace["id"].as_str().expect("an id"));
    stack.app.get(user, &path).await.ok()
}

/// The claim's first build.
async fn first_build(stack: &TestStack, user: &User) -> Value {
    stack.app.get(user, "/users/me/workspace/mine/builds/2").await.ok()
}

async fn log(stack: &TestStack, user: &User, build: &Value) -> String {
    let path = format!("/workspacebuilds/{}/logs", build["id"].as_str().expect("an id"));
    let lines = stack.app.get(user, &path).await.ok();
    let lines = lines.as_array().expect("lines");
    lines.iter().filter_map(|it| it["output"].as_str()).collect::<Vec<_>>().join("\n")
}

/// What came of the user's request, as those are told who look after templates.
async fn attempt(stack: &TestStack, user: &User) -> Value {
    let path = format!("/organizations/{}/claims", stack.owner.organization);
    let answer = stack.app.get(&stack.owner, &path).await.ok();
    let claims = answer["claims"].as_array().expect("claims");
    let theirs = claims.iter().find(|it| it["username"] == user.name.as_str());
    theirs.expect("the user's attempt").clone()
}

/// No failure is the pool's own, and it goes on making prebuilds. (A prebuild that was being made by
/// the killed daemon failed too, but nothing slows down for that.)
async fn pool_counts_nothing(stack: &TestStack) {
    let sql = "select consecutive_failures + (select count(*) from prebuild_failures)
               from prebuild_pools";
    assert_eq!(stack.database().count(sql).await, 0);
    wait_until("the pool is full again", SOON, async || {
        let ready = "select count(*) from workspaces where pool_state = 'ready'";
        (stack.database().count(ready).await == 1).then_some(())
    })
    .await;
}
