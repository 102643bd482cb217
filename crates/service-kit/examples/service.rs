//! The smallest service: one task, one latch, one announced fact. `tests/process.rs` runs it.
//!
//! `service [--lifeline] [--announce FILE]`; its `end` says what becomes of the task.

use std::process::ExitCode;

use berth_service_kit::{Args, Context, HasProcess, Process, run};

#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    process: Process,
    task: TaskConfig,
}

#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TaskConfig {
    end: End,
}

/// What becomes of the example's task.
#[derive(Debug, Clone, Copy, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum End {
    /// It stops when it is told to.
    #[default]
    Orderly,
    /// It ends although nobody told it to.
    Early,
    /// It panics.
    Panic,
    /// It does not stop.
    Never,
}

impl HasProcess for Config {
    fn process(&self) -> &Process {
        &self.process
    }
}

async fn serve(ctx: Context<Config>) -> anyhow::Result<()> {
    let latch = ctx.health.latch("task");
    let (end, stop) = (ctx.config.task.end, ctx.shutdown.clone());
    ctx.spawn("task", async move {
        latch.set_ready();
        match end {
            End::Orderly => stop.cancelled().await,
            End::Early => {}
            End::Panic => panic!("told to"),
            End::Never => std::future::pending().await,
        }
    });
    tracing::info_span!("example.announce").in_scope(|| ctx.announce("answer", 42))?;
    ctx.drain().await
}

fn main() -> ExitCode {
    let mut args = Args::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--lifeline" => args.exit_on_stdin_close = true,
            "--announce" => args.announce_file = words.next().map(Into::into),
            "--config" => args.config_file = words.next().map(Into::into),
            other => {
                eprintln!("unknown argument `{other}`");
                return ExitCode::FAILURE;
            }
        }
    }
    run("example", args, serve)
}
