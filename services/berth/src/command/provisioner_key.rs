//! `berth provisioner keys`.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::cli::Global;
use crate::client::{Client, text};
use crate::command::provisioner::Within;
use crate::command::workspace::pair;
use crate::output::Output;

#[derive(Args)]
pub(crate) struct KeyArgs {
    #[command(flatten)]
    within: Within,
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Subcommand)]
enum KeyCommand {
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
    /// Revoke a key; daemons that use it are refused from then on, and lose what they run
    #[command(visible_alias = "delete")]
    Revoke {
        /// Name of the key
        name: String,
    },
}

pub(crate) async fn run(global: &Global, output: Output, args: KeyArgs) -> anyhow::Result<()> {
    let client = Client::from_session(global)?;
    let path = args.within.path("provisionerkeys");
    match args.command {
        KeyCommand::Create { name, tags } => {
            let tags: BTreeMap<_, _> = tags.into_iter().collect();
            let answer = client.post(&path, &json!({ "name": name, "tags": tags })).await?;
            output.fields(&answer, &[("Key", text(&answer, "key").to_owned())]);
        }
        KeyCommand::List => {
            let keys = client.get(&path).await?;
            let rows = keys.as_array().into_iter().flatten().map(|it| {
                let (name, created) = (text(it, "name"), text(it, "created_at"));
                vec![name.to_owned(), tags(&it["tags"]), created.to_owned()]
            });
            let rows = rows.collect();
            output.rows(&keys, &["name", "tags", "created"], rows);
        }
        KeyCommand::Revoke { name } => {
            client.delete(&format!("{path}/{name}")).await?;
            output.fields(&json!({ "revoked": name }), &[("Revoked", name.clone())]);
        }
    }
    Ok(())
}

/// `scope=organization zone=eu`, without what is empty.
pub(crate) fn tags(tags: &serde_json::Value) -> String {
    let all = tags.as_object().into_iter().flatten();
    let one = |(name, value): (&String, &serde_json::Value)| {
        let value = value.as_str().filter(|it| !it.is_empty())?;
        Some(format!("{name}={value}"))
    };
    all.filter_map(one).collect::<Vec<_>>().join(" ")
}
