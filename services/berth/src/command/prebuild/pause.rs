//! `berth prebuilds pause`, `resume` and `pauses`.

use anyhow::bail;
use clap::Args;
use jiff::{Span, SpanRelativeTo};
use serde_json::{Value, json};

use super::query;
use crate::client::{Client, list, text};
use crate::command::template;
use crate::output::Output;

/// What is paused; nothing of it means the whole deployment.
#[derive(Args)]
#[command(after_help = "\
Examples:
  berth prebuilds resume
  berth prebuilds resume --template dev --preset small")]
pub(crate) struct ScopeArgs {
    /// One organization, by name
    #[arg(long, value_name = "NAME", conflicts_with_all = ["template", "preset"])]
    organization: Option<String>,
    /// One template, by name
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    /// One preset of the template's active version, by name
    #[arg(long, value_name = "NAME", requires = "template")]
    preset: Option<String>,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  berth prebuilds pause --for 2h --reason \"cloud maintenance\"
  berth prebuilds pause --template dev
  berth prebuilds pause --template dev --preset small --for 30m")]
pub(crate) struct PauseArgs {
    #[command(flatten)]
    scope: ScopeArgs,
    /// End by itself after this time, such as 90m, 2h or 7d: at least a minute, at most a year
    #[arg(long = "for", value_name = "TIME", value_parser = seconds)]
    duration: Option<i64>,
    /// Why, for others to read: at most 500 characters
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

/// Seconds of `2h`, `7d` and the like.
fn seconds(text: &str) -> Result<i64, String> {
    let span: Span = text.parse().map_err(|_| "give a time such as 90m, 2h or 7d".to_owned())?;
    let length = span.to_duration(SpanRelativeTo::days_are_24_hours());
    length.map(|it| it.as_secs()).map_err(|_| "give weeks, days, hours or minutes".to_owned())
}

/// A scope as the API knows it.
struct Scope {
    kind: &'static str,
    id: Option<String>,
    /// For people.
    name: String,
}

async fn resolve(client: &Client, args: &ScopeArgs) -> anyhow::Result<Scope> {
    if let Some(name) = &args.organization {
        let found = client.get(&format!("/organizations/{name}")).await?;
        let id = Some(text(&found, "id").to_owned());
        return Ok(Scope { kind: "organization", id, name: format!("organization {name}") });
    }
    let Some(name) = &args.template else {
        return Ok(Scope { kind: "deployment", id: None, name: "everything".to_owned() });
    };
    let found = template::get(client, name).await?;
    let template_id = text(&found, "id").to_owned();
    let Some(preset) = &args.preset else {
        let name = format!("template {name}");
        return Ok(Scope { kind: "template", id: Some(template_id), name });
    };
    let query = query(&[("preset", Some(preset.clone()))]);
    let path = format!("/templates/{template_id}/prebuilds/plan{query}");
    let pools = client.get(&path).await?;
    let active = list(&pools, "pools").iter().find(|it| text(it, "standing") == "active");
    let Some(active) = active else {
        bail!("the active version of {name} has no preset {preset:?} with prebuilds");
    };
    let id = Some(text(active, "preset_id").to_owned());
    Ok(Scope { kind: "preset", id, name: format!("preset {preset} of template {name}") })
}

pub(super) async fn pause(client: &Client, output: Output, args: &PauseArgs) -> anyhow::Result<()> {
    let scope = resolve(client, &args.scope).await?;
    let mut body = json!({ "scope": scope.kind, "scope_id": scope.id, "reason": args.reason });
    if let Some(seconds) = args.duration {
        body["duration_seconds"] = seconds.into();
    }
    let made = client.post("/prebuilds/pauses", &body).await?;
    let until = match text(&made, "expires_at") {
        "" => "it is resumed".to_owned(),
        at => at.to_owned(),
    };
    output.fields(&made, &[("Paused", scope.name), ("Until", until)]);
    Ok(())
}

/// Ends the pause of exactly this scope. Without one there is nothing to do.
pub(super) async fn resume(
    client: &Client,
    output: Output,
    args: &ScopeArgs,
) -> anyhow::Result<()> {
    let scope = resolve(client, args).await?;
    let all = client.get("/prebuilds/pauses").await?;
    let is_ours = |it: &&Value| {
        text(it, "scope") == scope.kind && it["scope_id"].as_str() == scope.id.as_deref()
    };
    let found = all.as_array().into_iter().flatten().find(is_ours);
    if let Some(found) = found {
        client.delete(&format!("/prebuilds/pauses/{}", text(found, "id"))).await?;
    }
    let others = all.as_array().map_or(0, Vec::len) - usize::from(found.is_some());
    let before = if found.is_some() { "" } else { " (was not paused)" };
    let resumed = json!({ "resumed": found, "scope": scope.kind, "scope_id": scope.id });
    output.fields(&resumed, &[("Resumed", format!("{}{before}", scope.name))]);
    if others > 0 {
        output.progress("other pauses hold: see `berth prebuilds pauses`");
    }
    Ok(())
}

pub(super) async fn pauses(client: &Client, output: Output) -> anyhow::Result<()> {
    let all = client.get("/prebuilds/pauses").await?;
    let rows = all.as_array().into_iter().flatten().map(|it| {
        let until = match text(it, "expires_at") {
            "" => "resumed",
            at => at,
        };
        vec![
            text(it, "scope").to_owned(),
            text(it, "name").to_owned(),
            until.to_owned(),
            text(it, "actor_name").to_owned(),
            text(it, "created_at").to_owned(),
            text(it, "reason").to_owned(),
        ]
    });
    output.rows(&all, &["scope", "name", "until", "by", "since", "reason"], rows.collect());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn times_are_written_as_people_write_them() {
        assert_eq!(seconds("2h"), Ok(7_200));
        assert_eq!(seconds("90m"), Ok(5_400));
        assert_eq!(seconds("7d"), Ok(604_800));
        assert!(seconds("soon").is_err() && seconds("1mo").is_err());
    }
}
