//! A sweep in which some of many pools need one prebuild each.

use std::time::Duration;

use super::{idle, settled};
use crate::data::{self, Base, MEMBERS_MAX, Pools};
use crate::figure::{Cell, mean_count};
use crate::proxy::{Tally, Task};
use crate::report::{Report, Table};
use crate::service::{Service, until};
use crate::stage::{Estate, Stage, settle_statistics};
use crate::yardstick::{Load, Yardstick};

/// How long a round may take.
const LIMIT: Duration = Duration::from_mins(3);
/// Clients of the yardstick: as many as the service has connections to reconcile with.
const CLIENTS: u32 = 4;

/// What the rounds of one kind found.
#[derive(Default)]
struct Found {
    needed: u64,
    made: u64,
    /// From the begin of the first pass to the last commit.
    micros: u64,
    /// Made in the round that was counted, and what went through the proxy.
    counted: u64,
    tally: Tally,
    yardstick: Yardstick,
}

/// The pools of one round: `count` of them from `first`, all of which lose a prebuild.
#[derive(Clone, Copy)]
struct Round {
    first: u64,
    count: u64,
}

pub(super) async fn answer(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let (presets, rounds) = if stage.quick { (1_000, 2) } else { (10_000, 6) };
    let mut estate = stage.estate("sweep_delta").await?;
    let base = Base::of(stage.quick);
    base.load(&mut estate.sql).await?;
    let pools = Pools { to: presets, per_template: 10, members: 2, ..Pools::none() };
    pools.load(&mut estate.sql, base.organizations).await?;
    settle_statistics(&mut estate.sql).await?;
    report.data(data::size(&mut estate.sql).await?);
    let columns = [
        "presets",
        "needed a round",
        "replicas",
        "rounds",
        "presets/s",
        "statements a preset",
        "round trips a preset",
        "bytes read a preset",
        "extra",
        "simple-update tps",
    ];
    let mut table = Table::new("A sweep with some pools one prebuild short", &columns);
    let mut round = Round { first: 0, count: presets / 100 };
    for (replicas, percent) in [(1, 1), (2, 1), (1, 10)] {
        round.count = presets * percent / 100;
        let rounds = if percent == 1 { rounds } else { 1 };
        let found = kind(stage, &mut estate, replicas, (&mut round, rounds), report).await?;
        table.row([
            Cell::from(presets),
            round.count.into(),
            (replicas as u64).into(),
            rounds.into(),
            rate(found.needed, found.micros),
            mean_count(found.tally.of(Task::Work).statements, round.count),
            mean_count(found.tally.of(Task::Work).round_trips, round.count),
            mean_count(found.tally.of(Task::Work).bytes_read, round.count),
            (found.made + found.counted).saturating_sub(found.needed + round.count).into(),
            found.yardstick.rate(),
        ]);
        report.detail(serde_json::json!({
            "replicas": replicas, "needed": found.needed, "made": found.made, "counted": found.counted,
            "statements": idle::statements(&found.tally),
        }));
        if percent == 1 && replicas == 1 {
            report.note(found.yardstick.describe(Load::SimpleUpdate));
        }
    }
    report.table(table);
    notes(report);
    stage.remove(estate).await
}

/// Rounds with that many replicas, a yardstick before each; then one more through the proxy that
/// counts, which is not timed: the proxy takes its share of the cores.
async fn kind(
    stage: &Stage,
    estate: &mut Estate,
    replicas: usize,
    (round, rounds): (&mut Round, u64),
    report: &mut Report,
) -> anyhow::Result<Found> {
    let mut found = Found::default();
    let services = start(stage, estate, (replicas, false), report).await?;
    for _ in 0..rounds {
        found.yardstick.run(stage, Load::SimpleUpdate, CLIENTS, None).await?;
        found.micros += play(estate, *round, &mut found.made, report).await?;
        found.needed += round.count;
        round.first += round.count;
    }
    stop(services).await?;
    let services = start(stage, estate, (replicas, true), report).await?;
    estate.proxy.take();
    play(estate, *round, &mut found.counted, report).await?;
    found.tally = estate.proxy.take();
    round.first += round.count;
    stop(services).await?;
    Ok(found)
}

/// Starts replicas and has them look at some pools: connections are open and statements prepared
/// before anything is measured.
async fn start(
    stage: &Stage,
    estate: &mut Estate,
    (replicas, counted): (usize, bool),
    report: &mut Report,
) -> anyhow::Result<Vec<Service>> {
    let often = [("BERTH_PREBUILDS__RECONCILIATION_INTERVAL", "500ms")];
    let mut services = Vec::new();
    for replica in 0..replicas {
        let url = if counted { &estate.counted_url } else { &estate.url };
        services.push(stage.start(("reconciler", replica), estate, url, &often).await?);
    }
    let before = settled::mark(&mut estate.sql, 200).await?;
    settled::check(&mut estate.sql, report, before).await?;
    Ok(services)
}

async fn stop(services: Vec<Service>) -> anyhow::Result<()> {
    for service in services {
        service.stop().await?;
    }
    Ok(())
}

/// Takes a prebuild from each pool of the round, as claims would, and waits for the sweep. Adds what
/// was made to `made`, and answers with how many microseconds it took.
async fn play(
    estate: &mut Estate,
    round: Round,
    made_in_all: &mut u64,
    report: &mut Report,
) -> anyhow::Result<u64> {
    let Round { first, count } = round;
    let last = first + count - 1;
    let since = estate.sql.text("select now()").await?;
    let before = estate.sql.count("select count(*) from workspaces").await?;
    estate.sql.run(&take(first, last)).await?;
    let ordered = format!(
        "select count(*) from workspaces w where w.pool_state = 'starting' and not w.deleted
         and w.pool_preset_id in (select bench_id('pool-version-preset', n)
                                  from generate_series({first}, {last}) n)"
    );
    let marks = "select count(*) from prebuild_pool_marks";
    until("every pool has what it wants", LIMIT, async || {
        let settled = estate.sql.count(marks).await? == 0;
        let enough = estate.sql.count(&ordered).await? >= count;
        Ok((settled && enough).then_some(()))
    })
    .await?;
    // A second sweep would show what is ordered twice.
    tokio::time::sleep(Duration::from_millis(750)).await;
    let made = estate.sql.count("select count(*) from workspaces").await? - before;
    let ordered = estate.sql.count(&ordered).await?;
    let span = format!(
        "select (extract(epoch from max(pg_xact_commit_timestamp(xmin)) - min(created_at)) * 1e6)::bigint
         from prebuild_decisions where created_at >= '{since}' and actions <> '[]'"
    );
    *made_in_all += made;
    report.check(made == count && ordered == count, || {
        format!(
            "{count} pools needed one prebuild each; {made} were made, {ordered} in those pools"
        )
    });
    estate.sql.count(&span).await
}

/// What many claims at once leave behind: workspaces that are people's, and marks.
fn take(first: u64, last: u64) -> String {
    format!(
        "
        with taken as (
            update workspaces w
            set owner_id = bench_id('user', 1), name = 'taken-' || w.name, pool_preset_id = null,
                pool_state = null, pool_ready_at = null, pool_expires_at = null
            from generate_series({first}, {last}) n
            where w.id = bench_id('pool-prebuild', n * {MEMBERS_MAX} + 1)
            returning bench_id('pool-version-preset', n) as preset
        )
        insert into prebuild_pool_marks (preset_id, created_at, claims) select preset, now(), 1 from taken"
    )
}

fn rate(count: u64, micros: u64) -> Cell {
    let small = |it| u32::try_from(it).map_or(f64::INFINITY, f64::from);
    if micros == 0 {
        return Cell::None;
    }
    Cell::Number(small(count) * 1e6 / small(micros), 0)
}

fn notes(report: &mut Report) {
    report.note(
        "prebuilds are taken and pools marked in one commit, without a hint; timed from the begin of \
         the first pass to the last plan's commit; statements are counted in a round of its own through the proxy, sweeps included",
    );
    report.note("aim: >= 1 000 presets/s, 0 extra instances; the field: a transaction per action");
    report.note(
        "grows with the pools that need something, not with all: each is one transaction under its \
         lock, so that a replica's death loses at most one pool's plan and two replicas never order \
         the same; its statements are the lock, what the plan reads, what it writes, and the commit",
    );
}
