//! How long it takes from the commit that queues a build until an idle daemon holds it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use berth_devstack::Nats;
use hdrhistogram::Histogram;
use reqwest::Method;
use serde_json::json;
use tokio::task::JoinSet;

use crate::api::{Api, Client};
use crate::daemon::{Broker, Daemon};
use crate::data::{Base, size};
use crate::figure::{Cell, histogram, micros, quantile};
use crate::report::{Report, Table};
use crate::service::{Service, until};
use crate::stage::{Estate, Stage, settle_statistics};
use crate::yardstick::{Load, Yardstick};

/// Daemons that wait.
const DAEMONS: usize = 8;
/// How long services may take to notice that NATS came or went.
const FOLLOWS: Duration = Duration::from_secs(30);

/// When daemons had jobs: microseconds since 1970 by job.
type Received = BTreeMap<String, i64>;

/// Answers `queue-latency`.
pub(super) async fn answer(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    let mut estate = stage.estate("queue_latency").await?;
    Base::of(stage.quick).load(&mut estate.sql).await?;
    settle_statistics(&mut estate.sql).await?;
    report.data(size(&mut estate.sql).await?);
    let (builds, rate) = if stage.quick { (50, 50.0) } else { (1_000, 50.0) };
    let api = Api::start(stage, &estate).await?;
    let url = estate.url.clone();
    // Nothing is completed: what a build's end writes would hide when it was queued.
    let long = [("BERTH_LIMITS__LEASE", "10m"), ("BERTH_LIMITS__PENDING_TIMEOUT", "1h")];
    let broker = Broker::start(stage, &mut estate, 0, (&url, &long)).await?;

    let mut yardstick = Yardstick::default();
    yardstick.run(stage, Load::OneRow, 1, None).await?;
    let near = measure(&mut estate, (&api.client, &broker), (0, builds, rate), report).await?;
    yardstick.run(stage, Load::OneRow, 1, None).await?;
    turn_bus(stage, false, [&api.service, &broker.service]).await?;
    let away =
        measure(&mut estate, (&api.client, &broker), (builds, builds / 5, rate / 5.0), report);
    let away = away.await?;
    turn_bus(stage, true, [&api.service, &broker.service]).await?;

    let columns = ["NATS", "builds", "p50 ms", "p90 ms", "p99 ms", "max ms", "one-row commit ms"];
    let mut table = Table::new("Commit of a queued build until an idle daemon holds it", &columns);
    for (name, found) in [("there", &near), ("away", &away)] {
        table.row([
            name.into(),
            found.len().into(),
            quantile(found, 0.5),
            quantile(found, 0.9),
            quantile(found, 0.99),
            quantile(found, 1.0),
            if name == "there" { yardstick.latency() } else { Cell::None },
        ]);
    }
    report.table(table);
    report.note(format!(
        "{DAEMONS} daemons wait; builds are queued through the API at {rate}/s, open loop"
    ));
    report.note("from Postgres' commit timestamp to the daemon's clock, on one machine");
    broker.service.stop().await?;
    api.service.stop().await?;
    stage.remove(estate).await
}

/// Queues a build for each of `count` workspaces from the `from`th on.
async fn measure(
    estate: &mut Estate,
    (api, broker): (&Client, &Broker),
    (from, count, rate): (u64, u64, f64),
    report: &mut Report,
) -> anyhow::Result<Histogram<u64>> {
    let done = Arc::new(AtomicBool::new(false));
    let mut waiting = JoinSet::new();
    for daemon in broker.daemons(DAEMONS).await? {
        waiting.spawn(receive(daemon, Arc::clone(&done)));
    }
    // Until all of them wait.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begun = estate.sql.text("select clock_timestamp()").await?;
    let mut asked = JoinSet::new();
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    for n in from..from + count {
        ticks.tick().await;
        let (api, sql) = (api.clone(), format!("select bench_id('workspace', {n} * 10)"));
        let workspace = estate.sql.text(&sql).await?;
        asked.spawn(async move {
            let path = format!("/workspaces/{workspace}/builds");
            api.send(Method::POST, &path, &json!({ "transition": "stop" })).await.map(drop)
        });
    }
    while let Some(answer) = asked.join_next().await {
        answer??;
    }
    let pending = "select count(*) from provisioner_jobs where status = 'pending'";
    until("all builds are taken", FOLLOWS, async || {
        Ok((estate.sql.count(pending).await? == 0).then_some(()))
    })
    .await?;
    done.store(true, Ordering::Relaxed);
    let mut received = Received::new();
    while let Some(daemon) = waiting.join_next().await {
        received.extend(daemon??);
    }
    // A build's row is not touched between its queueing and its end.
    let queued = estate
        .sql
        .rows(&format!(
            "select job_id, (extract(epoch from pg_xact_commit_timestamp(xmin)) * 1e6)::bigint
             from workspace_builds where created_at > '{begun}'"
        ))
        .await?;
    let mut found = histogram();
    for row in &queued {
        let (job, at) = (&row[0], row[1].parse::<i64>()?);
        match received.get(job) {
            Some(held) => {
                let late = u64::try_from((held - at).max(0))?;
                found.record(micros(Duration::from_micros(late)))?;
            }
            None => report.check(false, || format!("no daemon got job {job}")),
        }
    }
    report.check(found.len() == count, || format!("{} of {count} were measured", found.len()));
    Ok(found)
}

/// Takes jobs until it is told to end.
async fn receive(mut daemon: Daemon, done: Arc<AtomicBool>) -> anyhow::Result<Received> {
    let mut received = Received::new();
    while !done.load(Ordering::Relaxed) {
        if let Some(job) = daemon.acquire(3).await? {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
            received.insert(job.id, i64::try_from(now.as_micros())?);
        }
    }
    Ok(received)
}

/// Stops or starts nats-server and waits until the services have noticed.
async fn turn_bus(stage: &mut Stage, on: bool, services: [&Service; 2]) -> anyhow::Result<()> {
    let nats: &mut Nats = stage.nats();
    if on {
        nats.restart().await?;
    } else {
        nats.stop().await?;
    }
    for service in services {
        until("the service knows whether NATS is there", FOLLOWS, async || {
            let connected = service.metric("berth_nats_connected").await? > 0.5;
            Ok((connected == on).then_some(()))
        })
        .await?;
    }
    Ok(())
}
