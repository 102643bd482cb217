//! `berth pools` and `berth prebuilds`.

mod pause;
mod plan;
mod policy;
mod show;

use std::fmt::Write as _;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::cli::Global;
use crate::client::{Client, list, number, text};
use crate::command::template;
use crate::output::Output;

#[derive(Subcommand)]
pub(crate) enum PrebuildCommand {
    /// Show every pool: its size, and why
    List,
    /// Show what the reconciler would do with a template's pools; nothing is changed
    Plan(plan::PlanArgs),
    /// Say why a template's pools have their size, and why nothing is being created
    Explain(ExplainArgs),
    /// Show or change how a template's pools are run
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Stop creating and deleting prebuilds; claims go on
    Pause(pause::PauseArgs),
    /// Go on creating and deleting prebuilds
    Resume(pause::ScopeArgs),
    /// List the pauses that hold
    Pauses,
    /// Forget the failures of a template's pools: creation that stopped after them goes on
    Reset(PoolArgs),
    /// Replace every prebuild that a template has: none made so far is handed out any more
    Invalidate(PoolArgs),
}

/// A template, or one preset of it.
#[derive(Args)]
pub(crate) struct PoolArgs {
    /// Name of the template
    template: String,
    /// Only the pool of this preset
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
}

#[derive(Args)]
#[command(after_help = "Example:\n  berth prebuilds explain dev --preset small")]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    pool: PoolArgs,
    /// Newest decisions to show of each pool, 1 to 100
    #[arg(long, default_value_t = 5, value_name = "N")]
    limit: u32,
}

pub(crate) async fn run(
    global: &Global,
    output: Output,
    command: PrebuildCommand,
) -> anyhow::Result<()> {
    // A plan from a file needs no server, so not everything begins with a session.
    let client = || Client::from_session(global);
    match command {
        PrebuildCommand::List => pools(global, output).await,
        PrebuildCommand::Plan(args) => plan::plan(global, output, &args).await,
        PrebuildCommand::Explain(args) => explain(&client()?, output, &args).await,
        PrebuildCommand::Policy(it) => policy::run(&client()?, output, it).await,
        PrebuildCommand::Pause(args) => pause::pause(&client()?, output, &args).await,
        PrebuildCommand::Resume(args) => pause::resume(&client()?, output, &args).await,
        PrebuildCommand::Pauses => pause::pauses(&client()?, output).await,
        PrebuildCommand::Reset(args) => reset(&client()?, output, &args).await,
        PrebuildCommand::Invalidate(args) => invalidate(&client()?, output, &args).await,
    }
}

/// A template's path below `/api/v2`.
async fn path(client: &Client, name: &str) -> anyhow::Result<String> {
    let template = template::get(client, name).await?;
    Ok(format!("/templates/{}", text(&template, "id")))
}

/// A query string of the parameters that have a value; nothing without any.
pub(crate) fn query(parameters: &[(&str, Option<String>)]) -> String {
    let given = parameters.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
    let pairs: Vec<String> =
        given.map(|(name, value)| format!("{name}={}", encoded(value))).collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

/// What is neither letter nor digit, as a query string spells it.
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // A string takes everything.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

async fn explain(client: &Client, output: Output, args: &ExplainArgs) -> anyhow::Result<()> {
    let path = path(client, &args.pool.template).await?;
    let limit = Some(args.limit.to_string());
    let query = query(&[("preset", args.pool.preset.clone()), ("limit", limit)]);
    let answer = client.get(&format!("{path}/prebuilds/explain{query}")).await?;
    show::print(output, &answer, show::explained);
    Ok(())
}

async fn reset(client: &Client, output: Output, args: &PoolArgs) -> anyhow::Result<()> {
    let path = path(client, &args.template).await?;
    let mut body = json!({});
    if let Some(preset) = &args.preset {
        body["preset"] = preset.as_str().into();
    }
    let answer = client.post(&format!("{path}/prebuilds/reset"), &body).await?;
    let names: Vec<&str> =
        list(&answer, "reset").iter().map(|it| text(it, "preset_name")).collect();
    let reset = if names.is_empty() {
        "nothing: no pool has failures".to_owned()
    } else {
        names.join(", ")
    };
    output.fields(&answer, &[("Reset", reset)]);
    Ok(())
}

async fn invalidate(client: &Client, output: Output, args: &PoolArgs) -> anyhow::Result<()> {
    let path = path(client, &args.template).await?;
    let invalidate = format!("{path}/prebuilds/invalidate");
    let Some(preset) = &args.preset else {
        let answer = client.post(&invalidate, &json!({})).await?;
        let pools = list(&answer, "invalidated").len();
        output.fields(&answer, &[("Invalidated", format!("{pools} pools"))]);
        return Ok(());
    };
    // A name stands for a preset of each version that has prebuilds.
    let query = query(&[("preset", Some(preset.clone()))]);
    let found = client.get(&format!("{path}/prebuilds/plan{query}")).await?;
    let mut invalidated = Vec::new();
    for pool in list(&found, "pools") {
        let answer = client
            .post(&invalidate, &json!({ "preset_id": pool["preset_id"] }))
            .await
            .with_context(|| format!("{} pools were invalidated before this", invalidated.len()))?;
        invalidated.extend(list(&answer, "invalidated").to_vec());
    }
    let count = format!("{} pools", invalidated.len());
    output.fields(&json!({ "invalidated": invalidated }), &[("Invalidated", count)]);
    Ok(())
}

pub(crate) async fn pools(global: &Global, output: Output) -> anyhow::Result<()> {
    let client = Client::from_session(global)?;
    let answer = client.get("/prebuilds/pools").await?;
    let rows = answer.as_array().into_iter().flatten().map(row).collect();
    let header = [
        "template",
        "version",
        "preset",
        "standing",
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
    let reasons: Vec<&str> = list(pool, "reasons").iter().filter_map(Value::as_str).collect();
    vec![
        text(pool, "template_name").to_owned(),
        text(pool, "template_version_name").to_owned(),
        text(pool, "preset_name").to_owned(),
        text(pool, "standing").to_owned(),
        number(pool, "desired").to_string(),
        number(pool, "claimable").to_string(),
        number(pool, "starting").to_string(),
        number(pool, "unready").to_string(),
        number(pool, "failed").to_string(),
        status,
        reasons.join("; "),
    ]
}

#[cfg(test)]
mod tests {
    use super::query;

    #[test]
    fn a_query_holds_what_is_given_and_spells_it_safely() {
        assert_eq!(query(&[("preset", None)]), "");
        let given = [("preset", Some("big & ü".to_owned())), ("at", Some("12:00Z".to_owned()))];
        assert_eq!(query(&given), "?preset=big%20%26%20%C3%BC&at=12%3A00Z");
    }
}
