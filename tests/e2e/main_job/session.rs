//! A person's machine: a folder with a home and the data of `berth up`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Output as Ended;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_devstack::{CommandSpec, Output, Source, StopSignal, Supervised};
use berth_testkit::{SOON, processes_of, servers, wait_until};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use crate::BERTH;

/// How long an orderly end may take: daemons drain, agents stop, Postgres writes out.
const ORDERLY_END: Duration = Duration::from_mins(1);

/// How long what a killed `berth up` leaves behind may need to notice and end.
const LAST_WORDS: Duration = Duration::from_secs(40);

pub(super) struct Session {
    dir: TempDir,
    data_dir: PathBuf,
    port: String,
}

impl Session {
    pub(super) async fn new() -> Self {
        let dir = servers().await.folder();
        let port = berth_devstack::free_port().expect("a free port").to_string();
        Self { data_dir: dir.path().join("data"), dir, port }
    }

    pub(super) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub(super) fn data_dir_text(&self) -> &str {
        self.data_dir.to_str().expect("a path in UTF-8")
    }

    /// Starts `berth up`.
    pub(super) fn up(&self) -> Running {
        let data = self.data_dir_text().to_owned();
        self.spawn(&["up", "--data-dir", &data, "--port", &self.port])
    }

    /// Starts a command that goes on.
    pub(super) fn spawn(&self, args: &[&str]) -> Running {
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let sink = lines.clone();
        let echo = std::env::var_os("BERTH_TEST_LOG").is_some();
        let output = Output::Lines(Arc::new(move |_: Source, line: &str| {
            if echo {
                eprintln!("{line}");
            }
            sink.lock().unwrap_or_else(PoisonError::into_inner).push(line.to_owned());
        }));
        let mut spec = CommandSpec::new(BERTH).args(args.iter().copied()).output(output);
        for (name, value) in self.environment() {
            spec = spec.env(name, value);
        }
        spec.stop = StopSignal::Interrupt;
        spec.orphan_grace = ORDERLY_END;
        let process = Supervised::spawn(&spec).expect("it starts");
        Running { process, lines, name: args.join(" ") }
    }

    /// Runs a command to its end.
    pub(super) async fn run(&self, args: &[&str]) -> Ended {
        let mut command = Command::new(BERTH);
        command.args(args).envs(self.environment()).kill_on_drop(true);
        let ended = tokio::time::timeout(2 * SOON, command.output()).await;
        ended.unwrap_or_else(|_| panic!("berth {} hangs", args.join(" "))).expect("it runs")
    }

    /// Runs a command that must succeed. Answers with the JSON that it prints.
    pub(super) async fn json(&self, args: &[&str]) -> Value {
        let ended = self.run(&[args, &["--output", "json"]].concat()).await;
        let errors = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "berth {}: {errors}", args.join(" "));
        let printed = String::from_utf8_lossy(&ended.stdout);
        serde_json::from_str(&printed)
            .unwrap_or_else(|error| panic!("berth {}: {error}: {printed}", args.join(" ")))
    }

    /// What the agents of a workspace have logged.
    pub(super) async fn log_lines(&self, workspace: &str) -> Vec<String> {
        let ended = self.run(&["logs", workspace, "--agent"]).await;
        let errors = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "berth logs: {errors}");
        String::from_utf8_lossy(&ended.stdout).lines().map(ToOwned::to_owned).collect()
    }

    /// How many processes know our folder.
    pub(super) fn runs(&self) -> usize {
        processes_of(self.dir.path()).len()
    }

    /// Waits until no process is left that knows our folder.
    pub(super) async fn nothing_runs(&self) {
        let none = async {
            while !processes_of(self.dir.path()).is_empty() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let ended = tokio::time::timeout(LAST_WORDS, none).await.is_ok();
        assert!(ended, "processes are left: {:#?}", processes_of(self.dir.path()));
    }

    /// The permissions of a file in our folder.
    pub(super) fn mode_of(&self, path: &str) -> u32 {
        let path = self.dir.path().join(path);
        let metadata = std::fs::metadata(&path);
        let metadata = metadata.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        metadata.permissions().mode() & 0o777
    }

    /// Waits until no agent of a workspace runs.
    pub(super) async fn no_agent_runs(&self, workspace: &str) {
        let dir = self.data_dir.join("workspaces").join(workspace);
        wait_until("the workspace's agent is gone", SOON, async || {
            processes_of(&dir).is_empty().then_some(())
        })
        .await;
    }

    /// A home of its own, but the machine's cache: what was fetched once is not fetched again.
    fn environment(&self) -> Vec<(&'static str, PathBuf)> {
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let cache = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(home?.join(".cache")));
        let ours = self.dir.path();
        let mut all = vec![("HOME", ours.join("home")), ("XDG_CONFIG_HOME", ours.join("config"))];
        all.extend(cache.map(|cache| ("XDG_CACHE_HOME", cache)));
        all
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // A test that failed leaves it to the lifeline to end what it started. The folder goes last.
        let started = std::time::Instant::now();
        while !processes_of(self.dir.path()).is_empty() && started.elapsed() < ORDERLY_END {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A command that goes on until it is interrupted.
pub(super) struct Running {
    process: Supervised,
    lines: Arc<Mutex<Vec<String>>>,
    name: String,
}

impl Running {
    /// Waits until it prints a line with `part`.
    pub(super) async fn says(&mut self, part: &str, within: Duration) {
        let lines = self.lines.clone();
        let what = format!("berth {} says {part:?}", self.name);
        let said = wait_until(&what, within, async || {
            let lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
            lines.iter().any(|line| line.contains(part)).then_some(())
        });
        tokio::select! {
            () = said => {}
            status = self.process.wait() => panic!("berth {} ended ({status:?})", self.name),
        }
    }

    /// Kills it with SIGKILL: it has no time to end anything in order.
    pub(super) async fn kill9(&mut self) {
        self.process.kill().await.expect("it can be killed");
    }

    /// What Ctrl-C does; it must end in order.
    pub(super) async fn interrupt(&mut self) {
        let started = std::time::Instant::now();
        let ended = self.process.terminate(ORDERLY_END).await.expect("it ends");
        assert!(started.elapsed() < ORDERLY_END, "berth {} does not end on SIGINT", self.name);
        // A command that has no ending of its own is ended by the signal itself.
        let by_signal = std::os::unix::process::ExitStatusExt::signal(&ended) == Some(2);
        assert!(ended.success() || by_signal, "berth {}: {ended}", self.name);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            eprintln!("---- berth {} ----", self.name);
            for line in &lines[lines.len().saturating_sub(80)..] {
                eprintln!("{line}");
            }
        }
    }
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("no {field}: {value:#}"))
}
