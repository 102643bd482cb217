//! What single arguments may be. Each check names the value and the bound.

use std::sync::LazyLock;

use regex::Regex;
use uuid::Uuid;

use crate::value::Value;

type Checked = Result<(), String>;

/// One of a closed set of words.
pub(crate) fn one_of(value: &Value, allowed: &[&str]) -> Checked {
    match value.as_text() {
        Some(text) if !allowed.contains(&text) => {
            Err(format!("{text:?} is none of {}.", quoted(allowed)))
        }
        _ => Ok(()),
    }
}

/// The words, quoted, with commas.
pub(crate) fn quoted<T: AsRef<str>>(words: &[T]) -> String {
    let words: Vec<_> = words.iter().map(|word| format!("{:?}", word.as_ref())).collect();
    words.join(", ")
}

/// At least one character.
pub(crate) fn not_empty(value: &Value) -> Checked {
    match value.as_text() {
        Some("") => Err("It must not be empty.".to_owned()),
        _ => Ok(()),
    }
}

/// At most `max` characters.
pub(crate) fn at_most_characters(value: &Value, max: usize) -> Checked {
    match value.as_text().map(|text| text.chars().count()) {
        Some(count) if count > max => {
            Err(format!("It has {count} characters; at most {max} are allowed."))
        }
        _ => Ok(()),
    }
}

/// A number within bounds, both included.
pub(crate) fn within(value: &Value, min: i64, max: i64) -> Checked {
    match value.as_int() {
        Some(number) if number < min || number > max => {
            Err(format!("{number} is not within {min} to {max}."))
        }
        _ => Ok(()),
    }
}

/// A number that is not negative.
pub(crate) fn not_negative(value: &Value) -> Checked {
    match value.as_int() {
        Some(number) if number < 0 => Err(format!("{number} is negative; at least 0 is needed.")),
        _ => Ok(()),
    }
}

/// The text form of a UUID.
pub(crate) fn uuid(value: &Value) -> Checked {
    match value.as_text() {
        Some(text) if Uuid::try_parse(text).is_err() => Err(format!("{text:?} is not a UUID.")),
        _ => Ok(()),
    }
}

/// The slug of an app: part of a host name.
pub(crate) fn slug(value: &Value) -> Checked {
    static SLUG: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new("^[a-z0-9](-?[a-z0-9])*$").expect("the pattern is a constant that compiles")
    });
    match value.as_text() {
        Some(text) if !SLUG.is_match(text) => Err(format!(
            "{text:?} is not part of a host name: lower-case letters, digits, and single hyphens \
             between them are allowed."
        )),
        _ => Ok(()),
    }
}

/// The name of an environment variable.
pub(crate) fn variable_name(value: &Value) -> Checked {
    static NAME: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new("^[a-zA-Z_][a-zA-Z0-9_]*$").expect("the pattern is a constant that compiles")
    });
    match value.as_text() {
        Some(text) if !NAME.is_match(text) => Err(format!(
            "{text:?} is not a name of an environment variable: letters, digits and underscores \
             are allowed, and the first is no digit."
        )),
        _ => Ok(()),
    }
}

/// An absolute path of a Unix or Windows machine: the workspace's, not this one's.
pub(crate) fn absolute_path(value: &Value) -> Checked {
    let Some(text) = value.as_text() else { return Ok(()) };
    let bytes = text.as_bytes();
    let drive = bytes.len() >= 3
        && bytes[0].is_ascii_alphabetic()
        && bytes[1] == b':'
        && matches!(bytes[2], b'\\' | b'/');
    if text.starts_with('/') || drive {
        Ok(())
    } else {
        Err(format!("{text:?} is not an absolute path."))
    }
}

/// Text that a browser takes as a URL or as a path on this deployment.
pub(crate) fn link(value: &Value) -> Checked {
    match value.as_text() {
        Some(text) if text.chars().any(char::is_control) => {
            Err(format!("{text:?} has control characters, so it is no URL."))
        }
        _ => Ok(()),
    }
}

/// A URL with a scheme and a host, for what is opened outside the workspace.
pub(crate) fn external_url(text: &str) -> Checked {
    let Some((scheme, rest)) = text.split_once("://").filter(|(scheme, _)| !scheme.is_empty())
    else {
        return Err(format!("{text:?} has no scheme such as https://."));
    };
    if rest.is_empty() || rest.starts_with(['/', '?', '#', ':']) {
        return Err(format!("{text:?} has no host after {scheme}://."));
    }
    Ok(())
}

/// A JSON document.
pub(crate) fn json(value: &Value) -> Checked {
    match value.as_text().map(serde_json::from_str::<serde_json::Value>) {
        Some(Err(error)) => Err(format!("It is not JSON: {error}.")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
