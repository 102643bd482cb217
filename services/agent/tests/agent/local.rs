//! Agents of workspaces that are folders on this machine, with the real process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use crate::support::{ALICE, Api, TOKEN};
use berth_agent::{resume_local, retarget_local, stop_local};
use tempfile::TempDir;

/// The agent program: this crate's example, which `cargo test` builds along with the tests.
pub(crate) fn program() -> PathBuf {
    let deps = std::env::current_exe().unwrap();
    let program = deps.parent().unwrap().parent().unwrap().join("examples/berth-agent");
    assert!(
        program.is_file(),
        "run `cargo test -p berth-agent`, which builds {}",
        program.display()
    );
    program
}

struct Local {
    api: Api,
    root: TempDir,
}

impl Local {
    async fn start() -> Self {
        let api = Api::start().await;
        let script = "setsid sleep 600 >/dev/null 2>&1 & echo $! >> daemons; env > environment";
        api.given_script("alice", ALICE, script);
        api.change(|seen| seen.manifest["directory"] = "$BERTH_AGENT_SCOPE".into());
        Self { api, root: tempfile::tempdir().unwrap() }
    }

    fn dir(&self) -> PathBuf {
        self.root.path().canonicalize().unwrap().join("alice").join("dev")
    }

    async fn agent(&self, arguments: &[&str], token: Option<&str>) -> Output {
        let mut command = Command::new(program());
        command.arg("agent").args(arguments).arg("--dir").arg(self.dir());
        command.env("SECRET_OF_THE_PROVISIONER", "key").env("HOME", self.root.path());
        if let Some(token) = token {
            command.env("BERTH_AGENT_URL", self.api.url()).env("BERTH_AGENT_TOKEN", token);
        }
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    async fn detach(&self, token: &str) {
        let output = self.agent(&["--detach"], Some(token)).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    async fn until_ready(&self, times: usize) {
        let ready = move |seen: &crate::support::Seen| {
            seen.lifecycle.iter().filter(|it| *it == "ready").count() >= times
        };
        self.api.until("ready", ready).await;
    }

    fn pid(&self) -> Option<u32> {
        fs::read_to_string(self.dir().join("agent.pid")).ok()?.trim().parse().ok()
    }

    fn daemons(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.dir().join("daemons")).unwrap_or_default();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let stop =
            Command::new(program()).args(["agent", "--stop", "--dir"]).arg(self.dir()).output();
        assert!(stop.is_ok_and(|output| output.status.success()) || std::thread::panicking());
    }
}

fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z")
}

async fn until_dead(pid: u32) {
    let since = Instant::now();
    while alive(pid) {
        assert!(since.elapsed() < Duration::from_secs(15), "{pid} lives");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_detached_agent_serves_until_it_is_stopped_and_leaves_nothing() {
    let local = Local::start().await;
    local.detach(TOKEN).await;
    local.until_ready(1).await;
    let (pid, daemon) = (local.pid().unwrap(), local.daemons()[0]);
    assert!(alive(pid) && alive(daemon));

    let cmdline = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(!cmdline.contains(TOKEN));
    let log = fs::read_to_string(local.dir().join("agent.log")).unwrap();
    assert!(log.contains("lifecycle") && !log.contains(TOKEN), "{log}");
    let environment = fs::read_to_string(local.dir().join("environment")).unwrap();
    assert!(!environment.contains("SECRET_OF_THE_PROVISIONER"), "{environment}");
    let mode = |name: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        fs::metadata(local.dir().join(name)).unwrap().permissions().mode() & 0o777
    };
    assert_eq!((mode("agent.json"), mode("agent.log")), (0o600, 0o600));
    let session = rustix::process::getsid(rustix::process::Pid::from_raw(pid.cast_signed()));
    assert_eq!(session.unwrap().as_raw_nonzero().get(), pid.cast_signed());

    for _ in 0..2 {
        let output = local.agent(&["--stop"], None).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(!alive(pid) && !alive(daemon));
    assert!(!local.dir().join("agent.json").exists() && local.pid().is_none());
    let lifecycle = local.api.seen().lifecycle.clone();
    assert_eq!(lifecycle, ["created", "starting", "ready", "shutting_down", "off"]);
}

#[tokio::test]
async fn detaching_again_changes_nothing_and_another_token_restarts() {
    let local = Local::start().await;
    local.detach(TOKEN).await;
    local.until_ready(1).await;
    let first = local.pid().unwrap();
    local.detach(TOKEN).await;
    assert_eq!(local.pid(), Some(first));

    local.api.change(|seen| seen.token = "another".to_owned());
    local.detach("another").await;
    assert!(!alive(first));
    local.until_ready(2).await;
    assert!(alive(local.pid().unwrap()));
}

#[tokio::test]
async fn agents_kept_at_a_stop_are_resumed() {
    let local = Local::start().await;
    local.detach(TOKEN).await;
    local.until_ready(1).await;
    let (first, daemon) = (local.pid().unwrap(), local.daemons()[0]);
    stop_local(local.root.path(), true).await.unwrap();
    assert!(!alive(first) && !alive(daemon));

    assert_eq!(retarget_local(local.root.path(), &local.api.url()).unwrap(), 0);
    let root = local.root.path().to_owned();
    let resume = move || (resume_local(&root, &program()), resume_local(&root, &program()));
    let (started, again) = tokio::task::spawn_blocking(resume).await.unwrap();
    assert_eq!((started.unwrap(), again.unwrap()), (1, 0));
    local.until_ready(2).await;

    let second = local.pid().unwrap();
    stop_local(local.root.path(), false).await.unwrap();
    assert!(!alive(second) && !local.dir().join("agent.json").exists());
    assert_eq!(resume_local(local.root.path(), &program()).unwrap(), 0);
}

#[tokio::test]
async fn what_a_killed_agent_left_is_ended_by_its_successor_or_a_stop() {
    let local = Local::start().await;
    local.detach(TOKEN).await;
    local.until_ready(1).await;
    let (pid, daemon) = (local.pid().unwrap(), local.daemons()[0]);
    kill(pid);
    until_dead(pid).await;
    assert!(alive(daemon), "nobody was there to end it");
    let root = local.root.path().to_owned();
    let resumed = tokio::task::spawn_blocking(move || resume_local(&root, &program()));
    assert_eq!(resumed.await.unwrap().unwrap(), 1);
    assert!(!alive(daemon), "its successor starts its own");

    local.until_ready(2).await;
    let (pid, daemon) = (local.pid().unwrap(), local.daemons()[1]);
    kill(pid);
    until_dead(pid).await;
    assert!(local.agent(&["--stop"], None).await.status.success());
    assert!(!alive(daemon));
}

#[tokio::test]
async fn a_pid_file_that_names_a_stranger_kills_nobody() {
    let local = Local::start().await;
    let mut stranger = Command::new("sleep").arg("600").spawn().unwrap();
    fs::create_dir_all(local.dir()).unwrap();
    fs::write(local.dir().join("agent.pid"), stranger.id().to_string()).unwrap();
    assert!(local.agent(&["--stop"], None).await.status.success());
    assert!(alive(stranger.id()));
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[tokio::test]
async fn agents_do_not_outlive_their_supervisor_and_are_resumed_under_the_next() {
    let local = Local::start().await;
    let pid_file = local.root.path().join("up.pid");
    let mut supervisor = Command::new("sleep").arg("600").spawn().unwrap();
    fs::write(&pid_file, supervisor.id().to_string()).unwrap();
    let watched = ["--detach", "--supervisor-pid-file", pid_file.to_str().unwrap()];
    assert!(local.agent(&watched, Some(TOKEN)).await.status.success());
    local.until_ready(1).await;
    let (first, daemon) = (local.pid().unwrap(), local.daemons()[0]);

    // Killed and not waited for: it is gone all the same.
    supervisor.kill().unwrap();
    until_dead(first).await;
    assert!(!alive(daemon));
    assert_eq!(local.api.seen().lifecycle[3..], ["shutting_down", "off"]);
    supervisor.wait().unwrap();

    let next = NextSupervisor::start(&pid_file);
    let root = local.root.path().to_owned();
    let started = tokio::task::spawn_blocking(move || resume_local(&root, &program()));
    assert_eq!(started.await.unwrap().unwrap(), 1);
    local.until_ready(2).await;
    drop(next);
    until_dead(local.pid().unwrap()).await;
}

struct NextSupervisor(Child);

impl NextSupervisor {
    fn start(pid_file: &Path) -> Self {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        fs::write(pid_file, child.id().to_string()).unwrap();
        Self(child)
    }
}

impl Drop for NextSupervisor {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test]
async fn an_agent_that_cannot_start_says_why() {
    let local = Local::start().await;
    let output = local.agent(&["--detach"], None).await;
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("BERTH_AGENT_TOKEN"), "{said}");
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}
