//! `coder_agent`: the program that runs inside a workspace.

use super::{ID, Resource, check_unique, set_if_unknown};
use crate::check;
use crate::data_source::Context;
use crate::diagnostic::{Diagnostic, Path};
use crate::identity;
use crate::schema::{Attribute, Nested, Type};
use crate::value::{Object, Value};

const ATTRIBUTES: &[Attribute] = &[
    Attribute::optional(
        "api_key_scope",
        Type::Text,
        "What the agent's token may read: `all`, or `no_user_data` for nothing of the user's own.",
    )
    .or_text("all")
    .check(|value| check::one_of(value, &["all", "no_user_data"])),
    Attribute::required(
        "arch",
        Type::Text,
        "The machine's architecture: `amd64`, `armv7`, `arm64`.",
    )
    .check(|value| check::one_of(value, &["amd64", "armv7", "arm64"])),
    Attribute::optional(
        "auth",
        Type::Text,
        "How the agent proves who it is: `token`, or by its cloud's instance identity.",
    )
    .or_text("token")
    .check(|value| {
        check::one_of(
            value,
            &[
                "token",
                "google-instance-identity",
                "aws-instance-identity",
                "azure-instance-identity",
            ],
        )
    }),
    Attribute::optional(
        "connection_timeout",
        Type::Int,
        "Seconds until an agent that does not connect is shown as timed out; 0 for never.",
    )
    .or_int(120)
    .check(check::not_negative),
    Attribute::optional("dir", Type::Text, "Where a shell session starts; `$HOME` by default.")
        .deprecated(),
    Attribute::optional("env", Type::TextMap, "Environment variables of the workspace."),
    ID,
    Attribute::computed(
        "init_script",
        Type::Text,
        "Runs on a new machine to fetch and start the agent.",
    ),
    Attribute::optional("motd_file", Type::Text, "A file whose text is shown at login over SSH."),
    Attribute::optional(
        "order",
        Type::Int,
        "Where the agent is shown; lowest first, then by name.",
    ),
    Attribute::required("os", Type::Text, "The machine's system: `linux`, `darwin`, `windows`.")
        .check(|value| check::one_of(value, &["linux", "darwin", "windows"])),
    Attribute::optional(
        "shutdown_script",
        Type::Text,
        "Runs before the agent stops; like a `coder_script` with `run_on_stop`.",
    ),
    Attribute::optional(
        "startup_script",
        Type::Text,
        "Runs when the agent has started; like a `coder_script` with `run_on_start`.",
    ),
    Attribute::optional(
        "startup_script_behavior",
        Type::Text,
        "Whether logins wait for `startup_script`: `blocking` or `non-blocking`.",
    )
    .or_text("non-blocking")
    .check(|value| check::one_of(value, &["blocking", "non-blocking"])),
    Attribute::computed(
        "token",
        Type::Text,
        "The agent's secret, for `CODER_AGENT_TOKEN` in its environment.",
    )
    .sensitive(),
    Attribute::optional(
        "troubleshooting_url",
        Type::Text,
        "Where to read when it does not connect.",
    ),
];

const METADATA: (&[Attribute], &[Nested]) = (
    &[
        Attribute::optional("display_name", Type::Text, "The name that is shown."),
        Attribute::required("interval", Type::Int, "Seconds between two runs."),
        Attribute::required("key", Type::Text, "The item's key, unique in the agent."),
        Attribute::optional("order", Type::Int, "Where it is shown; lowest first, then by key."),
        Attribute::required("script", Type::Text, "Prints the value."),
        Attribute::optional("timeout", Type::Int, "Seconds the script may take."),
    ],
    &[],
);

const DISPLAY_APPS: (&[Attribute], &[Nested]) = (
    &[
        Attribute::optional("port_forwarding_helper", Type::Bool, "Show port forwarding.")
            .or_bool(true),
        Attribute::optional("ssh_helper", Type::Bool, "Show how to connect by SSH.").or_bool(true),
        Attribute::optional("vscode", Type::Bool, "Show VS Code.").or_bool(true),
        Attribute::optional("vscode_insiders", Type::Bool, "Show VS Code Insiders.").or_bool(false),
        Attribute::optional("web_terminal", Type::Bool, "Show the terminal.").or_bool(true),
    ],
    &[],
);

const ENABLED: Attribute = Attribute::required("enabled", Type::Bool, "Whether it is watched.");
const THRESHOLD: Attribute =
    Attribute::required("threshold", Type::Int, "The usage in percent that raises an alert.")
        .check(|value| check::within(value, 0, 100));

const MONITORING: (&[Attribute], &[Nested]) = (
    &[],
    &[
        Nested::set("memory", "Watches the memory.", (&[ENABLED, THRESHOLD], &[])).at_most(1),
        Nested::set(
            "volume",
            "Watches a volume.",
            (
                &[
                    ENABLED,
                    Attribute::required("path", Type::Text, "Where the volume is mounted.")
                        .check(check::absolute_path),
                    THRESHOLD,
                ],
                &[],
            ),
        ),
    ],
);

/// `coder_agent`.
pub(super) static AGENT: Resource = Resource {
    check,
    create,
    refresh,
    ..Resource::new(
        "coder_agent",
        "The agent that runs inside a workspace.",
        (
            ATTRIBUTES,
            &[
                Nested::set("display_apps", "The built-in apps that are shown.", DISPLAY_APPS)
                    .at_most(1)
                    .assumed(),
                Nested::list("metadata", "A value that the agent reports now and then.", METADATA),
                Nested::set("resources_monitoring", "What to watch and when to alert.", MONITORING)
                    .at_most(1),
            ],
        ),
    )
};

fn check(config: &Object, found: &mut Vec<Diagnostic>) {
    let items = |object: &Object, name| object.get(name).map_or(vec![], |it| it.items().to_vec());
    check_unique(&items(config, "metadata"), "key", &Path::of("metadata"), found);
    for monitoring in items(config, "resources_monitoring") {
        if let Some(monitoring) = monitoring.as_object() {
            let path = Path::of("resources_monitoring");
            check_unique(&items(monitoring, "volume"), "path", &path, found);
        }
    }
}

fn create(context: &Context, state: &mut Object) {
    let id = state.get("id").and_then(Value::as_text).unwrap_or_default().to_owned();
    set_if_unknown(state, "token", || match context.env.running_agent_token(&id) {
        Some(token) => Value::from(token),
        None => Value::from(identity::random().to_string()),
    });
    let script = init_script(context, state).unwrap_or_default();
    state.insert("init_script".to_owned(), Value::from(script));
}

/// A claim build hands over the token the agent already runs with. A state that the public
/// provider wrote may hold another one, which the agent never got.
fn refresh(context: &Context, state: &mut Object) {
    let id = state.get("id").and_then(Value::as_text).unwrap_or_default();
    if let Some(token) = context.env.running_agent_token(id) {
        state.insert("token".to_owned(), Value::from(token));
    }
    if let Some(script) = init_script(context, state) {
        state.insert("init_script".to_owned(), Value::from(script));
    }
}

/// The script for the agent's machine, when this build brought one.
fn init_script(context: &Context, state: &Object) -> Option<String> {
    let of = |name| state.get(name).and_then(Value::as_text);
    let variable = format!("CODER_AGENT_SCRIPT_{}_{}", of("os")?, of("arch")?);
    let script = context.env.filled(&variable)?;
    let script = script.replace("${ACCESS_URL}", &context.access_root());
    Some(script.replace("${AUTH_TYPE}", of("auth").unwrap_or("token")))
}
