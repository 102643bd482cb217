//! `berth provisioner keys`.

use clap::Subcommand;
use serde_json::json;

use crate::cli::Global;
use crate::client::{Client, text};
use crate::output::Output;

#[derive(Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key that admits provisioner daemons; it is shown only now
    Create {
        /// Name of the key
        name: String,
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
        KeyCommand::Create { name } => {
            let answer = client.post(PATH, &json!({ "name": name })).await?;
            output.fields(&answer, &[("Key", text(&answer, "key").to_owned())]);
        }
        KeyCommand::List => {
            let keys = client.get(PATH).await?;
            let rows = keys
                .as_array()
                .into_iter()
                .flatten()
                .map(|it| vec![text(it, "name").to_owned(), text(it, "created_at").to_owned()]);
            let rows = rows.collect();
            output.rows(&keys, &["name", "created"], rows);
        }
        KeyCommand::Revoke { name } => {
            client.delete(&format!("{PATH}/{name}")).await?;
            output.fields(&json!({ "revoked": name }), &[("Revoked", name.clone())]);
        }
    }
    Ok(())
}
