//! `berth watch` at a replica that dies, with NATS away in between.

use std::path::Path;
use std::process::Stdio;

use berth_testkit::{App, SOON, Service, TestStack, User, wait_until};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::{BERTH, template};

/// `berth watch` as somebody runs it. It ends with this value.
struct Watch {
    _child: Child,
    lines: std::path::PathBuf,
}

impl Watch {
    fn start(app: &App, user: &User, dir: &Path) -> Self {
        let lines = dir.join(format!("watch-{}", user.name));
        let file = std::fs::File::create(&lines).expect("a file can be made");
        let child = Command::new(BERTH)
            .args(["watch", "--output", "json", "--url", app.url(), "--token", user.token()])
            .env("HOME", dir)
            .stdout(Stdio::from(file))
            .kill_on_drop(true)
            .spawn()
            .expect("the command line starts");
        Self { _child: child, lines }
    }

    fn updates(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.lines).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
    }

    /// Waits until the build has ended here, too; answers with everything that was told.
    async fn sees_end_of(&self, name: &str, number: i64) -> Vec<Value> {
        wait_until(&format!("build {number} of {name} is told"), SOON, async || {
            let updates = self.updates();
            let has_ended = updates.iter().any(|it| {
                it["workspace_name"] == name
                    && it["build_number"] == number
                    && it["job_status"] == "succeeded"
            });
            has_ended.then_some(updates)
        })
        .await
    }
}

async fn build(stack: &TestStack, user: &User, workspace: &Value, transition: &str) {
    let path = format!("/workspaces/{}/builds", workspace["id"].as_str().expect("an id"));
    stack.app.post(user, &path, json!({ "transition": transition })).await.ok();
    let built = stack.app.built(user, workspace).await;
    assert_eq!(built["latest_build"]["job"]["status"], "succeeded", "{built:#}");
}

/// Every update is told once and in order, with no gap, though the replica that tells them is killed
/// and NATS goes away; and only to those who may read it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_outlives_its_replica_and_nats_and_misses_nothing() {
    let mut stack = TestStack::builder(BERTH).own_nats().replicas(Service::Api, 2).start().await;
    let pushed = stack.given_template("plain", template::plain(&[])).await;
    let (alice, eve) = (stack.user("alice").await, stack.user("eve").await);
    stack.settled().await;
    let owners = Watch::start(&stack.via(1), &stack.owner, stack.dir());
    let eves = Watch::start(&stack.via(1), &eve, stack.dir());
    wait_until("both watch", SOON, async || {
        let watchers = stack.metric(Service::Api, 1, "berth_watchers", &[]).await;
        (watchers >= 2.0).then_some(())
    })
    .await;
    let own = stack.app.create_workspace(&eve, &pushed, None, "own").await.ok();
    stack.app.built(&eve, &own).await;

    let workspace = stack.app.create_workspace(&alice, &pushed, None, "mine").await.ok();
    stack.app.built(&alice, &workspace).await;
    owners.sees_end_of("mine", 1).await;
    stack.kill9(Service::Api, 1).await;
    build(&stack, &alice, &workspace, "stop").await;
    stack.restart(Service::Api, 1).await;
    owners.sees_end_of("mine", 2).await;
    stack.stop_nats().await;
    build(&stack, &alice, &workspace, "start").await;
    stack.start_nats().await;
    let updates = owners.sees_end_of("mine", 3).await;

    let told: Vec<(i64, String)> = updates
        .iter()
        .filter(|it| it["workspace_name"] == "mine")
        .map(|it| {
            let status = it["job_status"].as_str().unwrap_or_default().to_owned();
            (it["build_number"].as_i64().unwrap_or_default(), status)
        })
        .collect();
    let each = |number| ["pending", "running", "succeeded"].map(|it| (number, it.to_owned()));
    assert_eq!(told, [each(1), each(2), each(3)].concat());
    let gaps = updates.iter().filter(|it| it.get("first_missing_id").is_some()).count();
    assert_eq!(gaps, 0, "{updates:#?}");

    build(&stack, &eve, &own, "stop").await;
    let updates = eves.sees_end_of("own", 2).await;
    let is_own = |it: &Value| it["workspace_name"] == "own" && it.get("first_missing_id").is_none();
    assert!(updates.iter().all(is_own), "{updates:#?}");
    stack.settled().await;
}
