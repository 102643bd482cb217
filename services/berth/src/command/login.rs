//! `berth login`.

use std::io::{BufRead, Write};

use anyhow::Context as _;
use clap::Args;
use serde_json::json;

use crate::cli::Global;
use crate::client::session::{self, Session};
use crate::client::{Client, text};
use crate::output::Output;

/// The password is asked for, or read from standard input when that is no terminal.
#[derive(Args)]
pub(crate) struct LoginArgs {
    /// Address of the deployment
    url: Option<String>,
    /// E-mail address of the account; asked for when missing
    #[arg(long)]
    email: Option<String>,
}

/// Logs in and stores the session.
pub(crate) async fn login(global: &Global, output: Output, args: LoginArgs) -> anyhow::Result<()> {
    let url =
        args.url.or_else(|| global.url.clone()).context("which deployment? `berth login URL`")?;
    let token = if let Some(token) = &global.token {
        token.clone()
    } else {
        let email = match args.email {
            Some(email) => email,
            None => ask("E-mail: ")?,
        };
        let password = password()?;
        password_login(&Client::new(&url, None)?, &email, &password).await?
    };
    let client = Client::new(&url, Some(token.clone()))?;
    let me = client.get("/users/me").await?;
    session::save(&Session { url: client.url().to_owned(), token })?;
    output.fields(
        &json!({ "url": url, "username": text(&me, "username") }),
        &[("Logged in as", text(&me, "username").to_owned()), ("at", url.clone())],
    );
    Ok(())
}

/// Exchanges e-mail and password for a session token.
pub(crate) async fn password_login(
    client: &Client,
    email: &str,
    password: &str,
) -> anyhow::Result<String> {
    let answer =
        client.post("/users/login", &json!({ "email": email, "password": password })).await?;
    Ok(text(&answer, "session_token").to_owned())
}

fn ask(question: &str) -> anyhow::Result<String> {
    if crate::output::is_terminal() {
        eprint!("{question}");
        std::io::stderr().flush()?;
    }
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("cannot read standard input")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Reads the password; a terminal does not show it.
fn password() -> anyhow::Result<String> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let stdin = std::io::stdin();
    let Ok(shown) = tcgetattr(&stdin) else { return ask("Password: ") };
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Now, &hidden)?;
    let answer = ask("Password: ");
    tcsetattr(&stdin, OptionalActions::Now, &shown)?;
    eprintln!();
    answer
}
