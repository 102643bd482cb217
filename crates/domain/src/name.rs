//! Which names are allowed (10-prebuilds, 50-access). The patterns are those that clients of the
//! REST contract check before they send anything.

use std::sync::LazyLock;

use data_encoding::BASE32_NOPAD;
use regex::Regex;

#[cfg(test)]
mod tests;

/// Most characters of a user, workspace or organization name.
pub const NAME_MAX: usize = 32;
/// Most characters of a template or template version name.
pub const TEMPLATE_NAME_MAX: usize = 64;
/// Most characters of a group name.
pub const GROUP_NAME_MAX: usize = 255;
/// Most characters of a display name.
pub const DISPLAY_NAME_MAX: usize = 64;
/// Most characters of a person's full name.
pub const FULL_NAME_MAX: usize = 128;
/// What the name of every prebuild starts with.
pub const PREBUILD_PREFIX: &str = "prebuild-";

/// Path segments of the web page; a thing of that name could not be reached.
const ROUTES: &[&str] = &["create", "new"];

/// A refused name: which one, why, and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("{what} is empty; give it 1 to {max} characters")]
    Empty {
        /// What the name is for.
        what: &'static str,
        /// Most characters allowed.
        max: usize,
    },
    /// Too many characters.
    #[error("{what} {name:?} has {len} characters; at most {max} are allowed")]
    TooLong {
        /// What the name is for.
        what: &'static str,
        /// The name.
        name: String,
        /// Characters it has.
        len: usize,
        /// Most characters allowed.
        max: usize,
    },
    /// The pattern does not match.
    #[error("{what} {name:?} is not allowed; use {rule}")]
    Pattern {
        /// What the name is for.
        what: &'static str,
        /// The name.
        name: String,
        /// What is allowed, in words.
        rule: &'static str,
    },
    /// The name has a meaning of its own.
    #[error("{what} {name:?} is reserved; choose another one")]
    Reserved {
        /// What the name is for.
        what: &'static str,
        /// The name.
        name: String,
    },
}

/// One kind of name: its length and its pattern.
struct Rule {
    what: &'static str,
    max: usize,
    pattern: &'static LazyLock<Regex>,
    words: &'static str,
    reserved: &'static [&'static str],
}

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("the pattern is a constant that a test compiles")
}

static PLAIN: LazyLock<Regex> = LazyLock::new(|| pattern("^[a-zA-Z0-9]+(?:-[a-zA-Z0-9]+)*$"));
static DOTTED: LazyLock<Regex> = LazyLock::new(|| pattern("^[a-zA-Z0-9]+(?:[_.-][a-zA-Z0-9]+)*$"));
static TRIMMED: LazyLock<Regex> = LazyLock::new(|| pattern(r"^\S(?:[^\n\r]*\S)?$"));

const PLAIN_WORDS: &str = "letters and digits, with single hyphens between them";
const DOTTED_WORDS: &str =
    "letters and digits, with single hyphens, underscores or dots between them";
const TRIMMED_WORDS: &str = "one line without blanks at either end";

impl Rule {
    fn check(&self, name: &str) -> Result<(), NameError> {
        let what = self.what;
        if name.is_empty() {
            return Err(NameError::Empty { what, max: self.max });
        }
        let len = name.chars().count();
        if len > self.max {
            return Err(NameError::TooLong { what, name: name.to_owned(), len, max: self.max });
        }
        if !self.pattern.is_match(name) {
            return Err(NameError::Pattern { what, name: name.to_owned(), rule: self.words });
        }
        if self.reserved.iter().any(|it| it.eq_ignore_ascii_case(name)) {
            return Err(NameError::Reserved { what, name: name.to_owned() });
        }
        Ok(())
    }
}

/// Checks a user name: 1 to 32 letters and digits with single hyphens between them. `me` is refused,
/// because paths use it for the caller.
pub fn user(name: &str) -> Result<(), NameError> {
    let reserved = &["create", "me", "new"];
    Rule { what: "user name", max: NAME_MAX, pattern: &PLAIN, words: PLAIN_WORDS, reserved }
        .check(name)
}

/// Checks a workspace name: 1 to 32 letters and digits with single hyphens between them. A person
/// may call a workspace `prebuild-…`: names are unique per owner, so it meets no prebuild.
pub fn workspace(name: &str) -> Result<(), NameError> {
    Rule {
        what: "workspace name",
        max: NAME_MAX,
        pattern: &PLAIN,
        words: PLAIN_WORDS,
        reserved: ROUTES,
    }
    .check(name)
}

/// Checks an organization name: 1 to 32 letters and digits with single hyphens between them.
/// `default` is refused, because paths use it for the default organization.
pub fn organization(name: &str) -> Result<(), NameError> {
    let reserved = &["create", "default", "new"];
    Rule { what: "organization name", max: NAME_MAX, pattern: &PLAIN, words: PLAIN_WORDS, reserved }
        .check(name)
}

/// Checks a template name: 1 to 32 letters and digits with single hyphens between them.
pub fn template(name: &str) -> Result<(), NameError> {
    Rule {
        what: "template name",
        max: NAME_MAX,
        pattern: &PLAIN,
        words: PLAIN_WORDS,
        reserved: ROUTES,
    }
    .check(name)
}

/// Checks the name of a template version: 1 to 64 letters and digits with single hyphens,
/// underscores or dots between them.
pub fn template_version(name: &str) -> Result<(), NameError> {
    Rule {
        what: "template version name",
        max: TEMPLATE_NAME_MAX,
        pattern: &DOTTED,
        words: DOTTED_WORDS,
        reserved: ROUTES,
    }
    .check(name)
}

/// Checks a group name: 1 to 255 letters and digits with single hyphens between them.
pub fn group(name: &str) -> Result<(), NameError> {
    Rule {
        what: "group name",
        max: GROUP_NAME_MAX,
        pattern: &PLAIN,
        words: PLAIN_WORDS,
        reserved: ROUTES,
    }
    .check(name)
}

/// Checks a display name: empty (the name is shown then), or one line of at most 64 characters
/// without blanks at either end.
pub fn display(name: &str) -> Result<(), NameError> {
    optional("display name", DISPLAY_NAME_MAX, name)
}

/// Checks a person's full name: empty, or one line of at most 128 characters without blanks at
/// either end.
pub fn full(name: &str) -> Result<(), NameError> {
    optional("full name", FULL_NAME_MAX, name)
}

fn optional(what: &'static str, max: usize, name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Ok(());
    }
    Rule { what, max, pattern: &TRIMMED, words: TRIMMED_WORDS, reserved: &[] }.check(name)
}

/// The name of a new prebuild: `prebuild-` and 15 characters of lower-case unpadded base32.
#[must_use]
pub fn prebuild_name(random: [u8; 9]) -> String {
    format!("{PREBUILD_PREFIX}{}", BASE32_NOPAD.encode(&random).to_ascii_lowercase())
}
