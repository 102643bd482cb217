//! `berth prebuilds plan`: from the server, or from a file alone.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use berth_domain::plan::{SnapshotFile, plan_snapshot};
use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{query, show};
use crate::cli::Global;
use crate::client::{Client, list, text};
use crate::output::{Output, print_line};

/// Largest snapshot file that is read.
const FILE_MAX: u64 = 64 << 20;

#[derive(Args)]
#[command(after_help = "\
Examples:
  berth prebuilds plan dev                              what would be done now
  berth prebuilds plan dev --at 2026-12-24T18:00:00Z    and on Christmas Eve
  berth prebuilds plan dev --set instances=10           and if ten were wanted
  berth prebuilds plan dev --preset small --write-snapshot small.json
  berth prebuilds plan --snapshot small.json            the same plan, without a server")]
pub(crate) struct PlanArgs {
    /// Name of the template
    #[arg(required_unless_present = "snapshot")]
    template: Option<String>,
    /// Only the pool of this preset
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// The moment to plan for; without it, now, or the file's moment
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
    /// Suppose another number of instances where no schedule holds
    #[arg(long, value_name = "instances=N", value_parser = instances)]
    set: Option<i32>,
    /// Plan what this file describes; `-` reads stdin. Needs neither server nor login
    #[arg(long, value_name = "FILE", conflicts_with_all = ["template", "preset", "write_snapshot"])]
    snapshot: Option<PathBuf>,
    /// Write what the plan is made from into this file; `-` writes it to stdout, alone
    #[arg(long, value_name = "FILE", requires = "preset")]
    write_snapshot: Option<PathBuf>,
}

fn instances(text: &str) -> Result<i32, String> {
    let number = text.strip_prefix("instances=").ok_or("give instances=N")?;
    match number.parse::<i32>() {
        Ok(it) if (0..=10_000).contains(&it) => Ok(it),
        _ => Err(format!("{number:?} is no whole number from 0 to 10000")),
    }
}

pub(super) async fn plan(global: &Global, output: Output, args: &PlanArgs) -> anyhow::Result<()> {
    if let Some(file) = &args.snapshot {
        let document = from_file(file, args)?;
        show::print(output, &document, show::planned);
        return Ok(());
    }
    let client = Client::from_session(global)?;
    let path = super::path(&client, args.template.as_deref().unwrap_or_default()).await?;
    let query = query(&[
        ("preset", args.preset.clone()),
        ("at", args.at.map(|it| it.to_string())),
        ("instances", args.set.map(|it| it.to_string())),
        ("snapshot", args.write_snapshot.as_ref().map(|_| "true".to_owned())),
    ]);
    let mut answer = client.get(&format!("{path}/prebuilds/plan{query}")).await?;
    if let Some(file) = &args.write_snapshot {
        let snapshot = taken(&mut answer).context("the server sent no snapshot")?;
        let snapshot = serde_json::to_string_pretty(&snapshot)?;
        if file == Path::new("-") {
            print_line(&snapshot);
            return Ok(());
        }
        std::fs::write(file, format!("{snapshot}\n"))
            .with_context(|| format!("cannot write {}", file.display()))?;
        output.progress(&format!("wrote {}", file.display()));
    }
    show::print(output, &answer, show::planned);
    Ok(())
}

/// The snapshot of the active version's pool, or of the only one; all leave the answer.
fn taken(answer: &mut Value) -> Option<Value> {
    let active = list(answer, "pools").iter().position(|it| text(it, "standing") == "active");
    let pools = answer["pools"].as_array_mut()?;
    let mut snapshots: Vec<Value> = pools
        .iter_mut()
        .map(|pool| pool.as_object_mut().and_then(|it| it.remove("snapshot")).unwrap_or_default())
        .collect();
    let place = active.unwrap_or(0);
    (place < snapshots.len()).then(|| snapshots.swap_remove(place)).filter(|it| !it.is_null())
}

/// The plan that the file's state leads to, in the form of the server's answer.
fn from_file(file: &Path, args: &PlanArgs) -> anyhow::Result<Value> {
    let text = read(file)?;
    let mut snapshot =
        SnapshotFile::parse(&text).with_context(|| format!("{} is no snapshot", file.display()))?;
    if let Some(at) = args.at {
        snapshot.now = at;
    }
    if let Some(instances) = args.set {
        match &mut snapshot.preset.prebuilds {
            Some(prebuilds) => prebuilds.instances = instances,
            None => {
                bail!("the preset of {} has no prebuilds: --set changes nothing", file.display())
            }
        }
    }
    let plan = plan_snapshot(&snapshot);
    let mut pool = json!(plan);
    let reasons = plan.reasons.iter().map(|it| {
        let mut value = json!(it);
        value["sentence"] = it.to_string().into();
        value
    });
    pool["reasons"] = reasons.collect();
    pool["holds"] = json!(plan.holds());
    pool["creates"] = plan.creates().into();
    pool["preset_id"] = json!(snapshot.preset.preset_id);
    pool["preset_name"] = json!(snapshot.preset.preset_id);
    pool["standing"] = json!(snapshot.preset.standing);
    pool["status"] = json!(snapshot.preset.status);
    Ok(json!({ "at": snapshot.now, "pools": [pool], "left_out": 0 }))
}

fn read(file: &Path) -> anyhow::Result<String> {
    let name = file.display();
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().lock().take(FILE_MAX + 1).read_to_string(&mut text)
    } else {
        let opened = std::fs::File::open(file).with_context(|| format!("cannot open {name}"))?;
        opened.take(FILE_MAX + 1).read_to_string(&mut text)
    };
    let length = read.with_context(|| format!("cannot read {name}"))?;
    if u64::try_from(length).is_ok_and(|it| it > FILE_MAX) {
        bail!("{name} is larger than {FILE_MAX} bytes: it is no snapshot");
    }
    Ok(text)
}
