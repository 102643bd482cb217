//! What a build adds to what Terraform takes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hdrhistogram::Histogram;
use reqwest::Method;
use serde_json::json;
use tokio::process::Command;

use crate::data::{self, Base, TOKEN};
use crate::figure::{Cell, histogram, micros, quantile};
use crate::fleet::Fleet;
use crate::report::{Report, Table};
use crate::service::until;
use crate::stage::{Estate, Stage, settle_statistics};

/// Resources that are built into Terraform: no provider of anybody's takes part.
const MAIN: &str = r#"
resource "terraform_data" "box" {
  count = 10
  input = "the same each time"
}
"#;
/// How long a build may take.
const LIMIT: Duration = Duration::from_mins(2);

/// Microseconds of each way.
struct Found {
    /// From the request to the job's end, by Postgres' clock.
    build: Histogram<u64>,
    /// Of it: until a daemon held the job.
    waited: Histogram<u64>,
    /// `terraform apply`, in a folder that was initialised before.
    apply: Histogram<u64>,
    /// `terraform init` and `terraform apply` in a folder that was not.
    whole: Histogram<u64>,
    /// The commands of a build, run by hand: init, plan, apply, show.
    commands: Histogram<u64>,
}

pub(super) async fn answer(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let mut estate = stage.estate("terraform").await?;
    Base::of(true).load(&mut estate.sql).await?;
    settle_statistics(&mut estate.sql).await?;
    report.data(data::size(&mut estate.sql).await?);
    let fleet = Fleet::start(stage, &mut estate, 1).await?;
    let template = push(stage, &fleet).await?;
    let body = json!({ "name": "overhead", "template_id": template });
    let path = "/organizations/default/members/me/workspaces";
    let made = fleet.api.client.send(Method::POST, path, &body).await?;
    let workspace = made["id"].as_str().context("a workspace with an id")?.to_owned();
    ended(&mut estate, &workspace, 1).await?;
    let bare = Bare::new(stage).await?;

    let mut found = Found {
        build: histogram(),
        waited: histogram(),
        apply: histogram(),
        whole: histogram(),
        commands: histogram(),
    };
    let rounds = if stage.quick { 3 } else { 30 };
    for round in 0..rounds {
        let path = format!("/workspaces/{workspace}/builds");
        fleet.api.client.send(Method::POST, &path, &json!({ "transition": "start" })).await?;
        let (waited, build) = ended(&mut estate, &workspace, round + 2).await?;
        found.waited.saturating_record(waited);
        found.build.saturating_record(build);
        found.apply.saturating_record(bare.apply().await?);
        found.whole.saturating_record(bare.whole(false).await?);
        found.commands.saturating_record(bare.whole(true).await?);
    }
    report.table(table(&found));
    report.detail(steps(&mut estate).await?);
    report.note(format!(
        "{rounds} builds of a workspace that is as it should be, one after the other, each beside the \
         same files, state and environment without Berth; 10 terraform_data, no provider to start; \
         the programs that a build runs are init, plan, show, apply and show, and graph the first time"
    ));
    fleet.stop().await?;
    stage.remove(estate).await
}

/// The same files beside Berth.
struct Bare {
    terraform: PathBuf,
    dir: PathBuf,
    config: PathBuf,
}

impl Bare {
    async fn new(stage: &Stage) -> anyhow::Result<Self> {
        let dir = stage.dir().join("bare");
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join("main.tf"), MAIN)?;
        // What the daemon's Terraform runs with.
        let config = stage.dir().join("cache/bench/terraformrc");
        anyhow::ensure!(
            config.is_file(),
            "{} is not there: is there a terraform?",
            config.display()
        );
        let bare = Self { terraform: "terraform".into(), dir, config };
        bare.run(&bare.dir, &["init", "-input=false"]).await?;
        bare.run(&bare.dir, &["apply", "-input=false", "-json", "-auto-approve"]).await?;
        Ok(bare)
    }

    async fn run(&self, dir: &Path, args: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new(&self.terraform);
        command.args(args).current_dir(dir).env_clear();
        for name in ["PATH", "HOME"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.env("TF_CLI_CONFIG_FILE", &self.config).env("CHECKPOINT_DISABLE", "true");
        let ended = command.env("TF_IN_AUTOMATION", "true").output().await?;
        let said = String::from_utf8_lossy(&ended.stderr);
        anyhow::ensure!(ended.status.success(), "terraform {args:?}: {said}");
        Ok(())
    }

    async fn apply(&self) -> anyhow::Result<u64> {
        let began = Instant::now();
        self.run(&self.dir, &["apply", "-input=false", "-json", "-auto-approve"]).await?;
        Ok(micros(began.elapsed()))
    }

    /// In a fresh folder with the same state: `init` and `apply`, or what a build runs.
    async fn whole(&self, as_a_build: bool) -> anyhow::Result<u64> {
        let dir = self.dir.with_extension("fresh");
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir)?;
        for file in ["main.tf", "terraform.tfstate"] {
            std::fs::copy(self.dir.join(file), dir.join(file))?;
        }
        let began = Instant::now();
        self.run(&dir, &["init", "-input=false"]).await?;
        if as_a_build {
            self.run(&dir, &["plan", "-input=false", "-json", "-out=plan"]).await?;
            self.run(&dir, &["show", "-json", "plan"]).await?;
            self.run(&dir, &["apply", "-input=false", "-json", "-auto-approve", "plan"]).await?;
            self.run(&dir, &["show", "-json"]).await?;
        } else {
            self.run(&dir, &["apply", "-input=false", "-json", "-auto-approve"]).await?;
        }
        Ok(micros(began.elapsed()))
    }
}

/// Waits for the end of a build; how long it waited for a daemon and how long it took, in
/// microseconds.
async fn ended(estate: &mut Estate, workspace: &str, number: u64) -> anyhow::Result<(u64, u64)> {
    let sql = format!(
        "select j.status, (extract(epoch from j.started_at - j.created_at) * 1e6)::bigint,
                (extract(epoch from j.completed_at - j.created_at) * 1e6)::bigint
         from workspace_builds b join provisioner_jobs j on j.id = b.job_id
         where b.workspace_id = '{workspace}' and b.build_number = {number}
           and j.completed_at is not null"
    );
    let row = until("the build ends", LIMIT, async || {
        Ok(estate.sql.rows(&sql).await?.into_iter().next())
    })
    .await?;
    anyhow::ensure!(row[0] == "succeeded", "the build {}", row[0]);
    Ok((row[1].parse::<i64>()?.max(1).unsigned_abs(), row[2].parse::<i64>()?.max(1).unsigned_abs()))
}

/// The median of each step of the builds, in milliseconds.
async fn steps(estate: &mut Estate) -> anyhow::Result<serde_json::Value> {
    let sql = "select coalesce(json_object_agg(stage, ms), '{}')::text from (
                   select t.stage, round((percentile_cont(0.5) within group (
                       order by extract(epoch from t.ended_at - t.started_at) * 1000))::numeric, 1) as ms
                   from provisioner_job_timings t join provisioner_jobs j on j.id = t.job_id
                   where t.source = 'berth' and j.provisioner = 'terraform'
                     and j.kind = 'workspace_build'
                   group by t.stage) s";
    Ok(
        json!({ "steps_p50_ms": serde_json::from_str::<serde_json::Value>(&estate.sql.text(sql).await?)? }),
    )
}

/// Pushes the template and answers with its id.
async fn push(stage: &Stage, fleet: &Fleet) -> anyhow::Result<String> {
    let dir = stage.dir().join("overhead");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("main.tf"), MAIN)?;
    let mut push = Command::new(stage.berth());
    push.args(["templates", "push", "--name", "overhead", "--output", "json"]).arg(&dir);
    let access = format!("http://{}", fleet.api.client.address());
    let pushed = push.env("BERTH_URL", access).env("BERTH_TOKEN", TOKEN).output().await?;
    let said = String::from_utf8_lossy(&pushed.stderr);
    anyhow::ensure!(pushed.status.success(), "berth templates push: {said}");
    let answer: serde_json::Value = serde_json::from_slice(&pushed.stdout)?;
    Ok(answer["template"]["id"].as_str().context("a template with an id")?.to_owned())
}

fn table(found: &Found) -> Table {
    let columns = ["a no-op", "times", "p50 ms", "p95 ms", "max ms"];
    let mut table = Table::new("A Terraform build that changes nothing", &columns);
    for (name, times) in [
        ("build through Berth, from request to the job's end", &found.build),
        ("of it, until a daemon holds the job", &found.waited),
        ("bare terraform apply, folder initialised", &found.apply),
        ("bare terraform init and apply, fresh folder", &found.whole),
        ("bare init, plan, show, apply, show, fresh folder", &found.commands),
    ] {
        let cell = |at| quantile(times, at);
        table.row([Cell::from(name), times.len().into(), cell(0.5), cell(0.95), cell(1.0)]);
    }
    table
}
