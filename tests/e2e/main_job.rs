//! `berth up` and the command line, as a person uses them.

mod session;

use std::time::Duration;

use berth_testkit::{SOON, wait_patiently};
use serde_json::Value;

use session::{Session, list, text};

/// A real Terraform plans and applies, on two cores, for three prebuilds.
const FIRST_POOLS: Duration = Duration::from_mins(5);

/// The commands are served like any client's, 512 requests a minute.
const LOOK: Duration = Duration::from_millis(500);

/// Everything from the first start to `down --purge`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn up_fills_pools_hands_them_out_and_leaves_nothing_behind() {
    let session = Session::new().await;
    let mut up = session.up();
    up.says("pools are full", FIRST_POOLS).await;
    let pools = session.json(&["pools"]).await;
    let sizes: Vec<i64> = list(&pools).iter().filter_map(|it| it["desired"].as_i64()).collect();
    assert_eq!(sizes.iter().sum::<i64>(), 3, "two presets of 2 and 1: {pools:#}");
    full(&session, "local").await;

    assert!(session.runs() > 12, "stores, services, daemons and agents are processes of their own");

    let preset = largest(&pools, "local");
    claim(&session, "local", &preset, "my-ws").await;
    what_people_see(&session).await;
    watched_stop_and_start(&session, "my-ws").await;
    paused_pools_stay_as_they_are(&session, &preset).await;
    exec_template(&session).await;

    up.interrupt().await;
    session.nothing_runs().await;

    let mut again = session.up();
    again.says("pools are full", FIRST_POOLS).await;
    agent_is_ready(&session, "my-ws").await;
    again.kill9().await;
    session.nothing_runs().await;

    let mut last = session.up();
    last.says("pools are full", FIRST_POOLS).await;
    full(&session, "local").await;
    agent_is_ready(&session, "my-ws").await;
    let gone = session.run(&["delete", "my-ws"]).await;
    assert!(gone.status.success(), "{gone:?}");
    let mine = session.json(&["list"]).await;
    assert!(list(&mine["workspaces"]).iter().all(|it| it["name"] != "my-ws"), "{mine:#}");
    last.interrupt().await;
    session.nothing_runs().await;

    let down = session.run(&["down", "--purge", "--data-dir", session.data_dir_text()]).await;
    assert!(down.status.success(), "{down:?}");
    assert!(!session.data_dir().exists(), "the data is removed");
    session.nothing_runs().await;
}

/// Claims a prebuild and sees it become its new owner's.
async fn claim(session: &Session, template: &str, preset: &str, name: &str) {
    let create = ["create", name, "--template", template, "--preset", preset, "--no-wait"];
    let created = session.json(&create).await;
    assert_eq!(created["prebuild_claim"]["outcome"], "hit", "{created:#}");
    assert_eq!(created["owner_name"], "admin", "the owner changes at once: {created:#}");
    let shown = wait_patiently("the claim build ends", LOOK, SOON, async || {
        let shown = session.json(&["show", name]).await;
        (shown["latest_build"]["job"]["status"] != "running"
            && shown["latest_build"]["job"]["status"] != "pending")
            .then_some(shown)
    })
    .await;
    assert_eq!(shown["latest_build"]["job"]["status"], "succeeded", "{shown:#}");
    assert_eq!(shown["latest_build"]["build_number"], 2, "{shown:#}");
    wait_patiently("the startup script runs for the new owner", LOOK, SOON, async || {
        session.log_lines(name).await.iter().any(|it| it.contains("admin")).then_some(())
    })
    .await;
    agent_is_ready(session, name).await;
    full(session, template).await;
}

/// Tables, followed logs, errors that say what to do, and credentials for their owner's eyes only.
async fn what_people_see(session: &Session) {
    let listed = session.run(&["list"]).await;
    let table = String::from_utf8_lossy(&listed.stdout).into_owned();
    let mut lines = table.lines();
    let head = lines.next().unwrap_or_default();
    assert!(head.contains("WORKSPACE") && head.contains("STATUS"), "{table}");
    assert!(lines.any(|it| it.contains("my-ws") && it.contains("running")), "{table}");

    let mut logs = session.spawn(&["logs", "my-ws", "--agent", "--follow"]);
    logs.says("admin", SOON).await;
    logs.interrupt().await;

    let missing = session.run(&["show", "no-such-thing"]).await;
    let told = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(!missing.status.success());
    assert!(told.contains("no-such-thing") && told.contains("berth list"), "{told}");

    let mode = session.mode_of("data/state.json");
    assert_eq!(mode, 0o600, "it holds credentials, and has mode {mode:o}");
    assert_eq!(session.mode_of("config/berth/session.json"), 0o600);
}

/// `berth watch` sees the workspace stop and start.
async fn watched_stop_and_start(session: &Session, name: &str) {
    let mut watch = session.spawn(&["watch", "--output", "json"]);
    for (verb, status) in [("stop", "stopped"), ("start", "running")] {
        let shown = session.json(&[verb, name]).await;
        assert_eq!(shown["latest_build"]["status"], status, "{shown:#}");
        if verb == "stop" {
            session.no_agent_runs(text(&shown, "id")).await;
        }
        watch.says(text(&shown["latest_build"], "id"), SOON).await;
    }
    agent_is_ready(session, name).await;
    watch.interrupt().await;
    // The same agent runs on: nothing is to be waited for, and nothing to be told again.
    let shown = session.json(&["start", name, "-p", "greeting=Howdy"]).await;
    assert_eq!(agent_states(&shown), ["ready"], "{shown:#}");
    let same = session.json(&["update", name]).await;
    assert_eq!(
        same["latest_build"]["id"], shown["latest_build"]["id"],
        "it has the active version"
    );
    let refused = session.run(&["start", name, "-p", "greeting="]).await;
    assert!(!refused.status.success());
}

fn agent_states(workspace: &Value) -> Vec<&str> {
    let resources = list(&workspace["latest_build"]["resources"]).iter();
    resources
        .flat_map(|it| it["agents"].as_array().into_iter().flatten())
        .map(|it| text(it, "lifecycle_state"))
        .collect()
}

/// A claim from a paused pool leaves a gap, which is filled after `resume`.
async fn paused_pools_stay_as_they_are(session: &Session, preset: &str) {
    session.json(&["prebuilds", "pause"]).await;
    let create = ["create", "while-paused", "--template", "local", "--preset", preset];
    session.json(&create).await;
    let pools = session.json(&["pools"]).await;
    let short = list(&pools).iter().any(|it| it["claimable"].as_i64() < it["desired"].as_i64());
    assert!(short, "nothing is refilled while paused: {pools:#}");
    session.json(&["prebuilds", "resume"]).await;
    full(session, "local").await;
    session.json(&["delete", "while-paused"]).await;
}

/// The same template for the exec provisioner, pushed from the repository.
async fn exec_template(session: &Session) {
    let dir = crate::architecture::root().join("templates/local-exec");
    let dir = dir.to_str().expect("a path in UTF-8");
    session.json(&["templates", "push", dir, "--name", "local-exec"]).await;
    full(session, "local-exec").await;
    let pools = session.json(&["pools"]).await;
    claim(session, "local-exec", &largest(&pools, "local-exec"), "exec-ws").await;
    session.json(&["delete", "exec-ws"]).await;
}

/// The preset of a template with the most prebuilds.
fn largest(pools: &Value, template: &str) -> String {
    let ours = list(pools).iter().filter(|it| it["template_name"] == template);
    let found = ours.max_by_key(|it| it["desired"].as_i64()).expect("a pool");
    text(found, "preset_name").to_owned()
}

/// Waits until all pools of a template have what they should.
async fn full(session: &Session, template: &str) {
    wait_patiently(&format!("the pools of {template} are full"), LOOK, 2 * SOON, async || {
        let pools = session.json(&["pools"]).await;
        let ours: Vec<&Value> =
            list(&pools).iter().filter(|it| it["template_name"] == template).collect();
        let full = |it: &&Value| it["claimable"] == it["desired"];
        (!ours.is_empty() && ours.iter().all(full)).then_some(())
    })
    .await;
}

async fn agent_is_ready(session: &Session, name: &str) {
    wait_patiently(&format!("the agent of {name} is ready"), LOOK, SOON, async || {
        let shown = session.json(&["show", name]).await;
        let resources = list(&shown["latest_build"]["resources"]).to_vec();
        let mut agents = resources.iter().flat_map(|it| list(&it["agents"]));
        let ready = |it: &Value| it["lifecycle_state"] == "ready" && it["status"] == "connected";
        agents.any(ready).then_some(())
    })
    .await;
}
