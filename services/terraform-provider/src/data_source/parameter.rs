//! `coder_parameter`: something that who creates a workspace may choose.

use std::str::FromStr;

use berth_domain::parameter::{
    FormType, Monotonic, Parameter, ParameterKind, ParameterOption, Validation,
};
use berth_domain::state::UnknownValue;

use super::{Context, DataSource, set, text};
use crate::check;
use crate::diagnostic::{Diagnostic, Path};
use crate::identity;
use crate::parameter::{self, Refused};
use crate::schema::{Attribute, Nested, Type};
use crate::value::{Object, Value};

const ATTRIBUTES: &[Attribute] = &[
    Attribute::optional("default", Type::Text, "Its value when none is given."),
    Attribute::optional("description", Type::Text, "What the parameter is for, in Markdown."),
    Attribute::optional("display_name", Type::Text, "The name that is shown."),
    Attribute::optional("ephemeral", Type::Bool, "Whether each build starts from the default.")
        .or_bool(false),
    Attribute::optional("form_type", Type::Text, "How a page asks for it; follows from the type.")
        .check(known::<FormType>),
    Attribute::optional("icon", Type::Text, "The URL of an icon.").check(check::link),
    Attribute::computed("id", Type::Text, "An id that follows from the name."),
    Attribute::optional("mutable", Type::Bool, "Whether it may change after the first build.")
        .or_bool(false),
    Attribute::required("name", Type::Text, "The parameter's name.").check(check_name),
    Attribute::computed("optional", Type::Bool, "Whether it has a default."),
    Attribute::optional("order", Type::Int, "Where it is shown; lowest first, then by name."),
    Attribute::optional("styling", Type::Text, "How a page shows it, as JSON.")
        .or_text("{}")
        .check(check::json),
    Attribute::optional("type", Type::Text, "`string`, `number`, `bool` or `list(string)`.")
        .or_text("string")
        .check(known::<ParameterKind>),
    Attribute::computed("value", Type::Text, "The value in this build."),
];

const OPTION: (&[Attribute], &[Nested]) = (
    &[
        Attribute::optional("description", Type::Text, "What choosing it means."),
        Attribute::optional("icon", Type::Text, "The URL of an icon.").check(check::link),
        Attribute::required("name", Type::Text, "What is shown."),
        Attribute::required("value", Type::Text, "What the parameter becomes."),
    ],
    &[],
);

const VALIDATION: (&[Attribute], &[Nested]) = (
    &[
        Attribute::optional(
            "error",
            Type::Text,
            "What to say of a value that does not fit; may hold `{min}`, `{max}`, `{value}`.",
        ),
        Attribute::optional("max", Type::Int, "The greatest number."),
        Attribute::computed("max_disabled", Type::Bool, "Whether `max` is not set."),
        Attribute::optional("min", Type::Int, "The least number."),
        Attribute::computed("min_disabled", Type::Bool, "Whether `min` is not set."),
        Attribute::optional(
            "monotonic",
            Type::Text,
            "How a number may change from build to build: `increasing` or `decreasing`.",
        )
        .check(known::<Monotonic>),
        Attribute::optional("regex", Type::Text, "What a string has to match; needs `error`."),
    ],
    &[],
);

/// `coder_parameter`.
pub(super) static PARAMETER: DataSource = DataSource {
    check: |config, found| {
        // Once the definition is known it is checked without a value; reading adds the value.
        if config.values().all(Value::is_wholly_known) && found.is_empty() {
            found.extend(parameter::checked(&definition(config)).err().map(diagnostic));
        }
    },
    ..DataSource::new(
        "coder_parameter",
        "Something that who creates a workspace may choose.",
        (
            ATTRIBUTES,
            &[
                Nested::list("option", "One of the values to choose from.", OPTION),
                Nested::list("validation", "What a value has to be.", VALIDATION).at_most(1),
            ],
        ),
        read,
    )
};

/// One of the words of a closed set of the domain.
fn known<T: FromStr<Err = UnknownValue>>(value: &Value) -> Result<(), String> {
    match value.as_text().map(str::parse::<T>) {
        Some(Err(UnknownValue { text, known, .. })) if !text.is_empty() => {
            Err(format!("{text:?} is none of {known}."))
        }
        _ => Ok(()),
    }
}

fn check_name(value: &Value) -> Result<(), String> {
    let Some(name) = value.as_text() else { return Ok(()) };
    if name.trim().is_empty() {
        return Err("A parameter needs a name.".to_owned());
    }
    if name.trim() != name || name.chars().any(char::is_control) {
        return Err(format!(
            "{name:?} begins or ends with a space or has control characters, so nobody could \
             type it."
        ));
    }
    Ok(())
}

fn read(context: &Context, state: &mut Object) -> Result<(), Vec<Diagnostic>> {
    let definition = definition(state);
    let env = &context.env;
    let (input, previous) =
        (env.parameter(&definition.name), env.previous_parameter(&definition.name));
    let resolved =
        parameter::resolve(&definition, input, previous).map_err(|it| vec![diagnostic(it)])?;
    let id = identity::derived("parameter", &definition.name).to_string();
    set(
        state,
        [
            ("form_type", resolved.form_type.as_str().into()),
            ("id", id.into()),
            ("optional", Value::Bool(!definition.required)),
            ("value", resolved.value.into()),
        ],
    );
    let Some(Value::List(blocks)) = state.get_mut("validation") else { return Ok(()) };
    for block in blocks {
        if let Value::Object(block) = block {
            for (bound, disabled) in [("min", "min_disabled"), ("max", "max_disabled")] {
                let is_null = block.get(bound).is_none_or(|bound| *bound == Value::Null);
                block.insert(disabled.to_owned(), Value::Bool(is_null));
            }
        }
    }
    Ok(())
}

fn diagnostic(refused: Refused) -> Diagnostic {
    let error = Diagnostic::error(refused.summary, refused.detail);
    match refused.argument {
        Some(argument) => error.at(Path::of(argument)),
        None => error,
    }
}

/// The parameter as the domain sees it, as far as its rules go. The configuration is known and
/// its words are checked.
fn definition(config: &Object) -> Parameter {
    let objects = |name| {
        let items = config.get(name).map_or(&[][..], Value::items);
        items.iter().filter_map(Value::as_object)
    };
    let owned = |object: &Object, name| text(object, name).unwrap_or_default().to_owned();
    let is_true = |name| config.get(name).and_then(Value::as_bool) == Some(true);
    let int = |object: &Object, name| object.get(name).and_then(Value::as_int);
    let option = |option: &Object| ParameterOption {
        name: owned(option, "name"),
        value: owned(option, "value"),
        ..ParameterOption::default()
    };
    let validation = |rules: &Object| Validation {
        regex: text(rules, "regex").map(str::to_owned),
        min: int(rules, "min"),
        max: int(rules, "max"),
        monotonic: text(rules, "monotonic").and_then(|it| it.parse().ok()),
        error: owned(rules, "error"),
    };
    let kind = text(config, "type").and_then(|it| it.parse().ok());
    Parameter {
        mutable: is_true("mutable"),
        ephemeral: is_true("ephemeral"),
        required: config.get("default").and_then(Value::as_text).is_none(),
        default_value: owned(config, "default"),
        options: objects("option").map(option).collect(),
        validation: objects("validation").next().map(validation).unwrap_or_default(),
        form_type: owned(config, "form_type").parse().unwrap_or(FormType::Auto),
        ..Parameter::new(owned(config, "name"), kind.unwrap_or(ParameterKind::String))
    }
}
