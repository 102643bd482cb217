//! What `terraform show -json` prints of a plan or a state, as far as it is used.

use serde::Deserialize;
use serde_json::{Map, Value};

/// A plan.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Plan {
    #[serde(default)]
    pub(crate) planned_values: Values,
    #[serde(default)]
    pub(crate) prior_state: Option<State>,
    #[serde(default)]
    pub(crate) resource_changes: Vec<ResourceChange>,
    #[serde(default)]
    pub(crate) configuration: Configuration,
}

/// A state, or the state that a plan began with. It has no values while nothing exists.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct State {
    #[serde(default)]
    pub(crate) values: Option<Values>,
}

/// All resources with their values.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Values {
    #[serde(default)]
    root_module: Module,
}

#[derive(Debug, Default, Deserialize)]
struct Module {
    #[serde(default)]
    address: String,
    #[serde(default)]
    resources: Vec<Node>,
    #[serde(default)]
    child_modules: Vec<Module>,
}

/// One instance of a resource or data source.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Node {
    /// With module path and instance key: `module.m["a"].docker_container.c[0]`.
    pub(crate) address: String,
    pub(crate) mode: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) name: String,
    /// The instance key, when it has one.
    #[serde(default)]
    pub(crate) index: Option<Value>,
    #[serde(default)]
    pub(crate) values: Attributes,
    /// The module's address; empty for the root.
    #[serde(skip)]
    pub(crate) module: String,
}

impl Node {
    /// The address of the block that it is an instance of: without any instance keys.
    pub(crate) fn block(&self) -> String {
        let data = if self.is_data() { "data." } else { "" };
        let dot = if self.module.is_empty() { "" } else { "." };
        format!("{}{dot}{data}{}.{}", without_keys(&self.module), self.kind, self.name)
    }

    pub(crate) fn is_data(&self) -> bool {
        self.mode == "data"
    }

    /// Whether it only describes the workspace to us, and is nothing that exists.
    pub(crate) fn is_description(&self) -> bool {
        self.kind.starts_with("coder_")
    }
}

impl Values {
    /// Every node of every module, in the order of the document.
    pub(crate) fn nodes(self) -> Vec<Node> {
        let (mut nodes, mut modules) = (Vec::new(), vec![self.root_module]);
        while let Some(module) = modules.pop() {
            nodes.extend(module.resources.into_iter().map(|mut node| {
                node.module.clone_from(&module.address);
                node
            }));
            modules.extend(module.child_modules);
        }
        nodes
    }
}

/// What a plan does to one resource.
#[derive(Debug, Deserialize)]
pub(crate) struct ResourceChange {
    pub(crate) address: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) change: Change,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct Change {
    #[serde(default)]
    pub(crate) actions: Vec<String>,
    /// Each a path of names and numbers.
    #[serde(default)]
    pub(crate) replace_paths: Vec<Vec<Value>>,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct Configuration {
    #[serde(default)]
    pub(crate) root_module: ModuleConfiguration,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct ModuleConfiguration {
    #[serde(default)]
    pub(crate) variables: Map<String, Value>,
}

/// The attributes of a node. What is missing, unknown or of another type reads as nothing.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(transparent)]
pub(crate) struct Attributes(Map<String, Value>);

impl Attributes {
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.get(name).and_then(Value::as_bool).unwrap_or_default()
    }

    /// A whole number; Terraform's numbers may come as `1.0`.
    pub(crate) fn find_number(&self, name: &str) -> Option<i64> {
        let value = self.get(name)?;
        value.as_i64().or_else(|| {
            #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and in range")]
            let whole =
                |float: f64| (float.fract() == 0.0 && float.abs() < 9e15).then_some(float as i64);
            value.as_f64().and_then(whole)
        })
    }

    pub(crate) fn number(&self, name: &str) -> i64 {
        self.find_number(name).unwrap_or_default()
    }

    /// A number that travels as 32 bits; one that does not fit is held at the bound.
    pub(crate) fn small_number(&self, name: &str) -> i32 {
        let number = self.number(name);
        i32::try_from(number).unwrap_or(if number < 0 { i32::MIN } else { i32::MAX })
    }

    /// The blocks of a name: nested blocks are lists, however many there may be.
    pub(crate) fn blocks(&self, name: &str) -> Vec<Attributes> {
        let items = self.get(name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        items.iter().filter_map(|item| Some(Attributes(item.as_object()?.clone()))).collect()
    }

    /// The block of which there is at most one.
    pub(crate) fn block(&self, name: &str) -> Option<Attributes> {
        self.blocks(name).into_iter().next()
    }

    /// A map of strings.
    pub(crate) fn texts(&self, name: &str) -> Vec<(String, String)> {
        let entries = self.get(name).and_then(Value::as_object).into_iter().flatten();
        let text =
            |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
        entries.filter_map(text).collect()
    }

    /// The names of the attributes that are true.
    pub(crate) fn true_names(&self) -> Vec<String> {
        let holds = |(name, value): (&String, &Value)| (value == true).then(|| name.clone());
        self.0.iter().filter_map(holds).collect()
    }
}

/// A module's address without instance keys: `module.a["x.y"].module.b[0]` is `module.a.module.b`.
pub(crate) fn without_keys(address: &str) -> String {
    let (mut plain, mut key, mut quoted, mut escaped) = (String::new(), false, false, false);
    for letter in address.chars() {
        match letter {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' if key => quoted = !quoted,
            '[' if !quoted => key = true,
            ']' if !quoted => key = false,
            _ if key => {}
            other => plain.push(other),
        }
    }
    plain
}

/// A path of a plan as people write it: `env["A"][0]`.
pub(crate) fn path_text(path: &[Value]) -> String {
    let mut text = String::new();
    for (index, step) in path.iter().enumerate() {
        match step {
            Value::String(name) if index == 0 => text.push_str(name),
            Value::String(name) => {
                text.push('.');
                text.push_str(name);
            }
            Value::Number(index) => {
                text.push('[');
                text.push_str(&index.to_string());
                text.push(']');
            }
            _ => text.push_str("[?]"),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instance_keys_vanish_whatever_they_hold() {
        for (address, plain) in [
            ("", ""),
            ("module.a", "module.a"),
            (r#"module.a["x.y"].module.b[0]"#, "module.a.module.b"),
            (r#"module.a["x\"]"].module.b"#, "module.a.module.b"),
        ] {
            assert_eq!(without_keys(address), plain);
        }
    }

    #[test]
    fn paths_read_as_people_write_them() {
        let path = serde_json::json!(["env", "A", 0]);
        assert_eq!(path_text(path.as_array().unwrap()), "env.A[0]");
    }
}
