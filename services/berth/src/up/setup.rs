//! What a new deployment needs before somebody can use it: a user, an organization, a key for the
//! provisioners, a template.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::state::{Home, State};
use crate::client::{Client, number, text};
use crate::command::login::password_login;
use crate::command::template::example::Example;
use crate::command::template::{self, PushArgs};
use crate::output::Output;

/// The template that is pushed when Terraform is there.
pub(super) const TEMPLATE: &str = "local";

/// Creates the first user with its organization if there is none, and logs in.
pub(super) async fn first_user(home: &Home, state: &mut State) -> anyhow::Result<Client> {
    let client = Client::new(&state.url(), None)?;
    if client.get("/users/first").await.is_err() {
        let body = json!({
            "email": state.email, "username": "admin", "name": "Admin",
            "password": state.password,
        });
        client.post("/users/first", &body).await.context("cannot create the first user")?;
    }
    state.save(home)?;
    let token = password_login(&client, &state.email, &state.password)
        .await
        .with_context(|| format!("cannot log in as {}", state.email))?;
    Client::new(&state.url(), Some(token))
}

/// Makes a provisioner key once; its secret is shown only then.
pub(super) async fn provisioner_key(
    home: &Home,
    state: &mut State,
    client: &Client,
) -> anyhow::Result<()> {
    if state.provisioner_key.is_some() {
        return Ok(());
    }
    let body = json!({ "name": "up" });
    let path = "/organizations/default/provisionerkeys";
    let answer = client.post(path, &body).await.context("cannot make a provisioner key")?;
    state.provisioner_key = Some(text(&answer, "key").to_owned());
    state.save(home)
}

/// Pushes the example template if there is none yet.
pub(super) async fn template(home: &Home, client: &Client, output: Output) -> anyhow::Result<()> {
    if template::find(client, TEMPLATE).await?.is_some() {
        return Ok(());
    }
    let terraform = has_terraform();
    if !terraform {
        eprintln!(
            "berth: no terraform or tofu (1.5 or later) on PATH: \
             pushing templates/local-exec, the same through the exec provisioner"
        );
    }
    let example = if terraform { Example::Local } else { Example::LocalExec };
    let dir = home.join("templates").join(example.name());
    example.write(&dir)?;
    eprintln!("berth: pushing templates/{}", example.name());
    let args = PushArgs::of(dir, TEMPLATE);
    template::push(client, output, &args).await.map(drop)
}

fn has_terraform() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .any(|dir| ["terraform", "tofu"].iter().any(|name| dir.join(name).is_file()))
}

/// Waits until every pool has what it should have, telling of each change.
pub(super) async fn pools(client: &Client, output: Output) -> anyhow::Result<()> {
    let mut last = String::new();
    loop {
        let answer = client.get("/prebuilds/pools").await?;
        let pools = answer.as_array().cloned().unwrap_or_default();
        let line = pools.iter().map(pool_line).collect::<Vec<_>>().join(", ");
        if line != last {
            output.progress(&format!("berth: pools: {line}"));
            last = line;
        }
        let full = |it: &Value| number(it, "claimable") >= number(it, "desired");
        if !pools.is_empty() && pools.iter().all(full) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn pool_line(pool: &Value) -> String {
    let (preset, ready) = (text(pool, "preset_name"), number(pool, "claimable"));
    format!("{preset} {ready}/{}", number(pool, "desired"))
}
