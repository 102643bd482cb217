//! What an agent process is told before it starts.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::clock::Clock;

/// The agent's secret. Neither `Debug` nor `Display` show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Wraps `secret`, without the white space that files and shells leave around it.
    #[must_use]
    pub fn new(secret: &str) -> Self {
        Self(secret.trim().to_owned())
    }

    /// The secret itself, for the header that carries it and the environment of scripts.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(redacted)")
    }
}

/// How an agent proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Auth {
    /// By its token.
    Token(Token),
    /// By what its cloud signs about the instance it runs on.
    Instance(Instance),
}

/// A cloud instance whose identity is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Whose it is.
    pub cloud: Cloud,
    /// Address of the metadata service; `None`: the cloud's own.
    pub metadata_url: Option<String>,
    /// Which of several agents on the instance this one is. Blank: the only one.
    pub agent_name: String,
}

/// A cloud that signs what its instances are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cloud {
    /// Amazon EC2.
    Aws,
    /// Azure.
    Azure,
    /// Google Compute Engine.
    Google,
}

impl Cloud {
    /// Every cloud.
    pub const ALL: [Self; 3] = [Self::Aws, Self::Azure, Self::Google];

    /// Where its instances find the metadata service.
    pub(crate) fn metadata_url(self) -> &'static str {
        match self {
            Self::Aws | Self::Azure => "http://169.254.169.254",
            Self::Google => "http://metadata.google.internal",
        }
    }
}

/// As templates write it: `aws-instance-identity`.
impl fmt::Display for Cloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aws => "aws-instance-identity",
            Self::Azure => "azure-instance-identity",
            Self::Google => "google-instance-identity",
        })
    }
}

/// Everything an agent needs to run. The environment is captured once, by the caller.
#[derive(Clone)]
pub struct Options {
    /// Root address of the deployment, `http://` or `https://`, without `/api/v2`.
    pub url: String,
    /// How the agent proves who it is.
    pub auth: Auth,
    /// Value of [`SCOPE_VARIABLE`] in every process that scripts start. Processes that carry it are
    /// ended with the agent, so it must be this workspace's alone.
    pub scope: String,
    /// Environment that scripts inherit, below the manifest's.
    pub env: BTreeMap<String, String>,
    /// Folder for what scripts keep between runs (`CODER_SCRIPT_DATA_DIR`) and relative log paths.
    pub data_dir: PathBuf,
    /// Intervals and deadlines.
    pub timing: Timing,
    /// What tells the time of day: of log lines and reports, and for scripts that run by the clock.
    pub clock: Clock,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not `env`: it may hold what others keep secret.
        f.debug_struct("Options")
            .field("url", &self.url)
            .field("auth", &self.auth)
            .field("scope", &self.scope)
            .field("data_dir", &self.data_dir)
            .field("timing", &self.timing)
            .finish_non_exhaustive()
    }
}

/// The variable by which processes started for a workspace are known, whatever session or process
/// group they moved to.
pub const SCOPE_VARIABLE: &str = "BERTH_AGENT_SCOPE";

/// Intervals and deadlines of an agent.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// How long log lines are gathered before they are sent.
    pub log_flush: Duration,
    /// First wait after a failed call; doubles from here, with jitter.
    pub retry_min: Duration,
    /// Longest wait after a failed call. A `reinit` stream that lived this long was a good one and
    /// the next wait is the first again.
    pub retry_max: Duration,
    /// Longest wait after the server refused the token or does not know the agent.
    pub refused: Duration,
    /// A `reinit` stream without a byte for this long is taken for dead.
    pub stream_silence: Duration,
    /// Between the polite and the final signal to a process group.
    pub kill_grace: Duration,
    /// From the wish to stop until the process is gone, stop scripts included.
    pub shutdown: Duration,
}

impl Timing {
    /// What the field's servers expect of an agent.
    pub const FIELD: Self = Self {
        heartbeat: Duration::from_secs(15),
        log_flush: Duration::from_millis(250),
        retry_min: Duration::from_millis(100),
        retry_max: Duration::from_secs(10),
        refused: Duration::from_secs(30),
        stream_silence: Duration::from_secs(45),
        kill_grace: Duration::from_secs(2),
        shutdown: Duration::from_millis(9500),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_token_nor_environment_appear_in_debug_output() {
        let options = Options {
            url: "http://berth".to_owned(),
            auth: Auth::Token(Token::new(" s3cret\n")),
            scope: "scope".to_owned(),
            env: BTreeMap::from([("PASSWORD".to_owned(), "hunter2".to_owned())]),
            data_dir: PathBuf::from("/tmp"),
            timing: Timing::FIELD,
            clock: Clock::system(),
        };
        let shown = format!("{options:?}");
        assert!(!shown.contains("s3cret") && !shown.contains("hunter2"), "{shown}");
        assert_eq!(options.auth, Auth::Token(Token::new("s3cret")));
    }
}
