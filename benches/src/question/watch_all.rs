//! Build updates to many watchers.

mod crowd;

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context as _;
use hdrhistogram::Histogram;
use serde_json::json;

use super::shop::Shop;
use crate::api::Api;
use crate::data::{self, Base, Pools};
use crate::figure::{Cell, histogram, mean_count, quantile};
use crate::load;
use crate::nats::Publisher;
use crate::report::{Report, Table};
use crate::service::until;
use crate::stage::{Estate, Stage, settle_statistics};
use crate::yardstick::{Load, Yardstick};
use crowd::{Crowd, now};

/// Claims a second while the latency is measured.
const PER_SECOND: f64 = 200.0;
/// Seed of their moments.
const SEED: u64 = 11;
/// How far the publisher may be ahead of the slowest watcher: a quarter of what the API keeps for
/// slow ones, which are told of a gap after that.
const AHEAD: u64 = 1_024;
/// Updates that are published at once.
const PIECE: u64 = 64;
/// How long watchers may take to hear of the last update.
const FOLLOWS: Duration = Duration::from_mins(2);
/// What connections and their first moments need to settle down.
const CALM: Duration = Duration::from_secs(3);

/// What one number of watchers came to.
struct Found {
    watchers: usize,
    /// From the claim's commit to each watcher.
    latency: Histogram<u64>,
    /// Updates published at full speed, and how long until every watcher had all of them.
    flood: (u64, Duration),
    yardstick: Yardstick,
}

pub(super) async fn answer(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    let mut estate = stage.estate("watch_all").await?;
    let base = Base::of(stage.quick);
    base.load(&mut estate.sql).await?;
    let mut shop = Shop::open(&mut estate.sql, base, Pools::whole(stage.quick)).await?;
    // Whoever owns the deployment may read everything; each watcher is somebody else.
    estate.sql.run("update users set roles = '{owner}' where username like 'user-%'").await?;
    settle_statistics(&mut estate.sql).await?;
    report.data(data::size(&mut estate.sql).await?);
    let api = Api::start(stage, &estate).await?;
    let sizes: &[(usize, u64)] = if stage.quick {
        &[(1, 2_000), (50, 500)]
    } else {
        &[(1, 40_000), (100, 10_000), (1_000, 2_000)]
    };
    let mut all = Vec::new();
    for &(watchers, updates) in sizes {
        let crowd = Crowd::gather(api.client.address(), watchers).await?;
        let mut yardstick = Yardstick::default();
        yardstick.run(stage, Load::OneRow, 1, None).await?;
        let latency = claims(stage.quick, &mut estate, &mut shop, &api, &crowd, report).await?;
        crowd.forget();
        let took = flood(stage, &crowd, updates, report).await?;
        all.push(Found { watchers, latency, flood: (updates, took), yardstick });
        crowd.leave().await;
        eprintln!("bench: {watchers} watchers done");
    }
    shop.audit(&mut estate.sql, report).await?;
    report.table(table(&all));
    api.service.stop().await?;
    memory(stage, &estate, report).await?;
    notes(report);
    stage.remove(estate).await
}

/// Claims at 200/s while everybody watches. Microseconds from commit to each watcher.
async fn claims(
    quick: bool,
    estate: &mut Estate,
    shop: &mut Shop,
    api: &Api,
    crowd: &Crowd,
    report: &mut Report,
) -> anyhow::Result<Histogram<u64>> {
    let claims = if quick { 200 } else { 2_000 };
    shop.restock(&mut estate.sql, claims).await?;
    estate.sql.run("checkpoint").await?;
    let requests = shop.requests(claims);
    let played = load::open(api.client.address(), PER_SECOND, SEED, requests).await?;
    let misses = shop.settle(&played.answers, report);
    report.check(misses == 0, || format!("{misses} claims found no prebuild"));
    crowd.all_heard(claims, FOLLOWS).await?;
    let rows = estate
        .sql
        .rows(
            "select w.name, (extract(epoch from pg_xact_commit_timestamp(a.xmin)) * 1e6)::bigint
             from audit_logs a join workspaces w on w.id = a.resource_id
             where a.resource_type = 'workspace'",
        )
        .await?;
    let mut committed = HashMap::new();
    for row in rows {
        let [name, at] = <[String; 2]>::try_from(row).ok().context("two columns")?;
        committed.insert(name, at.parse::<u64>()?);
    }
    let (mut latency, mut unknown) = (histogram(), 0_u64);
    for (name, heard) in crowd.told() {
        match committed.get(&name) {
            Some(at) => latency.saturating_record(heard.saturating_sub(*at).max(1)),
            None => unknown += 1,
        }
    }
    report.check(unknown == 0, || format!("{unknown} updates of no claim"));
    crowd.check(claims, report);
    Ok(latency)
}

/// Updates as fast as the slowest watcher takes them.
async fn flood(
    stage: &mut Stage,
    crowd: &Crowd,
    updates: u64,
    report: &mut Report,
) -> anyhow::Result<Duration> {
    let mut publisher = Publisher::connect(&stage.nats().url()).await?;
    let started = now();
    let mut sent = 0;
    while sent < updates {
        let slowest = crowd.slowest();
        if sent >= slowest + AHEAD {
            tokio::time::sleep(Duration::from_millis(1)).await;
            anyhow::ensure!(now() - started < 600_000_000, "watchers heard {slowest} of {sent}");
            continue;
        }
        let last = (sent + PIECE).min(updates);
        for number in sent..last {
            let (subject, payload) = update(number);
            publisher.push(&subject, &payload);
        }
        publisher.flush().await?;
        sent = last;
    }
    crowd.all_heard(updates, FOLLOWS).await?;
    let took = Duration::from_micros(crowd.last_heard().saturating_sub(started).max(1));
    crowd.check(updates, report);
    Ok(took)
}

/// Subject and payload of a made-up update, as docs/events has them.
fn update(number: u64) -> (String, String) {
    let id = |kind: u64| format!("{kind:08x}-0000-7000-8000-{number:012x}");
    let (organization, workspace) = (id(1), id(2));
    let payload = json!({
        "organization_id": organization,
        "workspace_id": workspace,
        "workspace_name": format!("flood-{number}"),
        "owner_id": id(3),
        "template_id": id(4),
        "build_id": id(5),
        "build_number": 2,
        "transition": "start",
        "stage": "claim",
        "job_status": "pending",
        "revision": 2,
    });
    let subject = format!("watch_all.builds.{organization}.{workspace}.queued");
    (subject, payload.to_string())
}

/// What a watcher who waits takes of the API's memory.
async fn memory(stage: &Stage, estate: &Estate, report: &mut Report) -> anyhow::Result<()> {
    let api = Api::start(stage, estate).await?;
    let counts: &[usize] = if stage.quick { &[100] } else { &[1_000, 5_000] };
    // The first of them make what all share.
    Crowd::gather(api.client.address(), 64).await?.leave().await;
    tokio::time::sleep(CALM).await;
    let columns = ["idle SSE watchers", "RSS before KiB", "RSS KiB", "KiB a watcher"];
    let mut table = Table::new("Memory of the API", &columns);
    let before = api.service.memory()?.0;
    for &watchers in counts {
        let crowd = Crowd::gather(api.client.address(), watchers).await?;
        tokio::time::sleep(CALM).await;
        let after = api.service.memory()?.0;
        table.row([
            (watchers as u64).into(),
            (before / 1024).into(),
            (after / 1024).into(),
            mean_count(after.saturating_sub(before) / 1024, watchers as u64),
        ]);
        crowd.leave().await;
        until("the watchers are gone", FOLLOWS, async || {
            Ok((api.service.metric("berth_watchers").await? < 0.5).then_some(()))
        })
        .await?;
    }
    report.table(table);
    api.service.stop().await
}

fn table(all: &[Found]) -> Table {
    let columns = [
        "watchers",
        "deliveries at 200/s",
        "commit to watcher p50 ms",
        "p99 ms",
        "max ms",
        "flood: updates",
        "updates/s",
        "deliveries/s",
        "one-row commit ms",
    ];
    let mut table = Table::new("Build updates, each told to every watcher", &columns);
    for found in all {
        let (updates, took) = found.flood;
        let rate = u32::try_from(updates).map_or(f64::INFINITY, f64::from) / took.as_secs_f64();
        let watchers = u32::try_from(found.watchers).map_or(f64::INFINITY, f64::from);
        table.row([
            (found.watchers as u64).into(),
            found.latency.len().into(),
            quantile(&found.latency, 0.5),
            quantile(&found.latency, 0.99),
            quantile(&found.latency, 1.0),
            updates.into(),
            Cell::Number(rate, 0),
            Cell::Number(rate * watchers, 0),
            found.yardstick.latency(),
        ]);
    }
    table
}

fn notes(report: &mut Report) {
    report.note(
        "watchers are server-sent event streams of as many people who may read everything; each must \
         hear of each update once, in order, and of no gap; commits are read off the rows by \
         Postgres' commit timestamps",
    );
    report.note(format!(
        "the flood is published to NATS by the measuring program, never more than {AHEAD} updates \
         ahead of the slowest watcher, and timed until the slowest has the last"
    ));
    report.note(
        "aim: 200/s to 500 watchers p50 <= 5, p99 <= 30 ms; >= 100 000 deliveries/s; an idle stream \
         <= 16 KiB; bound by the system calls that write to and read from the sockets, the readers' \
         being on the same cores; with one watcher by the stream's own speed",
    );
}
