//! `coder_script`: something the agent runs on start, on stop, or now and then.

use super::{AGENT_ID, ID, Resource, is_true};
use crate::check;
use crate::cron;
use crate::diagnostic::{Diagnostic, Path};
use crate::schema::{Attribute, Type};
use crate::value::{Object, Value};

const ATTRIBUTES: &[Attribute] = &[
    AGENT_ID,
    Attribute::optional("cron", Type::Text, "When it runs: `SECOND MINUTE HOUR DOM MONTH DOW`.")
        .check(|value| value.as_text().map_or(Ok(()), cron::check_script)),
    Attribute::required("display_name", Type::Text, "The name that is shown with its log."),
    Attribute::optional("icon", Type::Text, "The URL of an icon.").check(check::link),
    ID,
    Attribute::optional(
        "log_path",
        Type::Text,
        "The log's file; relative to the agent's log folder.",
    ),
    Attribute::optional("run_on_start", Type::Bool, "Whether it runs when the agent starts.")
        .or_bool(false),
    Attribute::optional("run_on_stop", Type::Bool, "Whether it runs before the agent stops.")
        .or_bool(false),
    Attribute::required("script", Type::Text, "What is run."),
    Attribute::optional(
        "start_blocks_login",
        Type::Bool,
        "Whether logins wait for it; with `run_on_start` only.",
    )
    .or_bool(false),
    Attribute::optional("timeout", Type::Int, "Seconds it may take; 0 for no limit.")
        .or_int(0)
        .check(check::not_negative),
];

/// `coder_script`.
pub(super) static SCRIPT: Resource = Resource {
    check,
    ..Resource::new("coder_script", "A script that the agent runs.", (ATTRIBUTES, &[]))
};

fn check(config: &Object, found: &mut Vec<Diagnostic>) {
    let never = |name: &str| config.get(name).is_none_or(Value::is_empty);
    if never("run_on_start") && never("run_on_stop") && never("cron") {
        found.push(Diagnostic::error(
            "The script never runs",
            "Set at least one of \"run_on_start\", \"run_on_stop\" and \"cron\".",
        ));
    }
    if is_true(config, "start_blocks_login") && never("run_on_start") {
        let detail = "\"start_blocks_login\" needs \"run_on_start\" to be true.";
        let error = Diagnostic::error("Logins would wait for a script that is not run", detail);
        found.push(error.at(Path::of("start_blocks_login")));
    }
}
