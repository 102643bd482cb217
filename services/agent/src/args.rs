//! `berth agent` on the command line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::local::{self, Config};
use crate::options::{Auth, Cloud, Instance, Options, Timing, Token};
use crate::{agent, clock, supervisor};

const URL_NAMES: [&str; 2] = ["BERTH_AGENT_URL", "CODER_AGENT_URL"];
const TOKEN_NAMES: [&str; 2] = ["BERTH_AGENT_TOKEN", "CODER_AGENT_TOKEN"];
const TOKEN_FILE_NAMES: [&str; 2] = ["BERTH_AGENT_TOKEN_FILE", "CODER_AGENT_TOKEN_FILE"];
const AUTH_NAMES: [&str; 2] = ["BERTH_AGENT_AUTH", "CODER_AGENT_AUTH"];
const NAME_NAMES: [&str; 2] = ["BERTH_AGENT_NAME", "CODER_AGENT_NAME"];
/// The way to prove who the agent is that is taken when none is named.
const TOKEN: &str = "token";
const METADATA_NAME: &str = "BERTH_AGENT_METADATA_URL";
const SUPERVISOR_NAME: &str = "BERTH_LOCAL_SUPERVISOR_PIDFILE";

/// The variables that tell an agent what to do; they are not for scripts.
pub(crate) fn environment_names() -> impl Iterator<Item = &'static str> {
    [URL_NAMES, TOKEN_NAMES, TOKEN_FILE_NAMES, AUTH_NAMES, NAME_NAMES]
        .into_iter()
        .flatten()
        .chain([METADATA_NAME, SUPERVISOR_NAME])
}

/// Runs the agent inside a workspace.
///
/// The agent's token comes from the environment, `BERTH_AGENT_TOKEN` (or `CODER_AGENT_TOKEN`), or
/// from a file; never from an argument, which every user of the machine could read. On a cloud
/// instance it may come from the deployment, for the instance's identity (`--auth`).
#[derive(Clone, Debug, clap::Args)]
pub struct AgentArgs {
    /// Address of the deployment [env: `BERTH_AGENT_URL`, `CODER_AGENT_URL`]
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// File that holds the agent's token [env: `BERTH_AGENT_TOKEN_FILE`, `CODER_AGENT_TOKEN_FILE`]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// How the agent proves who it is: token, or aws-, azure- or google-instance-identity [env:
    /// `BERTH_AGENT_AUTH`, `CODER_AGENT_AUTH`] [default: token]
    #[arg(long, value_name = "HOW")]
    auth: Option<String>,

    /// Which of several agents on one cloud instance this is [env: `BERTH_AGENT_NAME`,
    /// `CODER_AGENT_NAME`]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Where the cloud's metadata service is, if not at its usual address [env:
    /// `BERTH_AGENT_METADATA_URL`]
    #[arg(long, value_name = "URL")]
    metadata_url: Option<String>,

    /// Folder of a workspace on this very machine, with the agent's files: agent.json, agent.pid,
    /// agent.log
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Start the agent of --dir in the background and return when it runs. One that runs already
    /// with the same token is left alone
    #[arg(long, requires = "dir", conflicts_with = "stop")]
    detach: bool,

    /// End the agent of --dir with all its processes
    #[arg(long, requires = "dir")]
    stop: bool,

    /// End when the process named in this file is gone [env: `BERTH_LOCAL_SUPERVISOR_PIDFILE`]
    #[arg(long, value_name = "FILE")]
    supervisor_pid_file: Option<PathBuf>,
}

impl AgentArgs {
    /// Does what the arguments say. Returns when the agent has ended (by SIGTERM, SIGINT, SIGHUP or
    /// its supervisor), has been detached, or has been stopped. The caller has set up `tracing` to
    /// write to stderr, which is `agent.log` for detached agents.
    pub async fn execute(self) -> anyhow::Result<()> {
        let env = captured_environment();
        let supervisor_file =
            match setting(self.supervisor_pid_file.clone(), &env, &[SUPERVISOR_NAME]) {
                Some(path) => Some(std::path::absolute(path)?),
                None => None,
            };
        match self.dir.clone() {
            Some(dir) if self.stop => {
                let stop = tokio::task::spawn_blocking(move || local::stop(&dir, false));
                stop.await?.context("cannot stop the agent")
            }
            Some(dir) if self.detach => {
                let config = self.credentials(&env)?.map(|(url, token)| Config {
                    url,
                    token: token.expose().to_owned(),
                    supervisor_pid_file: supervisor_file,
                });
                tokio::task::spawn_blocking(move || local::detach(&dir, config)).await?
            }
            Some(dir) => run_local(&dir, env).await,
            None => {
                let (url, auth) = self.url_and_auth(&env)?;
                let data_dir = data_dir(&env);
                let scope = clock::fresh_id().to_string();
                let env = for_scripts(env);
                let timing = Timing::FIELD;
                let shutdown = shutdown_signal()?;
                let clock = Clock::system();
                let options = Options { url, auth, scope, env, data_dir, timing, clock };
                let watch = supervisor::cancel_when_gone(supervisor_file.as_deref(), &shutdown);
                tokio::join!(agent::run(options, shutdown.clone()), watch).0
            }
        }
    }

    /// Address and way to prove who the agent is.
    fn url_and_auth(&self, env: &BTreeMap<String, String>) -> anyhow::Result<(String, Auth)> {
        let how = setting(self.auth.clone(), env, &AUTH_NAMES).unwrap_or_else(|| TOKEN.to_owned());
        if how == TOKEN {
            let (url, token) = self.credentials(env)?.context(
                "no agent token: set BERTH_AGENT_URL and BERTH_AGENT_TOKEN (or the CODER_* \
                 names), or --auth on a cloud instance",
            )?;
            return Ok((url, Auth::Token(token)));
        }
        let cloud = Cloud::ALL.into_iter().find(|it| it.to_string() == how).with_context(|| {
            let clouds = Cloud::ALL.map(|it| it.to_string()).join(", ");
            format!("--auth {how:?} is not known; use one of {TOKEN}, {clouds}")
        })?;
        let instance = Instance {
            cloud,
            metadata_url: setting(self.metadata_url.clone(), env, &[METADATA_NAME]),
            agent_name: setting(self.name.clone(), env, &NAME_NAMES).unwrap_or_default(),
        };
        Ok((self.url(env)?, Auth::Instance(instance)))
    }

    fn url(&self, env: &BTreeMap<String, String>) -> anyhow::Result<String> {
        setting(self.url.clone(), env, &URL_NAMES)
            .context("no address of the deployment: set BERTH_AGENT_URL")
    }

    /// Address and token, `None` without a token.
    fn credentials(
        &self,
        env: &BTreeMap<String, String>,
    ) -> anyhow::Result<Option<(String, Token)>> {
        let given = TOKEN_NAMES.iter().find_map(|name| env.get(*name).filter(|it| !it.is_empty()));
        let file = setting(self.token_file.clone(), env, &TOKEN_FILE_NAMES);
        let token = match (&self.token_file, given, file) {
            // What was written on the command line was meant.
            (None, Some(token), _) => Token::new(token),
            (_, _, Some(path)) => {
                let text = std::fs::read_to_string(&path)
                    .with_context(|| format!("cannot read the token file {}", path.display()))?;
                Token::new(&text)
            }
            (_, _, None) => return Ok(None),
        };
        Ok(Some((self.url(env)?, token)))
    }
}

/// What was given on the command line, else the first variable that is set.
fn setting<T: From<String>>(
    given: Option<T>,
    env: &BTreeMap<String, String>,
    names: &[&str],
) -> Option<T> {
    let found = || names.iter().find_map(|name| env.get(*name).filter(|it| !it.is_empty()));
    given.or_else(|| found().cloned().map(T::from))
}

/// The agent of a folder, started by `--detach` or by hand.
async fn run_local(dir: &Path, env: BTreeMap<String, String>) -> anyhow::Result<()> {
    let dir = dir
        .canonicalize()
        .with_context(|| format!("the workspace's folder {} is not there", dir.display()))?;
    let shutdown = shutdown_signal()?;
    let Some((config, ownership)) = local::take_over(&dir).await? else {
        tracing::info!(dir = %dir.display(), "another agent has this folder, or none is wanted");
        return Ok(());
    };
    let options = Options {
        url: config.url.clone(),
        auth: Auth::Token(config.token()),
        scope: local::scope(&dir),
        env: for_scripts(env),
        data_dir: dir.join(".berth-agent"),
        timing: Timing::FIELD,
        clock: Clock::system(),
    };
    // Both to their end: the folder is given up before the agent is done, not after.
    let watch = ownership.watch(config.supervisor_pid_file.as_deref(), &shutdown);
    let (outcome, ()) = tokio::join!(agent::run(options, shutdown.clone()), watch);
    outcome
}

/// A token that is cancelled by the signals that end a process.
fn shutdown_signal() -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let shutdown = CancellationToken::new();
    let cancel = shutdown.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            _ = hang_up.recv() => "SIGHUP",
        };
        tracing::info!(signal = name, "ending");
        cancel.cancel();
    });
    Ok(shutdown)
}

/// The process' environment, once. What is not text is left out.
fn captured_environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// What scripts inherit: all but the agent's own settings.
fn for_scripts(mut env: BTreeMap<String, String>) -> BTreeMap<String, String> {
    environment_names().for_each(|name| drop(env.remove(name)));
    env
}

/// Where scripts of an agent in a container or on a machine of its own keep their data.
fn data_dir(env: &BTreeMap<String, String>) -> PathBuf {
    let cache = setting(None::<PathBuf>, env, &["XDG_CACHE_HOME"])
        .or_else(|| setting(None::<PathBuf>, env, &["HOME"]).map(|home| home.join(".cache")));
    let user = rustix::process::getuid().as_raw();
    cache.map_or_else(
        || std::env::temp_dir().join(format!("berth-agent-{user}")),
        |cache| cache.join("berth-agent"),
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        agent: AgentArgs,
    }

    fn args(line: &[&str]) -> AgentArgs {
        Cli::parse_from([&["agent"], line].concat()).agent
    }

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_command_line_is_consistent_and_has_no_place_for_a_token() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
        assert!(Cli::try_parse_from(["agent", "--token", "secret"]).is_err());
        assert!(Cli::try_parse_from(["agent", "--detach"]).is_err());
        assert!(Cli::try_parse_from(["agent", "--dir", "d", "--detach", "--stop"]).is_err());
    }

    #[test]
    fn both_families_of_names_are_read_and_ours_comes_first() {
        let both = env(&[
            ("CODER_AGENT_URL", "http://theirs"),
            ("CODER_AGENT_TOKEN", "theirs"),
            ("BERTH_AGENT_TOKEN", "ours"),
        ]);
        let (url, token) = args(&[]).credentials(&both).unwrap().unwrap();
        assert_eq!((url.as_str(), token.expose()), ("http://theirs", "ours"));
        assert!(args(&[]).credentials(&env(&[])).unwrap().is_none());
        assert!(args(&[]).credentials(&env(&[("BERTH_AGENT_TOKEN", "x")])).is_err());
    }

    #[test]
    fn a_token_file_is_read_and_a_missing_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let path_text = path.to_str().unwrap();
        let env = env(&[("BERTH_AGENT_URL", "http://b"), ("BERTH_AGENT_TOKEN_FILE", path_text)]);
        let error = args(&[]).credentials(&env).unwrap_err();
        assert!(error.to_string().contains(path_text), "{error}");
        std::fs::write(&path, "secret\n").unwrap();
        let (_, token) = args(&[]).credentials(&env).unwrap().unwrap();
        assert_eq!(token.expose(), "secret");
    }

    #[test]
    fn an_instance_shows_its_identity_by_the_name_it_is_given_and_needs_no_token() {
        let on_aws = env(&[
            ("BERTH_AGENT_URL", "http://b"),
            ("CODER_AGENT_AUTH", "aws-instance-identity"),
            ("CODER_AGENT_NAME", "main"),
            ("CODER_AGENT_TOKEN", "ignored"),
        ]);
        let (_, auth) = args(&[]).url_and_auth(&on_aws).unwrap();
        let instance = |cloud, agent_name: &str, url: Option<&str>| {
            Auth::Instance(Instance {
                cloud,
                metadata_url: url.map(str::to_owned),
                agent_name: agent_name.to_owned(),
            })
        };
        assert_eq!(auth, instance(Cloud::Aws, "main", None));
        let line =
            ["--auth", "google-instance-identity", "--name", "b", "--metadata-url", "http://m"];
        let (_, auth) = args(&line).url_and_auth(&on_aws).unwrap();
        assert_eq!(auth, instance(Cloud::Google, "b", Some("http://m")));
        let (_, auth) = args(&["--auth", "token"]).url_and_auth(&on_aws).unwrap();
        assert_eq!(auth, Auth::Token(Token::new("ignored")));
        let error = args(&["--auth", "magic"]).url_and_auth(&on_aws).unwrap_err().to_string();
        assert!(error.contains("magic") && error.contains("azure-instance-identity"), "{error}");
    }

    #[test]
    fn scripts_do_not_inherit_the_agents_settings() {
        let env = env(&[("BERTH_AGENT_TOKEN", "x"), ("PATH", "/bin"), ("CODER_AGENT_URL", "u")]);
        assert_eq!(for_scripts(env).into_keys().collect::<Vec<_>>(), ["PATH"]);
    }
}
