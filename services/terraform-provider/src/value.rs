//! Terraform's values and their two encodings: cty msgpack on the wire, JSON in the state file.

use std::collections::BTreeMap;
use std::fmt;

use crate::wire::tfplugin6::DynamicValue;

/// An object or a map: attribute names or keys, with their values.
pub(crate) type Object = BTreeMap<String, Value>;

/// cty's extension type for a value that is not known yet.
const EXT_UNKNOWN: i8 = 0;
/// The same with refinements (not null, a prefix, …), which this provider has no use for.
const EXT_REFINED_UNKNOWN: i8 = 12;

/// A value as Terraform exchanges it with a provider. Sets are lists here: cty orders them itself.
#[derive(Clone, PartialEq)]
pub(crate) enum Value {
    /// No value.
    Null,
    /// To be known after apply.
    Unknown,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number with a fraction.
    Float(f64),
    /// A string, or a number too large for the two above: cty sends those as text.
    Text(String),
    /// A list, set or tuple.
    List(Vec<Value>),
    /// An object or map.
    Object(Object),
}

/// A value that is not what the wire format allows.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("Terraform sent a value that this provider cannot read: {0}")]
pub(crate) struct Malformed(&'static str);

// Values hold tokens and keys, so text is shown by its length only.
impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Unknown => f.write_str("unknown"),
            Self::Bool(value) => value.fmt(f),
            Self::Int(value) => value.fmt(f),
            Self::Float(value) => value.fmt(f),
            Self::Text(value) => write!(f, "<text of {} bytes>", value.len()),
            Self::List(items) => f.debug_list().entries(items).finish(),
            Self::Object(object) => f.debug_map().entries(object).finish(),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl Value {
    /// The text, when it is text.
    pub(crate) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The boolean, when it is one.
    pub(crate) fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// The whole number, when it is one.
    pub(crate) fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// The object or map, when it is one.
    pub(crate) fn as_object(&self) -> Option<&Object> {
        match self {
            Self::Object(object) => Some(object),
            _ => None,
        }
    }

    /// The elements of a list or set; none for anything else, null and unknown included.
    pub(crate) fn items(&self) -> &[Value] {
        match self {
            Self::List(items) => items,
            _ => &[],
        }
    }

    /// Whether nothing in it is unknown.
    pub(crate) fn is_wholly_known(&self) -> bool {
        match self {
            Self::Unknown => false,
            Self::List(items) => items.iter().all(Self::is_wholly_known),
            Self::Object(object) => object.values().all(Self::is_wholly_known),
            _ => true,
        }
    }

    /// Whether it is what the older plugin SDK writes for an argument that was not given.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Unknown => false,
            Self::Bool(value) => !value,
            Self::Int(value) => *value == 0,
            Self::Float(value) => *value == 0.0,
            Self::Text(text) => text.is_empty(),
            Self::List(items) => items.is_empty(),
            Self::Object(object) => object.is_empty(),
        }
    }

    /// Reads a value as Terraform sent it. No bytes at all stand for null.
    pub(crate) fn from_wire(wire: Option<&DynamicValue>) -> Result<Self, Malformed> {
        match wire {
            Some(wire) if !wire.msgpack.is_empty() => Self::from_msgpack(&wire.msgpack),
            Some(wire) if !wire.json.is_empty() => Self::from_json(&wire.json),
            None | Some(_) => Ok(Self::Null),
        }
    }

    /// The value as Terraform expects it.
    pub(crate) fn to_wire(&self) -> DynamicValue {
        let mut msgpack = Vec::new();
        rmpv::encode::write_value(&mut msgpack, &self.to_rmpv())
            .expect("writing to memory cannot fail");
        DynamicValue { msgpack, json: Vec::new() }
    }

    /// Reads cty's msgpack.
    pub(crate) fn from_msgpack(mut bytes: &[u8]) -> Result<Self, Malformed> {
        let value = rmpv::decode::read_value(&mut bytes).map_err(|_| Malformed("not msgpack"))?;
        if !bytes.is_empty() {
            return Err(Malformed("bytes after the end of the msgpack value"));
        }
        Self::from_rmpv(value)
    }

    /// Reads a value of the state file.
    pub(crate) fn from_json(bytes: &[u8]) -> Result<Self, Malformed> {
        let json: serde_json::Value =
            serde_json::from_slice(bytes).map_err(|_| Malformed("not JSON"))?;
        Ok(Self::from(json))
    }

    fn from_rmpv(value: rmpv::Value) -> Result<Self, Malformed> {
        Ok(match value {
            rmpv::Value::Nil => Self::Null,
            rmpv::Value::Boolean(value) => Self::Bool(value),
            rmpv::Value::Integer(number) => {
                number.as_i64().map_or_else(|| Self::Text(number.to_string()), Self::Int)
            }
            rmpv::Value::F32(number) => Self::Float(f64::from(number)),
            rmpv::Value::F64(number) => Self::Float(number),
            rmpv::Value::String(text) => {
                Self::Text(text.into_str().ok_or(Malformed("text is not UTF-8"))?)
            }
            rmpv::Value::Array(items) => {
                Self::List(items.into_iter().map(Self::from_rmpv).collect::<Result<_, _>>()?)
            }
            rmpv::Value::Map(entries) => {
                let entry = |(key, value)| match key {
                    rmpv::Value::String(key) => {
                        let key = key.into_str().ok_or(Malformed("a key is not UTF-8"))?;
                        Ok((key, Self::from_rmpv(value)?))
                    }
                    _ => Err(Malformed("a map's key is not text")),
                };
                Self::Object(entries.into_iter().map(entry).collect::<Result<_, _>>()?)
            }
            rmpv::Value::Ext(EXT_UNKNOWN | EXT_REFINED_UNKNOWN, _) => Self::Unknown,
            rmpv::Value::Ext(..) => return Err(Malformed("an unknown msgpack extension")),
            rmpv::Value::Binary(_) => return Err(Malformed("binary where text is expected")),
        })
    }

    fn to_rmpv(&self) -> rmpv::Value {
        match self {
            Self::Null => rmpv::Value::Nil,
            Self::Unknown => rmpv::Value::Ext(EXT_UNKNOWN, vec![0]),
            Self::Bool(value) => rmpv::Value::Boolean(*value),
            Self::Int(value) => rmpv::Value::from(*value),
            Self::Float(value) => rmpv::Value::F64(*value),
            Self::Text(text) => rmpv::Value::from(text.as_str()),
            Self::List(items) => rmpv::Value::Array(items.iter().map(Self::to_rmpv).collect()),
            Self::Object(object) => rmpv::Value::Map(
                object
                    .iter()
                    .map(|(key, value)| (rmpv::Value::from(key.as_str()), value.to_rmpv()))
                    .collect(),
            ),
        }
    }
}

impl From<serde_json::Value> for Value {
    fn from(json: serde_json::Value) -> Self {
        match json {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::Bool(value) => Self::Bool(value),
            serde_json::Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(whole), _) => Self::Int(whole),
                (None, Some(float)) => Self::Float(float),
                (None, None) => Self::Text(number.to_string()),
            },
            serde_json::Value::String(text) => Self::Text(text),
            serde_json::Value::Array(items) => {
                Self::List(items.into_iter().map(Self::from).collect())
            }
            serde_json::Value::Object(entries) => Self::Object(
                entries.into_iter().map(|(key, value)| (key, Self::from(value))).collect(),
            ),
        }
    }
}

#[cfg(test)]
mod tests;
