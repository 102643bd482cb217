//! What operators do to pools from the command line, and that the dry run says what is then done.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use berth_testkit::{SOON, Service, TestStack, wait_until};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::{BERTH, architecture, template};

/// Runs a command that knows of no server.
async fn alone(args: &[&str], stdin: Option<&str>) -> Output {
    let home = tempfile::tempdir().expect("a folder");
    run(args, stdin, &[("HOME", home.path()), ("XDG_CONFIG_HOME", home.path())]).await
}

async fn run(args: &[&str], stdin: Option<&str>, variables: &[(&str, &Path)]) -> Output {
    let mut command = tokio::process::Command::new(BERTH);
    command.args(args).env_remove("BERTH_URL").env_remove("BERTH_TOKEN");
    command.envs(variables.iter().copied()).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("berth can be run");
    let mut input = child.stdin.take().expect("a pipe");
    // A command that ends before it has read everything is no error here.
    let _ = input.write_all(stdin.unwrap_or_default().as_bytes()).await;
    drop(input);
    let output = tokio::time::timeout(Duration::from_mins(2), child.wait_with_output()).await;
    output.unwrap_or_else(|_| panic!("berth {} hangs", args.join(" "))).expect("it ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn document(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("it prints JSON")
}

/// Commands of the owner of a stack.
struct Operator<'a> {
    stack: &'a TestStack,
}

impl Operator<'_> {
    async fn run(&self, args: &[&str]) -> Output {
        let (url, token) = (self.stack.app.url(), self.stack.owner.token());
        let variables = [("BERTH_URL", Path::new(url)), ("BERTH_TOKEN", Path::new(token))];
        run(&[&["prebuilds"], args].concat(), None, &variables).await
    }

    async fn json(&self, args: &[&str]) -> Value {
        document(&self.run(&[args, &["-o", "json"]].concat()).await)
    }

    /// What a person reads.
    async fn words(&self, args: &[&str]) -> String {
        let output = self.run(args).await;
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }
}

/// The file of docs/pool-snapshot.md.
fn example() -> String {
    let page = std::fs::read_to_string(architecture::root().join("docs/pool-snapshot.md"));
    let page = page.expect("docs/pool-snapshot.md");
    let (_, tail) = page.split_once("```json\n").expect("an example");
    tail.split_once("```").expect("its end").0.to_owned()
}

/// A plan from a file needs neither server nor login, and a file that is none is an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_from_a_file_needs_no_server() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("pool.json");
    std::fs::write(&path, example()).expect("it can be written");
    let file = path.to_str().expect("a path in UTF-8");

    let read =
        document(&alone(&["prebuilds", "plan", "--snapshot", file, "-o", "json"], None).await);
    let args = ["prebuilds", "plan", "--snapshot", "-", "-o", "json"];
    let piped = document(&alone(&args, Some(&example())).await);
    assert_eq!(read, piped);
    let pool = &read["pools"][0];
    let wanted = pool["desired"].as_i64().expect("a number");
    assert!(wanted > 0 && !pool["reasons"].as_array().expect("reasons").is_empty(), "{pool:#}");

    let more = ["prebuilds", "plan", "--snapshot", file, "--set", "instances=40", "-o", "json"];
    let later = [&more[..], &["--at", "2026-11-22T03:00:00Z"]].concat();
    let supposed = document(&alone(&later, None).await);
    assert_eq!(supposed["at"], "2026-11-22T03:00:00Z");
    assert_eq!(supposed["pools"][0]["desired"], 40, "no schedule holds on a Sunday night");

    let shown = alone(&["prebuilds", "plan", "--snapshot", file], None).await;
    assert!(text(&shown.stdout).contains(&format!("wanted      {wanted}")), "{shown:?}");

    for (content, complaint) in [
        (example().replace("\"version\": 1", "\"version\": 2"), "version 2"),
        (example().replace("\"standing\"", "\"standin\""), "standin"),
        ("[]".to_owned(), "snapshot"),
    ] {
        let args = ["prebuilds", "plan", "--snapshot", "-"];
        let refused = alone(&args, Some(&content)).await;
        let told = text(&refused.stderr);
        assert!(refused.status.code() == Some(1) && told.contains(complaint), "{told}");
    }
    let missing = alone(&["prebuilds", "plan", "--snapshot", "/nowhere/x.json"], None).await;
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("/nowhere/x.json"));
    let nothing = alone(&["prebuilds", "plan"], None).await;
    assert_eq!(nothing.status.code(), Some(2), "{}", text(&nothing.stderr));
}

/// An operator looks, supposes, pauses, explains, resumes; and what the dry run said while the
/// reconciler was away is what it does when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_runs_a_pool_from_the_command_line() {
    let mut stack = TestStack::builder(BERTH).replicas(Service::Reconciler, 1).start().await;
    let template = stack.given_template("dev", template::plain(&[("small", 2)])).await;
    stack.pool_has(&template, 2).await;
    pause_and_resume(&stack, &template).await;
    snapshot(&stack).await;
    policy(&stack).await;
    said_and_done(&mut stack, &template).await;

    let operator = Operator { stack: &stack };
    assert!(operator.words(&["reset", "dev"]).await.contains("no pool has failures"));
    let invalidated = operator.json(&["invalidate", "dev", "--preset", "small"]).await;
    assert_eq!(invalidated["invalidated"].as_array().map(Vec::len), Some(1));
    let all = operator.words(&["invalidate", "dev"]).await;
    assert!(all.contains("1 pools"), "{all}");
    stack.pool_has(&template, 2).await;
    for wrong in [["plan", "nowhere"], ["explain", "nowhere"], ["reset", "nowhere"]] {
        let refused = operator.run(&wrong).await;
        assert_eq!(refused.status.code(), Some(1), "{wrong:?}");
        assert!(text(&refused.stderr).contains("no template \"nowhere\""), "{refused:?}");
    }
    let refused = operator.run(&["plan", "dev", "--preset", "huge"]).await;
    assert!(text(&refused.stderr).contains("huge") && !refused.status.success(), "{refused:?}");
    stack.settled().await;
}

async fn pause_and_resume(stack: &TestStack, template: &Value) {
    let operator = Operator { stack };
    let scope = ["--template", "dev", "--preset", "small"];
    let pause = [&["pause", "--for", "2h", "--reason", "a look"], &scope[..]].concat();
    assert_eq!(operator.json(&pause).await["scope"], "preset");
    let pauses = operator.words(&["pauses"]).await;
    assert!(pauses.contains("a look") && pauses.contains("owner"), "{pauses}");
    // Claims go on.
    let preset = stack.app.preset(&stack.owner, template, "small").await;
    let claimed =
        stack.app.create_workspace(&stack.owner, template, Some(&preset), "one").await.ok();
    stack.app.built(&stack.owner, &claimed).await;
    wait_until("the pass has seen the pause", SOON, async || {
        let explained = operator.words(&["explain", "dev", "--preset", "small"]).await;
        let is_told = explained.contains("paused for this preset")
            && explained.contains("1 can be claimed now")
            && explained.contains("2 wanted");
        is_told.then_some(())
    })
    .await;
    let listed = operator.words(&["list"]).await;
    assert!(listed.contains("paused"), "{listed}");
    assert!(operator.words(&["resume"]).await.contains("was not paused"));
    operator.words(&[&["resume"], &scope[..]].concat()).await;
    stack.pool_has(template, 2).await;
}

/// The file that is written leads to the server's plan.
async fn snapshot(stack: &TestStack) {
    let operator = Operator { stack };
    let file = stack.dir().join("small.json");
    let file = file.to_str().expect("a path in UTF-8");
    let plan = ["plan", "dev", "--preset", "small", "--set", "instances=5"];
    let told = operator.json(&[&plan[..], &["--write-snapshot", file]].concat()).await;
    let alone =
        document(&alone(&["prebuilds", "plan", "--snapshot", file, "-o", "json"], None).await);
    for field in ["desired", "counts", "actions", "reasons", "next_look"] {
        assert_eq!(told["pools"][0][field], alone["pools"][0][field], "{field}");
    }
    assert_eq!(told["pools"][0]["creates"], 3);
    assert!(operator.words(&plan).await.contains("would do    create 3"));
}

async fn policy(stack: &TestStack) {
    let operator = Operator { stack };
    let set = ["policy", "set", "dev", "replace=gradual", "max_unavailable_percent=50"];
    assert_eq!(operator.json(&set).await["effective"]["small"]["replace"], "gradual");
    let own = ["policy", "set", "dev", "--preset", "small", "min_remaining_ttl_seconds=60"];
    operator.json(&own).await;
    let got = operator.json(&["policy", "get", "dev"]).await;
    let expected = json!({ "small": { "min_remaining_ttl_seconds": 60 } });
    assert_eq!(
        (&got["policy"]["max_unavailable_percent"], &got["presets"]),
        (&json!(50), &expected)
    );
    let refused = operator.run(&["policy", "set", "dev", "max_surge_percent=1000"]).await;
    let told = text(&refused.stderr);
    assert!(refused.status.code() == Some(1) && told.contains("from 1 to 100"), "{told}");
    let file = stack.dir().join("policy.json");
    std::fs::write(&file, r#"{ "policy": {} }"#).expect("it can be written");
    let file = file.to_str().expect("a path in UTF-8");
    let back = operator.json(&["policy", "set", "dev", "--file", file]).await;
    assert_eq!((&back["policy"]["replace"], &back["presets"]), (&json!("at_once"), &json!({})));
}

fn time(value: &Value) -> Timestamp {
    value.as_str().expect("a time").parse().expect("a time")
}

async fn said_and_done(stack: &mut TestStack, template: &Value) {
    stack.kill9(Service::Reconciler, 0).await;
    let preset = stack.app.preset(&stack.owner, template, "small").await;
    let claimed =
        stack.app.create_workspace(&stack.owner, template, Some(&preset), "two").await.ok();
    stack.app.built(&stack.owner, &claimed).await;
    let planned = Operator { stack }.json(&["plan", "dev", "--preset", "small"]).await;
    let said = &planned["pools"][0];
    assert_eq!(said["creates"], 1, "{said:#}");

    stack.restart(Service::Reconciler, 0).await;

    let operator = Operator { stack };
    let done = wait_until("the reconciler has acted", SOON, async || {
        let explained = operator.json(&["explain", "dev", "--limit", "20"]).await;
        let decisions = explained["pools"][0]["decisions"].as_array().cloned().unwrap_or_default();
        // The first that was made after the dry run.
        decisions.into_iter().rfind(|it| time(&it["created_at"]) > time(&planned["at"]))
    })
    .await;
    for field in ["desired", "counts", "actions", "reasons"] {
        assert_eq!(done[field], said[field], "{field}");
    }
    stack.pool_has(template, 2).await;
}
