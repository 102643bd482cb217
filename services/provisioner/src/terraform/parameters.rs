//! Parameters, presets, variables and tags, read off a plan.

use std::collections::HashMap;

use berth_proto::v1;
use serde_json::Value;

use super::model::{Attributes, ModuleConfiguration, Node};
use super::tag_rules::{Making, Piece, Written};

/// The parameters of a template, in the order in which they are asked for: by `order`, then name.
pub(crate) fn parameters(nodes: &[Node]) -> Vec<v1::Parameter> {
    let mut found: Vec<_> = data(nodes, "coder_parameter").map(parameter).collect();
    found.sort_by(|a, b| (a.order, &a.name).cmp(&(b.order, &b.name)));
    found
}

/// The presets of a template, by name.
pub(crate) fn presets(nodes: &[Node]) -> Vec<v1::Preset> {
    let mut found: Vec<_> = data(nodes, "coder_workspace_preset").map(preset).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// The tags that a template gives its workspaces' jobs.
pub(crate) fn tags(nodes: &[Node]) -> HashMap<String, String> {
    data(nodes, "coder_workspace_tags").flat_map(|it| it.texts("tags")).collect()
}

/// The rules of the tags that depend on parameters, by the parameters' names, and the names of the tags
/// whose rules are not to be followed. What is written but not planned, as in a block with a `count` of
/// none, is left out.
pub(crate) fn tag_rules(nodes: &[Node], written: &[Written]) -> (Vec<v1::TagRule>, Vec<String>) {
    let tags = tags(nodes);
    let labelled = |label: &str| {
        let is_it = |it: &&Node| {
            it.is_data() && it.kind == "coder_parameter" && it.module.is_empty() && it.name == label
        };
        nodes.iter().find(is_it).map(|it| it.values.text("name"))
    };
    let piece = |it: &Piece| {
        let piece = match it {
            Piece::Text(text) => v1::tag_piece::Piece::Text(text.clone()),
            Piece::Parameter(label) => v1::tag_piece::Piece::Parameter(labelled(label)?),
        };
        Some(v1::TagPiece { piece: Some(piece) })
    };
    let (mut rules, mut unclear) = (Vec::new(), Vec::new());
    for Written { name, value } in written.iter().filter(|it| tags.contains_key(&it.name)) {
        let pieces = match value {
            Making::Fixed => continue,
            Making::Unclear => None,
            Making::Pieces(pieces) => pieces.iter().map(piece).collect::<Option<Vec<_>>>(),
        };
        match pieces {
            Some(pieces) => rules.push(v1::TagRule { name: name.clone(), pieces }),
            None => unclear.push(name.clone()),
        }
    }
    (rules, unclear)
}

/// What is wrong with the tags, if anything. They say who may run the jobs, so all of them have to
/// be there before a job: `waiting` are the nodes that are not known before apply.
pub(crate) fn check_tags(nodes: &[Node], waiting: &[Node]) -> Result<(), String> {
    let is_tags = |node: &&Node| node.is_data() && node.kind == "coder_workspace_tags";
    if let Some(node) = waiting.iter().find(is_tags) {
        return Err(format!(
            "the tags of {} are not known before apply; they may depend on parameters, variables \
             and other data, not on resources",
            node.address
        ));
    }
    let mut all: HashMap<&str, (&str, &str)> = HashMap::new();
    for node in nodes.iter().filter(is_tags) {
        let tags = node.values.get("tags").and_then(Value::as_object).into_iter().flatten();
        for (name, value) in tags {
            let value = value
                .as_str()
                .filter(|it| !it.is_empty())
                .ok_or_else(|| format!("{} gives the tag {name:?} no value", node.address))?;
            let (other, first) = *all.entry(name).or_insert((&node.address, value));
            if first != value {
                return Err(format!(
                    "{} and {other} give the tag {name:?} different values, {value:?} and {first:?}",
                    node.address
                ));
            }
        }
    }
    Ok(())
}

/// The variables that a template declares.
pub(crate) fn variables(root: &ModuleConfiguration) -> Vec<v1::TemplateVariable> {
    root.variables.iter().map(|(name, declared)| variable(name, declared)).collect()
}

fn data<'a>(nodes: &'a [Node], kind: &'a str) -> impl Iterator<Item = &'a Attributes> {
    nodes.iter().filter(move |node| node.is_data() && node.kind == kind).map(|node| &node.values)
}

fn parameter(it: &Attributes) -> v1::Parameter {
    let validation = it.block("validation").unwrap_or_default();
    // The provider has no null for numbers: it says beside them that they are not set.
    let bound = |name: &str, disabled: &str| {
        validation.find_number(name).filter(|_| !validation.flag(disabled))
    };
    let option = |it: Attributes| v1::ParameterOption {
        name: it.text("name"),
        value: it.text("value"),
        description: it.text("description"),
        icon: it.text("icon"),
    };
    v1::Parameter {
        name: it.text("name"),
        display_name: it.text("display_name"),
        description: it.text("description"),
        r#type: it.text("type"),
        form_type: it.text("form_type"),
        mutable: it.flag("mutable"),
        default_value: it.text("default"),
        required: !it.flag("optional"),
        ephemeral: it.flag("ephemeral"),
        icon: it.text("icon"),
        options: it.blocks("option").into_iter().map(option).collect(),
        validation_regex: validation.text("regex"),
        validation_error: validation.text("error"),
        validation_min: bound("min", "min_disabled"),
        validation_max: bound("max", "max_disabled"),
        validation_monotonic: validation.text("monotonic"),
        order: it.small_number("order"),
    }
}

fn preset(it: &Attributes) -> v1::Preset {
    let value = |(name, value)| v1::ParameterValue { name, value };
    v1::Preset {
        name: it.text("name"),
        description: it.text("description"),
        icon: it.text("icon"),
        is_default: it.flag("default"),
        parameters: it.texts("parameters").into_iter().map(value).collect(),
        prebuilds: it.block("prebuilds").map(|it| prebuilds(&it)),
    }
}

fn prebuilds(it: &Attributes) -> v1::Prebuilds {
    let scheduling = it.block("scheduling").unwrap_or_default();
    let schedule = |it: Attributes| v1::Schedule {
        cron: it.text("cron"),
        instances: it.small_number("instances"),
    };
    v1::Prebuilds {
        instances: it.small_number("instances"),
        ttl_seconds: it.block("expiration_policy").map_or(0, |it| it.number("ttl")),
        timezone: scheduling.text("timezone"),
        schedules: scheduling.blocks("schedule").into_iter().map(schedule).collect(),
    }
}

/// A plan's JSON does not say a variable's type; its default does.
fn variable(name: &str, declared: &Value) -> v1::TemplateVariable {
    let default = declared.get("default");
    let (kind, shown) = default_of(default);
    let sensitive = declared.get("sensitive") == Some(&Value::Bool(true));
    let description = declared.get("description").and_then(Value::as_str).unwrap_or_default();
    v1::TemplateVariable {
        name: name.to_owned(),
        description: description.to_owned(),
        r#type: kind.to_owned(),
        // Whoever may read the version may not read this.
        default_value: if sensitive { String::new() } else { shown },
        required: default.is_none(),
        sensitive,
    }
}

/// The type that a default has, and the default as text.
pub(super) fn default_of(default: Option<&Value>) -> (&'static str, String) {
    match default {
        None | Some(Value::Null) => ("string", String::new()),
        Some(Value::String(text)) => ("string", text.clone()),
        Some(number @ Value::Number(_)) => ("number", number.to_string()),
        Some(flag @ Value::Bool(_)) => ("bool", flag.to_string()),
        Some(list @ Value::Array(_)) => ("list", list.to_string()),
        Some(object @ Value::Object(_)) => ("map", object.to_string()),
    }
}
