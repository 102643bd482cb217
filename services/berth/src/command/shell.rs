//! `berth shell`: a terminal of an agent here.

mod line;
mod local;

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use reqwest::StatusCode;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::cli::Global;
use crate::client::{Client, text};
use crate::command::shell::line::{Line, Over};
use crate::command::shell::local::{Happening, Local};
use crate::command::workspace;

/// How long a lost connection is tried again; the server keeps the shell about as long.
const RETRY_FOR: Duration = Duration::from_mins(5);
/// First and longest wait between two tries.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
/// What ssh, too, exits with when it was no command's exit.
const CONNECTION_FAILED: i32 = 255;
/// Ctrl-C, which ends the waiting for a connection.
const INTERRUPT: u8 = 3;

#[derive(Args)]
pub(crate) struct ShellArgs {
    /// Name of the workspace, or owner/name; with .AGENT if it has several agents
    #[arg(value_name = "WORKSPACE[.AGENT]")]
    target: String,
    /// A command instead of a shell: one argument is a line for the shell, several are quoted
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Opens a terminal of the workspace, or runs a command there, and exits with its status. Standard
/// input and output that are no terminal are connected by pipes.
pub(crate) async fn shell(global: &Global, args: ShellArgs) -> anyhow::Result<()> {
    let client = Client::from_session(global)?;
    let (name, agent) = split(&args.target);
    let workspace = workspace::get(&client, name).await?;
    let agent = choose(&workspace, agent)?;
    let local = Local::open()?;
    let line = Line::new(client, text(agent, "id"), command_line(&args.command));
    let code = converse(line, local).await?;
    // Not a return: a thread waits for keys, and nothing ends that but the process' end.
    std::process::exit(code)
}

/// `WORKSPACE[.AGENT]`; neither name has a dot.
fn split(target: &str) -> (&str, Option<&str>) {
    match target.rsplit_once('.') {
        Some((workspace, agent)) => (workspace, Some(agent)),
        None => (target, None),
    }
}

/// The agent of that name, or the only one.
fn choose<'a>(workspace: &'a Value, name: Option<&str>) -> anyhow::Result<&'a Value> {
    let all: Vec<&Value> = workspace::agents(workspace).collect();
    let of = text(workspace, "name");
    let names = || all.iter().map(|it| text(it, "name")).collect::<Vec<_>>().join(", ");
    match (name, all.as_slice()) {
        (_, []) => {
            bail!("{of} has no agent: it does not run (`berth start {of}`), or never has one")
        }
        (None, [only]) => Ok(only),
        (None, _) => bail!("{of} has several agents; say which: {of}.AGENT ({})", names()),
        (Some(name), _) => all
            .iter()
            .find(|it| text(it, "name") == name)
            .copied()
            .ok_or_else(|| anyhow!("{of} has no agent {name:?}; there are: {}", names())),
    }
}

/// One line for the shell. Several arguments arrive as they are, whatever they contain.
fn command_line(words: &[String]) -> String {
    let quoted = |word: &String| format!("'{}'", word.replace('\'', r"'\''"));
    match words {
        [line] => line.clone(),
        words => words.iter().map(quoted).collect::<Vec<_>>().join(" "),
    }
}

/// Talks until the shell is over, on as many connections as it takes. Gives the exit status.
async fn converse(mut line: Line, mut local: Local) -> anyhow::Result<i32> {
    let mut lost_since: Option<Instant> = None;
    let mut wait = RETRY.0;
    loop {
        match line.connect(&local).await {
            Ok(socket) => {
                if lost_since.take().is_some() {
                    local.say("connected again");
                }
                wait = RETRY.0;
                match line.talk(socket, &mut local).await? {
                    Over::Exited(code) => return Ok(code),
                    Over::Ended(why) => {
                        local.say(&why);
                        return Ok(CONNECTION_FAILED);
                    }
                    Over::Signal(number) => return Ok(128 + number),
                    Over::Lost(_) if !line.may_resume(&local) => {
                        local.say("connection lost; what was sent last may not have arrived");
                        return Ok(CONNECTION_FAILED);
                    }
                    Over::Lost(why) => {
                        local.say(&format!("{why}; trying again (Ctrl-C ends)"));
                        lost_since = Some(Instant::now());
                    }
                }
            }
            // The first failure is the caller's to see; of later ones those that pass are waited out.
            Err(error) if lost_since.is_none() || !error.passes() => return Err(error.into()),
            Err(_) => {}
        }
        if lost_since.is_some_and(|since| since.elapsed() > RETRY_FOR) {
            local.say("no connection; giving up");
            return Ok(CONNECTION_FAILED);
        }
        if interrupted(&mut local, wait).await {
            return Ok(CONNECTION_FAILED);
        }
        wait = (wait * 2).min(RETRY.1);
    }
}

/// Waits; `true` when somebody has enough of waiting.
async fn interrupted(local: &mut Local, wait: Duration) -> bool {
    let until = Instant::now() + wait;
    loop {
        tokio::select! {
            () = sleep(until.saturating_duration_since(Instant::now())) => return false,
            happening = local.next(local.is_terminal()) => match happening {
                Happening::Typed(bytes) if !bytes.contains(&INTERRUPT) => {}
                Happening::Resized => {}
                _ => return true,
            },
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum NotConnected {
    /// The server says no.
    #[error("{message}")]
    Refused { status: StatusCode, message: String },
    #[error("no terminal")]
    Unreachable(#[source] berth_agent::websocket::ConnectError),
}

impl NotConnected {
    /// Whether it may be otherwise in a moment.
    fn passes(&self) -> bool {
        match self {
            Self::Refused { status, .. } => {
                *status == StatusCode::CONFLICT
                    || *status == StatusCode::TOO_MANY_REQUESTS
                    || status.is_server_error()
            }
            Self::Unreachable(_) => true,
        }
    }
}

/// Writes output as it is. A reader that went away (`| head`) is an error.
fn show(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).context("cannot write the output")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_target_names_a_workspace_and_perhaps_an_agent() {
        assert_eq!(split("dev"), ("dev", None));
        assert_eq!(split("alice/dev.main"), ("alice/dev", Some("main")));
    }

    #[test]
    fn several_arguments_arrive_as_they_are_and_one_is_a_line() {
        let words = |words: &[&str]| {
            command_line(&words.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(words(&[]), "");
        assert_eq!(words(&["cd x && make"]), "cd x && make");
        assert_eq!(words(&["echo", "it's", "a b"]), r"'echo' 'it'\''s' 'a b'");
    }

    #[test]
    fn of_several_agents_one_has_to_be_named() {
        let workspace = |names: &[&str]| {
            let agents: Vec<Value> = names.iter().map(|it| json!({ "name": it })).collect();
            json!({ "name": "dev", "latest_build": { "resources": [{ "agents": agents }] } })
        };
        let of = |names: &[&str], name: Option<&str>| {
            let chosen = choose(&workspace(names), name).map(|it| text(it, "name").to_owned());
            chosen.map_err(|error| error.to_string())
        };
        assert_eq!(of(&["main"], None), Ok("main".to_owned()));
        assert_eq!(of(&["a", "b"], Some("b")), Ok("b".to_owned()));
        assert!(of(&["a", "b"], None).unwrap_err().contains("a, b"));
        assert!(of(&["a"], Some("c")).unwrap_err().contains("\"c\""));
        assert!(of(&[], None).unwrap_err().contains("berth start"));
    }
}
