//! From a committed claim to the committed plan that it causes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use hdrhistogram::Histogram;
use reqwest::Method;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::idle_sweep::SWEEP;
use super::settled;
use crate::api::{Api, Client};
use crate::data::{self, Base, Pools};
use crate::figure::{Cell, histogram, micros, quantile};
use crate::load::Arrivals;
use crate::report::{Report, Table};
use crate::service::{Service, until};
use crate::stage::{Estate, Stage, settle_statistics};
use crate::yardstick::{Load, Yardstick};

/// How long plans may take to follow the last claim.
const FOLLOWS: Duration = Duration::from_mins(1);
/// Seed of the arrivals: every run has the same.
const SEED: u64 = 2025;

/// What is sent in one round.
#[derive(Debug, Clone, Copy)]
struct Round {
    with_bus: bool,
    /// Number of the first pool that is claimed from, each once.
    first: u64,
    claims: u64,
    per_second: f64,
}

/// What the rounds of one kind found.
struct Found {
    claims: u64,
    /// From the claim's commit to the plan's.
    reaction: Histogram<u64>,
    /// From the moment the request was due to the plan's commit.
    whole: Histogram<u64>,
    yardstick: Yardstick,
}

impl Found {
    fn new() -> Self {
        let yardstick = Yardstick::default();
        Self { claims: 0, reaction: histogram(), whole: histogram(), yardstick }
    }
}

pub(super) async fn answer(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    let mut estate = stage.estate("trigger").await?;
    let base = Base::of(stage.quick);
    base.load(&mut estate.sql).await?;
    Pools::whole(stage.quick).load(&mut estate.sql, base.organizations).await?;
    settle_statistics(&mut estate.sql).await?;
    report.data(data::size(&mut estate.sql).await?);
    let before = settled::mark(&mut estate.sql, 2_000).await?;
    let reconciler = stage.start(("reconciler", 0), &estate, &estate.url, &[]).await?;
    let api = Api::start(stage, &estate).await?;
    settled::check(&mut estate.sql, report, before).await?;

    let (mut with, mut without) = (Found::new(), Found::new());
    let mut alone = histogram();
    let (claims, per_second) = if stage.quick { (40, 10.0) } else { (400, 40.0) };
    let mut first = 0;
    for with_bus in [true, false, true, false] {
        let claims = if with_bus { claims } else { claims / 2 };
        let found = if with_bus { &mut with } else { &mut without };
        found.yardstick.run(stage, Load::OneRow, 1, None).await?;
        turn_bus(stage, with_bus, [&reconciler, &api.service]).await?;
        if !with_bus {
            alone.saturating_record(first_sweep(&reconciler).await?);
        }
        let round = Round { with_bus, first, claims, per_second };
        play(&api.client, &mut estate, round, found, report).await?;
        first += claims;
    }
    turn_bus(stage, true, [&reconciler, &api.service]).await?;
    report.table(table(&with, &without));
    report.note(with.yardstick.describe(Load::OneRow));
    notes(report, per_second);
    report.note(format!(
        "the claims without the bus begin when the reconciler has swept once without it, which it did \
         {} ms after it had noticed at the latest",
        quantile(&alone, 1.0).show()
    ));
    api.service.stop().await?;
    reconciler.stop().await?;
    stage.remove(estate).await
}

/// Stops or starts nats-server and waits until the services have noticed.
async fn turn_bus(stage: &mut Stage, on: bool, services: [&Service; 2]) -> anyhow::Result<()> {
    if on {
        stage.nats().restart().await?;
    } else {
        stage.nats().stop().await?;
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

/// Waits until the reconciler sweeps for the first time after it has lost the bus. Microseconds.
async fn first_sweep(reconciler: &Service) -> anyhow::Result<u64> {
    let sweeps = format!("{SWEEP}_count");
    let (started, before) = (Instant::now(), reconciler.metric(&sweeps).await?);
    until("the reconciler sweeps without the bus", 2 * FOLLOWS, async || {
        Ok((reconciler.metric(&sweeps).await? > before).then_some(()))
    })
    .await?;
    Ok(micros(started.elapsed()))
}

/// One round: claims at random moments, whatever has become of the earlier ones.
async fn play(
    api: &Client,
    estate: &mut Estate,
    round: Round,
    found: &mut Found,
    report: &mut Report,
) -> anyhow::Result<()> {
    let all = ids(estate, round).await?;
    report.check(all.len() as u64 == round.claims, || "there are too few pools".to_owned());
    let mut requests = JoinSet::new();
    let mut due_at = Vec::new();
    let (started, epoch) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH)?);
    let mut due = Duration::ZERO;
    let mut arrivals = Arrivals(SEED + round.first);
    for ids in all {
        due += arrivals.next(round.per_second);
        due_at.push(epoch + due);
        let api = api.clone();
        requests.spawn(async move {
            tokio::time::sleep_until(started + due).await;
            claim(&api, &ids).await
        });
    }
    let mut hits = 0;
    while let Some(outcome) = requests.join_next().await {
        hits += u64::from(outcome.context("a request's task")??);
    }
    report.check(hits == round.claims, || {
        format!("{hits} of {} claims were served from a pool", round.claims)
    });
    let plans = plans(estate, round).await?;
    report.check(plans.len() as u64 == round.claims, || {
        format!("{} plans with one creation follow {} claims", plans.len(), round.claims)
    });
    for (pool, claimed, planned) in plans {
        let place = usize::try_from(pool - round.first)?;
        let due = due_at.get(place).context("a pool of this round")?;
        found.claims += 1;
        found.reaction.saturating_record(planned.saturating_sub(claimed).max(1));
        let due = u64::try_from(due.as_micros())?;
        found.whole.saturating_record(planned.saturating_sub(due).max(1));
    }
    exact(estate, round, report).await
}

/// Ids by pool: its number, template, preset, organization, user.
async fn ids(estate: &mut Estate, round: Round) -> anyhow::Result<Vec<Vec<String>>> {
    let Round { first, claims, .. } = round;
    let sql = format!(
        "select n, template_id, preset_id, organization_id, bench_id('user', 0)
         from generate_series({first}, {}) n
         join prebuild_pools on preset_id = bench_id('pool-version-preset', n)
         order by n",
        first + claims - 1
    );
    estate.sql.rows(&sql).await
}

/// Asks for a workspace. Whether a prebuild was to be had.
async fn claim(api: &Client, ids: &[String]) -> anyhow::Result<bool> {
    let [pool, template, preset, organization, user] = ids else { anyhow::bail!("five columns") };
    let body = json!({
        "name": format!("claimed-{pool}"),
        "template_id": template,
        "template_version_preset_id": preset,
    });
    let path = format!("/organizations/{organization}/members/{user}/workspaces");
    let made = api.send(Method::POST, &path, &body).await?;
    Ok(made["prebuild_claim"]["outcome"] == "hit")
}

/// Pool, commit of its claim, commit of the plan that ordered exactly one prebuild; microseconds.
async fn plans(estate: &mut Estate, round: Round) -> anyhow::Result<Vec<(u64, u64, u64)>> {
    let last = round.first + round.claims - 1;
    let sql = format!(
        "
        select n, (extract(epoch from pg_xact_commit_timestamp(a.xmin)) * 1e6)::bigint,
               (extract(epoch from pg_xact_commit_timestamp(d.xmin)) * 1e6)::bigint
        from generate_series({}, {last}) n
        join claim_attempts a on a.preset_id = bench_id('pool-version-preset', n) and a.outcome = 'hit'
        join prebuild_decisions d on d.preset_id = a.preset_id and d.actions <> '[]'",
        round.first
    );
    let mut rows = Vec::new();
    // What does not come in time is missed by the caller.
    let _ = until("every claim has its plan", FOLLOWS, async || {
        rows = estate.sql.rows(&sql).await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok((rows.len() as u64 >= round.claims).then_some(()))
    })
    .await;
    rows.iter()
        .map(|row| {
            let at = |column: usize| -> anyhow::Result<u64> {
                Ok(row.get(column).context("a column")?.parse()?)
            };
            Ok((at(0)?, at(1)?, at(2)?))
        })
        .collect()
}

/// Each claimed pool has what it wants again: one prebuild more, and no second one.
async fn exact(estate: &mut Estate, round: Round, report: &mut Report) -> anyhow::Result<()> {
    let Round { first, claims, .. } = round;
    let sql = format!(
        "
        select n, count(w.id) from generate_series({first}, {}) n
        left join workspaces w on w.pool_preset_id = bench_id('pool-version-preset', n)
             and w.pool_state = 'starting' and not w.deleted
        group by n having count(w.id) <> 1",
        first + claims - 1
    );
    let wrong = estate.sql.rows(&sql).await?;
    let bus = if round.with_bus { "with" } else { "without" };
    report.check(wrong.is_empty(), || {
        format!("{bus} the bus, these pools ordered another number than one: {wrong:?}")
    });
    Ok(())
}

fn table(with: &Found, without: &Found) -> Table {
    let columns = [
        "bus",
        "claims",
        "commit to plan p50 ms",
        "p90 ms",
        "p99 ms",
        "max ms",
        "request due to plan p50 ms",
        "p99 ms ",
        "one-row commit ms",
    ];
    let mut table = Table::new("From a claim to the committed plan of its pool", &columns);
    for (bus, found) in [("with", with), ("without", without)] {
        table.row([
            Cell::from(bus),
            found.claims.into(),
            quantile(&found.reaction, 0.5),
            quantile(&found.reaction, 0.9),
            quantile(&found.reaction, 0.99),
            quantile(&found.reaction, 1.0),
            quantile(&found.whole, 0.5),
            quantile(&found.whole, 0.99),
            found.yardstick.latency(),
        ]);
    }
    table
}

fn notes(report: &mut Report, per_second: f64) {
    report.note(format!(
        "open loop: {per_second} claims a second through an API process at Poisson moments, each of \
         another pool, timed from the moment it was due; commits are read off the rows by Postgres' \
         commit timestamps, taken before the flush"
    ));
    report.note(
        "aim: claim commit to refill jobs queued p50 <= 10, p99 <= 50 ms; without the bus within the \
         sweep (2 s while NATS is away); the field: up to 60 s (a tick)",
    );
    report.note(
        "grows with the members of the one pool, not with pools or workspaces: outbox, NATS, then one \
         transaction that locks, reads and decides; it cannot be less than the claim's flush, a \
         publication that JetStream has stored, and the plan's own statements in their order",
    );
}
