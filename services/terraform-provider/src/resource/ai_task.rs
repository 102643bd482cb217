//! `coder_ai_task`: marks a workspace that works on a task.

use uuid::Uuid;

use super::{ID, Resource, is_given, set_if_unknown, text};
use crate::check;
use crate::data_source::Context;
use crate::diagnostic::{Diagnostic, Path};
use crate::schema::{Attribute, Nested, Type};
use crate::value::{Object, Value};

/// `coder_ai_task`.
pub(super) static AI_TASK: Resource = Resource {
    check,
    derive,
    create,
    ..Resource::new(
        "coder_ai_task",
        "Marks a workspace that works on a task.",
        (
            &[
                Attribute::optional(
                    "app_id",
                    Type::Text,
                    "The `id` of the `coder_app` to talk to.",
                )
                .or_computed()
                .check(check::uuid),
                Attribute::computed("enabled", Type::Bool, "Whether this is a task's workspace."),
                ID,
                Attribute::computed("prompt", Type::Text, "What the task is asked to do."),
            ],
            &[Nested::set(
                "sidebar_app",
                "The older form of `app_id`.",
                (
                    &[Attribute::required("id", Type::Text, "The `id` of a `coder_app`.")
                        .check(check::uuid)],
                    &[],
                ),
            )
            .at_most(1)
            .deprecated()],
        ),
    )
};

/// The task this build is for.
pub(crate) fn task_id(context: &Context) -> Option<Uuid> {
    let id = Uuid::try_parse(context.env.text("CODER_TASK_ID")).ok()?;
    (!id.is_nil()).then_some(id)
}

fn check(config: &Object, found: &mut Vec<Diagnostic>) {
    let (app, sidebar) = (is_given(config, "app_id"), is_given(config, "sidebar_app"));
    if app == sidebar {
        let error = Diagnostic::error(
            "One app is needed",
            "Set \"app_id\", or the older block \"sidebar_app\", but not both.",
        );
        found.push(error.at(Path::of("app_id")));
    }
}

/// The older block names the app too.
fn derive(config: &Object, state: &mut Object) {
    let sidebar = config.get("sidebar_app").map_or(&[][..], Value::items);
    if let Some(id) = sidebar.first().and_then(|app| app.as_object()?.get("id")) {
        state.insert("app_id".to_owned(), id.clone());
    }
}

fn create(context: &Context, state: &mut Object) {
    let task = task_id(context);
    if let Some(task) = task {
        state.insert("id".to_owned(), Value::from(task.to_string()));
    }
    set_if_unknown(state, "enabled", || Value::Bool(task.is_some()));
    set_if_unknown(state, "prompt", || Value::from(context.env.text("CODER_TASK_PROMPT")));
    let app = text(state, "app_id").map_or(Value::Null, Value::from);
    state.insert("app_id".to_owned(), app);
}
