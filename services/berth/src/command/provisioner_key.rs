//! `berth provisioner keys` and `berth provisioner list`.

use std::collections::BTreeMap;

use clap::Subcommand;
use serde_json::json;

use crate::cli::Global;
use crate::client::{Client, list, text};
use crate::command::workspace::pair;
use crate::output::Output;

#[derive(Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key that admits provisioner daemons; it is shown only now
    Create {
        /// Name of the key
        name: String,
        /// A tag of every daemon that uses the key; may be given several times
        #[arg(long = "tag", value_name = "NAME=VALUE", value_parser = pair)]
        tags: Vec<(String, String)>,
    },
    /// List the keys
    List,
    /// Revoke a key; daemons that use it are refused from then on
    Revoke {
        /// Name of the key
        name: String,
    },
}

const PATH: &str = "/organizations/default/provisionerkeys";

pub(crate) async fn run(
    global: &Global,
    output: Output,
    command: KeyCommand,
) -> anyhow::Result<()> {
    let client = Client::from_session(global)?;
    match command {
        KeyCommand::Create { name, tags } => {
            let tags: BTreeMap<_, _> = tags.into_iter().collect();
            let answer = client.post(PATH, &json!({ "name": name, "tags": tags })).await?;
            output.fields(&answer, &[("Key", text(&answer, "key").to_owned())]);
        }
        KeyCommand::List => {
            let keys = client.get(PATH).await?;
            let rows = keys.as_array().into_iter().flatten().map(|it| {
                let (name, created) = (text(it, "name"), text(it, "created_at"));
                vec![name.to_owned(), tags(&it["tags"]), created.to_owned()]
            });
            let rows = rows.collect();
            output.rows(&keys, &["name", "tags", "created"], rows);
        }
        KeyCommand::Revoke { name } => {
            client.delete(&format!("{PATH}/{name}")).await?;
            output.fields(&json!({ "revoked": name }), &[("Revoked", name.clone())]);
        }
    }
    Ok(())
}

/// `berth provisioner list`.
pub(crate) async fn daemons(global: &Global, output: Output) -> anyhow::Result<()> {
    let client = Client::from_session(global)?;
    let daemons = client.get("/organizations/default/provisionerdaemons").await?;
    let rows = daemons.as_array().into_iter().flatten().map(|it| {
        let words = |field: &str| {
            let all: Vec<&str> = list(it, field).iter().filter_map(|it| it.as_str()).collect();
            all.join(", ")
        };
        vec![
            text(it, "name").to_owned(),
            text(it, "status").to_owned(),
            words("provisioners"),
            tags(&it["tags"]),
            text(it, "version").to_owned(),
            text(it, "key_name").to_owned(),
            text(it, "last_seen_at").to_owned(),
        ]
    });
    let rows = rows.collect();
    let header = ["name", "status", "runs", "tags", "version", "key", "last seen"];
    output.rows(&daemons, &header, rows);
    Ok(())
}

/// `scope=organization zone=eu`, without what is empty.
fn tags(tags: &serde_json::Value) -> String {
    let all = tags.as_object().into_iter().flatten();
    let one = |(name, value): (&String, &serde_json::Value)| {
        let value = value.as_str().filter(|it| !it.is_empty())?;
        Some(format!("{name}={value}"))
    };
    all.filter_map(one).collect::<Vec<_>>().join(" ")
}
