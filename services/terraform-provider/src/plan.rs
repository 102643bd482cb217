//! From configuration and earlier state to what is planned. Pure: no environment, no ids.

use crate::diagnostic::Path;
use crate::schema::{Attribute, Block, Nested, Nesting};
use crate::value::{Object, Value};

/// What the resource is to be. An argument is what the template gives, else what it was when
/// that was as good as nothing, else its default. A computed value is what it was, or unknown.
///
/// The result holds exactly the schema's attributes and blocks, which cty insists on.
pub(crate) fn planned(block: &Block, config: &Object, prior: Option<&Object>) -> Object {
    let attributes = block.attributes.iter().map(|attribute| {
        let given = config.get(attribute.name).unwrap_or(&Value::Null);
        let was = prior.and_then(|prior| prior.get(attribute.name));
        (attribute.name.to_owned(), planned_attribute(attribute, given, was))
    });
    let blocks = block.blocks.iter().map(|nested| {
        let given = config.get(nested.name).unwrap_or(&Value::Null);
        let was = prior.and_then(|prior| prior.get(nested.name));
        (nested.name.to_owned(), planned_block(nested, given, was))
    });
    attributes.chain(blocks).collect()
}

fn planned_attribute(attribute: &Attribute, given: &Value, was: Option<&Value>) -> Value {
    if *given != Value::Null {
        return given.clone();
    }
    let fallback = attribute.fallback();
    match was {
        _ if fallback != Value::Null => fallback,
        Some(was) if attribute.is_computed() => was.clone(),
        None if attribute.is_computed() => Value::Unknown,
        // The public provider's SDK stores "" or 0 for some arguments that were not given.
        Some(was) if was.is_empty() => was.clone(),
        _ => Value::Null,
    }
}

fn planned_block(nested: &Nested, given: &Value, was: Option<&Value>) -> Value {
    if *given == Value::Unknown {
        return Value::Unknown;
    }
    let was = was.map_or(&[][..], Value::items);
    let given = given.items();
    if given.is_empty() && nested.assumed {
        let assumed = || Value::Object(planned(&nested.block, &Object::new(), None));
        return Value::List(if was.is_empty() { vec![assumed()] } else { was.to_vec() });
    }
    // Elements keep what they were only where it is clear which element is which.
    let paired = nested.nesting == Nesting::List && was.len() == given.len();
    let element = |(index, item): (usize, &Value)| match item.as_object() {
        Some(item) => {
            let was = if paired { was[index].as_object() } else { None };
            Value::Object(planned(&nested.block, item, was))
        }
        None => item.clone(),
    };
    Value::List(given.iter().enumerate().map(element).collect())
}

/// The state of an earlier version, or of the public provider, in this schema: what the schema
/// does not know is dropped, what it knows and the state does not is its default.
pub(crate) fn upgraded(block: &Block, state: &Object) -> Object {
    let mut state = planned(block, state, None);
    forget_unknown(&mut state);
    state
}

fn forget_unknown(object: &mut Object) {
    for value in object.values_mut() {
        match value {
            Value::Unknown => *value = Value::Null,
            Value::Object(object) => forget_unknown(object),
            Value::List(items) => {
                for item in items {
                    if let Value::Object(object) = item {
                        forget_unknown(object);
                    }
                }
            }
            _ => {}
        }
    }
}

/// The arguments whose change means a new resource. None of these resources can be changed in
/// place: what they stand for was handed out when they were made.
pub(crate) fn replaced_by(block: &Block, prior: &Object, planned: &Object) -> Vec<Path> {
    let differs = |name: &str, ordered: bool| {
        let null = Value::Null;
        let was = prior.get(name).unwrap_or(&null);
        let is = planned.get(name).unwrap_or(&null);
        !same(was, is, ordered)
    };
    let attributes = block.attributes.iter().filter(|attribute| differs(attribute.name, true));
    let blocks =
        block.blocks.iter().filter(|nested| differs(nested.name, nested.nesting == Nesting::List));
    let names = attributes.map(|it| it.name).chain(blocks.map(|it| it.name));
    names.map(Path::of).collect()
}

fn same(was: &Value, is: &Value, ordered: bool) -> bool {
    match (was, is) {
        (Value::List(was), Value::List(is)) => {
            was.len() == is.len()
                && if ordered {
                    was.iter().zip(is).all(|(was, is)| same(was, is, true))
                } else {
                    is.iter().all(|is| was.iter().any(|was| same(was, is, false)))
                }
        }
        (Value::Object(was), Value::Object(is)) => {
            let names = was.keys().chain(is.keys());
            let of =
                |object: &Object, name: &String| object.get(name).cloned().unwrap_or(Value::Null);
            names.into_iter().all(|name| same(&of(was, name), &of(is, name), ordered))
        }
        (was, is) => was == is || (was.is_empty() && is.is_empty()),
    }
}

#[cfg(test)]
mod tests;
