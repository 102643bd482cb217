//! How many jobs a second are taken and completed through gRPC while thousands wait.

mod strain;

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::daemon::{Broker, Daemon, fill};
use crate::data::{Base, Pools, size};
use crate::figure::{Cell, mean_count};
use crate::proxy::Task;
use crate::report::{Report, Table};
use crate::stage::{Estate, Stage, settle_statistics};
use crate::yardstick::{Load, Yardstick};

/// The known queue: a script beside its pinned dependency.
const KNOWN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/queues/graphile-worker");
/// The files of it.
const FILES: [&str; 3] = ["package.json", "package-lock.json", "rate.js"];
/// The database that it has for itself.
const KNOWN_DATABASE: &str = "known_queue";

/// What one run came to.
#[derive(Debug, Default, Clone, Copy)]
struct Ran {
    jobs: u64,
    seconds: f64,
}

impl Ran {
    fn per_second(self) -> Option<f64> {
        let jobs = u32::try_from(self.jobs).map_or(f64::INFINITY, f64::from);
        (self.seconds > 0.0).then_some(jobs / self.seconds)
    }

    fn rate(self) -> Cell {
        self.per_second().map_or(Cell::None, |rate| Cell::Number(rate, 0))
    }

    fn add(&mut self, other: Self) {
        self.jobs += other.jobs;
        self.seconds += other.seconds;
    }
}

/// Answers `queue-rate`.
pub(super) async fn answer(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    let (waiting, seconds, rounds) = if stage.quick { (1_000, 1, 1) } else { (10_000, 4, 2) };
    let mut estate = stage.estate("queue_rate").await?;
    Base::of(stage.quick).load(&mut estate.sql).await?;
    let builds = if stage.quick { 100 } else { 1_000 };
    let pools = Pools { set: "queue", to: builds, pending: true, ..Pools::none() };
    pools.load(&mut estate.sql, 1).await?;
    // They wait aside until it is their turn.
    estate.sql.run("update provisioner_jobs set canceled_at = now() where class = 4").await?;
    fill(&mut estate.sql, waiting).await?;
    settle_statistics(&mut estate.sql).await?;
    report.data(size(&mut estate.sql).await?);
    let known = Known::fetch(stage).await?;

    let url = estate.url.clone();
    let broker = Broker::start(stage, &mut estate, 0, (&url, &[])).await?;
    let mut table = Table::new(
        format!("Jobs a second that do nothing, at least {waiting} waiting"),
        &["daemons", "jobs/s", "pgbench simple-update/s", "graphile-worker jobs/s"],
    );
    for daemons in [1_u32, 8, 32, 64] {
        let (mut ours, mut theirs) = (Ran::default(), Ran::default());
        let mut yardstick = Yardstick::default();
        for _ in 0..rounds {
            yardstick.run(stage, Load::SimpleUpdate, daemons, None).await?;
            fill(&mut estate.sql, waiting + seconds * 3_000).await?;
            ours.add(drain(&broker, daemons, Duration::from_secs(seconds)).await?);
            theirs.add(known.run(stage, (daemons, waiting, seconds)).await?);
        }
        table.row([u64::from(daemons).into(), ours.rate(), yardstick.rate(), theirs.rate()]);
        check(&mut estate, report, waiting).await?;
    }
    report.table(table);
    strain::measure(stage, &mut estate, &broker, report).await?;
    rate_of_builds(&mut estate, &broker, report).await?;
    broker.service.stop().await?;
    cost(stage, &mut estate, report).await?;
    report.note(
        "a job is a dry run without resources: acquire, then complete, each daemon one at a time",
    );
    report.note("graphile-worker: one process of Node, as many at once as there are daemons");
    stage.remove(estate).await
}

/// Daemons take and complete jobs for so long; each ends the job that it has in hand.
async fn drain(broker: &Broker, daemons: u32, time: Duration) -> anyhow::Result<Ran> {
    let daemons = broker.daemons(daemons as usize).await?;
    let started = Instant::now();
    let mut runs = JoinSet::new();
    for daemon in daemons {
        runs.spawn(work(daemon, started + time));
    }
    let mut jobs = 0;
    while let Some(run) = runs.join_next().await {
        jobs += run??;
    }
    Ok(Ran { jobs, seconds: started.elapsed().as_secs_f64() })
}

async fn work(mut daemon: Daemon, until: Instant) -> anyhow::Result<u64> {
    let mut jobs = 0;
    while Instant::now() < until {
        let Some(job) = daemon.acquire(1).await? else { break };
        daemon.complete(&job).await?;
        jobs += 1;
    }
    Ok(jobs)
}

/// Every job ran once, and there were always jobs.
async fn check(estate: &mut Estate, report: &mut Report, waiting: u64) -> anyhow::Result<()> {
    let bad = "select count(*) from provisioner_jobs
               where attempts > 1 or status = 'running' or (status = 'failed' and attempts > 0)";
    let bad = estate.sql.count(bad).await?;
    report.check(bad == 0, || format!("{bad} jobs ran twice, failed or were not completed"));
    let left = "select count(*) from provisioner_jobs where status = 'pending'";
    let left = estate.sql.count(left).await?;
    report.check(left >= waiting.min(100), || format!("the queue ran dry: {left} jobs left"));
    Ok(())
}

/// The same with first builds of prebuilds: with all that follows from the end of a build.
async fn rate_of_builds(
    estate: &mut Estate,
    broker: &Broker,
    report: &mut Report,
) -> anyhow::Result<()> {
    estate.sql.run("delete from provisioner_jobs where status = 'pending'").await?;
    // As if they were queued now: what waits for half an hour is cancelled.
    let back = "update provisioner_jobs set canceled_at = null, updated_at = now()
                where class = 4 and started_at is null";
    estate.sql.run(back).await?;
    let waiting = "select count(*) from provisioner_jobs where class = 4 and status = 'pending'";
    let waiting = estate.sql.count(waiting).await?;
    let ran = drain(broker, 32, Duration::from_mins(1)).await?;
    let left = "select count(*) from workspaces where pool_state = 'starting'";
    let left = estate.sql.count(left).await?;
    report.check(left == 0, || format!("{left} prebuilds were not built"));
    let ended = ran.jobs;
    report.check(ended == waiting, || format!("{ended} of {waiting} builds ended with a result"));
    let columns = ["daemons", "builds", "builds/s, with the last second of waiting"];
    let mut table = Table::new("First builds of prebuilds, without agents", &columns);
    table.row([32_u64.into(), ran.jobs.into(), ran.rate()]);
    report.table(table);
    Ok(())
}

/// What a job costs in statements, counted in a run apart.
async fn cost(stage: &Stage, estate: &mut Estate, report: &mut Report) -> anyhow::Result<()> {
    fill(&mut estate.sql, 10_000).await?;
    let url = estate.counted_url.clone();
    let broker = Broker::start(stage, estate, 1, (&url, &[])).await?;
    let mut table = Table::new(
        "What a job costs",
        &["daemons", "jobs", "statements", "round trips", "bytes read", "bytes written"],
    );
    for daemons in [1_u32, 64] {
        drain(&broker, daemons, Duration::from_millis(500)).await?;
        estate.proxy.take();
        let ran = drain(&broker, daemons, Duration::from_secs(1)).await?;
        let tally = estate.proxy.take();
        let cost = tally.of(Task::Work);
        report.detail(super::idle::statements(&tally));
        table.row([
            u64::from(daemons).into(),
            ran.jobs.into(),
            mean_count(cost.statements, ran.jobs),
            mean_count(cost.round_trips, ran.jobs),
            mean_count(cost.bytes_read, ran.jobs),
            mean_count(cost.bytes_written, ran.jobs),
        ]);
    }
    report.table(table);
    broker.service.stop().await
}

/// The known queue, fetched once a run.
struct Known(std::path::PathBuf);

impl Known {
    async fn fetch(stage: &Stage) -> anyhow::Result<Self> {
        let folder = stage.dir().join("graphile-worker");
        std::fs::create_dir_all(&folder)?;
        for file in FILES {
            std::fs::copy(format!("{KNOWN}/{file}"), folder.join(file))?;
        }
        let mut npm = Command::new("npm");
        npm.args(["ci", "--silent", "--no-audit", "--no-fund"]).current_dir(&folder);
        let fetched = npm.output().await.context("the known queue needs Node and npm")?;
        let said = String::from_utf8_lossy(&fetched.stderr);
        anyhow::ensure!(fetched.status.success(), "npm ci: {said}");
        stage.sql("postgres")?.run(&format!("create database {KNOWN_DATABASE}")).await?;
        Ok(Self(folder))
    }

    async fn run(
        &self,
        stage: &Stage,
        (daemons, waiting, seconds): (u32, u64, u64),
    ) -> anyhow::Result<Ran> {
        let numbers = [u64::from(daemons), waiting + seconds * 3_000, seconds];
        let mut node = Command::new("node");
        node.arg("rate.js").arg(stage.url(KNOWN_DATABASE)).args(numbers.map(|it| it.to_string()));
        let ran = node.current_dir(&self.0).output().await?;
        let said = String::from_utf8_lossy(&ran.stdout);
        let failed = String::from_utf8_lossy(&ran.stderr);
        anyhow::ensure!(ran.status.success(), "graphile-worker: {failed}");
        let answer: Value = serde_json::from_str(said.trim()).with_context(|| said.to_string())?;
        let seconds = answer["seconds"].as_f64().context("no seconds")?;
        Ok(Ran { jobs: answer["jobs"].as_u64().context("no jobs")?, seconds })
    }
}
