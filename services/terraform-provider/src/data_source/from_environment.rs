//! Data sources that say one or two things about the machine or the build.

use uuid::Uuid;

use super::{DataSource, set};
use crate::diagnostic::Diagnostic;
use crate::identity;
use crate::platform;
use crate::schema::{Attribute, Type};
use crate::value::Value;

const ID: Attribute = Attribute::computed("id", Type::Text, "The id of this data source.");

/// `coder_provisioner`.
pub(super) static PROVISIONER: DataSource = DataSource::new(
    "coder_provisioner",
    "The machine that runs Terraform.",
    (
        &[
            Attribute::computed("arch", Type::Text, "Its architecture, such as `amd64`."),
            ID,
            Attribute::computed("os", Type::Text, "Its system, such as `linux`."),
        ],
        &[],
    ),
    |_, state| {
        let (os, arch) = (platform::os(), platform::arch());
        let id = identity::derived("provisioner", &format!("{os}/{arch}")).to_string();
        set(state, [("id", id.into()), ("os", os.into()), ("arch", arch.into())]);
        Ok(())
    },
);

/// `coder_task`.
pub(super) static TASK: DataSource = DataSource::new(
    "coder_task",
    "The task that the workspace works on, if any.",
    (
        &[
            Attribute::computed("enabled", Type::Bool, "Whether this is a task's workspace."),
            Attribute::computed("id", Type::Text, "The task's id; a stand-in without a task."),
            Attribute::computed("prompt", Type::Text, "What the task is asked to do."),
        ],
        &[],
    ),
    |context, state| {
        let id = match context.env.filled("CODER_TASK_ID") {
            None => None,
            Some(text) => Some(Uuid::try_parse(text).map_err(|_| {
                let detail = format!("CODER_TASK_ID is {text:?}, which is not a UUID.");
                vec![Diagnostic::error("The task has no usable id", detail)]
            })?),
        };
        let id = id.filter(|id| !id.is_nil());
        let shown = id.unwrap_or_else(|| identity::derived("task", "none"));
        let prompt = context.env.text("CODER_TASK_PROMPT");
        set(
            state,
            [
                ("enabled", Value::Bool(id.is_some())),
                ("id", shown.to_string().into()),
                ("prompt", prompt.into()),
            ],
        );
        Ok(())
    },
);

/// `coder_workspace_tags`.
pub(super) static WORKSPACE_TAGS: DataSource = DataSource::new(
    "coder_workspace_tags",
    "Tags that choose the provisioners which build the workspace.",
    (&[ID, Attribute::optional("tags", Type::TextMap, "Keys with their values.")], &[]),
    |_, state| {
        let empty = std::collections::BTreeMap::new();
        let tags = state.get("tags").and_then(Value::as_object).unwrap_or(&empty);
        let tags: Vec<_> = tags
            .iter()
            .map(|(key, value)| format!("{key:?}={:?}", value.as_text().unwrap_or_default()))
            .collect();
        let id = identity::derived("workspace_tags", &tags.join(",")).to_string();
        set(state, [("id", id.into())]);
        Ok(())
    },
);
