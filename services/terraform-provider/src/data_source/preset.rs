//! `coder_workspace_preset`: parameter values under one name, and a pool of prebuilds for them.

use berth_domain::preset::{self, Prebuilds, PresetSchedule, PresetSpec, Violation};

use super::{DataSource, set, text};
use crate::check;
use crate::diagnostic::{Diagnostic, Path};
use crate::schema::{Attribute, Nested, Type};
use crate::value::{Object, Value};

const ATTRIBUTES: &[Attribute] = &[
    Attribute::optional("default", Type::Bool, "Whether it is chosen when nothing else is.")
        .or_bool(false),
    Attribute::optional("description", Type::Text, "What the preset is for."),
    Attribute::optional("icon", Type::Text, "The URL of an icon.").check(check::link),
    Attribute::computed("id", Type::Text, "The same as `name`, by which a preset is known."),
    Attribute::required("name", Type::Text, "The preset's name."),
    Attribute::optional("parameters", Type::TextMap, "Names of parameters with their values."),
];

const INSTANCES: Attribute =
    Attribute::required("instances", Type::Int, "How many prebuilds to keep ready.");

const SCHEDULE: (&[Attribute], &[Nested]) = (
    &[Attribute::required("cron", Type::Text, "When it holds: `* HOUR DOM MONTH DOW`."), INSTANCES],
    &[],
);

const SCHEDULING: (&[Attribute], &[Nested]) = (
    &[Attribute::required("timezone", Type::Text, "The zone of the schedules' hours.")],
    &[Nested::list("schedule", "A time with a size of its own.", SCHEDULE).at_least(1)],
);

const TTL: Attribute = Attribute::required(
    "ttl",
    Type::Int,
    "Seconds until an unclaimed prebuild is replaced: 0 for never, or 3600 to 31536000.",
);

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

/// The domain's checks, with the place in the template. They name the preset and the value.
fn check(config: &Object, found: &mut Vec<Diagnostic>) {
    check_parameters(config, found);
    if !config.values().all(Value::is_wholly_known) || !found.is_empty() {
        return;
    }
    // Values are held against their parameters when the whole template is imported.
    for error in preset::check(&[spec(config)], &[]).errors {
        let (summary, argument) = match error.violation {
            Violation::NoName | Violation::DuplicateName => ("Invalid name", "name"),
            Violation::LongDescription { .. } => ("Invalid description", "description"),
            Violation::LongIcon { .. } => ("Invalid icon", "icon"),
            Violation::SecondDefault { .. } => ("Invalid default", "default"),
            Violation::SameParameters { .. } | Violation::Value { .. } => {
                ("Invalid parameters", "parameters")
            }
            Violation::NegativeInstances { .. }
            | Violation::NegativeScheduledInstances { .. }
            | Violation::Ttl { .. }
            | Violation::Timezone { .. }
            | Violation::Cron { .. }
            | Violation::Overlap { .. } => ("Invalid prebuilds", "prebuilds"),
        };
        let diagnostic = Diagnostic::error(summary, format!("{error}."));
        found.push(diagnostic.at(Path::of(argument)));
    }
}

fn check_parameters(config: &Object, found: &mut Vec<Diagnostic>) {
    let name = text(config, "name").unwrap_or("?");
    let Some(parameters) = config.get("parameters").and_then(Value::as_object) else { return };
    for (parameter, _) in parameters.iter().filter(|(_, value)| **value == Value::Null) {
        let detail = format!(
            "preset {name:?} sets parameter {parameter:?} to null; give it a value or leave it out."
        );
        let error = Diagnostic::error("Invalid parameters", detail);
        found.push(error.at(Path::of("parameters")));
    }
}

/// The preset as the domain sees it. The configuration is known.
fn spec(config: &Object) -> PresetSpec {
    let owned = |object: &Object, name| text(object, name).unwrap_or_default().to_owned();
    let parameters = config.get("parameters").and_then(Value::as_object);
    let parameter = |(name, value): (&String, &Value)| {
        (name.clone(), value.as_text().unwrap_or_default().to_owned())
    };
    PresetSpec {
        name: owned(config, "name"),
        description: owned(config, "description"),
        icon: owned(config, "icon"),
        is_default: config.get("default").and_then(Value::as_bool) == Some(true),
        parameters: parameters.into_iter().flatten().map(parameter).collect(),
        prebuilds: objects(config.get("prebuilds")).next().map(prebuilds),
    }
}

fn prebuilds(block: &Object) -> Prebuilds {
    let policy = objects(block.get("expiration_policy")).next();
    let ttl = policy.and_then(|policy| policy.get("ttl")?.as_int());
    let scheduling = objects(block.get("scheduling")).next();
    let timezone = scheduling.and_then(|it| text(it, "timezone")).unwrap_or_default();
    let schedules = objects(scheduling.and_then(|it| it.get("schedule")));
    Prebuilds {
        instances: instances(block),
        ttl_seconds: ttl.unwrap_or_default(),
        timezone: timezone.to_owned(),
        schedules: schedules
            .map(|it| PresetSchedule {
                cron: text(it, "cron").unwrap_or_default().to_owned(),
                instances: instances(it),
            })
            .collect(),
    }
}

fn instances(block: &Object) -> i32 {
    let number = block.get("instances").and_then(Value::as_int).unwrap_or_default();
    let nearest = if number < 0 { i32::MIN } else { i32::MAX };
    i32::try_from(number).unwrap_or(nearest)
}

fn objects(value: Option<&Value>) -> impl Iterator<Item = &Object> {
    value.map_or(&[][..], Value::items).iter().filter_map(Value::as_object)
}
