//! From a committed claim to an agent that works for its new owner.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context as _;
use hdrhistogram::Histogram;
use reqwest::Method;
use serde_json::json;

use crate::data::{self, Base};
use crate::figure::{histogram, quantile};
use crate::fleet::Fleet;
use crate::report::{Report, Table};
use crate::service::until;
use crate::stage::{Estate, Stage, settle_statistics};
use crate::yardstick::{Load, Yardstick};

/// Prebuilds that are kept ready.
const POOL: u64 = 4;
/// How long an agent may take.
const LIMIT: Duration = Duration::from_mins(1);

/// Microseconds from the claim's commit to each step.
struct Steps {
    /// A daemon holds the claim build's job.
    started: Histogram<u64>,
    /// The job's end is committed.
    completed: Histogram<u64>,
    /// The agent runs its startup script for the new owner.
    script: Histogram<u64>,
}

pub(super) async fn answer(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let mut estate = stage.estate("reinit").await?;
    Base::of(stage.quick).load(&mut estate.sql).await?;
    settle_statistics(&mut estate.sql).await?;
    report.data(data::size(&mut estate.sql).await?);
    let fleet = Fleet::start(stage, &mut estate, POOL).await?;
    let preset = estate
        .sql
        .text(&format!(
            "select preset_id from prebuild_pools where template_id = '{}'",
            fleet.template
        ))
        .await?;
    let mut steps = Steps { started: histogram(), completed: histogram(), script: histogram() };
    let mut yardstick = Yardstick::default();
    let claims = if stage.quick { 4 } else { 100 };
    for number in 0..claims {
        if number % 25 == 0 {
            yardstick.run(stage, Load::OneRow, 1, None).await?;
        }
        one(&fleet, &mut estate, &preset, number, &mut steps).await?;
        fleet.full(&mut estate, POOL).await?;
    }
    let twice = "select count(*) from workspace_builds where stage = 'claim'";
    let builds = estate.sql.count(twice).await?;
    report.check(builds == claims && steps.script.len() == claims, || {
        format!("{claims} claims made {builds} builds and {} agents", steps.script.len())
    });
    report.table(table(&steps, &yardstick));
    notes(report, claims);
    fleet.stop().await?;
    stage.remove(estate).await
}

/// Claims, waits for the agent, and reads off when what happened.
async fn one(
    fleet: &Fleet,
    estate: &mut Estate,
    preset: &str,
    number: u64,
    steps: &mut Steps,
) -> anyhow::Result<()> {
    let body = json!({
        "name": format!("mine-{number}"),
        "template_id": fleet.template,
        "template_version_preset_id": preset,
    });
    let path = "/organizations/default/members/me/workspaces";
    let made = fleet.api.client.send(Method::POST, path, &body).await?;
    anyhow::ensure!(made["prebuild_claim"]["outcome"] == "hit", "no prebuild: {made}");
    let workspace = made["id"].as_str().context("a workspace with an id")?;
    let folder = fleet.folder(workspace);
    let script = until("the agent works for its new owner", LIMIT, async || {
        Ok(written(&folder.join("reinitialised")))
    })
    .await?;
    // The build row of a claim is written again when it ends; the line of the audit log is not.
    let sql = format!(
        "select (extract(epoch from pg_xact_commit_timestamp(a.xmin)) * 1e6)::bigint,
                (extract(epoch from j.started_at) * 1e6)::bigint,
                (extract(epoch from pg_xact_commit_timestamp(j.xmin)) * 1e6)::bigint
         from audit_logs a
         join workspace_builds b on b.workspace_id = a.resource_id and b.stage = 'claim'
         join provisioner_jobs j on j.id = b.job_id
         where a.resource_id = '{workspace}' and a.resource_type = 'workspace'"
    );
    let row = estate.sql.rows(&sql).await?.into_iter().next().context("a claim")?;
    let times: Vec<u64> = row.iter().map(|it| it.parse()).collect::<Result<_, _>>()?;
    let [committed, started, completed] = times.try_into().ok().context("three columns")?;
    for (step, at) in [
        (&mut steps.started, started),
        (&mut steps.completed, completed),
        (&mut steps.script, script),
    ] {
        step.saturating_record(at.saturating_sub(committed).max(1));
    }
    fleet.stop_agent(&folder).await
}

/// When a file was written, in microseconds since 1970; `None`: it is not there.
fn written(file: &Path) -> Option<u64> {
    let at = std::fs::metadata(file).ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(at.as_micros()).ok()
}

fn table(steps: &Steps, yardstick: &Yardstick) -> Table {
    let columns = ["from the claim's commit to", "claims", "p50 ms", "p95 ms", "p99 ms", "max ms"];
    let mut table = Table::new("An agent changes its owner", &columns);
    for (name, step) in [
        ("a daemon holds the job", &steps.started),
        ("the job's end is committed", &steps.completed),
        ("the agent runs its startup script for the new owner", &steps.script),
    ] {
        table.row([
            name.into(),
            step.len().into(),
            quantile(step, 0.5),
            quantile(step, 0.95),
            quantile(step, 0.99),
            quantile(step, 1.0),
        ]);
    }
    table.row([
        "(one-row commit)".into(),
        0.into(),
        yardstick.latency(),
        yardstick.latency(),
        crate::figure::Cell::None,
        crate::figure::Cell::None,
    ]);
    table
}

fn notes(report: &mut Report, claims: u64) {
    report.note(format!(
        "{claims} claims one after the other, of an exec template whose apply prints what there is; \
         API, broker, reconciler, daemon and agents are processes of their own, and the pool is filled \
         again at the same time: the build of the next prebuild, its agent's start included, competes \
         with each claim's"
    ));
    report.note(
        "commits are read off the rows by Postgres' commit timestamps; the script's time is that of \
         the file it writes; aim: p50 <= 50, p99 <= 300 ms; the field: a full Terraform run",
    );
    report.note(
        "bound by the starts of processes: plan, apply and the startup script are a shell each; beside \
         them there are the broker's transactions (acquire, apply begins, complete) and the agent's \
         requests (reinit, manifest)",
    );
}
