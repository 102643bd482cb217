//! What templates, machines and networks do to agents.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use berth_agent::Clock;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tempfile::TempDir;

use crate::life::{Agent, QUICK, lives};
use crate::local::program;
use crate::support::{ALICE, Api, TOKEN, manifest, startup_script};

/// The agent as a process of its own, whose memory can be looked at.
struct Program {
    home: TempDir,
    child: Child,
}

impl Program {
    fn start(api: &Api) -> Self {
        let home = tempfile::tempdir().unwrap();
        let log = File::create(home.path().join("log")).unwrap();
        let child = Command::new(program())
            .arg("agent")
            .env("HOME", home.path())
            .env("SHELL", "/bin/sh")
            .env("BERTH_AGENT_URL", api.url())
            .env("BERTH_AGENT_TOKEN", TOKEN)
            .stderr(log)
            .spawn()
            .unwrap();
        Self { home, child }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// A line of `/proc/PID/status`, in KiB.
    fn memory(&self, line: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let found = status.lines().find_map(|it| it.strip_prefix(line)?.strip_prefix(':'));
        found.unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.file("log")).unwrap()
    }

    /// Asks it to end and waits until it has.
    async fn end(&mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        while self.child.try_wait().unwrap().is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// 100 MiB in lines of 128 bytes.
const FLOOD: &str = "while [ ! -e go ]; do sleep 0.02; done; \
                     head -c 103212900 /dev/zero | tr '\\0' x | fold -w 127; echo; touch written";
const FLOOD_LINES: usize = 103_212_900 / 127;
/// Most that the flood may add to what the agent takes otherwise: its buffer twice, and some.
const FLOOD_KIB: usize = 20 << 10;

#[tokio::test]
async fn a_server_that_is_full_is_sent_no_more_and_the_agent_says_how_many_lines_there_were() {
    let api = Api::start().await;
    api.given_script("alice", ALICE, FLOOD);
    api.change(|seen| seen.room = Some(8000));
    let mut agent = Program::start(&api);
    api.until_lifecycle(&["created", "starting"]).await;
    let before = agent.memory("VmRSS");
    std::fs::write(agent.file("go"), "").unwrap();
    api.until("full", |seen| seen.overflows == 1).await;
    api.until_lifecycle(&["created", "starting", "ready"]).await;
    let grown = agent.memory("VmHWM") - before;
    assert!(grown < FLOOD_KIB, "{grown} KiB for 100 MiB of log");
    agent.end().await;

    let seen = api.seen();
    assert_eq!(seen.overflows, 1, "it was told once");
    let said = agent.said();
    let kept = said.lines().find(|it| it.contains("log lines were not kept")).unwrap();
    let count = kept.split("lines=").nth(1).and_then(|it| it.split(' ').next()).unwrap();
    assert_eq!(count.parse::<usize>().unwrap() + seen.logs.len(), FLOOD_LINES, "{kept}");
}

#[tokio::test]
async fn a_flood_of_lines_while_the_server_is_away_takes_bounded_memory_and_is_accounted_for() {
    let api = Api::start().await;
    api.given_script("alice", ALICE, FLOOD);
    let mut agent = Program::start(&api);
    api.until_lifecycle(&["created", "starting"]).await;
    let before = agent.memory("VmRSS");
    api.cut();
    std::fs::write(agent.file("go"), "").unwrap();
    while !agent.file("written").exists() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    api.heal();
    let told = |line: &&str| line.contains("are missing here");
    api.until("the loss", |seen| seen.lines().iter().any(told)).await;
    api.until("ready", |seen| seen.lifecycle.last().is_some_and(|it| it == "ready")).await;
    let grown = agent.memory("VmHWM") - before;
    assert!(grown < FLOOD_KIB, "{grown} KiB for 100 MiB of log");
    agent.end().await;

    let seen = api.seen();
    let missing: usize = seen
        .lines()
        .into_iter()
        .filter(told)
        .map(|line| line.split(' ').find_map(|word| word.parse::<usize>().ok()).unwrap())
        .sum();
    let lines = seen.lines().iter().filter(|line| line.len() == 127).count();
    assert_eq!(lines + missing, FLOOD_LINES);
}

#[tokio::test]
async fn a_daemon_that_keeps_the_scripts_pipes_holds_neither_ready_nor_the_agent() {
    let api = Api::start().await;
    let daemon = "trap '' TERM HUP; echo $$ > daemon; while :; do echo beat; sleep 0.05; done";
    api.given_script("alice", ALICE, &format!("setsid sh -c \"{daemon}\" & echo started"));
    // `$$` is the daemon's to expand.
    api.change(|seen| {
        let text = seen.manifest["scripts"][0]["script"].as_str().unwrap().replace("$$", "\\$\\$");
        seen.manifest["scripts"][0]["script"] = text.into();
    });
    let agent = Agent::start(&api);
    api.until_lifecycle(&["created", "starting", "ready"]).await;
    let beats = api.seen().lines().iter().filter(|it| **it == "beat").count();
    api.until("what it writes afterwards", |seen| {
        seen.lines().iter().filter(|it| **it == "beat").count() >= beats + 3
    })
    .await;
    let home = agent.end().await;
    assert!(!lives(&home.path().join("daemon")), "the agent leaves nothing behind");
}

#[tokio::test]
async fn a_timeout_leaves_what_has_detached_itself_and_the_end_does_not() {
    let api = Api::start().await;
    let mut script = startup_script("setsid sleep 600 & echo $! > detached; sleep 600");
    script["timeout"] = json!(1);
    api.change(|seen| seen.manifest = manifest("alice", ALICE, &json!([script])));
    let agent = Agent::start(&api);
    api.until_lifecycle(&["created", "starting", "start_timeout"]).await;
    assert!(lives(&agent.home.path().join("detached")));
    let home = agent.end().await;
    assert!(!lives(&home.path().join("detached")));
}

#[tokio::test]
async fn ready_waits_for_every_script_that_starts_and_for_no_other() {
    let api = Api::start().await;
    let mut stop = startup_script("sleep 600");
    stop["run_on_start"] = json!(false);
    let slow = startup_script("while [ ! -e go ]; do sleep 0.02; done");
    let scripts = json!([startup_script("echo quick"), slow, stop]);
    api.change(|seen| seen.manifest = manifest("alice", ALICE, &scripts));
    let agent = Agent::start(&api);
    api.until("the quick one", |seen| seen.lines() == ["quick"]).await;
    api.beats(5).await;
    assert_eq!(api.seen().lifecycle, ["created", "starting"]);
    std::fs::write(agent.home.path().join("go"), "").unwrap();
    api.until_lifecycle(&["created", "starting", "ready"]).await;
    agent.end().await;
}

#[tokio::test]
async fn metadata_is_cut_to_what_servers_keep_and_between_characters() {
    let api = Api::start().await;
    let mut whole = manifest("alice", ALICE, &json!([]));
    whole["metadata"] = json!([
        {"key": "long", "script": "printf ab; yes x€ | head -c 1000000 | tr -d '\\n'", "interval": 600},
        {"key": "once", "script": "echo run >> runs; cat runs", "interval": 0, "timeout": 5},
    ]);
    api.change(|seen| seen.manifest = whole);
    let agent = Agent::start(&api);
    api.until("both", |seen| seen.metadata.len() >= 2).await;
    api.beats(60).await;
    agent.end().await;
    let seen = api.seen();
    assert_eq!(seen.metadata.len(), 2, "an interval of 0 is once");
    let value = |key: &str| {
        let found = seen.metadata.iter().find(|it| it["key"] == key).unwrap();
        found["value"].as_str().unwrap().to_owned()
    };
    assert_eq!(value("long"), format!("ab{}x", "x€".repeat(511)));
    assert_eq!(value("once"), "run");
}

#[tokio::test]
async fn scripts_inherit_no_open_file_of_the_agent() {
    let list = "for fd in /proc/self/fd/*; do echo ${fd##*/}; done";
    // What starts the tests may leave some open.
    let open = Command::new("/bin/sh").args(["-c", list]).output().unwrap().stdout;
    let open = String::from_utf8(open).unwrap();
    let api = Api::start().await;
    api.given_script("alice", ALICE, &format!("{list}; echo done"));
    let agent = Agent::start(&api);
    api.until("the list", |seen| seen.lines().contains(&"done")).await;
    agent.end().await;
    let lines = api.seen().lines().join("\n");
    assert_eq!(lines, format!("{open}done"));
}

#[tokio::test]
async fn a_clock_that_jumps_by_hours_stops_neither_beats_nor_cron() {
    const START: &str = "2026-11-21T12:00:00Z";
    const HOUR: i64 = 3600;
    let api = Api::start().await;
    let mut cron = startup_script("echo tick");
    cron["run_on_start"] = json!(false);
    cron["cron"] = json!("* * * * * *");
    api.change(|seen| seen.manifest = manifest("alice", ALICE, &json!([cron])));

    let (since, offset) = (Instant::now(), Arc::new(AtomicI64::new(0)));
    let jumps = Arc::clone(&offset);
    let clock = Clock::new(move || {
        let start: Timestamp = START.parse().unwrap();
        let jumped = SignedDuration::from_secs(jumps.load(Ordering::Relaxed));
        start + SignedDuration::try_from(since.elapsed()).unwrap() + jumped
    });
    let agent = Agent::at(&api, QUICK, clock);
    api.until("a tick", |seen| seen.lines().contains(&"tick")).await;
    for (hours, hour) in [(5, "T17:"), (-3, "T09:")] {
        offset.store(hours * HOUR, Ordering::Relaxed);
        api.beats(3).await;
        api.until("a tick of that hour", |seen| seen.log_times.iter().any(|at| at.contains(hour)))
            .await;
    }
    agent.end().await;
    assert_eq!(api.seen().lifecycle, ["created", "starting", "ready", "shutting_down", "off"]);
}

#[tokio::test]
async fn a_token_that_is_revoked_slows_the_agent_down_and_loses_it_nothing() {
    let api = Api::start().await;
    api.given_script("alice", ALICE, "while [ ! -e go ]; do sleep 0.02; done; echo meanwhile");
    let agent = Agent::start(&api);
    api.until_lifecycle(&["created", "starting"]).await;
    api.change(|seen| seen.token = "another".to_owned());
    std::fs::write(agent.home.path().join("go"), "").unwrap();
    // Beats, the line and the report: each asks at most every 200 ms in the end.
    api.until("refusals", |seen| seen.refused >= 20).await;
    let (asked, since) = (api.seen().refused, Instant::now());
    api.until("more refusals", |seen| seen.refused >= asked + 12).await;
    assert!(since.elapsed() >= QUICK.refused, "{:?} for 12 tries", since.elapsed());

    api.change(|seen| seen.token = TOKEN.to_owned());
    api.until_lifecycle(&["created", "starting", "ready"]).await;
    api.until("the line", |seen| seen.lines() == ["meanwhile"]).await;
    api.beats(3).await;
    agent.end().await;
}
