//! `coder_workspace_preset`: parameter values under one name, and a pool of prebuilds for them.

use super::{DataSource, set, text};
use crate::check;
use crate::cron::Schedule;
use crate::diagnostic::{Diagnostic, Path};
use crate::schema::{Attribute, Nested, Type};
use crate::value::{Object, Value};

const ATTRIBUTES: &[Attribute] = &[
    Attribute::optional("default", Type::Bool, "Whether it is chosen when nothing else is.")
        .or_bool(false),
    Attribute::optional("description", Type::Text, "What the preset is for.")
        .check(|value| check::at_most_characters(value, 128)),
    Attribute::optional("icon", Type::Text, "The URL of an icon.").check(|value| {
        check::link(value)?;
        check::at_most_characters(value, 256)
    }),
    Attribute::computed("id", Type::Text, "The same as `name`, by which a preset is known."),
    Attribute::required("name", Type::Text, "The preset's name.").check(check::not_empty),
    Attribute::optional("parameters", Type::TextMap, "Names of parameters with their values."),
];

const INSTANCES: Attribute =
    Attribute::required("instances", Type::Int, "How many prebuilds to keep ready.")
        .check(check::not_negative);

const SCHEDULE: (&[Attribute], &[Nested]) = (
    &[
        Attribute::required("cron", Type::Text, "When it holds: `* HOUR DOM MONTH DOW`.")
            .check(|value| value.as_text().map_or(Ok(()), |text| Schedule::parse(text).map(drop))),
        INSTANCES,
    ],
    &[],
);

const SCHEDULING: (&[Attribute], &[Nested]) = (
    &[Attribute::required("timezone", Type::Text, "The zone of the schedules' hours.")
        .check(check::timezone)],
    &[Nested::list("schedule", "A time with a size of its own.", SCHEDULE).at_least(1)],
);

const TTL: Attribute = Attribute::required(
    "ttl",
    Type::Int,
    "Seconds until an unclaimed prebuild is replaced: 0 for never, or 3600 to 31536000.",
)
.check(|value| match value.as_int() {
    Some(seconds) if seconds != 0 && !(3600..=31_536_000).contains(&seconds) => {
        Err(format!("{seconds} is neither 0 nor within 3600 (an hour) to 31536000 (a year)."))
    }
    _ => Ok(()),
});

const PREBUILDS: (&[Attribute], &[Nested]) = (
    &[INSTANCES],
    &[
        Nested::set("expiration_policy", "When prebuilds grow too old.", (&[TTL], &[])).at_most(1),
        Nested::list("scheduling", "Sizes that depend on the time.", SCHEDULING).at_most(1),
    ],
);

/// `coder_workspace_preset`.
pub(super) static WORKSPACE_PRESET: DataSource = DataSource {
    check,
    ..DataSource::new(
        "coder_workspace_preset",
        "Parameter values under one name, and a pool of workspaces built ahead for them.",
        (
            ATTRIBUTES,
            &[Nested::set("prebuilds", "How many workspaces to build ahead.", PREBUILDS)
                .at_most(1)],
        ),
        |_, state| {
            let name = text(state, "name").unwrap_or_default().to_owned();
            set(state, [("id", name.into())]);
            Ok(())
        },
    )
};

fn check(config: &Object, found: &mut Vec<Diagnostic>) {
    // What is found up to here is about single values; say which preset they belong to.
    let name = text(config, "name").unwrap_or("?");
    for diagnostic in found.iter_mut() {
        diagnostic.detail = format!("Preset {name:?}: {}", diagnostic.detail);
    }
    check_parameters(config, name, found);
    for prebuilds in objects(config.get("prebuilds")) {
        for scheduling in objects(prebuilds.get("scheduling")) {
            check_overlaps(scheduling, name, found);
        }
    }
}

fn check_parameters(config: &Object, preset: &str, found: &mut Vec<Diagnostic>) {
    let Some(parameters) = config.get("parameters").and_then(Value::as_object) else { return };
    for (parameter, value) in parameters {
        if *value == Value::Null {
            let detail = format!(
                "Preset {preset:?} gives the parameter {parameter:?} no value. Give one or leave \
                 the parameter out."
            );
            let error = Diagnostic::error("Invalid value for \"parameters\"", detail);
            found.push(error.at(Path::of("parameters")));
        }
    }
}

fn check_overlaps(scheduling: &Object, preset: &str, found: &mut Vec<Diagnostic>) {
    let crons = objects(scheduling.get("schedule")).filter_map(|it| text(it, "cron"));
    let schedules: Vec<_> =
        crons.filter_map(|text| Some((text, Schedule::parse(text).ok()?))).collect();
    for (index, (text, schedule)) in schedules.iter().enumerate() {
        for (earlier, other) in &schedules[..index] {
            if schedule.overlaps(other) {
                let detail = format!(
                    "Preset {preset:?}: the schedules {earlier:?} and {text:?} overlap, so the \
                     size would be ambiguous. Make them hold at different hours."
                );
                let error = Diagnostic::error("Schedules overlap", detail);
                found.push(error.at(Path::of("prebuilds")));
            }
        }
    }
}

fn objects(value: Option<&Value>) -> impl Iterator<Item = &Object> {
    value.map_or(&[][..], Value::items).iter().filter_map(Value::as_object)
}
