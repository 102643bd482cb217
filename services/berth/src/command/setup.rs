//! `berth setup`: what a new deployment needs before somebody can use it. It may be run as often as
//! one likes: what is there stays as it is.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::Args;
use serde_json::json;

use crate::cli::Global;
use crate::client::session::write_private;
use crate::client::{Client, text};
use crate::command::login::password_login;
use crate::command::template::{self, PushArgs};
use crate::output::Output;

const PASSWORD_VARIABLE: &str = "BERTH_SETUP_PASSWORD";
const KEYS: &str = "/organizations/default/provisionerkeys";
/// Name of the key that `--key-file` holds.
const KEY_NAME: &str = "setup";

/// The first user is created if there is none; otherwise e-mail and password are those of somebody
/// who is there. The password comes from a file or from `BERTH_SETUP_PASSWORD`, never from an
/// argument, which every user of the machine could read.
#[derive(Args)]
pub(crate) struct SetupArgs {
    /// E-mail address of the first user
    #[arg(long, env = "BERTH_SETUP_EMAIL")]
    email: String,
    /// File with the password of the first user; without it, the variable `BERTH_SETUP_PASSWORD`
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Make a provisioner key and leave it in this file (mode 0600), unless the file is there
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Push this directory, unless there is a template of its name; may be given more than once
    #[arg(long = "template", value_name = "DIR")]
    templates: Vec<PathBuf>,
}

/// Sets a deployment up.
pub(crate) async fn setup(global: &Global, output: Output, args: SetupArgs) -> anyhow::Result<()> {
    let url = global.url.as_deref().context("which deployment? `berth setup --url URL`")?;
    let password = password(args.password_file.as_deref())?;
    let client = first_user(url, &args.email, &password).await?;
    if let Some(file) = &args.key_file {
        provisioner_key(&client, file).await?;
    }
    for dir in &args.templates {
        push(&client, output, dir).await?;
    }
    Ok(())
}

fn password(file: Option<&Path>) -> anyhow::Result<String> {
    let password = match file {
        Some(file) => std::fs::read_to_string(file)
            .with_context(|| format!("cannot read the password file {}", file.display()))?,
        None => {
            std::env::var_os(PASSWORD_VARIABLE).and_then(|it| it.into_string().ok()).with_context(
                || format!("no password: pass --password-file or set {PASSWORD_VARIABLE}"),
            )?
        }
    };
    let password = password.trim_end_matches(['\r', '\n']);
    ensure!(!password.is_empty(), "the password of the first user is empty");
    Ok(password.to_owned())
}

/// Creates the first user with its organization if there is none, and logs in.
async fn first_user(url: &str, email: &str, password: &str) -> anyhow::Result<Client> {
    let client = Client::new(url, None)?;
    if client.get("/users/first").await.is_err() {
        let body = json!({
            "email": email, "username": "admin", "name": "Admin", "password": password,
        });
        client.post("/users/first", &body).await.context("cannot create the first user")?;
        eprintln!("berth: created the first user, {email}");
    }
    let token = password_login(&client, email, password)
        .await
        .with_context(|| format!("cannot log in as {email}"))?;
    Client::new(url, Some(token))
}

async fn provisioner_key(client: &Client, file: &Path) -> anyhow::Result<()> {
    if file.exists() {
        return Ok(());
    }
    let keys = client.get(KEYS).await?;
    if keys.as_array().into_iter().flatten().any(|it| text(it, "name") == KEY_NAME) {
        // The secret was shown once, and the file that held it is gone.
        client.delete(&format!("{KEYS}/{KEY_NAME}")).await?;
    }
    let answer = client
        .post(KEYS, &json!({ "name": KEY_NAME }))
        .await
        .context("cannot make a provisioner key")?;
    write_private(file, text(&answer, "key").as_bytes())?;
    eprintln!("berth: the provisioner key {KEY_NAME} is in {}", file.display());
    Ok(())
}

async fn push(client: &Client, output: Output, dir: &Path) -> anyhow::Result<()> {
    let real = dir
        .canonicalize()
        .with_context(|| format!("no template directory at {}", dir.display()))?;
    let name = real.file_name().context("the root directory is no template")?.to_string_lossy();
    if template::find(client, &name).await?.is_some() {
        return Ok(());
    }
    eprintln!("berth: pushing {}", dir.display());
    template::push(client, output, &PushArgs::of(dir.to_owned(), &name)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_of_a_file_ends_with_its_line_and_must_not_be_empty() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        std::fs::write(&file, "with spaces \r\n").unwrap();
        assert_eq!(password(Some(&file)).unwrap(), "with spaces ");
        std::fs::write(&file, "\n").unwrap();
        assert!(password(Some(&file)).unwrap_err().to_string().contains("is empty"));
        let missing = folder.path().join("missing");
        let error = password(Some(&missing)).unwrap_err().to_string();
        assert!(error.contains("missing"), "{error}");
    }
}
