//! `berth create`, `list`, `show`, `start`, `update`, `stop`, `delete`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::{Value, json};

use crate::cli::Global;
use crate::client::{Client, list as items, number, text};
use crate::command::{claims, logs, template};
use crate::output::Output;

/// How long to wait for agents after their build is done.
const AGENTS_WITHIN: Duration = Duration::from_mins(2);

#[derive(Args)]
pub(crate) struct CreateArgs {
    /// Name of the new workspace
    name: String,
    /// Name of the template
    #[arg(long, short)]
    template: String,
    /// Name of a preset; without it, the one whose values the request has
    #[arg(long)]
    preset: Option<String>,
    /// A parameter's value; may be given several times
    #[arg(long = "parameter", short, value_name = "NAME=VALUE", value_parser = pair)]
    parameters: Vec<(String, String)>,
    /// Return as soon as the workspace is yours, before its build is done
    #[arg(long)]
    no_wait: bool,
}

#[derive(Args)]
pub(crate) struct ListArgs {
    /// Everybody's workspaces that you may see, prebuilds included
    #[arg(long, short)]
    all: bool,
}

#[derive(Args)]
pub(crate) struct OneArgs {
    /// Name of the workspace, or owner/name
    workspace: String,
}

#[derive(Args)]
pub(crate) struct BuildArgs {
    /// Name of the workspace, or owner/name
    workspace: String,
    /// Return as soon as the build is queued
    #[arg(long)]
    no_wait: bool,
}

#[derive(Args)]
pub(crate) struct StartArgs {
    #[command(flatten)]
    build: BuildArgs,
    /// A parameter's value from now on; may be given several times
    #[arg(long = "parameter", short, value_name = "NAME=VALUE", value_parser = pair)]
    parameters: Vec<(String, String)>,
}

/// `NAME=VALUE`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| format!("{text:?} is not NAME=VALUE"))
}

pub(crate) async fn create(
    global: &Global,
    output: Output,
    args: CreateArgs,
) -> anyhow::Result<()> {
    let client = Client::from_session(global)?;
    let found = template::get(&client, &args.template).await?;
    let mut body = json!({
        "name": args.name,
        "template_id": found["id"],
        "rich_parameter_values": values(&args.parameters),
    });
    if let Some(preset) = &args.preset {
        body["template_version_preset_id"] = preset_id(&client, &found, preset).await?;
    }
    let path = format!("/organizations/{}/members/me/workspaces", text(&found, "organization_id"));
    let made = client.post_once(&path, &body).await?;
    output.progress(&claim_line(&made));
    let workspace = if args.no_wait {
        made
    } else {
        let mut built = wait(&client, output, &made, text(&made, "latest_build.id")).await?;
        // Only who creates is told.
        built["prebuild_claim"] = made["prebuild_claim"].clone();
        built
    };
    describe(output, &workspace);
    Ok(())
}

fn values(parameters: &[(String, String)]) -> Vec<Value> {
    parameters.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect()
}

async fn preset_id(client: &Client, template: &Value, name: &str) -> anyhow::Result<Value> {
    let version = text(template, "active_version_id");
    let presets = client.get(&format!("/templateversions/{version}/presets")).await?;
    let field = |preset: &Value, lower: &str, upper: &str| {
        preset.get(lower).or_else(|| preset.get(upper)).cloned().unwrap_or_default()
    };
    let all: Vec<&Value> = presets.as_array().into_iter().flatten().collect();
    if let Some(preset) = all.iter().find(|it| field(it, "name", "Name") == json!(name)) {
        return Ok(field(preset, "id", "ID"));
    }
    let names: Vec<String> = all
        .iter()
        .map(|it| field(it, "name", "Name").as_str().unwrap_or_default().to_owned())
        .collect();
    bail!("no preset {name:?}; there are: {}", names.join(", "))
}

/// Says at once whether a prebuild was there, and why not.
fn claim_line(workspace: &Value) -> String {
    match (text(workspace, "prebuild_claim.outcome"), text(workspace, "prebuild_claim.reason")) {
        ("hit", _) => match text(workspace, "prebuild_claim.version_name") {
            "" => "a prebuild is yours; finishing it for you".to_owned(),
            older => format!("a prebuild of the version {older} is yours; finishing it for you"),
        },
        ("miss", reason) => {
            let detail = claims::explained(&workspace["prebuild_claim"]);
            let why = if detail.is_empty() { String::new() } else { format!(": {detail}") };
            format!("no prebuild ({reason}{why}); building a new workspace")
        }
        _ => "building a new workspace".to_owned(),
    }
}

/// Waits until a build is done. A claim whose build was lost goes on in another.
async fn wait_for_build(
    client: &Client,
    output: Output,
    path: &str,
    build: &str,
) -> anyhow::Result<()> {
    let mut build = build.to_owned();
    loop {
        let ended = logs::follow_job(client, output, &format!("/workspacebuilds/{build}")).await?;
        let status = text(&ended, "job.status");
        if status == "succeeded" {
            return Ok(());
        }
        let workspace = client.get(path).await?;
        let Some(next) = next_claim(&workspace, &build) else {
            let name = text(&workspace, "name");
            bail!(
                "the build of {name} {status}: {}\nread more with `berth logs {name}`",
                text(&ended, "job.error")
            );
        };
        let why = text(&ended, "job.error");
        output.progress(&format!("the build {status}: {why}; the workspace is handed over again"));
        build = next;
    }
}

/// The build that goes on with a claim in place of `build`.
fn next_claim(workspace: &Value, build: &str) -> Option<String> {
    let latest = text(workspace, "latest_build.id");
    let goes_on = latest != build && text(workspace, "latest_build.stage") == "claim";
    goes_on.then(|| latest.to_owned())
}

/// Waits for a build and for the agents that it made. Answers with the workspace.
async fn wait(
    client: &Client,
    output: Output,
    workspace: &Value,
    build: &str,
) -> anyhow::Result<Value> {
    let name = text(workspace, "name");
    let path = format!("/workspaces/{}?include_deleted=true", text(workspace, "id"));
    wait_for_build(client, output, &path, build).await?;
    let asked = Instant::now();
    loop {
        let workspace = client.get(&path).await?;
        let waiting = agents(&workspace)
            .find(|it| matches!(text(it, "lifecycle_state"), "created" | "starting"))
            .map(|it| text(it, "name").to_owned());
        let is_start = text(&workspace, "latest_build.transition") == "start";
        match waiting.filter(|_| is_start) {
            None => return Ok(workspace),
            Some(agent) if asked.elapsed() > AGENTS_WITHIN => {
                output.progress(&format!(
                    "agent {agent} is not ready after {} s; see `berth logs {name}`",
                    AGENTS_WITHIN.as_secs()
                ));
                return Ok(workspace);
            }
            Some(_) => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    }
}

pub(crate) async fn list(global: &Global, output: Output, args: ListArgs) -> anyhow::Result<()> {
    let client = Client::from_session(global)?;
    let path =
        if args.all { "/workspaces?limit=1000" } else { "/workspaces?q=owner:me&limit=1000" };
    let answer = client.get(path).await?;
    let rows = items(&answer, "workspaces").iter().map(|it| {
        vec![
            text(it, "owner_name").to_owned(),
            text(it, "name").to_owned(),
            text(it, "template_name").to_owned(),
            text(it, "latest_build.status").to_owned(),
            agents(it).map(|agent| text(agent, "lifecycle_state")).collect::<Vec<_>>().join(","),
            if it["outdated"] == json!(true) { "yes".to_owned() } else { String::new() },
            text(it, "created_at").to_owned(),
        ]
    });
    let rows = rows.collect();
    output.rows(
        &answer,
        &["owner", "workspace", "template", "status", "agents", "outdated", "created"],
        rows,
    );
    Ok(())
}

pub(crate) async fn show(global: &Global, output: Output, args: OneArgs) -> anyhow::Result<()> {
    let client = Client::from_session(global)?;
    let workspace = get(&client, &args.workspace).await?;
    describe(output, &workspace);
    Ok(())
}

pub(crate) async fn build(
    global: &Global,
    output: Output,
    args: BuildArgs,
    transition: &str,
) -> anyhow::Result<()> {
    let client = Client::from_session(global)?;
    let workspace = get(&client, &args.workspace).await?;
    let body = json!({ "transition": transition, "reason": "cli" });
    queue(&client, output, &args, (&workspace, &body)).await
}

pub(crate) async fn start(global: &Global, output: Output, args: StartArgs) -> anyhow::Result<()> {
    let client = Client::from_session(global)?;
    let workspace = get(&client, &args.build.workspace).await?;
    let body = json!({
        "transition": "start", "reason": "cli", "rich_parameter_values": values(&args.parameters)
    });
    queue(&client, output, &args.build, (&workspace, &body)).await
}

/// Starts the workspace with its template's active version.
pub(crate) async fn update(global: &Global, output: Output, args: StartArgs) -> anyhow::Result<()> {
    let client = Client::from_session(global)?;
    let workspace = get(&client, &args.build.workspace).await?;
    if workspace["outdated"] == json!(false) && args.parameters.is_empty() {
        output.progress("it has the active version already");
        describe(output, &workspace);
        return Ok(());
    }
    let body = json!({
        "transition": "start", "reason": "cli", "rich_parameter_values": values(&args.parameters),
        "template_version_id": workspace["template_active_version_id"],
    });
    queue(&client, output, &args.build, (&workspace, &body)).await
}

async fn queue(
    client: &Client,
    output: Output,
    args: &BuildArgs,
    (workspace, body): (&Value, &Value),
) -> anyhow::Result<()> {
    let path = format!("/workspaces/{}/builds", text(workspace, "id"));
    let build = client.post(&path, body).await?;
    if args.no_wait {
        output.fields(&build, &[("Build", number(&build, "build_number").to_string())]);
        return Ok(());
    }
    let workspace = wait(client, output, workspace, text(&build, "id")).await?;
    describe(output, &workspace);
    Ok(())
}

/// The workspace `name` of the caller, or `owner/name`.
pub(crate) async fn get(client: &Client, name: &str) -> anyhow::Result<Value> {
    let (owner, name) = name.split_once('/').unwrap_or(("me", name));
    client
        .get(&format!("/users/{owner}/workspace/{name}"))
        .await
        .with_context(|| format!("workspace {owner}/{name} (see `berth list`)"))
}

/// All agents of a workspace's latest build.
pub(crate) fn agents(workspace: &Value) -> impl Iterator<Item = &Value> {
    items(workspace, "latest_build.resources").iter().flat_map(|it| items(it, "agents"))
}

fn describe(output: Output, workspace: &Value) {
    let mut fields = vec![
        ("Workspace", format!("{}/{}", text(workspace, "owner_name"), text(workspace, "name"))),
        ("Template", text(workspace, "template_name").to_owned()),
        ("Version", text(workspace, "latest_build.template_version_name").to_owned()),
        ("Status", text(workspace, "latest_build.status").to_owned()),
        (
            "Build",
            format!(
                "{} ({})",
                number(workspace, "latest_build.build_number"),
                text(workspace, "latest_build.transition")
            ),
        ),
    ];
    for agent in agents(workspace) {
        let status = match text(agent, "status") {
            status @ ("timeout" | "disconnected") => {
                format!("{status} since {}", text(agent, "status_since"))
            }
            status => status.to_owned(),
        };
        let state =
            format!("{} {} ({status})", text(agent, "name"), text(agent, "lifecycle_state"));
        fields.push(("Agent", state));
    }
    if let Some(claim) = workspace.get("prebuild_claim").filter(|it| !it.is_null()) {
        let reason = text(claim, "reason");
        let outcome = text(claim, "outcome");
        let line =
            if reason.is_empty() { outcome.to_owned() } else { format!("{outcome} ({reason})") };
        fields.push(("Prebuild", line));
    }
    output.fields(workspace, &fields);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(claim: &Value) -> String {
        claim_line(&json!({ "prebuild_claim": claim }))
    }

    #[test]
    fn who_creates_is_told_of_the_prebuild_or_why_there_was_none() {
        assert!(line(&json!({ "outcome": "hit", "reason": null })).contains("is yours"));
        let previous = json!({ "outcome": "hit", "previous_version": true, "version_name": "v1" });
        assert!(line(&previous).contains("version v1 is yours"));
        let differing = json!([{ "name": "size", "preset": "large", "requested": "huge" }]);
        let nearest = json!({ "name": "big", "differing": differing });
        let miss = json!({ "outcome": "miss", "reason": "no_matching_preset",
                           "nearest_preset": nearest });
        let expected = "no prebuild (no_matching_preset: nearest is big: size is \"huge\", not \
                        \"large\"); building a new workspace";
        assert_eq!(line(&miss), expected);
        let empty = json!({ "outcome": "miss", "reason": "empty" });
        assert_eq!(line(&empty), "no prebuild (empty); building a new workspace");
    }

    #[test]
    fn a_claim_goes_on_in_a_later_claim_build_and_in_no_other() {
        let latest =
            |id: &str, stage: &str| json!({ "latest_build": { "id": id, "stage": stage } });
        assert_eq!(next_claim(&latest("b", "claim"), "a").as_deref(), Some("b"));
        assert_eq!(next_claim(&latest("a", "claim"), "a"), None);
        assert_eq!(next_claim(&latest("b", "none"), "a"), None);
    }
}
