//! `berth provisioner list`, `drain` and `undrain`.

use clap::Args;
use serde_json::Value;

use crate::cli::Global;
use crate::client::{Client, list, text};
use crate::command::provisioner_key::tags;
use crate::output::Output;

/// Whose daemons.
#[derive(Args, Clone)]
pub(crate) struct Within {
    /// Name or id of the organization
    #[arg(long, global = true, default_value = "default", value_name = "NAME")]
    organization: String,
}

impl Within {
    /// A path of the organization.
    pub(crate) fn path(&self, rest: &str) -> String {
        format!("/organizations/{}/{rest}", self.organization)
    }

    /// The organization's id.
    pub(crate) async fn id(&self, client: &Client) -> anyhow::Result<String> {
        let found = client.get(&format!("/organizations/{}", self.organization)).await?;
        Ok(text(&found, "id").to_owned())
    }
}

#[derive(Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    within: Within,
}

#[derive(Args)]
pub(crate) struct DrainArgs {
    /// Name or id of the daemon
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    name: Option<String>,
    /// All daemons that are there
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    within: Within,
}

impl DrainArgs {
    fn path(&self) -> String {
        match &self.name {
            Some(name) => self.within.path(&format!("provisionerdaemons/{name}/drain")),
            None => self.within.path("provisionerdaemons/drain"),
        }
    }
}

/// The daemons of an organization.
pub(crate) async fn daemons(client: &Client, within: &Within) -> anyhow::Result<Value> {
    client.get(&within.path("provisionerdaemons")).await
}

/// `berth provisioner list`.
pub(crate) async fn show(global: &Global, output: Output, args: ListArgs) -> anyhow::Result<()> {
    let client = Client::from_session(global)?;
    let daemons = daemons(&client, &args.within).await?;
    let rows = daemons.as_array().into_iter().flatten().map(|it| {
        let words = |field: &str| {
            let all: Vec<&str> = list(it, field).iter().filter_map(|it| it.as_str()).collect();
            all.join(", ")
        };
        vec![
            text(it, "name").to_owned(),
            status(it).to_owned(),
            words("provisioners"),
            tags(&it["tags"]),
            text(it, "version").to_owned(),
            entered_with(it),
            text(it, "last_seen_at").to_owned(),
        ]
    });
    let rows = rows.collect();
    let header = ["name", "status", "runs", "tags", "version", "entered with", "last seen"];
    output.rows(&daemons, &header, rows);
    Ok(())
}

/// A daemon that is to take no new jobs is `draining` while it has one, and `drained` then. One that is
/// not heard of is `silent` until it is given up.
fn status(daemon: &Value) -> &str {
    match text(daemon, "status") {
        "busy" if daemon["draining_since"].is_string() => "draining",
        "idle" if daemon["draining_since"].is_string() => "drained",
        "busy" | "idle" if daemon["silent_since"].is_string() => "silent",
        other => other,
    }
}

/// The name of its key, or the first digits of its certificate's fingerprint.
fn entered_with(daemon: &Value) -> String {
    let key = text(daemon, "key_name");
    let digits: String = text(daemon, "certificate_fingerprint").chars().take(16).collect();
    match (key.is_empty(), digits.is_empty()) {
        (false, true) => key.to_owned(),
        (true, false) => format!("certificate {digits}…"),
        (false, false) => format!("{key}, certificate {digits}…"),
        (true, true) => String::new(),
    }
}

/// `berth provisioner drain`.
pub(crate) async fn drain(global: &Global, output: Output, args: DrainArgs) -> anyhow::Result<()> {
    let client = Client::from_session(global)?;
    let answer = client.put(&args.path(), &Value::Null).await?;
    output.fields(&answer, &[("Draining", named(&answer, "none that was not already"))]);
    Ok(())
}

/// `berth provisioner undrain`.
pub(crate) async fn undrain(
    global: &Global,
    output: Output,
    args: DrainArgs,
) -> anyhow::Result<()> {
    let client = Client::from_session(global)?;
    let answer = client.delete(&args.path()).await?;
    output.fields(&answer, &[("Taking jobs again", named(&answer, "none that was draining"))]);
    Ok(())
}

fn named(answer: &Value, none: &str) -> String {
    let names: Vec<&str> = list(answer, "daemons").iter().filter_map(|it| it.as_str()).collect();
    if names.is_empty() { none.to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_daemon_that_drains_is_shown_so_until_it_is_offline() {
        let since = "2026-11-21T12:00:00Z";
        for (daemon, shown) in [
            (json!({ "status": "idle" }), "idle"),
            (json!({ "status": "busy", "draining_since": since }), "draining"),
            (json!({ "status": "idle", "draining_since": since }), "drained"),
            (json!({ "status": "idle", "silent_since": since }), "silent"),
            (json!({ "status": "offline", "draining_since": since }), "offline"),
        ] {
            assert_eq!(status(&daemon), shown);
        }
    }

    #[test]
    fn a_daemon_is_shown_with_what_it_entered_with() {
        let fingerprint = "0123456789abcdef0123";
        for (daemon, shown) in [
            (json!({ "key_name": "k" }), "k"),
            (json!({ "certificate_fingerprint": fingerprint }), "certificate 0123456789abcdef…"),
            (json!({}), ""),
        ] {
            assert_eq!(entered_with(&daemon), shown);
        }
    }
}
