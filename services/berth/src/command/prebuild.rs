//! `berth pools` and `berth prebuilds`.

use clap::Subcommand;
use serde_json::{Value, json};

use crate::cli::Global;
use crate::client::{Client, list, number, text};
use crate::output::Output;

#[derive(Subcommand)]
pub(crate) enum PrebuildCommand {
    /// Stop creating and deleting prebuilds; claims go on
    Pause,
    /// Go on creating and deleting prebuilds
    Resume,
}

pub(crate) async fn run(
    global: &Global,
    output: Output,
    command: PrebuildCommand,
) -> anyhow::Result<()> {
    let paused = matches!(command, PrebuildCommand::Pause);
    let client = Client::from_session(global)?;
    let settings = json!({ "reconciliation_paused": paused });
    let answer = client.put("/prebuilds/settings", &settings).await?;
    let now = if paused { "paused" } else { "running" };
    let changed = if answer.is_null() { " (as before)" } else { "" };
    output.fields(&settings, &[("Reconciliation", format!("{now}{changed}"))]);
    Ok(())
}

pub(crate) async fn pools(global: &Global, output: Output) -> anyhow::Result<()> {
    let client = Client::from_session(global)?;
    let answer = client.get("/prebuilds/pools").await?;
    let pools = match answer.as_array() {
        Some(pools) => pools.clone(),
        None => list(&answer, "pools").to_vec(),
    };
    let rows = pools.iter().map(row).collect();
    let header = [
        "template",
        "version",
        "preset",
        "desired",
        "claimable",
        "starting",
        "unready",
        "failed",
        "status",
        "why",
    ];
    output.rows(&answer, &header, rows);
    Ok(())
}

fn row(pool: &Value) -> Vec<String> {
    let status = match pool.get("paused").and_then(Value::as_bool) {
        Some(true) => "paused".to_owned(),
        _ => text(pool, "status").to_owned(),
    };
    let reasons = list(pool, "reasons").iter().map(|it| match it.as_str() {
        Some(text) => text.to_owned(),
        None => it.to_string(),
    });
    let reasons: Vec<String> = reasons.collect();
    vec![
        text(pool, "template_name").to_owned(),
        text(pool, "template_version_name").to_owned(),
        text(pool, "preset_name").to_owned(),
        number(pool, "desired").to_string(),
        number(pool, "claimable").to_string(),
        number(pool, "starting").to_string(),
        number(pool, "unready").to_string(),
        number(pool, "failed").to_string(),
        status,
        reasons.join("; "),
    ]
}
