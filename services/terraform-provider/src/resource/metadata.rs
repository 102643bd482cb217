//! `coder_metadata`: what is shown beside a resource of the template.

use super::{ID, Resource, check_unique};
use crate::check;
use crate::diagnostic::Path;
use crate::schema::{Attribute, Nested, Type};
use crate::value::{Object, Value};

const ATTRIBUTES: &[Attribute] = &[
    Attribute::optional("daily_cost", Type::Int, "The resource's cost per day, for quotas.")
        .check(check::not_negative),
    Attribute::optional("hide", Type::Bool, "Whether the resource is left out of the page."),
    Attribute::optional("icon", Type::Text, "The URL of an icon.").check(check::link),
    ID,
    Attribute::required("resource_id", Type::Text, "The `id` of the resource it is about."),
];

const ITEM: (&[Attribute], &[Nested]) = (
    &[
        Attribute::computed("is_null", Type::Bool, "Whether no value was given."),
        Attribute::required("key", Type::Text, "The item's key, unique in the block."),
        Attribute::optional("sensitive", Type::Bool, "Whether the page hides it until asked.")
            .or_bool(false),
        Attribute::optional("value", Type::Text, "The item's value, in simple Markdown."),
    ],
    &[],
);

/// `coder_metadata`.
pub(super) static METADATA: Resource = Resource {
    check: |config, found| {
        let items = config.get("item").map_or(&[][..], Value::items);
        check_unique(items, "key", &Path::of("item"), found);
    },
    derive,
    ..Resource::new(
        "coder_metadata",
        "Keys, values and the cost of a resource.",
        (ATTRIBUTES, &[Nested::list("item", "One key with its value.", ITEM)]),
    )
};

/// Whether an item has a value is known as soon as the value is.
fn derive(config: &Object, state: &mut Object) {
    let given = config.get("item").map_or(&[][..], Value::items);
    let Some(Value::List(items)) = state.get_mut("item") else { return };
    for (item, given) in items.iter_mut().zip(given) {
        let is_null = match given.as_object().and_then(|given| given.get("value")) {
            None | Some(Value::Null) => Value::Bool(true),
            Some(Value::Unknown) => Value::Unknown,
            Some(_) => Value::Bool(false),
        };
        if let Value::Object(item) = item {
            item.insert("is_null".to_owned(), is_null);
        }
    }
}
