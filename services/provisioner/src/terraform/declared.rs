//! The variables that a template declares, read off its files: before a plan, which cannot be made
//! while one of them has no value.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use berth_proto::v1;
use hcl::eval::Evaluate as _;
use hcl::{Block, Body, Expression};
use serde_json::Value;

use crate::session::Declared;

/// Most bytes of a file that is read.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// Reads the variables of the template in `dir`, and which of the required ones have no value: none
/// in `env`, as `TF_VAR_<name>`, and none in a file of values. `None` where a file cannot be read
/// as HCL: Terraform knows better what is wrong with it.
pub(crate) fn read(dir: &Path, env: &BTreeMap<String, String>) -> Option<Declared> {
    let files = Files::list(dir).ok()?;
    let mut variables = BTreeMap::new();
    for path in &files.templates {
        let found = declarations(path).ok()?;
        variables.extend(found.into_iter().map(|it| (it.name.clone(), it)));
    }
    let mut valued = BTreeSet::new();
    for path in &files.values {
        valued.extend(names(path).ok()?);
    }
    let missing = variables.values().filter(|it| {
        it.required
            && !valued.contains(&it.name)
            && !env.contains_key(&format!("TF_VAR_{}", it.name))
    });
    Some(Declared {
        missing: missing.map(|it| it.name.clone()).collect(),
        variables: variables.into_values().collect(),
    })
}

/// The files of a directory that Terraform reads by itself.
pub(super) struct Files {
    pub(super) templates: Vec<PathBuf>,
    values: Vec<PathBuf>,
}

impl Files {
    pub(super) fn list(dir: &Path) -> anyhow::Result<Self> {
        let (mut templates, mut values) = (Vec::new(), Vec::new());
        for entry in dir.read_dir()? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let ends = |end: &str| name.ends_with(end) || name.ends_with(&format!("{end}.json"));
            if name.starts_with('.') {
                continue;
            }
            if ends(".auto.tfvars") || name == "terraform.tfvars" || name == "terraform.tfvars.json"
            {
                values.push(path);
            } else if ends(".tf") || ends(".tofu") {
                templates.push(path);
            }
        }
        templates.sort();
        Ok(Self { templates, values })
    }
}

pub(super) fn text(path: &Path) -> anyhow::Result<String> {
    let size = path.metadata()?.len();
    anyhow::ensure!(size <= MAX_FILE, "{} has {size} bytes", path.display());
    Ok(std::fs::read_to_string(path)?)
}

pub(super) fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|it| it == "json")
}

/// The names that a file of values gives.
fn names(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = text(path)?;
    if is_json(path) {
        let values: serde_json::Map<String, Value> = serde_json::from_str(&text)?;
        return Ok(values.into_iter().map(|(name, _)| name).collect());
    }
    let body: Body = hcl::parse(&text)?;
    Ok(body.attributes().map(|it| it.key.to_string()).collect())
}

fn declarations(path: &Path) -> anyhow::Result<Vec<v1::TemplateVariable>> {
    let text = text(path)?;
    if is_json(path) {
        let file: Value = serde_json::from_str(&text)?;
        let all = file.get("variable").and_then(Value::as_object).into_iter().flatten();
        return Ok(all.map(|(name, it)| from_json(name, it)).collect());
    }
    let body: Body = hcl::parse(&text)?;
    body.blocks().filter(|it| it.identifier() == "variable").map(from_block).collect()
}

fn from_block(block: &Block) -> anyhow::Result<v1::TemplateVariable> {
    let name = block.labels().first().context("a variable has no name")?.as_str().to_owned();
    let attribute = |name: &str| {
        let found = block.body().attributes().find(|it| it.key.as_str() == name);
        found.map(|it| it.expr().clone())
    };
    let default = attribute("default").map(|it| value(&it)).transpose()?;
    let kind = attribute("type").map(|it| hcl::format::to_string(&it)).transpose()?;
    let description = attribute("description").map(|it| value(&it)).transpose()?;
    let sensitive = attribute("sensitive").map(|it| value(&it)).transpose()?;
    Ok(variable(name, kind, (description.as_ref(), default.as_ref(), sensitive.as_ref())))
}

fn value(expression: &Expression) -> anyhow::Result<Value> {
    let value: hcl::Value = expression.evaluate(&hcl::eval::Context::new())?;
    Ok(serde_json::to_value(value)?)
}

fn from_json(name: &str, it: &Value) -> v1::TemplateVariable {
    let kind = it.get("type").and_then(Value::as_str).map(str::to_owned);
    let parts = (it.get("description"), it.get("default"), it.get("sensitive"));
    variable(name.to_owned(), kind, parts)
}

fn variable(
    name: String,
    kind: Option<String>,
    (description, default, sensitive): (Option<&Value>, Option<&Value>, Option<&Value>),
) -> v1::TemplateVariable {
    let sensitive = sensitive == Some(&Value::Bool(true));
    let (of_default, shown) = super::parameters::default_of(default);
    v1::TemplateVariable {
        name,
        description: description.and_then(Value::as_str).unwrap_or_default().to_owned(),
        r#type: kind.filter(|it| it != "any").unwrap_or_else(|| of_default.to_owned()),
        // Whoever may read the version may not read this.
        default_value: if sensitive { String::new() } else { shown },
        required: default.is_none(),
        sensitive,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    const MAIN: &str = r#"
variable "region" {
  description = "where"
  type        = string
}
variable "sizes" {
  type    = list(number)
  default = [1, 2]
}
variable "token" {
  type      = string
  default   = "hush"
  sensitive = true
}
variable "motd" {
  default = <<-EOT
    hello
  EOT
}
variable "none" {
  type    = string
  default = null
}
resource "terraform_data" "x" { input = "${var.region}-%{ if true }a%{ endif }" }
"#;

    #[test]
    fn variables_are_read_with_everything_they_say() {
        let dir = dir(&[
            ("main.tf", MAIN),
            ("other.tf.json", r#"{"variable": {"n": {"type": "number"}}}"#),
        ]);
        let found = read(dir.path(), &BTreeMap::new()).unwrap();
        let shown: Vec<_> = found
            .variables
            .iter()
            .map(|it| (&*it.name, &*it.r#type, &*it.default_value, it.required, it.sensitive))
            .collect();
        assert_eq!(
            shown,
            [
                ("motd", "string", "hello\n", false, false),
                ("n", "number", "", true, false),
                ("none", "string", "", false, false),
                ("region", "string", "", true, false),
                ("sizes", "list(number)", "[1,2]", false, false),
                ("token", "string", "", false, true),
            ]
        );
        assert_eq!(found.variables[3].description, "where");
        assert_eq!(found.missing, ["n", "region"]);
    }

    #[test]
    fn a_value_may_come_from_the_environment_or_from_a_file() {
        let main = "variable \"a\" {}\nvariable \"b\" {}\nvariable \"c\" {}\nvariable \"d\" {}\n";
        let dir = dir(&[
            ("main.tf", main),
            ("terraform.tfvars", "a = \"1\"\n"),
            ("more.auto.tfvars.json", r#"{"b": 2}"#),
            ("unused.tfvars", "d = 4\n"),
        ]);
        let env = BTreeMap::from([("TF_VAR_c".to_owned(), "3".to_owned())]);
        assert_eq!(read(dir.path(), &env).unwrap().missing, ["d"]);
    }

    #[test]
    fn what_is_no_hcl_is_left_to_terraform() {
        let dir = dir(&[("main.tf", "variable {")]);
        assert!(read(dir.path(), &BTreeMap::new()).is_none());
    }
}
