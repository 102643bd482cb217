//! `berth prebuilds policy`.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::show::plain;
use crate::client::Client;
use crate::output::Output;

#[derive(Subcommand)]
pub(crate) enum PolicyCommand {
    /// Show the policy of a template, and what it comes to for each preset
    Get {
        /// Name of the template
        template: String,
    },
    /// Change some fields of a template's policy, or of one preset's
    Set(SetArgs),
}

#[derive(Args)]
#[command(after_help = "\
Fields:
  replace                    at_once or gradual: how expired prebuilds are replaced
  max_unavailable_percent    1 to 100: of the wanted ones, replaced at a time (gradual)
  allow_previous_version     true or false: claims may have the old version's after a promotion
  max_surge_percent          1 to 100: of the wanted ones, built beside the old version's
  min_remaining_ttl_seconds  0 to 31536000: life that a prebuild needs to be handed out

Examples:
  berth prebuilds policy set dev replace=gradual max_unavailable_percent=50
  berth prebuilds policy set dev --preset small min_remaining_ttl_seconds=600
  berth prebuilds policy set dev --preset small min_remaining_ttl_seconds=
  berth prebuilds policy get dev -o json > dev.json
  berth prebuilds policy set dev --file dev.json")]
pub(crate) struct SetArgs {
    /// Name of the template
    template: String,
    /// Fields to set; one without a value goes back to the template's, or to the default
    #[arg(value_name = "FIELD=VALUE", required_unless_present = "file", value_parser = field)]
    fields: Vec<(String, Option<Value>)>,
    /// Only for the preset of this name, in every version
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// Put the whole policy of a JSON file, with `policy` and `presets`, in the place of what is there
    #[arg(long, value_name = "FILE", conflicts_with_all = ["fields", "preset"])]
    file: Option<PathBuf>,
}

/// A field and its value: a number, true or false, or a text. The server knows what is allowed.
fn field(text: &str) -> Result<(String, Option<Value>), String> {
    let (name, value) = text.split_once('=').ok_or("give FIELD=VALUE")?;
    let value = match value {
        "" => None,
        value => Some(serde_json::from_str(value).unwrap_or_else(|_| value.into())),
    };
    Ok((name.to_owned(), value))
}

pub(super) async fn run(
    client: &Client,
    output: Output,
    command: PolicyCommand,
) -> anyhow::Result<()> {
    match command {
        PolicyCommand::Get { template } => {
            let path = format!("{}/pool-policy", super::path(client, &template).await?);
            print(output, &client.get(&path).await?);
        }
        PolicyCommand::Set(args) => {
            let path = format!("{}/pool-policy", super::path(client, &args.template).await?);
            let body = match &args.file {
                Some(file) => from_file(file)?,
                None => changed(&client.get(&path).await?, &args),
            };
            print(output, &client.put(&path, &body).await?);
        }
    }
    Ok(())
}

/// The stored policy with the fields of the command line.
fn changed(stored: &Value, args: &SetArgs) -> Value {
    let mut body = json!({ "policy": stored["policy"], "presets": stored["presets"] });
    let target = match &args.preset {
        Some(preset) => &mut body["presets"][preset.as_str()],
        None => &mut body["policy"],
    };
    let mut fields: Map<String, Value> = target.as_object().cloned().unwrap_or_default();
    for (name, value) in &args.fields {
        match value {
            Some(value) => fields.insert(name.clone(), value.clone()),
            None => fields.remove(name),
        };
    }
    let is_empty = fields.is_empty();
    *target = Value::Object(fields);
    if let (Some(preset), true, Some(presets)) =
        (&args.preset, is_empty, body["presets"].as_object_mut())
    {
        presets.remove(preset);
    }
    body
}

fn from_file(file: &PathBuf) -> anyhow::Result<Value> {
    let name = file.display();
    let text = std::fs::read(file).with_context(|| format!("cannot read {name}"))?;
    let document: Value =
        serde_json::from_slice(&text).with_context(|| format!("{name} is not JSON"))?;
    let Some(policy) = document.get("policy") else {
        bail!("{name} has no field `policy`; write one with `berth prebuilds policy get -o json`");
    };
    let presets = document.get("presets").cloned().unwrap_or_else(|| json!({}));
    Ok(json!({ "policy": policy, "presets": presets }))
}

fn print(output: Output, answer: &Value) {
    let effective = answer["effective"].as_object().cloned().unwrap_or_default();
    let row = |name: &str, of: &str, policy: &Value| {
        let fields = [
            "replace",
            "max_unavailable_percent",
            "allow_previous_version",
            "max_surge_percent",
            "min_remaining_ttl_seconds",
        ];
        let values = fields.iter().map(|it| plain(&policy[it]));
        [name.to_owned(), of.to_owned()].into_iter().chain(values).collect::<Vec<_>>()
    };
    let mut rows = vec![row("(all)", "template", &answer["policy"])];
    for (name, policy) in &effective {
        let own = if answer["presets"].get(name).is_some() { "own" } else { "template" };
        rows.push(row(name, own, policy));
    }
    let header = [
        "preset",
        "policy",
        "replace",
        "unavailable %",
        "previous version",
        "surge %",
        "remaining ttl s",
    ];
    output.rows(answer, &header, rows);
    let unknown: Vec<String> =
        answer["unknown_presets"].as_array().into_iter().flatten().map(plain).collect();
    if !unknown.is_empty() {
        let names = unknown.join(", ");
        output.progress(&format!("no preset of the active version is called {names}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(preset: Option<&str>, fields: &[&str]) -> SetArgs {
        SetArgs {
            template: String::new(),
            fields: fields.iter().map(|it| field(it).unwrap()).collect(),
            preset: preset.map(ToOwned::to_owned),
            file: None,
        }
    }

    #[test]
    fn fields_are_changed_where_they_belong_and_the_rest_stays() {
        let stored = json!({
            "policy": { "replace": "at_once", "max_surge_percent": 100 },
            "presets": { "small": { "max_surge_percent": 10 } }, "effective": {},
        });
        let all = changed(&stored, &set(None, &["replace=gradual", "allow_previous_version=true"]));
        let policy = json!({ "replace": "gradual", "max_surge_percent": 100, "allow_previous_version": true });
        assert_eq!(all, json!({ "policy": policy, "presets": stored["presets"] }));
        let own = changed(&stored, &set(Some("large"), &["max_surge_percent=5"]));
        assert_eq!(own["presets"]["large"], json!({ "max_surge_percent": 5 }));
        assert_eq!(own["policy"], stored["policy"]);
        let none = changed(&stored, &set(Some("small"), &["max_surge_percent="]));
        assert_eq!(none["presets"], json!({}), "an empty override is none");
    }
}
