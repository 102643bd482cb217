//! `coder_workspace`: the build that Terraform runs for.

use super::{Context, DataSource, set};
use crate::diagnostic::Diagnostic;
use crate::identity;
use crate::schema::{Attribute, Type};
use crate::value::{Object, Value};

/// `coder_workspace`.
pub(super) static WORKSPACE: DataSource = DataSource::new(
    "coder_workspace",
    "The workspace, and what this build does with it.",
    (
        &[
            Attribute::computed("access_port", Type::Int, "The port of `access_url`."),
            Attribute::computed("access_url", Type::Text, "Where the deployment is reached."),
            Attribute::computed("id", Type::Text, "The workspace's id."),
            Attribute::computed("is_prebuild", Type::Bool, "Whether nobody has claimed it yet."),
            Attribute::computed("is_prebuild_claim", Type::Bool, "Whether this build claims it."),
            Attribute::computed("name", Type::Text, "The workspace's name."),
            Attribute::computed(
                "prebuild_count",
                Type::Int,
                "1 while nobody has claimed it, else 0.",
            ),
            Attribute::computed("start_count", Type::Int, "1 when the build starts it, else 0."),
            Attribute::computed("template_id", Type::Text, "The template's id."),
            Attribute::computed("template_name", Type::Text, "The template's name."),
            Attribute::computed(
                "template_version",
                Type::Text,
                "The name of the template's version.",
            ),
            Attribute::computed("transition", Type::Text, "`start`, `stop` or `delete`."),
        ],
        &[],
    ),
    read,
);

fn read(context: &Context, state: &mut Object) -> Result<(), Vec<Diagnostic>> {
    let env = &context.env;
    let required = [
        ("template_id", "CODER_WORKSPACE_TEMPLATE_ID"),
        ("template_name", "CODER_WORKSPACE_TEMPLATE_NAME"),
        ("template_version", "CODER_WORKSPACE_TEMPLATE_VERSION"),
    ];
    for (name, variable) in required {
        if env.is_build() && env.filled(variable).is_none() {
            return Err(vec![Diagnostic::error(
                "The build's environment is incomplete",
                format!(
                    "CODER_WORKSPACE_BUILD_ID is set, so this is a build, which needs {variable} \
                     too. Whoever starts Terraform has to set it."
                ),
            )]);
        }
        set(state, [(name, Value::from(env.text(variable)))]);
    }
    let is_prebuild = env.is_true("CODER_WORKSPACE_IS_PREBUILD");
    let count = |holds: bool| Value::Int(i64::from(holds));
    let id = env.filled("CODER_WORKSPACE_ID").map_or_else(stand_in_id, Value::from);
    set(
        state,
        [
            ("access_port", Value::Int(i64::from(context.access_port()))),
            ("access_url", Value::from(context.access_url.as_str())),
            ("id", id),
            ("is_prebuild", Value::Bool(is_prebuild)),
            ("is_prebuild_claim", Value::Bool(env.is_true("CODER_WORKSPACE_IS_PREBUILD_CLAIM"))),
            ("name", Value::from(env.filled("CODER_WORKSPACE_NAME").unwrap_or("default"))),
            ("prebuild_count", count(is_prebuild)),
            ("start_count", count(env.transition() == "start")),
            ("transition", Value::from(env.transition())),
        ],
    );
    Ok(())
}

/// An id for a workspace that only exists in a plan by hand: always the same in one directory,
/// so that planning twice finds no change.
fn stand_in_id() -> Value {
    let directory = std::env::current_dir().unwrap_or_default();
    Value::from(identity::derived("workspace", &directory.to_string_lossy()).to_string())
}
