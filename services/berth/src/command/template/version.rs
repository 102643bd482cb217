//! `berth templates versions`, `archive`, `unarchive` and `dry-run`.

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};

use crate::client::{Client, list, text};
use crate::command::{logs, workspace};
use crate::output::Output;

#[derive(Args)]
pub(crate) struct VersionsArgs {
    /// Name of the template
    template: String,
    /// Archived versions, too
    #[arg(long)]
    archived: bool,
}

#[derive(Args)]
pub(crate) struct ArchiveArgs {
    /// Name of the template
    template: String,
    /// Name of the version
    #[arg(id = "template_version", value_name = "VERSION")]
    version: String,
}

#[derive(Args)]
#[command(after_help = "Example:\n  berth templates dry-run dev --parameter size=large")]
pub(crate) struct DryRunArgs {
    /// Name of the template
    template: String,
    /// Name of the version; without it, the active one
    #[arg(long = "version", id = "template_version", value_name = "VERSION")]
    version: Option<String>,
    /// A parameter's value; may be given several times
    #[arg(long = "parameter", short, value_name = "NAME=VALUE", value_parser = workspace::pair)]
    parameters: Vec<(String, String)>,
    /// What the workspace would be called
    #[arg(long, value_name = "NAME", default_value = "")]
    workspace: String,
}

/// A template and one of its versions, the active one where none is named.
pub(super) async fn get(
    client: &Client,
    template: &str,
    version: Option<&str>,
) -> anyhow::Result<(Value, Value)> {
    let template = super::get(client, template).await?;
    let path = match version {
        Some(name) => format!(
            "/organizations/{}/templates/{}/versions/{name}",
            text(&template, "organization_id"),
            text(&template, "name"),
        ),
        None => format!("/templateversions/{}", text(&template, "active_version_id")),
    };
    let version = client.get(&path).await?;
    Ok((template, version))
}

/// `berth templates versions`.
pub(crate) async fn versions(
    client: &Client,
    output: Output,
    args: &VersionsArgs,
) -> anyhow::Result<()> {
    let template = super::get(client, &args.template).await?;
    let path =
        format!("/templates/{}/versions?include_archived={}", text(&template, "id"), args.archived);
    let versions = client.get(&path).await?;
    let active = text(&template, "active_version_id");
    let rows = versions.as_array().into_iter().flatten().map(|it| {
        let standing = match (text(it, "id") == active, it["archived"] == true) {
            (true, _) => "active",
            (_, true) => "archived",
            _ => "",
        };
        vec![
            text(it, "name").to_owned(),
            text(it, "job.status").to_owned(),
            standing.to_owned(),
            text(it, "created_at").to_owned(),
            rehearsals(it),
            text(it, "message").to_owned(),
        ]
    });
    let rows = rows.collect();
    let header = ["version", "import", "", "created", "a claim", "message"];
    output.rows(&versions, &header, rows);
    Ok(())
}

/// What claims of a version's pools replace: the pools that were rehearsed, in a few words.
fn rehearsals(version: &Value) -> String {
    let known = list(version, "rehearsals").iter().filter(|it| !it["outcome"].is_null());
    let words: Vec<String> = known
        .filter(|it| text(it, "outcome") != "clean")
        .map(|it| format!("{}: {}", text(it, "preset_name"), rehearsal(it)))
        .collect();
    let is_rehearsed = list(version, "rehearsals").iter().any(|it| text(it, "outcome") == "clean");
    match (words.is_empty(), is_rehearsed) {
        (true, true) => "replaces nothing".to_owned(),
        (true, false) => String::new(),
        (false, _) => words.join("; "),
    }
}

/// What a rehearsal found, in a few words.
pub(crate) fn rehearsal(it: &Value) -> String {
    match text(it, "outcome") {
        "" => "not known yet".to_owned(),
        "clean" => "replaces nothing".to_owned(),
        "replaces" => format!("replaces {}", replaced(&it["replacements"]).join(", ")),
        "failed" => format!("would fail: {}", text(it, "error")),
        _ => format!("not known: {}", text(it, "error")),
    }
}

/// Resources with the attributes that force their replacement.
fn replaced(replacements: &Value) -> Vec<String> {
    let all = replacements.as_object().into_iter().flatten();
    let one = |(resource, paths): (&String, &Value)| {
        let paths: Vec<&str> =
            paths.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        format!("{resource} ({})", paths.join(", "))
    };
    all.map(one).collect()
}

/// `berth templates archive` and `unarchive`.
pub(crate) async fn archive(
    client: &Client,
    output: Output,
    args: &ArchiveArgs,
    what: &str,
) -> anyhow::Result<()> {
    let (_, version) = get(client, &args.template, Some(&args.version)).await?;
    let path = format!("/templateversions/{}/{what}", text(&version, "id"));
    client.post(&path, &json!({})).await?;
    let name = format!("{} {}", args.template, text(&version, "name"));
    let field = if what == "archive" { "Archived" } else { "Unarchived" };
    output.fields(&json!({ "id": version["id"], "archived": what == "archive" }), &[(field, name)]);
    Ok(())
}

/// `berth templates dry-run`: what a workspace would have.
pub(crate) async fn dry_run(
    client: &Client,
    output: Output,
    args: &DryRunArgs,
) -> anyhow::Result<()> {
    let (_, version) = get(client, &args.template, args.version.as_deref()).await?;
    let path = format!("/templateversions/{}/dry-run", text(&version, "id"));
    let parameters = args.parameters.iter();
    let body = json!({
        "workspace_name": args.workspace,
        "rich_parameter_values": parameters
            .map(|(name, value)| json!({ "name": name, "value": value }))
            .collect::<Vec<_>>(),
    });
    let job = client.post(&path, &body).await?;
    let path = format!("{path}/{}", text(&job, "id"));
    let job = logs::follow_bare_job(client, output, &path).await?;
    if text(&job, "status") != "succeeded" {
        bail!("the dry run {}: {}", text(&job, "status"), text(&job, "error"));
    }
    let resources = client.get(&format!("{path}/resources")).await?;
    let rows = resources.as_array().into_iter().flatten().map(|it| {
        let agents: Vec<&str> = list(it, "agents").iter().map(|it| text(it, "name")).collect();
        let cost = it["daily_cost"].to_string();
        vec![text(it, "type").to_owned(), text(it, "name").to_owned(), agents.join(", "), cost]
    });
    let rows = rows.collect();
    output.rows(&resources, &["type", "name", "agents", "cost a day"], rows);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_tells_what_its_claims_replace() {
        let found = |outcome: Value| {
            json!({
                "preset_name": "small", "outcome": outcome, "error": "boom",
                "replacements": { "docker_container.dev": ["env", "name"] },
            })
        };
        let version = |rehearsals: &[Value]| rehearsals_of(rehearsals);
        assert_eq!(version(&[]), "");
        assert_eq!(version(&[found(Value::Null)]), "");
        assert_eq!(version(&[found(json!("clean"))]), "replaces nothing");
        assert_eq!(
            version(&[found(json!("clean")), found(json!("replaces"))]),
            "small: replaces docker_container.dev (env, name)"
        );
        assert_eq!(version(&[found(json!("failed"))]), "small: would fail: boom");
    }

    fn rehearsals_of(rehearsals: &[Value]) -> String {
        super::rehearsals(&json!({ "rehearsals": rehearsals }))
    }
}
