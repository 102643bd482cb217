//! The language of the resource and data source tables: types, arguments, blocks.

use serde_json::json;

use crate::diagnostic::{Diagnostic, Path};
use crate::value::{Object, Value};
use crate::wire::tfplugin6::{self, StringKind};

/// The type of an argument or computed value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    /// A string.
    Text,
    /// A number; a fraction is refused.
    Int,
    /// `true` or `false`.
    Bool,
    /// A list of strings.
    TextList,
    /// A map of strings.
    TextMap,
    /// A list of objects, with the attributes of each, all strings.
    Objects(&'static [&'static str]),
}

impl Type {
    /// The type in cty's JSON notation.
    fn cty(self) -> serde_json::Value {
        match self {
            Self::Text => json!("string"),
            Self::Int => json!("number"),
            Self::Bool => json!("bool"),
            Self::TextList => json!(["list", "string"]),
            Self::TextMap => json!(["map", "string"]),
            Self::Objects(names) => {
                let attributes = names.iter().map(|name| ((*name).to_owned(), json!("string")));
                json!(["list", ["object", attributes.collect::<serde_json::Map<_, _>>()]])
            }
        }
    }
}

/// Who sets a value: the template, the provider, or the template if it likes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Usage {
    /// The template must.
    Required,
    /// The template may.
    Optional,
    /// The template may; the provider does when it does not.
    OptionalComputed,
    /// The provider does.
    Computed,
}

/// What an optional argument is when the template does not give it.
#[derive(Clone, Copy)]
enum Fallback {
    None,
    Text(&'static str),
    Bool(bool),
    Int(i64),
}

/// Whether a known, non-null value is allowed; if not, why not, naming value and bound.
pub(crate) type Check = fn(&Value) -> Result<(), String>;

/// One argument or computed value.
#[derive(Clone, Copy)]
pub(crate) struct Attribute {
    /// Its name in the template.
    pub(crate) name: &'static str,
    /// Its type.
    pub(crate) ty: Type,
    /// Who sets it.
    pub(crate) usage: Usage,
    help: &'static str,
    fallback: Fallback,
    check: Option<Check>,
    sensitive: bool,
    deprecated: bool,
}

impl Attribute {
    const fn new(name: &'static str, ty: Type, usage: Usage, help: &'static str) -> Self {
        let (sensitive, deprecated) = (false, false);
        let (fallback, check) = (Fallback::None, None);
        Self { name, ty, usage, help, fallback, check, sensitive, deprecated }
    }

    /// An argument that must be given.
    pub(crate) const fn required(name: &'static str, ty: Type, help: &'static str) -> Self {
        Self::new(name, ty, Usage::Required, help)
    }

    /// An argument that may be given.
    pub(crate) const fn optional(name: &'static str, ty: Type, help: &'static str) -> Self {
        Self::new(name, ty, Usage::Optional, help)
    }

    /// A value that the provider sets.
    pub(crate) const fn computed(name: &'static str, ty: Type, help: &'static str) -> Self {
        Self::new(name, ty, Usage::Computed, help)
    }

    /// The provider sets it when the template does not.
    pub(crate) const fn or_computed(mut self) -> Self {
        self.usage = Usage::OptionalComputed;
        self
    }

    /// The text it is when it is not given.
    pub(crate) const fn or_text(mut self, text: &'static str) -> Self {
        self.fallback = Fallback::Text(text);
        self
    }

    /// What it is when it is not given.
    pub(crate) const fn or_bool(mut self, value: bool) -> Self {
        self.fallback = Fallback::Bool(value);
        self
    }

    /// The number it is when it is not given.
    pub(crate) const fn or_int(mut self, value: i64) -> Self {
        self.fallback = Fallback::Int(value);
        self
    }

    /// Which values are allowed.
    pub(crate) const fn check(mut self, check: Check) -> Self {
        self.check = Some(check);
        self
    }

    /// Terraform shows no value of it.
    pub(crate) const fn sensitive(mut self) -> Self {
        self.sensitive = true;
        self
    }

    /// Terraform warns of its use.
    pub(crate) const fn deprecated(mut self) -> Self {
        self.deprecated = true;
        self
    }

    /// What it is when it is not given; null when there is no default.
    pub(crate) fn fallback(&self) -> Value {
        match self.fallback {
            Fallback::None => Value::Null,
            Fallback::Text(text) => Value::from(text),
            Fallback::Bool(value) => Value::Bool(value),
            Fallback::Int(value) => Value::Int(value),
        }
    }

    /// Whether the provider sets it when the template does not.
    pub(crate) fn is_computed(&self) -> bool {
        matches!(self.usage, Usage::Computed | Usage::OptionalComputed)
    }

    fn problem(&self, value: &Value) -> Option<String> {
        match value {
            Value::Null | Value::Unknown => None,
            Value::Float(number) if self.ty == Type::Int => {
                Some(format!("{number} is not a whole number."))
            }
            value => self.check.and_then(|check| check(value).err()),
        }
    }

    fn to_wire(self) -> tfplugin6::schema::Attribute {
        tfplugin6::schema::Attribute {
            name: self.name.to_owned(),
            r#type: self.ty.cty().to_string().into_bytes(),
            description: self.help.to_owned(),
            required: self.usage == Usage::Required,
            optional: matches!(self.usage, Usage::Optional | Usage::OptionalComputed),
            computed: self.is_computed(),
            sensitive: self.sensitive,
            description_kind: StringKind::Markdown.into(),
            deprecated: self.deprecated,
        }
    }
}

/// How often a nested block may appear, and whether its order means something.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nesting {
    /// Any number, in order.
    List,
    /// Any number, without order.
    Set,
}

/// A block inside a block.
#[derive(Clone, Copy)]
pub(crate) struct Nested {
    /// Its name in the template.
    pub(crate) name: &'static str,
    /// Whether order matters.
    pub(crate) nesting: Nesting,
    /// What it holds.
    pub(crate) block: Block,
    /// When the template has none, there is one with every default.
    pub(crate) assumed: bool,
    help: &'static str,
    min: i64,
    max: i64,
    deprecated: bool,
}

impl Nested {
    const fn new(
        name: &'static str,
        nesting: Nesting,
        help: &'static str,
        (attributes, blocks): (&'static [Attribute], &'static [Nested]),
    ) -> Self {
        let block = Block { attributes, blocks };
        Self { name, nesting, block, assumed: false, help, min: 0, max: 0, deprecated: false }
    }

    /// Blocks whose order means something.
    pub(crate) const fn list(
        name: &'static str,
        help: &'static str,
        content: (&'static [Attribute], &'static [Nested]),
    ) -> Self {
        Self::new(name, Nesting::List, help, content)
    }

    /// Blocks without order.
    pub(crate) const fn set(
        name: &'static str,
        help: &'static str,
        content: (&'static [Attribute], &'static [Nested]),
    ) -> Self {
        Self::new(name, Nesting::Set, help, content)
    }

    /// At most `max` of them.
    pub(crate) const fn at_most(mut self, max: i64) -> Self {
        self.max = max;
        self
    }

    /// At least `min` of them.
    pub(crate) const fn at_least(mut self, min: i64) -> Self {
        self.min = min;
        self
    }

    /// One with every default stands where the template has none.
    pub(crate) const fn assumed(mut self) -> Self {
        self.assumed = true;
        self
    }

    /// Terraform warns of its use.
    pub(crate) const fn deprecated(mut self) -> Self {
        self.deprecated = true;
        self
    }

    fn to_wire(self) -> tfplugin6::schema::NestedBlock {
        use tfplugin6::schema::nested_block::NestingMode;
        let nesting = match self.nesting {
            Nesting::List => NestingMode::List,
            Nesting::Set => NestingMode::Set,
        };
        tfplugin6::schema::NestedBlock {
            type_name: self.name.to_owned(),
            block: Some(tfplugin6::schema::Block {
                deprecated: self.deprecated,
                ..self.block.to_wire(0, self.help)
            }),
            nesting: nesting.into(),
            min_items: self.min,
            max_items: self.max,
        }
    }
}

/// What a resource, a data source, the provider, or a nested block may hold.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    /// Arguments and computed values.
    pub(crate) attributes: &'static [Attribute],
    /// Nested blocks.
    pub(crate) blocks: &'static [Nested],
}

impl Block {
    /// The whole schema as Terraform expects it.
    pub(crate) fn to_schema(self, version: i64, help: &str) -> tfplugin6::Schema {
        tfplugin6::Schema { version, block: Some(self.to_wire(version, help)) }
    }

    fn to_wire(self, version: i64, help: &str) -> tfplugin6::schema::Block {
        tfplugin6::schema::Block {
            version,
            attributes: self.attributes.iter().map(|attribute| attribute.to_wire()).collect(),
            block_types: self.blocks.iter().map(|nested| nested.to_wire()).collect(),
            description: help.to_owned(),
            description_kind: StringKind::Markdown.into(),
            deprecated: false,
        }
    }

    /// Holds every argument inside `config` against its own check. Unknown values pass: Terraform
    /// asks again when they are known.
    pub(crate) fn check(&self, config: &Object, path: &Path, found: &mut Vec<Diagnostic>) {
        for attribute in self.attributes {
            let problem = config.get(attribute.name).and_then(|value| attribute.problem(value));
            if let Some(problem) = problem {
                let summary = format!("Invalid value for \"{}\"", attribute.name);
                found.push(Diagnostic::error(summary, problem).at(path.name(attribute.name)));
            }
        }
        for nested in self.blocks {
            let path = path.name(nested.name);
            let items = config.get(nested.name).map_or(&[][..], Value::items);
            for (index, item) in items.iter().enumerate() {
                let path = match nested.nesting {
                    Nesting::List => path.index(index),
                    Nesting::Set => path.clone(),
                };
                if let Some(item) = item.as_object() {
                    nested.block.check(item, &path, found);
                }
            }
        }
    }
}
