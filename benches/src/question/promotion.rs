//! From the commit of a promotion to everything that follows from it being ordered.

use std::time::Duration;

use anyhow::Context as _;
use hdrhistogram::Histogram;
use reqwest::Method;
use serde_json::json;

use super::{idle, settled};
use crate::api::{Api, Client};
use crate::data::{self, Base, Pools};
use crate::figure::{Cell, histogram, quantile};
use crate::proxy::{Tally, Task};
use crate::report::{Report, Table};
use crate::service::{Service, until};
use crate::stage::{Estate, Stage, settle_statistics};
use crate::yardstick::{Load, Yardstick};

/// Prebuilds of each pool.
const POOL: u64 = 100;
/// How long what follows may take.
const LIMIT: Duration = Duration::from_mins(2);

/// What promotions of one kind found.
struct Found {
    /// From the promotion's commit to the last one that follows.
    latency: Histogram<u64>,
    tally: Tally,
    yardstick: Yardstick,
}

pub(super) async fn answer(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let templates = if stage.quick { 2 } else { 10 };
    let mut estate = stage.estate("promotion").await?;
    let base = Base::of(stage.quick);
    base.load(&mut estate.sql).await?;
    let sets = [("running", false), ("pending", true)].map(|(set, pending)| Pools {
        set,
        to: templates,
        members: POOL,
        pending,
        ..Pools::none()
    });
    for set in sets {
        set.load(&mut estate.sql, base.organizations).await?;
        set.load_next(&mut estate.sql, base.organizations).await?;
    }
    settle_statistics(&mut estate.sql).await?;
    report.data(data::size(&mut estate.sql).await?);
    let api = Api::start(stage, &estate).await?;

    let columns = [
        "old prebuilds",
        "promotions",
        "p50 ms",
        "max ms",
        "statements",
        "round trips",
        "bytes read",
        "one-row commit ms",
    ];
    let title = format!("From a promotion's commit to {POOL} prebuilds gone and {POOL} ordered");
    let mut table = Table::new(title, &columns);
    for set in sets {
        let found = promote_all(stage, &api.client, &mut estate, set, report).await?;
        let cost = found.tally.of(Task::Work);
        table.row([
            Cell::from(set.set),
            found.latency.len().into(),
            quantile(&found.latency, 0.5),
            quantile(&found.latency, 1.0),
            cost.statements.into(),
            cost.round_trips.into(),
            cost.bytes_read.into(),
            found.yardstick.latency(),
        ]);
        report.detail(json!({ "old": set.set, "statements": idle::statements(&found.tally) }));
        if !set.pending {
            report.note(found.yardstick.describe(Load::OneRow));
        }
    }
    report.table(table);
    notes(report);
    api.service.stop().await?;
    stage.remove(estate).await
}

/// Promotes the next version of each template, one after the other. The first of them with the
/// reconciler behind the proxy that counts, and not timed: the proxy takes its share of the cores.
async fn promote_all(
    stage: &Stage,
    api: &Client,
    estate: &mut Estate,
    set: Pools,
    report: &mut Report,
) -> anyhow::Result<Found> {
    let mut found =
        Found { latency: histogram(), tally: Tally::default(), yardstick: Yardstick::default() };
    let reconciler = start(stage, estate, true, report).await?;
    estate.proxy.take();
    promote(api, estate, (set, 0), report).await?;
    found.tally = estate.proxy.take();
    reconciler.stop().await?;
    let reconciler = start(stage, estate, false, report).await?;
    for template in 1..set.to {
        found.yardstick.run(stage, Load::OneRow, 1, None).await?;
        let micros = promote(api, estate, (set, template), report).await?;
        found.latency.saturating_record(micros.max(1));
    }
    reconciler.stop().await?;
    Ok(found)
}

/// Starts a reconciler and has it look at all pools.
async fn start(
    stage: &Stage,
    estate: &mut Estate,
    counted: bool,
    report: &mut Report,
) -> anyhow::Result<Service> {
    let before = settled::mark(&mut estate.sql, 1_000).await?;
    let url = if counted { &estate.counted_url } else { &estate.url };
    let service = stage.start(("reconciler", 0), estate, url, &[]).await?;
    settled::check(&mut estate.sql, report, before).await?;
    Ok(service)
}

/// One promotion. Microseconds from its commit to the last one that follows.
async fn promote(
    api: &Client,
    estate: &mut Estate,
    (set, number): (Pools, u64),
    report: &mut Report,
) -> anyhow::Result<u64> {
    let name = set.set;
    let sql = format!(
        "select bench_id('{name}-template', {number}), bench_id('{name}-next-version', {number}), now(),
                (select count(*) from provisioner_jobs)"
    );
    let ids = estate.sql.rows(&sql).await?.pop().context("a row")?;
    let [template, version, since, jobs] = ids.as_slice() else { anyhow::bail!("four columns") };
    let jobs: u64 = jobs.parse()?;
    let path = format!("/templates/{template}/versions");
    api.send(Method::PATCH, &path, &json!({ "id": version })).await?;
    until("everything is ordered", LIMIT, async || {
        let (gone, made) = progress(estate, name, number).await?;
        Ok((gone >= POOL && made >= POOL).then_some(()))
    })
    .await?;
    // Another look would show what is ordered twice.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (gone, made) = progress(estate, name, number).await?;
    let jobs = estate.sql.count("select count(*) from provisioner_jobs").await? - jobs;
    report.check((gone, made, jobs) == (POOL, POOL, 2 * POOL), || {
        format!(
            "{name} {number}: {gone} gone, {made} ordered, {jobs} jobs; not {POOL}, {POOL}, 200"
        )
    });
    estate.sql.count(&latency(template, since)).await
}

/// How many old prebuilds are deleted or being deleted, and how many new ones are ordered.
async fn progress(estate: &mut Estate, set: &str, number: u64) -> anyhow::Result<(u64, u64)> {
    let sql = format!(
        "
        select count(*) filter (
                   where w.pool_preset_id = bench_id('{set}-version-preset', {number})
                     and (w.deleted or w.pool_state = 'deleting')),
               count(*) filter (
                   where w.pool_preset_id = bench_id('{set}-next-version-preset', {number})
                     and w.pool_state = 'starting' and not w.deleted)
        from workspaces w where w.template_id = bench_id('{set}-template', {number})"
    );
    let row = estate.sql.rows(&sql).await?.pop().context("a row")?;
    let [gone, made] = row.as_slice() else { anyhow::bail!("two columns") };
    Ok((gone.parse()?, made.parse()?))
}

/// Microseconds from the promotion's commit to the last commit that follows.
fn latency(template: &str, since: &str) -> String {
    format!(
        "
        select (extract(epoch from greatest(
                   (select max(pg_xact_commit_timestamp(b.xmin)) from workspace_builds b
                    join workspaces w on w.id = b.workspace_id
                    where w.template_id = t.id and b.created_at >= '{since}'),
                   (select max(pg_xact_commit_timestamp(w.xmin)) from workspaces w
                    where w.template_id = t.id and w.updated_at >= '{since}')
               ) - pg_xact_commit_timestamp(t.xmin)) * 1e6)::bigint
        from templates t where t.id = '{template}'"
    )
}

fn notes(report: &mut Report) {
    report.note(
        "through an API process, with the bus; `running`: 100 ready prebuilds are deleted by jobs; \
         `pending`: 100 whose jobs nobody took are cancelled and gone, a transaction each; commits are \
         read off the rows by Postgres' commit timestamps; statements are the reconciler's in a promotion of its own through the proxy",
    );
    report.note("aim: promotion until everything is ordered within a second for a pool of 100");
    report.note(
        "grows with the prebuilds of the promoted template's pools, with no other pool: a workspace, a \
         build and a job are rows that must be written for each; pending ones take a transaction each \
         so that one that a daemon takes at that moment does not undo the others",
    );
}
