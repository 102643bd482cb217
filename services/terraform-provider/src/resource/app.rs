//! `coder_app`: a way into something that runs in the workspace.

use super::{AGENT_ID, ID, Resource, is_given, is_true, text};
use crate::check;
use crate::diagnostic::{Diagnostic, Path};
use crate::schema::{Attribute, Nested, Type};
use crate::value::Object;

const ATTRIBUTES: &[Attribute] = &[
    AGENT_ID,
    Attribute::optional("command", Type::Text, "Runs in a terminal; excludes `url`."),
    Attribute::optional("display_name", Type::Text, "The name that is shown; the slug by default.")
        .check(|value| check::at_most_characters(value, 64)),
    Attribute::optional(
        "external",
        Type::Bool,
        "Whether `url` opens on the user's machine and not through the workspace.",
    )
    .or_bool(false),
    Attribute::optional("group", Type::Text, "The group it is shown in.")
        .check(|value| check::at_most_characters(value, 64)),
    Attribute::optional("hidden", Type::Bool, "Whether it is left out of the page.").or_bool(false),
    Attribute::optional("icon", Type::Text, "The URL of an icon.").check(check::link),
    ID,
    Attribute::optional("open_in", Type::Text, "Where it opens: `slim-window` or `tab`.")
        .or_text("slim-window")
        .check(|value| check::one_of(value, &["tab", "slim-window"])),
    Attribute::optional("order", Type::Int, "Where it is shown; lowest first, then by name."),
    Attribute::optional(
        "share",
        Type::Text,
        "Who may open it: `owner`, `authenticated`, `public`.",
    )
    .or_text("owner")
    .check(|value| check::one_of(value, &["owner", "authenticated", "public"])),
    Attribute::required("slug", Type::Text, "Its name in URLs: part of a host name.")
        .check(check::slug),
    Attribute::optional("subdomain", Type::Bool, "Whether it has a host name of its own."),
    Attribute::optional("tooltip", Type::Text, "Markdown shown when pointed at.")
        .check(|value| check::at_most_characters(value, 2048)),
    Attribute::optional("url", Type::Text, "What is opened: usually `http://localhost:PORT`."),
];

const HEALTHCHECK: (&[Attribute], &[Nested]) = (
    &[
        Attribute::required("interval", Type::Int, "Seconds between two requests."),
        Attribute::required("threshold", Type::Int, "Failures in a row until it is unhealthy."),
        Attribute::required("url", Type::Text, "Answers with a status below 500 when healthy."),
    ],
    &[],
);

/// `coder_app`.
pub(super) static APP: Resource = Resource {
    check,
    ..Resource::new(
        "coder_app",
        "A way into something that runs in the workspace.",
        (
            ATTRIBUTES,
            &[Nested::set("healthcheck", "How to tell that it is ready.", HEALTHCHECK).at_most(1)],
        ),
    )
};

fn check(config: &Object, found: &mut Vec<Diagnostic>) {
    let mut exclude = |one: &str, other: &str| {
        let detail = format!("{one:?} excludes {other:?}; give one of the two.");
        found.push(Diagnostic::error("Conflicting arguments", detail).at(Path::of(one)));
    };
    if is_given(config, "command") {
        for other in ["url", "healthcheck"] {
            if is_given(config, other) {
                exclude("command", other);
            }
        }
        if is_true(config, "subdomain") {
            exclude("command", "subdomain");
        }
    }
    if is_true(config, "external") {
        for other in ["command", "healthcheck", "subdomain", "share"] {
            if is_given(config, other) {
                exclude("external", other);
            }
        }
        if let Some(Err(why)) = text(config, "url").map(check::external_url) {
            found.push(Diagnostic::error("Invalid value for \"url\"", why).at(Path::of("url")));
        }
    }
    if is_true(config, "hidden") {
        for useless in ["display_name", "icon", "order"] {
            if is_given(config, useless) {
                let summary = format!("{useless:?} has no effect");
                let warning = Diagnostic::warning(summary, "The app is hidden.");
                found.push(warning.at(Path::of(useless)));
            }
        }
    }
}
