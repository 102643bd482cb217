//! The small resources that only tie something to an agent.

use super::{AGENT_ID, ID, Resource, set_if_unknown};
use crate::check;
use crate::identity;
use crate::schema::{Attribute, Type};
use crate::value::Value;

/// `coder_agent_instance`.
pub(super) static AGENT_INSTANCE: Resource = Resource {
    // The public provider never gave this one a version.
    version: 0,
    ..Resource::new(
        "coder_agent_instance",
        "Ties a cloud instance to an agent that proves itself by the instance's identity.",
        (
            &[
                AGENT_ID,
                ID,
                Attribute::required("instance_id", Type::Text, "The id the cloud gave it."),
            ],
            &[],
        ),
    )
};

/// `coder_env`.
pub(super) static ENV: Resource = Resource::new(
    "coder_env",
    "An environment variable of the workspace.",
    (
        &[
            AGENT_ID,
            ID,
            Attribute::optional(
                "merge_strategy",
                Type::Text,
                "What happens when several of one name meet: `replace`, `append`, `prepend`, \
                 `error`. They are taken in order of their Terraform address.",
            )
            .or_text("replace")
            .check(|value| check::one_of(value, &["replace", "append", "prepend", "error"])),
            Attribute::required("name", Type::Text, "The variable's name.")
                .check(check::variable_name),
            Attribute::optional("value", Type::Text, "The variable's value."),
        ],
        &[],
    ),
);

/// `coder_devcontainer`.
pub(super) static DEVCONTAINER: Resource = Resource {
    create: |_, state| {
        set_if_unknown(state, "subagent_id", || Value::from(identity::random().to_string()));
    },
    ..Resource::new(
        "coder_devcontainer",
        "A dev container that the agent starts.",
        (
            &[
                AGENT_ID,
                Attribute::optional("config_path", Type::Text, "Where `devcontainer.json` is."),
                ID,
                Attribute::computed("subagent_id", Type::Text, "The id of the agent inside it."),
                Attribute::required("workspace_folder", Type::Text, "The folder it is for.")
                    .check(check::not_empty),
            ],
            &[],
        ),
    )
};

/// `coder_external_agent`.
pub(super) static EXTERNAL_AGENT: Resource = Resource::new(
    "coder_external_agent",
    "An agent on a machine that the template does not make.",
    (&[AGENT_ID, ID], &[]),
);
