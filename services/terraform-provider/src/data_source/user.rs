//! Data sources about the workspace's owner: who it is, and what the owner lends the build.

use serde::Deserialize;

use super::{Context, DataSource, set, text};
use crate::check;
use crate::diagnostic::{Diagnostic, Path};
use crate::identity;
use crate::schema::{Attribute, Type};
use crate::value::{Object, Value};

/// `coder_workspace_owner`.
pub(super) static WORKSPACE_OWNER: DataSource = DataSource::new(
    "coder_workspace_owner",
    "Who owns the workspace.",
    (
        &[
            Attribute::computed("email", Type::Text, "The owner's e-mail address."),
            Attribute::computed("full_name", Type::Text, "The owner's full name."),
            Attribute::computed("groups", Type::TextList, "The groups the owner belongs to."),
            Attribute::computed("id", Type::Text, "The owner's id."),
            Attribute::computed("login_type", Type::Text, "How the owner logs in."),
            Attribute::computed("name", Type::Text, "The owner's user name."),
            Attribute::computed(
                "oidc_access_token",
                Type::Text,
                "The owner's OpenID Connect token.",
            )
            .sensitive(),
            Attribute::computed(
                "rbac_roles",
                Type::Objects(&["name", "org_id"]),
                "The owner's roles, with the organization each belongs to.",
            ),
            Attribute::computed(
                "session_token",
                Type::Text,
                "A token of the owner for this deployment, renewed with each start.",
            )
            .sensitive(),
            Attribute::computed("ssh_private_key", Type::Text, "The owner's private SSH key.")
                .sensitive(),
            Attribute::computed("ssh_public_key", Type::Text, "The owner's public SSH key."),
        ],
        &[],
    ),
    read_owner,
);

#[derive(Deserialize)]
struct Role {
    name: String,
    #[serde(default)]
    org_id: Option<String>,
}

fn read_owner(context: &Context, state: &mut Object) -> Result<(), Vec<Diagnostic>> {
    let env = &context.env;
    let or = |variable, default: &str| Value::from(env.filled(variable).unwrap_or(default));
    let stand_in = identity::derived("owner", "default").to_string();
    let groups: Vec<String> = from_json(context, "CODER_WORKSPACE_OWNER_GROUPS")?;
    let roles: Vec<Role> = from_json(context, "CODER_WORKSPACE_OWNER_RBAC_ROLES")?;
    let role = |role: Role| {
        let org_id = role.org_id.unwrap_or_default();
        Value::Object(Object::from([
            ("name".to_owned(), role.name.into()),
            ("org_id".to_owned(), org_id.into()),
        ]))
    };
    set(
        state,
        [
            ("email", or("CODER_WORKSPACE_OWNER_EMAIL", "default@example.com")),
            ("full_name", or("CODER_WORKSPACE_OWNER_NAME", "default")),
            ("groups", Value::List(groups.into_iter().map(Value::from).collect())),
            ("id", or("CODER_WORKSPACE_OWNER_ID", &stand_in)),
            ("login_type", or("CODER_WORKSPACE_OWNER_LOGIN_TYPE", "")),
            ("name", or("CODER_WORKSPACE_OWNER", "default")),
            ("oidc_access_token", or("CODER_WORKSPACE_OWNER_OIDC_ACCESS_TOKEN", "")),
            ("rbac_roles", Value::List(roles.into_iter().map(role).collect())),
            ("session_token", or("CODER_WORKSPACE_OWNER_SESSION_TOKEN", "")),
            ("ssh_private_key", or("CODER_WORKSPACE_OWNER_SSH_PRIVATE_KEY", "")),
            ("ssh_public_key", or("CODER_WORKSPACE_OWNER_SSH_PUBLIC_KEY", "")),
        ],
    );
    Ok(())
}

/// A variable that holds a JSON array; empty when it is not set.
fn from_json<T: serde::de::DeserializeOwned>(
    context: &Context,
    variable: &str,
) -> Result<Vec<T>, Vec<Diagnostic>> {
    let Some(text) = context.env.filled(variable) else { return Ok(Vec::new()) };
    // The public server writes null for «none».
    let items: Option<Vec<T>> = serde_json::from_str(text).map_err(|error| {
        let detail = format!("{variable} is not the JSON array it has to be: {error}.");
        vec![Diagnostic::error("The build's environment is malformed", detail)]
    })?;
    Ok(items.unwrap_or_default())
}

/// `coder_external_auth`.
pub(super) static EXTERNAL_AUTH: DataSource = DataSource::new(
    "coder_external_auth",
    "Asks the owner to log in to another service, and lends the build the token.",
    (
        &[
            Attribute::computed("access_token", Type::Text, "The owner's token for the service.")
                .sensitive(),
            Attribute::required("id", Type::Text, "The service, as the deployment calls it.")
                .check(check::not_empty),
            Attribute::optional("optional", Type::Bool, "Whether the owner may skip it.")
                .or_bool(false),
        ],
        &[],
    ),
    |context, state| {
        let id = text(state, "id").unwrap_or_default();
        let token = context.env.text(&format!("CODER_EXTERNAL_AUTH_ACCESS_TOKEN_{id}"));
        set(state, [("access_token", token.into())]);
        Ok(())
    },
);

/// `coder_secret`.
pub(super) static SECRET: DataSource = DataSource {
    check: |config, found| {
        let given = |name| config.get(name).is_some_and(|value| !value.is_empty());
        if given("env") == given("file") {
            let detail = "Set exactly one of \"env\" and \"file\".";
            found.push(Diagnostic::error("One way to name the secret is needed", detail));
        }
    },
    ..DataSource::new(
        "coder_secret",
        "A secret of the owner that the workspace needs.",
        (
            &[
                Attribute::optional("env", Type::Text, "The secret with this variable's name.")
                    .check(|value| match value.as_text() {
                        Some("") => Ok(()),
                        _ => check::variable_name(value),
                    }),
                Attribute::optional("file", Type::Text, "The secret with this file path.").check(
                    |value| match value.as_text() {
                        Some(path)
                            if !path.is_empty()
                                && !path.starts_with('/')
                                && !path.starts_with("~/") =>
                        {
                            Err(format!("{path:?} starts with neither \"/\" nor \"~/\"."))
                        }
                        _ => Ok(()),
                    },
                ),
                Attribute::required("help_message", Type::Text, "Shown to who has not stored it."),
                Attribute::computed("id", Type::Text, "The id of this data source."),
                Attribute::computed("value", Type::Text, "The secret.").sensitive(),
            ],
            &[],
        ),
        read_secret,
    )
};

fn read_secret(context: &Context, state: &mut Object) -> Result<(), Vec<Diagnostic>> {
    let env = &context.env;
    let (id, variable, path, wanted) = match (text(state, "env"), text(state, "file")) {
        (Some(name), _) => {
            let wanted = format!("the environment variable {name:?} (env_name)");
            (format!("env:{name}"), format!("CODER_SECRET_ENV_{name}"), Path::of("env"), wanted)
        }
        (None, file) => {
            let file = file.unwrap_or_default();
            let variable = format!("CODER_SECRET_FILE_{}", hex::encode(file));
            let wanted = format!("the file {file:?} (file_path)");
            (format!("file:{file}"), variable, Path::of("file"), wanted)
        }
    };
    let secret = env.filled(&variable);
    // A stop or a deletion must go through without the secret: its owner may have removed it.
    if secret.is_none() && env.is_build() && env.transition() == "start" {
        let help = text(state, "help_message").unwrap_or_default();
        let detail = format!(
            "{help}\n\nThe workspace's owner has stored no secret for {wanted}. Store one, then \
             start the workspace again."
        );
        return Err(vec![Diagnostic::error("A secret is missing", detail).at(path)]);
    }
    let secret = secret.unwrap_or_default();
    set(state, [("id", id.into()), ("value", secret.into())]);
    Ok(())
}
