//! From `main` to the service and back to an exit code.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use prometheus::Registry;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Admin};
use crate::announce::Announcement;
use crate::telemetry::{self, Telemetry};
use crate::{Context, HasProcess, Health, Process, Tasks, load, metrics};

/// How much longer than the grace period a service may take to return before it is dropped.
const OVERTIME: Duration = Duration::from_secs(2);
/// How long threads that block may hold up the end of the process.
const BLOCKING: Duration = Duration::from_millis(500);

/// What the command line says about any process.
#[derive(Debug, Clone, Default)]
pub struct Args {
    /// A TOML file with the configuration.
    pub config_file: Option<PathBuf>,
    /// Drain when stdin closes: whoever started this process holds the other end, so that it ends
    /// with its parent whatever becomes of that.
    pub exit_on_stdin_close: bool,
    /// Where to write, as one JSON object, the process id (`pid`), the admin port's address
    /// (`admin_addr`) and what the service announces. Replaced as a whole with each new fact.
    pub announce_file: Option<PathBuf>,
}

/// The main of a service: reads the configuration, sets up logs, traces and the admin port, calls
/// `serve`, and turns its outcome into an exit code (0, or 1 with the error logged).
///
/// SIGTERM, SIGINT and, when asked for, the end of stdin cancel [`Context::shutdown`]; a second
/// signal ends the drain at once.
pub fn run<C, F>(name: &'static str, args: Args, serve: impl FnOnce(Context<C>) -> F) -> ExitCode
where
    C: HasProcess + Default + Serialize + DeserializeOwned,
    F: Future<Output = anyhow::Result<()>>,
{
    // One TLS implementation for all; an error means that it is already in place.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let prepared = load::<C>(args.config_file.as_deref())
        .context("configuration")
        .and_then(|config| Ok((build_runtime(config.process())?, config)));
    let (runtime, config) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return fail_early(name, &error),
    };
    let code = runtime.block_on(async {
        let telemetry = match telemetry::install(name, &config.process().log) {
            Ok(telemetry) => telemetry,
            Err(error) => return fail_early(name, &error.into()),
        };
        std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
        let outcome = supervise(name, args, config, &telemetry, serve).await;
        let code = match outcome {
            Ok(()) => {
                tracing::info!("stopped");
                ExitCode::SUCCESS
            }
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "stopped");
                ExitCode::FAILURE
            }
        };
        telemetry.flush().await;
        code
    });
    runtime.shutdown_timeout(BLOCKING);
    code
}

/// Says why there is no process, before there are logs to say it in.
fn fail_early(name: &str, error: &anyhow::Error) -> ExitCode {
    eprintln!("{name}: {error:#}");
    ExitCode::FAILURE
}

fn build_runtime(process: &Process) -> anyhow::Result<tokio::runtime::Runtime> {
    let threads = process.worker_threads;
    anyhow::ensure!(
        (1..=1024).contains(&threads),
        "`process.worker_threads` is {threads}: it must be 1 to 1024"
    );
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("berth")
        .enable_all()
        .build()
        .context("start the runtime")
}

/// Runs the service between its admin port and its signals.
async fn supervise<C, F>(
    name: &'static str,
    args: Args,
    config: C,
    telemetry: &Telemetry,
    serve: impl FnOnce(Context<C>) -> F,
) -> anyhow::Result<()>
where
    C: HasProcess,
    F: Future<Output = anyhow::Result<()>>,
{
    let process = config.process().clone();
    let (shutdown, hurry) = (CancellationToken::new(), CancellationToken::new());
    let (health, metrics) = (Health::default(), Registry::new());
    let startup = health.latch("startup");
    listen_for_the_end(args.exit_on_stdin_close, &health, &shutdown, &hurry)?;
    metrics::register(&metrics, name).context("register the process' metrics")?;

    let announcement = Announcement::new(name, args.announce_file);
    let admin = Admin {
        health: health.clone(),
        metrics: metrics.clone(),
        log_level: telemetry.log_level.clone(),
    };
    let admin_addr = admin::serve(process.admin_addr, admin).await?;
    announcement.tell("admin_addr", &admin_addr.to_string())?;

    let tasks = Tasks::new(shutdown.clone());
    let grace = process.grace.as_duration();
    let context = Context {
        name,
        config,
        shutdown: shutdown.clone(),
        health,
        metrics,
        tasks: tasks.clone(),
        announcement,
        startup,
        grace,
        hurry: hurry.clone(),
    };
    let overdue = async {
        shutdown.cancelled().await;
        tokio::select! {
            () = tokio::time::sleep(grace + OVERTIME) => {}
            // The drain has something to say about it, if the service is draining.
            () = async { hurry.cancelled().await; tokio::time::sleep(BLOCKING).await } => {}
        }
    };
    let outcome = tokio::select! {
        outcome = serve(context) => outcome,
        () = overdue => Err(anyhow::anyhow!("the service did not return after shutdown")),
    };
    if outcome.is_err() {
        // A service that fails on its way up leaves its tasks running: let them end their work.
        shutdown.cancel();
        if let Err(error) = tasks.drain(grace, &hurry).await {
            tracing::warn!(error = format!("{error:#}"), "tasks after a failure");
        }
    }
    outcome
}

/// Starts listening for what may end the process: signals, stdin, a dead task.
fn listen_for_the_end(
    stdin: bool,
    health: &Health,
    shutdown: &CancellationToken,
    hurry: &CancellationToken,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let orphaned = CancellationToken::new();
    if stdin {
        watch_stdin(orphaned.clone()).context("watch stdin")?;
    }
    let (health, shutdown, hurry) = (health.clone(), shutdown.clone(), hurry.clone());
    tokio::spawn(async move {
        let why = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            () = orphaned.cancelled() => "stdin closed",
            () = shutdown.cancelled() => "a task ended or the service failed",
        };
        tracing::info!(why, "shutting down");
        health.set_draining();
        shutdown.cancel();
        let why = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::warn!(why, "told again; stopping at once");
        hurry.cancel();
    });
    Ok(())
}

/// Cancels `closed` when stdin ends. A thread of its own, because a read from stdin cannot be
/// given up and would hold the runtime at its end.
fn watch_stdin(closed: CancellationToken) -> std::io::Result<()> {
    std::thread::Builder::new().name("lifeline".into()).spawn(move || {
        let mut buffer = [0_u8; 256];
        let mut stdin = std::io::stdin().lock();
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        closed.cancel();
    })?;
    Ok(())
}
