//! From the request for a workspace to its answer, where a prebuild is there.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::json;

use super::idle;
use super::shop::Shop;
use crate::api::Api;
use crate::data::{self, Base, Pools};
use crate::figure::{Cell, histogram, mean_count, quantile};
use crate::load::{self, Played};
use crate::proxy::Task;
use crate::report::{Report, Table};
use crate::service::until;
use crate::stage::{Estate, Stage, settle_statistics};
use crate::waldump;
use crate::yardstick::{Load, Yardstick};

/// Requests a second where they come at random moments.
const PER_SECOND: f64 = 200.0;
/// Seed of those moments.
const SEED: u64 = 4;
/// How long events may take to be published, and statistics to be told.
const SETTLES: Duration = Duration::from_secs(30);
/// Within this, Postgres' sessions tell what they have counted.
const TOLD: Duration = Duration::from_millis(1_500);

/// How requests come.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// So many clients, each after the other.
    Closed(usize),
    /// At random moments.
    Open,
}

impl Way {
    fn name(self) -> String {
        match self {
            Self::Closed(clients) => format!("{clients} client(s), closed loop"),
            Self::Open => format!("open loop, {PER_SECOND:.0}/s"),
        }
    }

    /// Clients of the yardstick beside it.
    fn clients(self) -> u32 {
        match self {
            Self::Closed(clients) => u32::try_from(clients).unwrap_or(1),
            Self::Open => 1,
        }
    }
}

/// What the rounds of one kind found.
struct Found {
    latency: Histogram<u64>,
    took: Duration,
    /// The fewest claims a second of a round, and the most.
    rates: (f64, f64),
    /// WAL, full-page images included.
    wal: u64,
    yardstick: Yardstick,
}

impl Found {
    fn new() -> Self {
        let (latency, yardstick) = (histogram(), Yardstick::default());
        Self { latency, took: Duration::ZERO, rates: (f64::INFINITY, 0.0), wal: 0, yardstick }
    }

    fn add(&mut self, played: &Played, wal: u64) {
        self.latency += &played.latency;
        self.took += played.took;
        self.wal += wal;
        let rate = per_second(played.latency.len(), played.took);
        self.rates = (self.rates.0.min(rate), self.rates.1.max(rate));
    }
}

fn per_second(count: u64, took: Duration) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from) / took.as_secs_f64()
}

pub(super) async fn answer(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let mut estate = stage.estate("claim").await?;
    let base = Base::of(stage.quick);
    base.load(&mut estate.sql).await?;
    let mut shop = Shop::open(&mut estate.sql, base, Pools::whole(stage.quick)).await?;
    let crowd = Pools { set: "crowd", to: 1, members: 0, ..Pools::none() };
    let mut crowd = Shop::open(&mut estate.sql, base, crowd).await?;
    settle_statistics(&mut estate.sql).await?;
    report.data(data::size(&mut estate.sql).await?);

    count(stage, &mut estate, &mut shop, report).await?;
    let api = Api::start(stage, &estate).await?;
    let address = api.client.address().to_owned();
    let (rounds, claims) = if stage.quick { (1, 200) } else { (3, 2_000) };
    let ways = [Way::Closed(1), Way::Closed(8), Way::Closed(32), Way::Open];
    let mut found: Vec<Found> = ways.iter().map(|_| Found::new()).collect();
    let mut one = Found::new();
    // The process' first requests prepare its statements.
    shop.restock(&mut estate.sql, claims).await?;
    let warm = load::closed(&address, 32, shop.requests(claims)).await?;
    let misses = shop.settle(&warm.answers, report);
    report.check(misses == 0, || format!("{misses} first claims found no prebuild"));
    for _ in 0..rounds {
        for (way, found) in ways.into_iter().zip(&mut found) {
            found.yardstick.run(stage, Load::SimpleUpdate, way.clients(), None).await?;
            play(&address, &mut estate, (&mut shop, claims, way), found, report).await?;
        }
        let way = Way::Closed(64);
        one.yardstick.run(stage, Load::SimpleUpdate, way.clients(), None).await?;
        play(&address, &mut estate, (&mut crowd, 2 * claims, way), &mut one, report).await?;
    }
    shop.audit(&mut estate.sql, report).await?;
    crowd.audit(&mut estate.sql, report).await?;
    let mut table = table();
    for (way, found) in ways.iter().zip(&found) {
        row(&mut table, way.name(), found);
    }
    row(&mut table, "64 client(s), one preset".to_owned(), &one);
    report.table(table);
    report.data(data::size(&mut estate.sql).await?);
    notes(report, rounds, claims);
    api.service.stop().await?;
    stage.remove(estate).await
}

/// One round, after a checkpoint.
async fn play(
    address: &str,
    estate: &mut Estate,
    (shop, claims, way): (&mut Shop, u64, Way),
    found: &mut Found,
    report: &mut Report,
) -> anyhow::Result<()> {
    shop.restock(&mut estate.sql, claims).await?;
    quiet(estate).await?;
    let requests = shop.requests(claims);
    let before = position(estate).await?;
    let played = match way {
        Way::Closed(clients) => load::closed(address, clients, requests).await?,
        Way::Open => load::open(address, PER_SECOND, SEED, requests).await?,
    };
    published(estate).await?;
    found.add(&played, position(estate).await? - before);
    let misses = shop.settle(&played.answers, report);
    let answered = played.answers.len() as u64;
    report.check(misses == 0 && answered == claims, || {
        format!("{}: {answered} of {claims} answers, {misses} without a prebuild", way.name())
    });
    Ok(())
}

/// What a claim asks of Postgres, and writes: counted, not timed.
async fn count(
    stage: &Stage,
    estate: &mut Estate,
    shop: &mut Shop,
    report: &mut Report,
) -> anyhow::Result<()> {
    // One connection prepares each statement once.
    let api = Api::start_at(stage, estate, &estate.counted_url.clone()).await?;
    let address = api.client.address().to_owned();
    let claims = shop.pools();
    shop.restock(&mut estate.sql, 2 * claims).await?;
    let warm = load::closed(&address, 1, shop.requests(claims)).await?;
    let mut misses = shop.settle(&warm.answers, report);
    // Full-page images depend on when the last checkpoint was, not on the claim.
    full_page_writes(estate, false).await?;
    quiet(estate).await?;
    tokio::time::sleep(TOLD).await;
    let scanned = scans(estate).await?;
    let (before, from) = (position(estate).await?, place(estate).await?);
    estate.proxy.take();
    let played = load::closed(&address, 1, shop.requests(claims)).await?;
    published(estate).await?;
    let (tally, wal) = (estate.proxy.take(), position(estate).await? - before);
    let to = place(estate).await?;
    tokio::time::sleep(TOLD).await;
    let scans = scans(estate).await?.into_iter().filter(|it| !scanned.contains(it));
    let scans: Vec<String> = scans.map(|row| row.join(" ")).collect();
    full_page_writes(estate, true).await?;
    misses += shop.settle(&played.answers, report);
    report.check(misses == 0, || format!("{misses} counted claims found no prebuild"));
    let cost = tally.of(Task::Work);
    let mut table = Table::new(
        "What one claim costs, authentication included (means)",
        &["claims", "statements", "round trips", "bytes read", "server ms", "WAL bytes"],
    );
    table.row([
        claims.into(),
        mean_count(cost.statements, claims),
        mean_count(cost.round_trips - cost.prepares, claims),
        mean_count(cost.bytes_read, claims),
        Cell::Number(
            cost.server.as_secs_f64() * 1e3 / per_second(claims, Duration::from_secs(1)),
            3,
        ),
        mean_count(wal, claims),
    ]);
    report.table(table);
    report.note(
        "counted apart, full_page_writes off, statements already prepared; the WAL is all of it: the \
         claim's, that of publishing its events, and what anybody else wrote meanwhile",
    );
    report.note(if scans.is_empty() {
        "no table was read from end to end by a counted claim".to_owned()
    } else {
        format!("tables read from end to end meanwhile (times so far): {}", scans.join(", "))
    });
    report.detail(json!({ "statements": idle::statements(&tally) }));
    let mut table = Table::new("What the WAL of one claim is", &["what", "records", "bytes"]);
    for (what, (records, bytes)) in waldump::between(stage, estate, (&from, &to)).await? {
        // What happens less than once in ten claims is not the claim's.
        if records * 10 >= claims {
            table.row([what.into(), mean_count(records, claims), mean_count(bytes, claims)]);
        }
    }
    report.table(table);
    api.service.stop().await
}

/// Tables and how often each was read from end to end.
async fn scans(estate: &mut Estate) -> anyhow::Result<Vec<Vec<String>>> {
    let sql = "select relname, seq_scan from pg_stat_user_tables where seq_scan > 0";
    estate.sql.rows(sql).await
}

async fn full_page_writes(estate: &mut Estate, on: bool) -> anyhow::Result<()> {
    let on = if on { "on" } else { "off" };
    estate.sql.run(&format!("alter system set full_page_writes = {on}")).await?;
    estate.sql.run("select pg_reload_conf()").await?;
    until("the setting is in force", SETTLES, async || {
        Ok((estate.sql.text("show full_page_writes").await? == on).then_some(()))
    })
    .await
}

/// Publishes what is left and writes everything out.
async fn quiet(estate: &mut Estate) -> anyhow::Result<()> {
    published(estate).await?;
    estate.sql.run("checkpoint").await
}

async fn published(estate: &mut Estate) -> anyhow::Result<()> {
    until("the events are published", SETTLES, async || {
        Ok((estate.sql.count("select count(*) from outbox").await? == 0).then_some(()))
    })
    .await
}

/// Bytes of WAL so far.
async fn position(estate: &mut Estate) -> anyhow::Result<u64> {
    estate.sql.count("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')").await
}

/// Where the WAL has come to, as Postgres writes it.
async fn place(estate: &mut Estate) -> anyhow::Result<String> {
    estate.sql.text("select pg_current_wal_insert_lsn()").await
}

fn table() -> Table {
    let columns = [
        "requests",
        "claims",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "max ms",
        "claims/s",
        "slowest round",
        "fastest round",
        "simple-update tps",
        "its latency ms",
        "WAL with page images",
    ];
    Table::new("A request for a workspace, answered with a prebuild", &columns)
}

fn row(table: &mut Table, name: String, found: &Found) {
    let claims = found.latency.len();
    table.row([
        name.into(),
        claims.into(),
        quantile(&found.latency, 0.5),
        quantile(&found.latency, 0.95),
        quantile(&found.latency, 0.99),
        quantile(&found.latency, 1.0),
        Cell::Number(per_second(claims, found.took), 0),
        Cell::Number(found.rates.0, 0),
        Cell::Number(found.rates.1, 0),
        found.yardstick.rate(),
        found.yardstick.latency(),
        mean_count(found.wal, claims),
    ]);
}

fn notes(report: &mut Report, rounds: u32, claims: u64) {
    report.note(format!(
        "{rounds} round(s) of {claims} claims each way (twice as many of the one preset), each round \
         after a run of pgbench's simple-update with as many clients (open loop: 1) on the same \
         Postgres, and after a checkpoint, so that page images are at their most; client, API, \
         Postgres and NATS share the machine, and the API publishes each claim's events meanwhile"
    ));
    report.note(
        "each claim is another person's with a token of their own; pools take turns; in the open loop \
         the time is from the moment the request was due",
    );
    report.note(
        "aim: 200/s p50 <= 2, p99 <= 10 ms; >= 2 500 claims/s, also of one preset; <= 3 round trips \
         after authentication, <= 2 KiB of WAL",
    );
    report.note(
        "it cannot be less than one flush of the WAL and the round trips before it: who asks, what \
         decides, the claim; throughput is bound by the processors, which API, Postgres, NATS and the \
         client share",
    );
}
