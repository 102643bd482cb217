//! A service of the binary `berth`, as the process it is in production.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use berth_devstack::{CommandSpec, Output, Supervised};
use serde_json::Value;

/// How long a service may take until it is ready, or to stop.
const LIMIT: Duration = Duration::from_mins(1);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// The daemon, which is no service.
pub(crate) const PROVISIONER: &str = "provisioner";

/// What to start.
#[derive(Debug, Clone)]
pub(crate) struct Launch<'a> {
    /// The binary.
    pub(crate) berth: &'a Path,
    /// Where it leaves its log and its address.
    pub(crate) dir: &'a Path,
    /// `reconciler`, …, or [`PROVISIONER`].
    pub(crate) service: &'static str,
    /// Tells replicas apart.
    pub(crate) replica: usize,
    /// `BERTH_SECTION__KEY` and value.
    pub(crate) variables: Vec<(String, String)>,
}

impl Launch<'_> {
    fn command(&self) -> [&'static str; 2] {
        if self.service == PROVISIONER { [PROVISIONER, "start"] } else { ["service", self.service] }
    }
}

/// A running service. It ends with this value.
#[derive(Debug)]
pub(crate) struct Service {
    name: String,
    process: Supervised,
    admin: String,
    http: reqwest::Client,
}

/// Resident bytes of a process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// Now.
    pub(crate) now: u64,
    /// Of it, pages of files: the binary, its libraries.
    pub(crate) of_files: u64,
    /// The most there ever were.
    pub(crate) most: u64,
}

impl Memory {
    /// Of the process with that id.
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let path = format!("/proc/{pid}/status");
        let status = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|it| it.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
            kib.map(|it| it * 1024).with_context(|| format!("{path} has no {name}"))
        };
        let (now, of_files, most) = (field("VmRSS:")?, field("RssFile:")?, field("VmHWM:")?);
        Ok(Self { now, of_files, most })
    }
}

impl Service {
    /// Starts it and waits until it says that it is ready.
    pub(crate) async fn start(launch: Launch<'_>) -> anyhow::Result<Self> {
        let name = format!("{}-{}", launch.service, launch.replica);
        let announce = launch.dir.join(format!("{name}.json"));
        // What an earlier one announced is no longer so.
        let _ = std::fs::remove_file(&announce);
        let mut spec = CommandSpec::new(launch.berth)
            .args(launch.command())
            .args([Path::new("--announce-file"), &announce])
            .env("BERTH_PROCESS__LOG__FORMAT", "pretty")
            .env("BERTH_PROCESS__LOG__LEVEL", "warn")
            .output(Output::File(launch.dir.join(format!("{name}.log"))));
        spec.orphan_grace = Duration::from_secs(2);
        for (variable, value) in launch.variables {
            spec = spec.env(variable, value);
        }
        let mut process = Supervised::spawn(&spec)?;
        let http = client()?;
        let admin = tokio::select! {
            admin = ready(&http, &announce) => admin.with_context(|| format!("start {name}"))?,
            status = process.wait() => {
                bail!("{name} ended at once ({status:?}): {}", process.tail().join("\n"))
            }
        };
        Ok(Self { name, process, admin, http })
    }

    /// The sum of the metrics that are called `name`, whatever their labels.
    pub(crate) async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        Ok(sum(&self.metrics().await?, name))
    }

    /// Everything that `/metrics` shows.
    pub(crate) async fn metrics(&self) -> anyhow::Result<String> {
        let answer = self.http.get(format!("{}/metrics", self.admin)).send().await?;
        Ok(answer.text().await?)
    }

    /// The memory it has resident, in bytes: now, and the most there ever was.
    pub(crate) fn memory(&self) -> anyhow::Result<(u64, u64)> {
        let memory = self.memory_in_parts()?;
        Ok((memory.now, memory.most))
    }

    /// The memory it has resident.
    pub(crate) fn memory_in_parts(&self) -> anyhow::Result<Memory> {
        Memory::of(self.process.pid())
    }

    /// Stops it as an operator would.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        let ended = self.process.terminate(LIMIT).await?;
        let said = || self.process.tail().join("\n");
        anyhow::ensure!(ended.success(), "{} ended with {ended}: {}", self.name, said());
        Ok(())
    }
}

/// The sum of the metrics that are called `name`, whatever their labels.
pub(crate) fn sum(metrics: &str, name: &str) -> f64 {
    let ours = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with(['{', ' ']).then(|| rest.rsplit_once(' '))?
    });
    ours.filter_map(|(_, value)| value.parse::<f64>().ok()).sum()
}

/// Asks until the service is ready. Answers with its admin address.
async fn ready(http: &reqwest::Client, announce: &Path) -> anyhow::Result<String> {
    until("the service is ready", LIMIT, async || {
        let Some(admin) = admin_url(announce) else { return Ok(None) };
        let answer = http.get(format!("{admin}/readyz")).send().await;
        Ok(answer.is_ok_and(|it| it.status().is_success()).then_some(admin))
    })
    .await
}

/// What it announced under that name.
fn admin_url(announce: &Path) -> Option<String> {
    let facts: Value = serde_json::from_slice(&std::fs::read(announce).ok()?).ok()?;
    Some(format!("http://{}", facts["admin_addr"].as_str()?))
}

/// HTTP with a bound on the time that an answer may take.
pub(crate) fn client() -> anyhow::Result<reqwest::Client> {
    // Fails only when a provider is there already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(reqwest::Client::builder().timeout(Duration::from_secs(40)).build()?)
}

/// Looks every 20 ms whether `probe` gives something; fails after `within`.
pub(crate) async fn until<T>(
    what: &str,
    within: Duration,
    mut probe: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = probe().await? {
            return Ok(found);
        }
        anyhow::ensure!(started.elapsed() < within, "not within {} s: {what}", within.as_secs());
        tokio::time::sleep(POLL).await;
    }
}

/// The binary to measure: the given one, or the one of this build, brought up to date by Cargo.
pub(crate) fn binary(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(given) = given {
        return given.canonicalize().with_context(|| given.display().to_string());
    }
    let own = std::env::current_exe()?;
    let folder = own.parent().context("a program is in a folder")?;
    let target = folder.parent().context("its profile's folder is in the target folder")?;
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    eprintln!("bench: cargo build -p berth --profile {profile}");
    let built = std::process::Command::new(env!("CARGO"))
        .args(["build", "--quiet", "-p", "berth", "--profile", profile, "--manifest-path"])
        .args([Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")])
        .args([Path::new("--target-dir"), target])
        .status()?;
    anyhow::ensure!(built.success(), "cargo did not build berth: {built}");
    Ok(folder.join("berth"))
}
