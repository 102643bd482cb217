//! What agents and people who wait live through.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use berth_testkit::{SOON, Service, TestStack, wait_until};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

use crate::reinit::claim;
use crate::{BERTH, template};

const AGENTS: [&str; 2] = ["one", "two"];

/// The processes of two agents of one workspace.
struct Pair {
    folder: PathBuf,
    pids: [String; 2],
}

impl Pair {
    /// Of the only workspace there is.
    fn of(stack: &TestStack) -> Self {
        let mut all = std::fs::read_dir(stack.workspaces()).expect("a folder").flatten();
        let folder = all.next().expect("a workspace").path();
        assert!(all.next().is_none(), "there are more workspaces");
        let pids = AGENTS.map(|name| pid(&folder.join(name)));
        Self { folder, pids }
    }

    fn signal(&self, signal: &str) {
        let done = Command::new("kill").arg(format!("-{signal}")).args(&self.pids).status();
        assert!(done.expect("kill").success());
    }

    /// The owners for whom each agent's startup script ran.
    fn starts(&self) -> [String; 2] {
        AGENTS.map(|name| {
            let text = std::fs::read_to_string(self.folder.join(name).join("starts"));
            text.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
        })
    }
}

fn pid(folder: &Path) -> String {
    let text = std::fs::read_to_string(folder.join("agent.pid")).expect("the agent runs");
    text.trim().to_owned()
}

/// Waits until the claim build's job is `status`, without asking the API.
async fn claim_is(stack: &TestStack, status: &str) {
    let sql = format!(
        "select count(*) from workspace_builds b join provisioner_jobs j on j.id = b.job_id
         where b.stage = 'claim' and j.status = '{status}'"
    );
    wait_until(&format!("the claim build is {status}"), SOON, async || {
        (stack.database().count(&sql).await == 1).then_some(())
    })
    .await;
}

/// Both agents reinitialise once when they are back, as the processes that they were and with the
/// tokens that they had; and what one of them logs too much of is cut off where the server says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_that_are_away_for_the_claim_reinitialise_when_they_are_back() {
    let mut stack = TestStack::builder(BERTH).start().await;
    let pushed = stack.given_template("two", template::with_two_agents(&[("small", 1)])).await;
    let alice = stack.user("alice").await;
    stack.pool_has(&pushed, 1).await;
    let agents = Pair::of(&stack);
    let live = "select string_agg(auth_token::text, ' ' order by name)
                from workspace_agents where not retired and workspace_id is not null";
    let tokens = stack.database().value(live).await;
    assert_eq!(tokens.split(' ').count(), 2, "{tokens}");
    // No second prebuild, whose agents would be counted too.
    stack.kill9(Service::Reconciler, 0).await;

    agents.signal("STOP");
    let workspace = claim(&stack, &alice, &pushed, "mine").await;
    claim_is(&stack, "succeeded").await;
    // Their streams end with the server that had them.
    stack.kill9(Service::Api, 0).await;
    stack.restart(Service::Api, 0).await;
    assert_eq!(agents.starts(), ["prebuilds", "prebuilds"]);
    agents.signal("CONT");

    let workspace = wait_until("both agents are ready for alice", SOON, async || {
        let workspace = stack.app.built(&alice, &workspace).await;
        let made = &workspace["latest_build"]["resources"][0]["agents"];
        let is_ready = |it: &serde_json::Value| it["lifecycle_state"] == "ready";
        let all = made.as_array().is_some_and(|it| it.len() == 2 && it.iter().all(is_ready));
        // Until they are back they are as ready as they were.
        let begun = agents.starts().iter().all(|it| it.contains("alice"));
        let is_full = |it: &serde_json::Value| it["logs_overflowed"] == true;
        let full = made.as_array().is_some_and(|it| it.iter().any(is_full));
        (all && begun && full).then_some(workspace)
    })
    .await;
    stack.settled().await;
    assert_eq!(agents.starts(), ["prebuilds alice", "prebuilds alice"]);
    assert_eq!(AGENTS.map(|name| pid(&agents.folder.join(name))), agents.pids);
    assert_eq!(stack.database().value(live).await, tokens);

    let made = workspace["latest_build"]["resources"][0]["agents"].as_array().expect("agents");
    let of = |name: &str| made.iter().find(|it| it["name"] == name).expect("an agent").clone();
    assert_eq!(of("one")["logs_overflowed"], false);
    assert_eq!(of("two")["logs_overflowed"], true);
    let kept = of("two")["logs_length"].as_i64().expect("a number");
    assert!((1 << 20) - kept < 100 && kept <= 1 << 20, "{kept} bytes are kept");
}

/// Somebody who waits for a claim sees it through although the API restarts meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_workspace_rides_over_a_restart_of_the_api() {
    let mut stack = TestStack::builder(BERTH).start().await;
    let pushed = stack.given_template("agents", template::with_agent(&[("small", 1)])).await;
    stack.pool_has(&pushed, 1).await;
    std::fs::write(stack.dir().join("hold"), "").expect("a file can be made");
    let mut create = tokio::process::Command::new(BERTH)
        .args(["create", "mine", "--template", "agents", "--preset", "small"])
        .env("BERTH_URL", stack.app.url())
        .env("BERTH_TOKEN", stack.owner.token())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("berth can be run");
    claim_is(&stack, "running").await;

    stack.kill9(Service::Api, 0).await;
    let mut said = BufReader::new(create.stderr.take().expect("a pipe")).lines();
    let noticed = async {
        while let Some(line) = said.next_line().await.expect("text") {
            if line.contains("the server is away") {
                return;
            }
        }
        panic!("berth create gave up");
    };
    tokio::time::timeout(SOON, noticed).await.expect("it notices soon");
    std::fs::remove_file(stack.dir().join("hold")).expect("it is there");
    claim_is(&stack, "succeeded").await;
    stack.restart(Service::Api, 0).await;

    let status =
        tokio::time::timeout(SOON, create.wait()).await.expect("it ends").expect("a status");
    let mut shown = String::new();
    let mut out = create.stdout.take().expect("a pipe");
    out.read_to_string(&mut shown).await.expect("text");
    assert!(status.success(), "{shown}");
    assert!(shown.contains("ready"), "{shown}");
}
