//! Checks JSON against the schemas of an `OpenAPI` 2 document: as much of them as the contract uses.

use serde_json::{Map, Value};

/// Fields that the contract's source declares as pointers, which it sends as `null` where there is
/// nothing to say; the document has no word for that.
const NULLABLE: [&str; 24] = [
    "autostart_schedule",
    "disconnected_at",
    "most_recently_seen",
    "ready_at",
    "completed_at",
    "canceled_at",
    "deadline",
    "deleting_at",
    "dormant_at",
    "first_connected_at",
    "has_ai_task",
    "has_external_agent",
    "last_connected_at",
    "latest_app_status",
    "latest_build",
    "matched_provisioners",
    "max_deadline",
    "next_start_at",
    "parent_id",
    "read_at",
    "started_at",
    "template_version_preset_id",
    "ttl_ms",
    "worker_id",
];

/// Values that are ours beside the contract's, by field: additive, as 50-access allows.
const OURS: [(&str, &str); 2] = [("provisioner", "exec"), ("provisioners", "exec")];

/// A document with definitions.
pub(crate) struct Document {
    root: Value,
}

impl Document {
    pub(crate) fn new(root: Value) -> Self {
        Self { root }
    }

    /// Its paths, each with its methods.
    pub(crate) fn paths(&self) -> &Map<String, Value> {
        self.root["paths"].as_object().expect("the document has paths")
    }

    /// The operation that serves a path, if one does. A literal segment wins over a parameter.
    pub(crate) fn operation(&self, method: &str, path: &str) -> Option<(&str, &Value)> {
        let path = path.split('?').next().unwrap_or_default();
        let segments: Vec<&str> = path.split('/').collect();
        let fits = |template: &str| {
            let wanted: Vec<&str> = template.split('/').collect();
            let same = wanted.len() == segments.len()
                && wanted.iter().zip(&segments).all(|(one, it)| one.starts_with('{') || one == it);
            same.then(|| wanted.iter().filter(|it| it.starts_with('{')).count())
        };
        let found = self.paths().iter().filter_map(|it| Some((fits(it.0)?, it)));
        let (_, (template, methods)) = found.min_by_key(|(parameters, _)| *parameters)?;
        Some((template.as_str(), methods.get(method.to_lowercase())?))
    }

    /// Everything that is wrong with `value` under `schema`, each with its place.
    pub(crate) fn check(&self, schema: &Value, value: &Value) -> Vec<String> {
        let mut wrong = Vec::new();
        self.walk(schema, value, &mut Place::default(), &mut wrong);
        wrong
    }

    /// The same against a definition.
    pub(crate) fn check_named(&self, definition: &str, value: &Value) -> Vec<String> {
        self.check(&self.root["definitions"][definition], value)
    }

    fn walk(&self, schema: &Value, value: &Value, at: &mut Place, wrong: &mut Vec<String>) {
        if let Some(name) = schema["$ref"].as_str() {
            let pointer = name.trim_start_matches('#');
            let target = self.root.pointer(pointer);
            return match target {
                Some(target) => self.walk(target, value, at, wrong),
                None => wrong.push(format!("{at}: the contract has no {name}")),
            };
        }
        for part in schema["allOf"].as_array().into_iter().flatten() {
            self.walk(part, value, at, wrong);
        }
        if value.is_null() {
            if !at.is_nullable() && schema.as_object().is_some_and(|it| !it.is_empty()) {
                wrong.push(format!("{at}: null, where the contract has {}", short(schema)));
            }
            return;
        }
        if let Some(wanted) = schema["type"].as_str()
            && !is(value, wanted)
        {
            return wrong.push(format!("{at}: {} is no {wanted}", short(value)));
        }
        if let Some(all) = schema["enum"].as_array()
            && !all.contains(value)
            && !at.is_ours(value)
        {
            wrong.push(format!("{at}: {value} is none of {}", Value::from(all.clone())));
        }
        if let (Some(format), Some(text)) = (schema["format"].as_str(), value.as_str())
            && !has_format(text, format)
        {
            wrong.push(format!("{at}: {text:?} is no {format}"));
        }
        match value {
            Value::Object(fields) => self.walk_object(schema, fields, at, wrong),
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    at.inside(&index.to_string(), |at| {
                        self.walk(&schema["items"], item, at, wrong);
                    });
                }
            }
            _ => {}
        }
    }

    fn walk_object(
        &self,
        schema: &Value,
        fields: &Map<String, Value>,
        at: &mut Place,
        wrong: &mut Vec<String>,
    ) {
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !fields.contains_key(name) {
                wrong.push(format!("{at}: {name} is missing"));
            }
        }
        let known = schema["properties"].as_object();
        for (name, field) in fields {
            // A field that the contract does not know is ours: clients ignore it.
            let schema = known
                .and_then(|it| it.get(name))
                .or_else(|| Some(&schema["additionalProperties"]).filter(|it| it.is_object()));
            if let Some(schema) = schema {
                at.inside(name, |at| self.walk(schema, field, at, wrong));
            }
        }
    }
}

/// Where in a value we are: names and indexes.
#[derive(Default)]
struct Place(Vec<String>);

impl Place {
    fn inside(&mut self, name: &str, look: impl FnOnce(&mut Self)) {
        self.0.push(name.to_owned());
        look(self);
        self.0.pop();
    }

    fn field(&self) -> &str {
        let name = self.0.iter().rev().find(|it| it.parse::<usize>().is_err());
        name.map_or("", String::as_str)
    }

    fn is_nullable(&self) -> bool {
        self.0.last().is_some_and(|name| NULLABLE.contains(&name.as_str()))
    }

    fn is_ours(&self, value: &Value) -> bool {
        OURS.iter().any(|(field, text)| self.field() == *field && value == text)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { f.write_str("the body") } else { f.write_str(&self.0.join(".")) }
    }
}

fn is(value: &Value, wanted: &str) -> bool {
    match wanted {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => true,
    }
}

fn has_format(text: &str, format: &str) -> bool {
    match format {
        "uuid" => {
            let parts: Vec<usize> = text.split('-').map(str::len).collect();
            parts == [8, 4, 4, 4, 12] && text.bytes().all(|it| it == b'-' || it.is_ascii_hexdigit())
        }
        "date-time" => text.parse::<jiff::Timestamp>().is_ok(),
        "email" => {
            text.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty())
        }
        _ => true,
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    let end = text.char_indices().nth(120).map_or(text.len(), |(at, _)| at);
    text[..end].to_owned()
}

#[test]
fn a_value_that_breaks_the_schema_is_told_where_and_how() {
    let document = Document::new(serde_json::json!({ "definitions": {
        "Thing": {
            "type": "object",
            "required": ["id"],
            "properties": {
                "id": { "type": "string", "format": "uuid" },
                "kind": { "allOf": [{ "$ref": "#/definitions/Kind" }] },
                "parts": { "type": "array", "items": { "$ref": "#/definitions/Thing" } },
                "counts": { "type": "object", "additionalProperties": { "type": "integer" } },
                "ttl_ms": { "type": "integer" },
                "at": { "type": "string", "format": "date-time" },
            },
        },
        "Kind": { "type": "string", "enum": ["a", "b"] },
    } }));
    let check = |value: Value| document.check_named("Thing", &value);
    let id = "c42fdf75-3097-471c-8c33-fb52454d81c0";
    let fine = serde_json::json!({
        "id": id, "kind": "a", "parts": [{ "id": id }], "counts": { "x": 1 }, "ttl_ms": null,
        "at": "2026-11-21T07:00:00Z", "ours": { "any": "thing" },
    });
    assert_eq!(check(fine), Vec::<String>::new());
    for (value, place) in [
        (serde_json::json!({}), "the body: id is missing"),
        (serde_json::json!({ "id": "x" }), "id: \"x\" is no uuid"),
        (serde_json::json!({ "id": id, "kind": "c" }), "kind: \"c\" is none of"),
        (serde_json::json!({ "id": id, "parts": null }), "parts: null"),
        (serde_json::json!({ "id": id, "parts": [{ "id": 1 }] }), "parts.0.id: 1 is no string"),
        (serde_json::json!({ "id": id, "counts": { "x": "1" } }), "counts.x: \"1\" is no integer"),
        (serde_json::json!({ "id": id, "at": "today" }), "at: \"today\" is no date-time"),
        (serde_json::json!([]), "the body: [] is no object"),
    ] {
        let wrong = check(value);
        assert!(wrong.len() == 1 && wrong[0].starts_with(place), "{wrong:?} is not {place:?}");
    }
}
