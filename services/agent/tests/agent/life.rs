//! One agent against a server that can go away, lose connections and repeat itself.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::support::{
    ALICE, Api, PREBUILDS_USER, Reinit, Seen, TOKEN, claim_event, manifest, startup_script,
};
use berth_agent::{Auth, Clock, Instance, Options, Timing, Token};
use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

pub(crate) const QUICK: Timing = Timing {
    heartbeat: Duration::from_millis(20),
    log_flush: Duration::from_millis(10),
    retry_min: Duration::from_millis(5),
    retry_max: Duration::from_millis(50),
    refused: Duration::from_millis(400),
    stream_silence: Duration::from_secs(30),
    kill_grace: Duration::from_millis(500),
    shutdown: Duration::from_secs(9),
};

pub(crate) struct Agent {
    pub(crate) home: TempDir,
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
    _stop: DropGuard,
}

impl Agent {
    pub(crate) fn start(api: &Api) -> Self {
        Self::with(api, QUICK)
    }

    fn with(api: &Api, timing: Timing) -> Self {
        Self::at(api, timing, Clock::system())
    }

    /// An agent whose machine's clock is `clock`.
    pub(crate) fn at(api: &Api, timing: Timing, clock: Clock) -> Self {
        Self::of(api, Auth::Token(Token::new(TOKEN)), timing, clock)
    }

    /// An agent that proves who it is by its cloud instance.
    pub(crate) fn on(api: &Api, instance: Instance) -> Self {
        Self::of(api, Auth::Instance(instance), QUICK, Clock::system())
    }

    fn of(api: &Api, auth: Auth, timing: Timing, clock: Clock) -> Self {
        let home = tempfile::tempdir().unwrap();
        let shutdown = CancellationToken::new();
        let options = Options {
            url: api.url(),
            auth,
            scope: home.path().to_string_lossy().into_owned(),
            env: BTreeMap::from([
                ("HOME".to_owned(), home.path().to_string_lossy().into_owned()),
                ("SHELL".to_owned(), "/bin/sh".to_owned()),
            ]),
            data_dir: home.path().join("data"),
            timing,
            clock,
        };
        let task = tokio::spawn(berth_agent::run(options, shutdown.clone()));
        Self { home, shutdown: shutdown.clone(), task, _stop: shutdown.drop_guard() }
    }

    pub(crate) fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.home.path().join(name)).unwrap_or_default()
    }

    pub(crate) async fn end(self) -> TempDir {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(10), self.task).await.unwrap().unwrap().unwrap();
        self.home
    }
}

/// Whether the process whose number is in `file` lives.
pub(crate) fn lives(file: &Path) -> bool {
    let pid = std::fs::read_to_string(file).unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z")
}

#[tokio::test]
async fn a_start_runs_the_scripts_in_their_surroundings_and_ends_ready() {
    let api = Api::start().await;
    api.given_script(
        "alice",
        ALICE,
        "echo $CODER_WORKSPACE_OWNER_NAME $CODER_WORKSPACE_NAME $CODER $FROM_MANIFEST; \
         pwd; echo $CODER_AGENT_TOKEN > token; printf 'caf\\351\\n' >&2",
    );
    let agent = Agent::start(&api);
    api.until_lifecycle(&["created", "starting", "ready"]).await;
    api.until("three lines", |seen| seen.logs.len() == 3).await;

    let home = agent.home.path().to_str().unwrap();
    let mut lines: Vec<_> =
        api.seen().logs.iter().map(|(_, level, text)| format!("{level} {text}")).collect();
    lines.sort();
    assert_eq!(
        lines,
        [
            "error caf\u{fffd}".to_owned(),
            format!("info {home}"),
            format!("info alice dev true {home}/x"),
        ]
        .into_iter()
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect::<Vec<_>>()
    );
    assert_eq!(agent.file("token").trim(), TOKEN);
    let startup = api.seen().startups[0].clone();
    assert_eq!(startup["expanded_directory"], home);
    assert_eq!(startup["version"], concat!("v", env!("CARGO_PKG_VERSION")));
    agent.end().await;
    assert_eq!(api.seen().lifecycle[3..], ["shutting_down", "off"]);
}

#[tokio::test]
async fn a_failing_script_is_a_start_error_and_its_log_says_why() {
    let api = Api::start().await;
    let scripts = json!([startup_script("exit 7"), startup_script("echo fine")]);
    api.change(|seen| seen.manifest = manifest("alice", ALICE, &scripts));
    let agent = Agent::start(&api);
    api.until_lifecycle(&["created", "starting", "start_error"]).await;
    api.until("the reason", |seen| seen.lines().iter().any(|it| it.contains("exit status: 7")))
        .await;
    agent.end().await;
}

#[tokio::test]
async fn a_script_that_does_not_block_neither_holds_ready_nor_makes_it_an_error() {
    let api = Api::start().await;
    let beside = |script: &str, source: &str| {
        let mut it = startup_script(script);
        it["start_blocks_login"] = json!(false);
        it["log_source_id"] = json!(source);
        it
    };
    let scripts = json!([
        beside("echo $$ > beside; until [ -e go ]; do sleep 0.02; done; echo went on", ALICE),
        beside("exit 7", PREBUILDS_USER),
        // Ready comes after both others began: nothing runs one after the other.
        startup_script("until [ -e beside ]; do sleep 0.02; done"),
    ]);
    api.change(|seen| seen.manifest = manifest("alice", ALICE, &scripts));
    let agent = Agent::start(&api);
    api.until_lifecycle(&["created", "starting", "ready"]).await;
    assert!(lives(&agent.home.path().join("beside")), "it was not waited for");
    api.until("why it failed", |seen| seen.lines().iter().any(|it| it.contains("exit status: 7")))
        .await;
    std::fs::write(agent.home.path().join("go"), "").unwrap();
    api.until("its last line", |seen| seen.lines().contains(&"went on")).await;
    assert_eq!(api.seen().lifecycle.len(), 3);
    agent.end().await;
}

#[tokio::test]
async fn a_timeout_ends_the_script_with_all_its_children() {
    let api = Api::start().await;
    // The children ignore the polite signal; one has left the process group.
    let mut script = startup_script(
        "trap '' TERM; (echo $BASHPID; exec sleep 600) & echo $! > child; sleep 600",
    );
    script["timeout"] = json!(1);
    api.change(|seen| seen.manifest = manifest("alice", ALICE, &json!([script])));
    let agent = Agent::start(&api);
    api.until_lifecycle(&["created", "starting", "start_timeout"]).await;
    assert!(!lives(&agent.home.path().join("child")));
    agent.end().await;
}

#[tokio::test]
async fn a_claim_restarts_the_scripts_once_for_the_new_owner() {
    let api = Api::start().await;
    let script = "echo $CODER_WORKSPACE_OWNER_NAME >> runs; \
                  setsid sleep 600 >/dev/null 2>&1 & echo $! > $CODER_WORKSPACE_OWNER_NAME.pid";
    api.given_script("prebuilds", PREBUILDS_USER, script);
    let agent = Agent::start(&api);
    api.until_lifecycle(&["created", "starting", "ready"]).await;
    api.until("a stream", |seen| seen.reinit_requests == 1).await;

    api.given_script("alice", ALICE, script);
    api.change(|seen| {
        // The stream of the claim breaks, and the server tells of the claim again and again.
        seen.reinit.extend((0..5).map(|_| Reinit::Once(claim_event(ALICE))));
    });
    api.stream(&claim_event(ALICE)).await;
    api.until("seven requests", |seen| seen.reinit_requests >= 7).await;
    api.until_lifecycle(&["created", "starting", "ready", "starting", "ready"]).await;
    api.beats(5).await;

    assert_eq!(agent.file("runs"), "prebuilds\nalice\n");
    assert_eq!(api.seen().lifecycle.len(), 5);
    assert_eq!(api.seen().startups.len(), 2);
    assert!(!lives(&agent.home.path().join("prebuilds.pid")), "it belonged to the prebuild");
    assert!(lives(&agent.home.path().join("alice.pid")));
    let home = agent.end().await;
    assert!(!lives(&home.path().join("alice.pid")), "the agent leaves nothing behind");
}

#[tokio::test]
async fn a_claim_in_the_middle_of_the_start_stops_it() {
    let api = Api::start().await;
    api.given_script("prebuilds", PREBUILDS_USER, "echo begun; sleep 600; echo never");
    let agent = Agent::start(&api);
    api.until("the start", |seen| seen.lines().contains(&"begun")).await;
    api.until("a stream", |seen| seen.reinit_requests == 1).await;
    api.given_script("alice", ALICE, "echo done");
    api.stream(&claim_event(ALICE)).await;
    api.until_lifecycle(&["created", "starting", "starting", "ready"]).await;
    agent.end().await;
}

/// Gives the number of runs of a startup script, and of `reinit` requests, when these were answered
/// in this order after the agent had started, and it then lived on for a while.
async fn runs_after(answers: Vec<Reinit>) -> (usize, usize) {
    let api = Api::start().await;
    api.given_script("prebuilds", PREBUILDS_USER, "echo run >> runs");
    let agent = Agent::start(&api);
    api.until_lifecycle(&["created", "starting", "ready"]).await;
    api.until("a stream", |seen| seen.reinit_requests == 1).await;
    let requests = 1 + answers.len();
    api.change(|seen| seen.reinit.extend(answers));
    api.end_streams();
    api.until("all answers given", |seen| seen.reinit_requests >= requests).await;
    api.beats(20).await;
    api.until("ready", |seen| seen.lifecycle.last().is_some_and(|it| it == "ready")).await;
    let runs = agent.file("runs").lines().count();
    agent.end().await;
    let requests = api.seen().reinit_requests;
    // Without the stream that was there before.
    (runs, requests - 1)
}

#[tokio::test]
async fn a_claim_that_happened_while_away_is_seeded_and_acted_on_once() {
    let seeded = || Reinit::Once(claim_event(ALICE));
    let (runs, _) = runs_after(vec![seeded(), seeded(), seeded()]).await;
    assert_eq!(runs, 2);
}

#[tokio::test]
async fn a_conflict_ends_the_asking_for_good() {
    let answers = vec![Reinit::Conflict("already handled by an earlier build")];
    assert_eq!(runs_after(answers).await, (1, 1));
}

#[tokio::test]
async fn an_error_event_ends_the_asking_for_good() {
    let failed = "event: error\ndata: {\"message\":\"the claim build failed\"}\n\n";
    assert_eq!(runs_after(vec![Reinit::Once(failed.to_owned())]).await, (1, 1));
}

#[tokio::test]
async fn a_bare_reason_is_a_claim_and_its_repetition_is_not() {
    let bare = || Reinit::Once("event: data\ndata: prebuild_claimed\n\n".to_owned());
    assert_eq!(runs_after(vec![bare(), bare()]).await.0, 2);
}

#[tokio::test]
async fn streams_that_break_off_or_say_nothing_known_cause_no_reinitialisation() {
    let frames = [
        "event: data\ndata: {\"reason\":\"prebuild_claimed\"",
        "event: ping\n\n",
        "event: data\ndata: something_new\n\n",
        "",
    ];
    let answers = frames.map(|frame| Reinit::Once(frame.to_owned())).into();
    assert_eq!(runs_after(answers).await, (1, 5));
}

#[tokio::test]
async fn a_lost_connection_loses_no_claim() {
    let api = Api::start().await;
    api.given_script("prebuilds", PREBUILDS_USER, "echo run >> runs");
    let agent = Agent::start(&api);
    api.until_lifecycle(&["created", "starting", "ready"]).await;
    api.until("a stream", |seen| seen.reinit_requests == 1).await;
    api.cut();
    api.change(|seen| seen.reinit.push_back(Reinit::Once(claim_event(ALICE))));
    api.heal();
    // A report whose answer was cut off comes twice.
    let twice_ready = |seen: &Seen| {
        let mut states = seen.lifecycle.clone();
        states.dedup();
        states == ["created", "starting", "ready", "starting", "ready"]
    };
    api.until("ready again", twice_ready).await;
    api.until("a new stream", |seen| seen.reinit_requests >= 3).await;
    assert_eq!(agent.file("runs"), "run\nrun\n");
    agent.end().await;
}

#[tokio::test]
async fn a_stream_without_a_sign_of_life_is_replaced() {
    let api = Api::start().await;
    let timing = Timing { stream_silence: Duration::from_millis(100), ..QUICK };
    let agent = Agent::with(&api, timing);
    api.until("a second stream", |seen| seen.reinit_requests >= 2).await;
    agent.end().await;
}

#[tokio::test]
async fn no_line_and_no_report_is_lost_while_the_server_is_away() {
    let api = Api::start().await;
    api.given_script(
        "alice",
        ALICE,
        "echo before; while [ ! -e go ]; do sleep 0.02; done; seq 1 2000; touch written",
    );
    let agent = Agent::start(&api);
    api.until("the first line", |seen| seen.lines() == ["before"]).await;
    api.cut();
    std::fs::write(agent.home.path().join("go"), "").unwrap();
    while !agent.home.path().join("written").exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    api.change(|seen| seen.unavailable = true);
    api.heal();
    api.change(|seen| seen.unavailable = false);
    api.until_lifecycle(&["created", "starting", "ready"]).await;
    api.until("the last line", |seen| seen.lines().last() == Some(&"2000")).await;
    let expected: Vec<String> = (1..=2000).map(|number| number.to_string()).collect();
    // The line before may be there twice: its answer may have been cut off.
    let lines: Vec<_> = api.seen().lines().into_iter().map(str::to_owned).collect();
    let lines: Vec<_> = lines.into_iter().filter(|line| line != "before").collect();
    assert_eq!(lines, expected);
    agent.end().await;
}

#[tokio::test]
async fn output_beyond_the_buffer_is_dropped_and_the_loss_is_told() {
    let api = Api::start().await;
    let script = "echo before; while [ ! -e go ]; do sleep 0.02; done; \
                  seq -f '%019.0f' 1 500000; echo last";
    api.given_script("alice", ALICE, script);
    let agent = Agent::start(&api);
    api.until("the first line", |seen| seen.lines() == ["before"]).await;
    api.cut();
    std::fs::write(agent.home.path().join("go"), "").unwrap();
    // Nobody waits for a server that is away: ten megabytes later the script is done.
    let done = agent.home.path().join("data");
    assert!(done.exists());
    api.change(|seen| seen.lifecycle.clear());
    wait_for_no_process_in(&agent).await;
    api.heal();
    api.until("the last line", |seen| seen.lines().contains(&"last")).await;
    {
        let seen = api.seen();
        let told = seen.lines().into_iter().find(|line| line.contains("are missing here")).unwrap();
        let missing: usize = told.split(' ').find_map(|word| word.parse().ok()).unwrap();
        let lines = seen.lines().iter().filter(|line| line.len() == 19).count();
        assert_eq!(lines + missing, 500_000);
        assert!(lines * 19 <= 4 << 20, "{lines} lines kept");
        assert!(seen.largest_patch <= 256 << 10, "{} bytes in a call", seen.largest_patch);
    }
    agent.end().await;
}

/// Waits until no process of the agent's scripts lives.
async fn wait_for_no_process_in(agent: &Agent) {
    let mark = format!("BERTH_AGENT_SCOPE={}", agent.home.path().display());
    let any = || {
        std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            environ.split(|byte| *byte == 0).any(|it| it == mark.as_bytes())
        })
    };
    while any() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_script_that_writes_faster_than_the_server_stores_loses_nothing() {
    let api = Api::start().await;
    api.given_script("alice", ALICE, "seq -f '%0999.0f' 1 20000");
    let agent = Agent::start(&api);
    api.until("all lines", |seen| seen.logs.len() >= 20_000).await;
    assert!(api.seen().lines().iter().all(|line| line.len() == 999));
    agent.end().await;
}

#[tokio::test]
async fn the_end_runs_the_stop_scripts_and_reports_in_order() {
    let api = Api::start().await;
    let mut stop = startup_script("kill -0 $(cat daemon) && echo stopped > stopped");
    stop["run_on_start"] = json!(false);
    stop["run_on_stop"] = json!(true);
    let scripts = json!([startup_script("sleep 600 & echo $! > daemon"), stop]);
    api.change(|seen| seen.manifest = manifest("alice", ALICE, &scripts));
    let agent = Agent::start(&api);
    api.until_lifecycle(&["created", "starting", "ready"]).await;
    let home = agent.end().await;
    let stopped = std::fs::read_to_string(home.path().join("stopped")).unwrap();
    assert_eq!(stopped, "stopped\n", "the daemon still ran beside the stop script");
    assert!(!lives(&home.path().join("daemon")));
    assert_eq!(api.seen().lifecycle[3..], ["shutting_down", "off"]);
}

#[tokio::test]
async fn a_stop_script_that_hangs_does_not_keep_the_agent() {
    let api = Api::start().await;
    let mut stop = startup_script("trap '' TERM; while :; do sleep 1; done");
    stop["run_on_start"] = json!(false);
    stop["run_on_stop"] = json!(true);
    api.change(|seen| seen.manifest = manifest("alice", ALICE, &json!([stop])));
    let agent = Agent::start(&api);
    api.until_lifecycle(&["created", "starting", "ready"]).await;
    agent.end().await;
    assert_eq!(api.seen().lifecycle[3..], ["shutting_down", "shutdown_timeout"]);
}

#[tokio::test]
async fn an_agent_ends_in_time_when_the_server_is_gone() {
    let api = Api::start().await;
    let agent = Agent::start(&api);
    api.until_lifecycle(&["created", "starting", "ready"]).await;
    api.cut();
    agent.end().await;
}

#[tokio::test]
async fn a_refused_token_is_tried_again_ever_more_slowly() {
    let api = Api::start().await;
    api.change(|seen| seen.token = "another".to_owned());
    let since = std::time::Instant::now();
    let agent = Agent::start(&api);
    // Eight waits: they double from the first to the longest, and none is shorter than half.
    api.until("nine tries", |seen| seen.manifest_requests >= 9).await;
    assert!(since.elapsed() >= QUICK.refused, "{:?}", since.elapsed());
    api.change(|seen| seen.token = TOKEN.to_owned());
    api.until_lifecycle(&["created", "starting", "ready"]).await;
    agent.end().await;
}

#[tokio::test]
async fn cron_metadata_and_health_are_run_and_told() {
    let api = Api::start().await;
    let mut cron = startup_script("echo tick");
    cron["run_on_start"] = json!(false);
    cron["cron"] = json!("* * * * * *");
    let app = "a9900000-0000-4000-8000-000000000001";
    let nobody = "http://127.0.0.1:9/";
    let mut whole = manifest("alice", ALICE, &json!([cron]));
    whole["apps"] = json!([
        {"id": app, "slug": "web", "healthcheck": {"url": api.url(), "interval": 1, "threshold": 1}},
        {"id": ALICE, "slug": "down", "healthcheck": {"url": nobody, "interval": 1, "threshold": 2}},
    ]);
    whole["metadata"] = json!([
        {"key": "good", "script": "echo ' 42 '", "interval": 1, "timeout": 5},
        {"key": "bad", "script": "echo oops >&2; exit 3", "interval": 600, "timeout": 5},
        {"key": "slow", "script": "sleep 60", "interval": 600, "timeout": 1},
    ]);
    api.change(|seen| seen.manifest = whole);
    let agent = Agent::start(&api);

    api.until("two ticks", |seen| seen.lines().iter().filter(|it| **it == "tick").count() >= 2)
        .await;
    api.until("health", |seen| {
        let told = |id: &str, health: &str| seen.apps.iter().any(|apps| apps[id] == health);
        told(app, "healthy") && told(ALICE, "unhealthy")
    })
    .await;
    api.until("metadata", |seen| {
        let told = |key: &str, field: &str, text: &str| {
            let holds = |it: &serde_json::Value| {
                it["key"] == key && it[field].as_str().is_some_and(|it| it.contains(text))
            };
            seen.metadata.iter().any(holds)
        };
        told("good", "value", "42")
            && told("bad", "error", "exit status: 3: oops")
            && told("slow", "error", "not done within 1 s")
    })
    .await;
    agent.end().await;
}
