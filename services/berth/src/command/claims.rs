//! `berth claims`: who got a prebuild, who did not, and why not.

use clap::Args;
use serde_json::Value;

use crate::cli::Global;
use crate::client::{Client, list, text};
use crate::command::prebuild::query;
use crate::output::Output;

#[derive(Args)]
#[command(after_help = "Example:\n  berth claims --template dev --outcome miss --since 1h")]
pub(crate) struct ClaimsArgs {
    /// Name or id of the organization
    #[arg(long, default_value = "default")]
    organization: String,
    /// Only requests for this template, by name or id
    #[arg(long, value_name = "TEMPLATE")]
    template: Option<String>,
    /// Only those that got a prebuild (hit), or those that did not (miss)
    #[arg(long, value_parser = ["hit", "miss"])]
    outcome: Option<String>,
    /// Only those that missed for this reason, such as empty
    #[arg(long)]
    reason: Option<String>,
    /// Only those not longer ago than this, such as 1h, or not before this time
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// At most so many, the newest
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
}

pub(crate) async fn claims(
    global: &Global,
    output: Output,
    args: ClaimsArgs,
) -> anyhow::Result<()> {
    let client = Client::from_session(global)?;
    let query = query(&[
        ("limit", Some(args.limit.to_string())),
        ("template", args.template),
        ("outcome", args.outcome),
        ("reason", args.reason),
        ("since", args.since),
    ]);
    let path = format!("/organizations/{}/claims{query}", args.organization);
    let answer = client.get(&path).await?;
    let rows = list(&answer, "claims").iter().map(|it| {
        vec![
            text(it, "created_at").to_owned(),
            text(it, "username").to_owned(),
            text(it, "workspace_name").to_owned(),
            text(it, "template_name").to_owned(),
            text(it, "preset_name").to_owned(),
            text(it, "outcome").to_owned(),
            text(it, "reason").to_owned(),
            explained(&it["detail"]),
            text(it, "build_status").to_owned(),
        ]
    });
    let rows = rows.collect();
    let header = [
        "created",
        "user",
        "workspace",
        "template",
        "preset",
        "outcome",
        "reason",
        "detail",
        "build",
    ];
    output.rows(&answer, &header, rows);
    Ok(())
}

/// What explains an outcome, for people: the nearest preset and what differs, the agents waited for, the
/// build that was lost.
pub(crate) fn explained(detail: &Value) -> String {
    let why = reason(detail);
    let Some(number) = detail["retried"]["build_number"].as_i64() else { return why };
    let class = text(&detail["retried"], "error_class");
    let again = format!("build {number} failed ({class}), built again");
    if why.is_empty() { again } else { format!("{why}; {again}") }
}

fn reason(detail: &Value) -> String {
    let nearest = &detail["nearest_preset"];
    if let Some(name) = nearest["name"].as_str() {
        let differing = list(nearest, "differing").iter().map(|it| {
            let value =
                |field: &str| it[field].as_str().map_or("none".to_owned(), |it| format!("{it:?}"));
            format!("{} is {}, not {}", text(it, "name"), value("requested"), value("preset"))
        });
        return format!("nearest is {name}: {}", differing.collect::<Vec<_>>().join(", "));
    }
    if detail["previous_version"] == true {
        return format!("previous version {}", text(detail, "version_name"));
    }
    let agents: Vec<&str> =
        list(detail, "agents_waited_for").iter().filter_map(Value::as_str).collect();
    if !agents.is_empty() {
        return format!("waiting for {}", agents.join(", "));
    }
    let counts = ["ready", "expired", "unready", "starting"].into_iter();
    let counts = counts.filter_map(|name| Some((name, detail[name].as_i64()?)));
    let told =
        counts.filter(|(_, count)| *count > 0).map(|(name, count)| format!("{count} {name}"));
    let told: Vec<String> = told.collect();
    if told.is_empty() { text(detail, "explanation").to_owned() } else { told.join(", ") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_miss_is_explained_by_what_its_detail_holds() {
        let differing = json!([{ "name": "size", "preset": "large", "requested": null }]);
        let nearest = json!({ "nearest_preset": { "name": "big", "differing": differing } });
        assert_eq!(explained(&nearest), "nearest is big: size is none, not \"large\"");
        let waiting = json!({ "unready": 1, "agents_waited_for": ["main", "db"] });
        assert_eq!(explained(&waiting), "waiting for main, db");
        let counted = json!({ "unready": 0, "starting": 2, "agents_waited_for": [] });
        assert_eq!(explained(&counted), "2 starting");
        assert_eq!(explained(&json!({})), "");
        let retried = json!({ "build_number": 2, "error_class": "infrastructure" });
        let again = "build 2 failed (infrastructure), built again";
        assert_eq!(explained(&json!({ "retried": retried })), again);
        let old = json!({ "previous_version": true, "version_name": "v1", "retried": retried });
        assert_eq!(explained(&old), format!("previous version v1; {again}"));
    }
}
