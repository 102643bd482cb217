//! Terminals: people at one API replica, agents at another.

#![expect(clippy::unwrap_used, reason = "helpers of tests unwrap as the tests do")]

mod command;
mod terminal;

use std::time::Duration;

use berth_testkit::{App, SOON, Service, TestStack, User, processes_of, wait_until};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::reinit::{claim, reinitialised};
use crate::{BERTH, template};
use terminal::{Terminal, open, open_from};

const SHELL: &str = "7b0fe3b2-0d5a-4a4e-8d2c-0a8f4f3b6c11";

async fn stack() -> TestStack {
    TestStack::builder(BERTH)
        .replicas(Service::Api, 2)
        .set(Service::Api, "BERTH_TERMINALS__CHECK", "1s")
        .start()
        .await
}

/// A workspace of `user` whose agent runs.
async fn given_workspace(stack: &TestStack, user: &User, name: &str) -> Value {
    let pushed = stack.given_template(&format!("agents-{name}"), template::with_agent(&[])).await;
    let workspace = stack.app.create_workspace(user, &pushed, None, name).await.ok();
    stack.app.built(user, &workspace).await
}

fn agent_of(workspace: &Value) -> String {
    let agent = &workspace["latest_build"]["resources"][0]["agents"][0]["id"];
    agent.as_str().unwrap_or_else(|| panic!("no agent: {workspace:#}")).to_owned()
}

fn folder(stack: &TestStack, workspace: &Value) -> String {
    stack.workspaces().join(workspace["id"].as_str().unwrap()).display().to_string()
}

/// Opens again until it is: what lies between may be away for a moment.
async fn reopen(
    stack: &TestStack,
    replica: usize,
    user: &User,
    agent: &str,
    after: u64,
) -> Terminal {
    let after = after.to_string();
    let query = [("reconnect", SHELL), ("after", after.as_str())];
    wait_until("the shell can be joined again", SOON, async || {
        open(&stack.via(replica), user, agent, &query).await.ok()
    })
    .await
}

/// Keys, size, surroundings; joined by another; replayed; both replicas killed under it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shell_is_reached_through_another_replica_and_outlives_both() {
    let mut stack = stack().await;
    let alice = stack.user("alice").await;
    let workspace = given_workspace(&stack, &alice, "mine").await;
    let agent = agent_of(&workspace);
    // The agent knows replica 0 alone.
    let other = stack.via(1);
    let query = [("reconnect", SHELL), ("width", "101"), ("height", "37")];
    let mut first = open(&other, &alice, &agent, &query).await.unwrap();
    first.type_in("PS1=; stty size; pwd; echo $CODER_WORKSPACE_OWNER_NAME-$TERM\n").await;
    first.shows("37 101\r\n").await;
    first.shows(&folder(&stack, &workspace)).await;
    first.shows("alice-xterm-256color\r\n").await;
    first.say(json!({ "width": 88, "height": 22 })).await;
    first.type_in("stty size\n").await;
    first.shows("22 88\r\n").await;

    // It is counted where it is served, and the audit log says who opened it and where.
    assert!((stack.metric(Service::Api, 1, "berth_terminals ", &[]).await - 1.0).abs() < 0.1);
    let path = format!("/audit?q=action:connect resource_id:{agent}");
    let log = stack.app.get(&stack.owner, &path.replace(' ', "%20")).await.expect(200);
    let line = &log["audit_logs"][0];
    assert_eq!(log["count"], 1, "{log:#}");
    assert_eq!(line["user"]["username"], "alice");
    assert_eq!(line["resource_type"], "workspace_agent");
    assert!(line["resource_target"].as_str().unwrap().starts_with("mine/"), "{line:#}");
    assert_eq!(line["diff"]["workspace_id"]["new"], workspace["id"]);

    // Another one joins, sees what was, and both see what is.
    let query = [("reconnect", SHELL), ("width", "88"), ("height", "22")];
    let mut second = open(&stack.app, &alice, &agent, &query).await.unwrap();
    second.shows("37 101\r\n").await;
    second.type_in("echo to-$((40 + 2))-both; mark=here\n").await;
    first.shows("to-42-both\r\n").await;
    second.shows("to-42-both\r\n").await;
    drop(second);

    // The person's replica dies.
    stack.kill9(Service::Api, 1).await;
    assert_eq!(first.ends().await.0, 1006);
    let seen = first.offset + first.seen.len() as u64;
    let mut again = reopen(&stack, 0, &alice, &agent, seen).await;
    assert_eq!(again.offset, seen, "nothing twice and nothing lost");
    again.type_in("echo still-$mark\n").await;
    again.shows("still-here\r\n").await;
    drop(again);
    stack.restart(Service::Api, 1).await;

    // The agent's replica dies.
    let mut third = reopen(&stack, 1, &alice, &agent, 0).await;
    third.shows("still-here\r\n").await;
    stack.kill9(Service::Api, 0).await;
    third.type_in("echo lost\n").await;
    stack.restart(Service::Api, 0).await;
    let (code, reason) = third.ends().await;
    assert_eq!(code, 1012, "{reason}");
    let seen = third.offset + third.seen.len() as u64;
    let mut last = reopen(&stack, 1, &alice, &agent, seen).await;
    last.type_in("echo yet-$mark; exit 3\n").await;
    last.shows("yet-here\r\n").await;
    assert_eq!(last.ends().await, (1000, "exit 3".to_owned()));
    stack.settled().await;
}

/// The largest resident size that a process ever had, in KiB.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|it| it.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// 100 MB to somebody who reads slowly at first, beside `yes` for somebody who does not read at all:
/// no process grows, and a third one's keys are answered meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fast_producer_neither_fills_memory_nor_keeps_others_waiting() {
    const BYTES: u64 = 100_000_000;
    let stack = stack().await;
    let alice = stack.user("alice").await;
    let workspace = given_workspace(&stack, &alice, "mine").await;
    let (agent, other) = (agent_of(&workspace), stack.via(1));
    let processes: Vec<u32> = processes_of(stack.dir())
        .into_iter()
        .filter(|(_, line)| {
            let ours = |arguments| line.starts_with(&format!("{BERTH} {arguments}"));
            ours("service api") || ours("agent --dir")
        })
        .map(|(pid, _)| pid)
        .collect();
    assert_eq!(processes.len(), 3, "{processes:?}");
    let before: Vec<u64> = processes.iter().map(|pid| peak(*pid)).collect();

    let mut deaf = open(&other, &alice, &agent, &[("command", "yes")]).await.unwrap();
    deaf.shows("y\r\ny\r\n").await;
    let command = format!("head -c {BYTES} /dev/zero");
    let mut big = open(&other, &alice, &agent, &[("command", command.as_str())]).await.unwrap();
    let mut quick = open(&other, &alice, &agent, &[]).await.unwrap();
    let typist = async {
        for round in 0..20 {
            quick.type_in(&format!("echo answer-$(({round} + 100))\n")).await;
            quick.shows(&format!("answer-{}\r\n", round + 100)).await;
        }
    };
    let (wrong, ()) = tokio::join!(big.swallow(BYTES, 50, Duration::from_millis(20)), typist);
    assert_eq!(wrong, 0);
    assert_eq!(big.ends().await, (1000, "exit 0".to_owned()));
    for (pid, before) in processes.iter().zip(before) {
        let grown = peak(*pid).saturating_sub(before);
        assert!(grown < 24 << 10, "process {pid} grew by {grown} KiB");
    }
    stack.settled().await;
}

/// Who may not use the workspace learns nothing; what cannot be is refused by name; what is no
/// longer allowed ends within seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_is_for_those_who_may_use_the_workspace() {
    let stack = stack().await;
    let (alice, eve) = (stack.user("alice").await, stack.user("eve").await);
    let workspace = given_workspace(&stack, &alice, "mine").await;
    let agent = agent_of(&workspace);
    let app = &stack.app;
    let token = std::fs::read_to_string(format!("{}/token", folder(&stack, &workspace))).unwrap();
    for (who, status) in [(&eve, 404), (&stack.nobody, 401), (&User::with_token(token.trim()), 401)]
    {
        // Before the input is looked at.
        let refused = open(app, who, &agent, &[("width", "0")]).await.err().unwrap();
        assert_eq!(refused.0, status, "{who:?}: {:#}", refused.1);
    }
    let nothing = open(app, &alice, SHELL, &[]).await.err().unwrap();
    assert_eq!(nothing.0, 404);
    app.get(&alice, "/workspaceagents/me/terminals").await.expect(401);
    app.get(&alice, &format!("/workspaceagents/{agent}/pty")).await.expect(400);
    let foreign = open_from(app, &alice, &agent, &[], Some("https://evil.example")).await;
    assert_eq!(foreign.err().unwrap().0, 403);
    assert!(open_from(app, &alice, &agent, &[], Some(app.url())).await.is_ok());

    let long = "x".repeat((32 << 10) + 1);
    for (field, value) in [
        ("width", "0"),
        ("width", "100000"),
        ("height", "-1"),
        ("reconnect", "mine"),
        ("command", long.as_str()),
        ("command", "a\0b"),
        ("after", "x"),
    ] {
        let (status, body) = open(app, &alice, &agent, &[(field, value)]).await.err().unwrap();
        assert_eq!(status, 400, "{field}: {body:#}");
        assert_eq!(body["validations"][0]["field"], field, "{body:#}");
    }
    assert!(endless_command(app, &alice, &agent).await.starts_with("HTTP/1.1 4"));
    let gone = [("reconnect", SHELL), ("after", "5")];
    assert_eq!(open(app, &alice, &agent, &gone).await.err().unwrap().0, 412);

    for bad in [r#"{"data": 5}"#, "no JSON", r#"{"width": 100000, "height": 5}"#] {
        let mut shell = open(app, &alice, &agent, &[]).await.unwrap();
        shell.say_raw(bad).await;
        assert_eq!(shell.ends().await.0, 1007, "{bad}");
    }

    agent_restarts(&stack, &alice, &workspace, &agent).await;

    // A session that ends takes its terminals with it.
    let mut shell = open(app, &alice, &agent, &[("reconnect", SHELL)]).await.unwrap();
    shell.type_in("echo on-$((1 + 1))\n").await;
    shell.shows("on-2").await;
    app.post(&alice, "/users/logout", json!({})).await.ok();
    assert_eq!(shell.ends().await.0, 1008);
    ends_with_the_workspace(&stack, &workspace, &agent).await;
    stack.settled().await;
}

/// An agent that starts again has no shells, says so, and gives new ones.
async fn agent_restarts(stack: &TestStack, user: &User, workspace: &Value, agent: &str) {
    let mut shell = open(&stack.app, user, agent, &[("reconnect", SHELL)]).await.unwrap();
    shell.type_in("echo on-$((1 + 1))\n").await;
    shell.shows("on-2").await;
    let dir = folder(stack, workspace);
    let pid = std::fs::read_to_string(format!("{dir}/agent.pid")).unwrap();
    let kill = std::process::Command::new("kill").args(["-9", pid.trim()]).status().unwrap();
    assert!(kill.success());
    let (code, reason) = shell.ends().await;
    assert_eq!(code, 1012, "{reason}");
    let restart = std::process::Command::new(BERTH)
        .args(["agent", "--detach", "--dir", &dir])
        .env("BERTH_AGENT_URL", stack.app.url())
        .env("BERTH_AGENT_TOKEN_FILE", format!("{dir}/token"))
        .env("BERTH_LOCAL_SUPERVISOR_PIDFILE", stack.dir().join("supervisor.pid"))
        .status()
        .unwrap();
    assert!(restart.success());
    let mut query = vec![("reconnect", SHELL), ("after", "1")];
    wait_until("the new agent has no such shell", SOON, async || {
        let (status, _) = open(&stack.app, user, agent, &query).await.err().unwrap();
        (status == 412).then_some(())
    })
    .await;
    query.pop();
    let mut shell = open(&stack.app, user, agent, &query).await.unwrap();
    shell.type_in("echo new-$((1 + 1))\n").await;
    shell.shows("new-2").await;
    assert!(!shell.text().contains("on-2"));
}

/// The status line for a command of 1 MiB, which no proper client can even send.
async fn endless_command(app: &App, user: &User, agent: &str) -> String {
    let address = app.url().trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await.unwrap();
    let command = "x".repeat(1 << 20);
    let request = format!(
        "GET /api/v2/workspaceagents/{agent}/pty?command={command} HTTP/1.1\r\nHost: {address}\r\n\
         Coder-Session-Token: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        user.token()
    );
    // The server need not read it all.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut line = String::new();
    let _ = BufReader::new(stream).read_line(&mut line).await;
    line
}

/// The owner of the deployment may use every workspace: his terminal ends with the workspace's stop.
async fn ends_with_the_workspace(stack: &TestStack, workspace: &Value, agent: &str) {
    let owner = &stack.owner;
    let mut shell = open(&stack.app, owner, agent, &[]).await.unwrap();
    shell.type_in("echo on-$((1 + 1))\n").await;
    shell.shows("on-2").await;
    let path = format!("/workspaces/{}/builds", workspace["id"].as_str().unwrap());
    stack.app.post(owner, &path, json!({ "transition": "stop" })).await.ok();
    let (code, reason) = shell.ends().await;
    assert!(matches!(code, 1001 | 1008), "{code} {reason}");
    stack.app.built(owner, workspace).await;
    let (status, body) = open(&stack.app, owner, agent, &[]).await.err().unwrap();
    assert_eq!(status, 409, "{body:#}");
}

/// What ran for the prebuild's owner ends, and the new owner's shell is another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_ends_the_former_owners_terminals() {
    let stack = stack().await;
    let pushed = stack.given_template("agents", template::with_agent(&[("small", 1)])).await;
    let alice = stack.user("alice").await;
    stack.pool_has(&pushed, 1).await;
    let all = stack.app.get(&stack.owner, "/workspaces").await.expect(200);
    let prebuild = all["workspaces"][0].clone();
    let agent = agent_of(&prebuild);
    let query = [("reconnect", SHELL)];
    let mut former = open(&stack.via(1), &stack.owner, &agent, &query).await.unwrap();
    former.type_in("sleep 1000 & echo $! > sleeper; echo secret-$((1 + 1))\n").await;
    former.shows("secret-2").await;
    let dir = folder(&stack, &prebuild);
    let sleeper = std::fs::read_to_string(format!("{dir}/sleeper")).unwrap();

    let workspace = claim(&stack, &alice, &pushed, "mine").await;
    let (code, reason) = former.ends().await;
    assert!(matches!(code, 1001 | 1008 | 1012), "{code} {reason}");
    // The same name is another shell for another user.
    let joined = open(&stack.app, &alice, &agent, &[("after", "0"), query[0]]).await;
    assert!(joined.is_err());
    reinitialised(&stack, &workspace, &alice).await;
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", sleeper.trim()));
    let lives = stat.is_ok_and(|it| !it.contains(") Z"));
    assert!(!lives, "the former owner's process lives");
    let workspace = stack.app.built(&alice, &workspace).await;
    let mut mine = open(&stack.via(1), &alice, &agent_of(&workspace), &query).await.unwrap();
    mine.type_in("echo $CODER_WORKSPACE_OWNER_NAME-$((1 + 1))\n").await;
    mine.shows("alice-2").await;
    assert!(!mine.text().contains("secret"), "{}", mine.text());
    stack.settled().await;
}

/// With NATS away nothing is shown; afterwards the shell goes on, with nothing lost or shown twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nats_loses_is_sent_again() {
    const LAST: u64 = 100;
    let builder = TestStack::builder(BERTH).replicas(Service::Api, 2).own_nats();
    let mut stack = builder.start().await;
    let alice = stack.user("alice").await;
    let workspace = given_workspace(&stack, &alice, "mine").await;
    let agent = agent_of(&workspace);
    let count = format!("for i in $(seq {LAST}); do echo line-$i-; sleep 0.05; done; exit 4");
    let query = [("reconnect", SHELL), ("command", count.as_str()), ("terminal", "false")];
    let mut shell = open(&stack.via(1), &alice, &agent, &query).await.unwrap();
    shell.shows("line-3-\n").await;
    stack.stop_nats().await;
    stack.start_nats().await;
    let mut seen = Vec::new();
    let mut end = shell.ends().await;
    seen.append(&mut shell.seen);
    while end.0 == 1012 {
        let mut again = reopen(&stack, 1, &alice, &agent, seen.len() as u64).await;
        assert_eq!(again.offset, seen.len() as u64);
        end = again.ends().await;
        seen.append(&mut again.seen);
    }
    assert_eq!(end, (1000, "exit 4".to_owned()));
    let expected: Vec<_> = (1..=LAST).map(|it| format!("line-{it}-\n")).collect();
    assert_eq!(String::from_utf8_lossy(&seen), expected.concat());
    stack.settled().await;
}
