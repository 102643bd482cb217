//! A private nats-server with JetStream.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::TcpStream;

use crate::error::file;
use crate::secret::beside;
use crate::{CommandSpec, DevstackError, Output, Supervised, Tools, free_port, secret};

/// The user of a server with a password.
const USER: &str = "berth";
/// How long it may take until it answers; a large store is read first.
const START: Duration = Duration::from_mins(1);
/// How long a free port that is taken by another is no reason to give up.
const RETRY: Duration = Duration::from_secs(10);
/// How long a stop may take.
const STOP: Duration = Duration::from_secs(10);
/// How often a starting server is asked.
const POLL: Duration = Duration::from_millis(20);
/// The longest greeting that is read, in bytes.
const MAX_GREETING: u64 = 64 * 1024;

/// How to run a private nats-server.
#[derive(Debug, Clone)]
pub struct NatsOptions {
    /// Where its streams are; made when it is not there.
    pub store_dir: PathBuf,
    /// The port on 127.0.0.1; any free one when `None`.
    pub port: Option<u16>,
    /// Whether clients have to give a password, made once and kept in `<store_dir>.password`.
    pub password: bool,
    /// Where its log goes.
    pub output: Output,
}

impl NatsOptions {
    /// Streams there, a free port, no password, no log.
    #[must_use]
    pub fn new(store_dir: impl Into<PathBuf>) -> Self {
        Self { store_dir: store_dir.into(), port: None, password: false, output: Output::default() }
    }
}

/// A private nats-server with JetStream on 127.0.0.1. It ends with this value.
pub struct Nats {
    tools: Tools,
    options: NatsOptions,
    password: Option<String>,
    port: u16,
    server: Supervised,
}

impl std::fmt::Debug for Nats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nats")
            .field("store_dir", &self.options.store_dir)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

impl Nats {
    /// Starts the server and waits until it answers (at most 1 minute).
    pub async fn start(tools: &Tools, options: NatsOptions) -> Result<Self, DevstackError> {
        let store = &options.store_dir;
        std::fs::create_dir_all(store).map_err(file("create", store))?;
        wait_for_orphan(store).await?;
        let password = options.password.then(|| password(store)).transpose()?;
        let (server, port) = launch(tools, &options, password.as_deref()).await?;
        Ok(Self { tools: tools.clone(), options, password, port, server })
    }

    /// The server's address for a client. With a password in it, when there is one: then keep it
    /// out of logs.
    #[must_use]
    pub fn url(&self) -> String {
        match &self.password {
            Some(password) => format!("nats://{USER}:{password}@127.0.0.1:{}", self.port),
            None => format!("nats://127.0.0.1:{}", self.port),
        }
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

    /// Waits until the server ends by itself. May be dropped and called again.
    pub async fn wait(&mut self) -> Result<ExitStatus, DevstackError> {
        self.server.wait().await
    }

    /// Stops the server, at most 10 s.
    pub async fn stop(&mut self) -> Result<ExitStatus, DevstackError> {
        self.server.terminate(STOP).await
    }

    /// Kills the server with SIGKILL, for fault tests.
    pub async fn kill9(&mut self) -> Result<ExitStatus, DevstackError> {
        self.server.kill().await
    }

    /// Starts a stopped or killed server again, with the same streams on the same port.
    pub async fn restart(&mut self) -> Result<(), DevstackError> {
        self.stop().await?;
        let mut options = self.options.clone();
        options.port = Some(self.port);
        (self.server, self.port) = launch(&self.tools, &options, self.password.as_deref()).await?;
        Ok(())
    }
}

/// Waits for a server whose parent was killed to be stopped by its watchdog: two servers on one
/// store would spoil it, and nats-server does not look. Fails when it stays.
async fn wait_for_orphan(store: &Path) -> Result<(), DevstackError> {
    let started = Instant::now();
    while let Some(pid) = running_on(store) {
        if started.elapsed() > STOP {
            return Err(DevstackError::AlreadyRunning {
                name: "nats-server",
                data_dir: store.to_owned(),
                pid,
            });
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// The process that its pid file says is a server on `store`, when it still is one.
fn running_on(store: &Path) -> Option<u32> {
    let pid = std::fs::read_to_string(beside(store, ".pid")).ok()?.trim().parse().ok()?;
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let store = store.as_os_str().as_encoded_bytes();
    arguments.split(|byte| *byte == 0).any(|argument| argument == store).then_some(pid)
}

/// The password of an earlier start, or a new one.
fn password(store: &Path) -> Result<String, DevstackError> {
    let path = beside(store, ".password");
    match std::fs::read_to_string(&path) {
        Ok(password) => Ok(password.trim().to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let password = secret::generate()?;
            secret::write(&path, &password)?;
            Ok(password)
        }
        Err(error) => Err(file("read", path)(error)),
    }
}

/// Starts the server until it stays: a free port may be taken before it is ours.
async fn launch(
    tools: &Tools,
    options: &NatsOptions,
    password: Option<&str>,
) -> Result<(Supervised, u16), DevstackError> {
    let started = Instant::now();
    loop {
        let port = options.port.map_or_else(free_port, Ok)?;
        // The name tells it from another server that took the port first.
        let name =
            format!("berth-{}-{port}-{:x}", std::process::id(), started.elapsed().as_nanos());
        let mut spec = CommandSpec::new(&tools.nats_server)
            .args(["-a", "127.0.0.1", "-p", &port.to_string(), "-n", &name, "-js", "-sd"])
            .args([options.store_dir.as_os_str()])
            .args(["-P".into(), beside(&options.store_dir, ".pid").into_os_string()])
            .output(options.output.clone());
        if let Some(password) = password {
            // In a file: arguments can be read by every user of the machine.
            let config = beside(&options.store_dir, ".conf");
            let text = format!("authorization {{ user: {USER}, password: \"{password}\" }}\n");
            secret::write(&config, &text)?;
            spec = spec.args(["-c".into(), config.into_os_string()]);
        }
        spec.orphan_grace = STOP;
        let mut server = Supervised::spawn(&spec)?;
        let ended = tokio::select! {
            status = server.wait() => status?,
            () = answers(port, &name) => return Ok((server, port)),
            () = tokio::time::sleep(START) => {
                return Err(DevstackError::Silent {
                    name: "nats-server",
                    limit: START,
                    words: server.tail(),
                });
            }
        };
        let words = server.tail();
        let port_taken = words.iter().any(|line| line.contains("address already in use"));
        if !port_taken || options.port.is_some() || started.elapsed() > RETRY {
            let (name, status) = ("nats-server", ended.to_string());
            return Err(DevstackError::Died { name, status, words });
        }
    }
}

/// Waits until the server of that name greets on `port`; the caller bounds the wait.
async fn answers(port: u16, name: &str) {
    loop {
        if greeting(port).await.is_ok_and(|greeting| greeting.contains(name)) {
            return;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The first line that a server says to a client, which names it.
async fn greeting(port: u16) -> std::io::Result<String> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_GREETING)).read_line(&mut line).await?;
    Ok(line)
}
