//! One process of the binary under test.

use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_devstack::{CommandSpec, Output, Supervised};
use serde_json::Value;

use super::Service;
use crate::servers::{Variables, chain, echo};
use crate::wait::{SOON, wait_until};

/// Lines of its log that a failed test shows of each process.
const TAIL: usize = 40;

/// What to run.
pub(super) struct Program<'a> {
    pub(super) berth: &'a Path,
    pub(super) dir: &'a Path,
    pub(super) variables: Variables,
}

/// A process that can be killed and started again.
pub(super) struct Process {
    pub(super) service: Service,
    pub(super) replica: usize,
    spec: CommandSpec,
    announce: PathBuf,
    log: PathBuf,
    running: Option<Supervised>,
}

impl Process {
    /// Starts it.
    pub(super) fn launch(service: Service, replica: usize, program: Program<'_>) -> Self {
        let name = format!("{}-{replica}", service.name());
        let announce = program.dir.join(format!("{name}.json"));
        let log = program.dir.join(format!("{name}.log"));
        let command = match service {
            Service::Provisioner => ["provisioner", "start"],
            other => ["service", other.name()],
        };
        let mut spec = CommandSpec::new(program.berth)
            .args(command)
            .args([Path::new("--announce-file"), &announce])
            .env("BERTH_PROCESS__LOG__FORMAT", "pretty")
            .env("BERTH_PROCESS__GRACE", "3s")
            .output(echo(&name).map_or_else(|| Output::File(log.clone()), Output::Lines));
        spec.orphan_grace = Duration::from_secs(2);
        for (variable, value) in program.variables {
            spec = spec.env(variable, value);
        }
        let mut process = Self { service, replica, spec, announce, log, running: None };
        process.start();
        process
    }

    /// Starts it again after it was killed.
    pub(super) fn start(&mut self) {
        // What the last one announced is no longer so.
        let _ = std::fs::remove_file(&self.announce);
        let started = Supervised::spawn(&self.spec);
        self.running = Some(started.unwrap_or_else(|error| panic!("{}", chain(&error))));
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub(super) async fn kill9(&mut self) {
        let mut running = self.running.take().expect("it runs");
        running.kill().await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    }

    /// Waits until it says that it is ready.
    pub(super) async fn ready(&mut self) {
        let what = format!("{} {} is ready", self.service.name(), self.replica);
        let http = client();
        let running = self.running.as_mut().expect("it runs");
        let ready = wait_until(&what, SOON, async || {
            let url = format!("{}/readyz", admin_url(&self.announce)?);
            http.get(url).send().await.ok()?.status().is_success().then_some(())
        });
        tokio::select! {
            () = ready => {}
            status = running.wait() => {
                panic!("{} ended at once ({status:?}): {}", self.service.name(), running.tail().join("\n"));
            }
        }
    }

    /// What its `/metrics` shows.
    pub(super) async fn metrics(&self) -> String {
        let http = client();
        let url = format!("{}/metrics", admin_url(&self.announce).expect("it is ready"));
        let answer = http.get(url).send().await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        answer.text().await.unwrap_or_default()
    }

    /// The last lines of its log, on stderr.
    pub(super) fn print_tail(&self) {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        eprintln!("---- {} {} ----", self.service.name(), self.replica);
        for line in &lines[lines.len().saturating_sub(TAIL)..] {
            eprintln!("{line}");
        }
    }
}

/// The address of the admin port, once it is announced.
fn admin_url(announce: &Path) -> Option<String> {
    let facts: Value = serde_json::from_slice(&std::fs::read(announce).ok()?).ok()?;
    Some(format!("http://{}", facts["admin_addr"].as_str()?))
}

fn client() -> reqwest::Client {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(2)).build();
    client.expect("HTTP can be set up")
}
