//! Values of template variables, as a push carries them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::{Value, json};

use crate::command::workspace::pair;

#[derive(Args, Default)]
pub(crate) struct VariableArgs {
    /// Value of a template variable; may be given several times, and wins over the file. Variables
    /// without a value keep the one of the active version
    #[arg(long = "variable", value_name = "NAME=VALUE", value_parser = pair)]
    variables: Vec<(String, String)>,
    /// File with values of template variables: TOML (`name = "value"`) or, where it ends in .json,
    /// a JSON object
    #[arg(long, value_name = "FILE")]
    variables_file: Option<PathBuf>,
}

impl VariableArgs {
    /// What the API is sent.
    pub(crate) fn values(&self) -> anyhow::Result<Vec<Value>> {
        let mut values = match &self.variables_file {
            Some(file) => read(file)?,
            None => BTreeMap::new(),
        };
        values.extend(self.variables.iter().cloned());
        Ok(values
            .into_iter()
            .map(|(name, value)| json!({ "name": name, "value": value }))
            .collect())
    }
}

fn read(file: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    parse(&text, file.extension().is_some_and(|it| it == "json"))
        .with_context(|| format!("{} has no values of variables", file.display()))
}

/// Values by name. Lists and objects become JSON, which the tool reads as its own syntax.
fn parse(text: &str, is_json: bool) -> anyhow::Result<BTreeMap<String, String>> {
    let value: Value = if is_json { serde_json::from_str(text)? } else { toml::from_str(text)? };
    let Value::Object(values) = value else { bail!("expected names and values") };
    let text = |(name, value): (String, Value)| match value {
        Value::String(text) => (name, text),
        other => (name, other.to_string()),
    };
    Ok(values.into_iter().map(text).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_from_toml_and_json_and_the_command_line_wins() {
        let toml = parse("region = \"eu\"\nsizes = [1, 2]\nbig = true\n", false).unwrap();
        let json = parse(r#"{"region": "eu", "sizes": [1, 2], "big": true}"#, true).unwrap();
        assert_eq!(toml, json);
        assert_eq!((&*toml["region"], &*toml["sizes"], &*toml["big"]), ("eu", "[1,2]", "true"));
        assert!(parse("[]", true).is_err());

        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("values.toml");
        std::fs::write(&file, "region = \"eu\"\nzone = \"a\"\n").unwrap();
        let args = VariableArgs {
            variables: vec![("region".to_owned(), "us".to_owned())],
            variables_file: Some(file),
        };
        let values = json!(args.values().unwrap());
        let expected = json!([
            { "name": "region", "value": "us" },
            { "name": "zone", "value": "a" },
        ]);
        assert_eq!(values, expected);
    }
}
