//! A private Postgres.

mod cluster;

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use crate::error::file;
use crate::tools::library_path;
use crate::{CommandSpec, DevstackError, Output, StopSignal, Supervised, Tools, free_port};

use self::cluster::Cluster;

/// The superuser of a private Postgres, and the database that it has from the start.
const USER: &str = "berth";
/// How long it may take until it accepts connections; recovery after a crash included.
const START: Duration = Duration::from_mins(2);
/// How long the last backends of a killed server may hold its shared memory.
const RELEASE: Duration = Duration::from_secs(15);
/// How long a stop may take: the checkpoint that comes with it writes everything out.
const STOP: Duration = Duration::from_secs(30);
/// How often the state of a starting server is looked at. It tells of it in a file.
const POLL: Duration = Duration::from_millis(20);

/// How to run a private Postgres.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// Where its data is; a new cluster is made when nothing is there. Its password is kept beside
    /// it in `<data_dir>.password`, mode 0600. When we are root and the user that Postgres runs as
    /// cannot get there, this becomes a link to a folder under `/var/lib/berth`.
    pub data_dir: PathBuf,
    /// The port on 127.0.0.1; any free one when `None`.
    pub port: Option<u16>,
    /// Settings that override ours and the defaults, such as `("fsync", "off")`.
    pub settings: Vec<(String, String)>,
    /// Where its log goes.
    pub output: Output,
}

impl PostgresOptions {
    /// Data there, a free port, no settings, no log.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            port: None,
            settings: Vec::new(),
            output: Output::default(),
        }
    }
}

/// A private Postgres on 127.0.0.1, with password authentication. It ends with this value.
pub struct Postgres {
    tools: Tools,
    options: PostgresOptions,
    cluster: Cluster,
    port: u16,
    server: Supervised,
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Postgres")
            .field("data_dir", &self.cluster.data_dir)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

impl Postgres {
    /// Makes a cluster when there is none, starts the server and waits until it accepts
    /// connections (at most 2 minutes). What an earlier, killed server left behind is no obstacle.
    pub async fn start(tools: &Tools, options: PostgresOptions) -> Result<Self, DevstackError> {
        let cluster = Cluster::prepare(&tools.postgres, &options.data_dir).await?;
        cluster.wait_for_orphan().await?;
        let (server, port) = launch(tools, &options, &cluster).await?;
        Ok(Self { tools: tools.clone(), options, cluster, port, server })
    }

    /// Removes a cluster that no server runs on: data, password, and the folder elsewhere that
    /// `data_dir` may be a link to. Nothing there is fine.
    pub fn purge(data_dir: &Path) -> Result<(), DevstackError> {
        cluster::purge(data_dir)
    }

    /// The address of a database for a client, password included: keep it out of logs. `berth`
    /// exists from the start, as does `postgres`.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}:{}@127.0.0.1:{}/{database}", self.cluster.password, self.port)
    }

    /// The port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Where its data really is.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.cluster.data_dir
    }

    /// Waits until the server ends by itself. May be dropped and called again.
    pub async fn wait(&mut self) -> Result<ExitStatus, DevstackError> {
        self.server.wait().await
    }

    /// Stops the server without waiting for its clients, at most 30 s.
    pub async fn stop(&mut self) -> Result<ExitStatus, DevstackError> {
        self.server.terminate(STOP).await
    }

    /// Kills the server with SIGKILL, for fault tests.
    pub async fn kill9(&mut self) -> Result<ExitStatus, DevstackError> {
        self.server.kill().await
    }

    /// Starts a stopped or killed server again, on the same data and the same port.
    pub async fn restart(&mut self) -> Result<(), DevstackError> {
        self.stop().await?;
        let mut options = self.options.clone();
        options.port = Some(self.port);
        (self.server, self.port) = launch(&self.tools, &options, &self.cluster).await?;
        Ok(())
    }
}

/// Starts the server until it stays: a free port may be taken before it is ours, and a killed
/// server's backends need a moment to notice.
async fn launch(
    tools: &Tools,
    options: &PostgresOptions,
    cluster: &Cluster,
) -> Result<(Supervised, u16), DevstackError> {
    let started = Instant::now();
    loop {
        let port = options.port.map_or_else(free_port, Ok)?;
        let mut server = Supervised::spawn(&command(tools, options, cluster, port))?;
        let pid = server.pid();
        let ended = tokio::select! {
            status = server.wait() => status?,
            () = cluster.accepts_connections(pid, port) => return Ok((server, port)),
            () = tokio::time::sleep(START) => {
                return Err(DevstackError::Silent {
                    name: "Postgres",
                    limit: START,
                    words: server.tail(),
                });
            }
        };
        let words = server.tail();
        let says = |part: &str| words.iter().any(|line| line.contains(part));
        let port_taken = options.port.is_none() && says("could not bind");
        let memory_held = says("pre-existing shared memory block");
        if !(port_taken || memory_held) || started.elapsed() > RELEASE {
            return Err(DevstackError::Died { name: "Postgres", status: ended.to_string(), words });
        }
        // There is nothing to wait on: the kernel does not tell when shared memory is let go.
        tokio::time::sleep(POLL).await;
    }
}

fn command(tools: &Tools, options: &PostgresOptions, cluster: &Cluster, port: u16) -> CommandSpec {
    let ours = [
        ("listen_addresses", "127.0.0.1".to_owned()),
        ("port", port.to_string()),
        // No socket file to leave behind, and no path that can be too long for one.
        ("unix_socket_directories", String::new()),
        ("max_connections", "300".to_owned()),
        ("logging_collector", "off".to_owned()),
        ("log_destination", "stderr".to_owned()),
    ];
    let settings = ours
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .chain(options.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let mut spec = CommandSpec::new(tools.postgres.bin.join("postgres"))
        .args(["-D".into(), cluster.data_dir.clone().into_os_string()])
        .args(settings.flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]))
        .output(options.output.clone());
    if let Some(path) = library_path(&tools.postgres.libraries) {
        spec = spec.env("LD_LIBRARY_PATH", path);
    }
    spec.account.clone_from(&cluster.account);
    spec.current_dir = Some("/".into());
    spec.stop = StopSignal::Interrupt;
    spec.orphan_grace = STOP;
    spec
}

/// What a server writes into `postmaster.pid`, by line: process id, data folder, start time, port,
/// socket folder, address, shared memory, status.
struct PidFile {
    pid: u32,
    port: Option<u16>,
    ready: bool,
}

impl PidFile {
    fn read(data_dir: &Path) -> Result<Option<Self>, DevstackError> {
        let path = data_dir.join("postmaster.pid");
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(file("read", path)(error)),
        }
    }

    /// `None` for a file that is still empty.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().map(str::trim);
        let pid = lines.next()?.parse().ok()?;
        let port = lines.nth(2).and_then(|line| line.parse().ok());
        let ready = lines.nth(3) == Some("ready");
        Some(Self { pid, port, ready })
    }
}

#[cfg(test)]
mod tests;
