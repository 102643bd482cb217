//! The main that all services share: config, telemetry, admin port, signals, drain.
//!
//! A service is one `async fn serve(ctx: Context<Config>) -> anyhow::Result<()>`. [`run`] does
//! everything around it:
//!
//! ```no_run
//! use berth_service_kit::{Args, Context, HasProcess, Process, run};
//!
//! #[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
//! #[serde(deny_unknown_fields, default)]
//! struct Config {
//!     process: Process,
//! }
//!
//! impl HasProcess for Config {
//!     fn process(&self) -> &Process {
//!         &self.process
//!     }
//! }
//!
//! async fn serve(ctx: Context<Config>) -> anyhow::Result<()> {
//!     let latch = ctx.health.latch("sweeps");
//!     let stop = ctx.shutdown.clone();
//!     ctx.spawn("sweeps", async move {
//!         latch.set_ready();
//!         stop.cancelled().await;
//!     });
//!     ctx.drain().await
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     run("example", Args::default(), serve)
//! }
//! ```
//!
//! It knows nothing of Berth: what a latch, a task or a metric means is the service's business.

mod admin;
mod announce;
mod config;
mod context;
mod health;
mod metrics;
mod period;
mod run;
mod secret;
mod tasks;
mod telemetry;

pub use crate::announce::AnnounceError;
pub use crate::config::{ConfigError, HasProcess, LogConfig, LogFormat, Process, load};
pub use crate::context::Context;
pub use crate::health::{Health, Latch, LatchReport, Report};
pub use crate::period::{ParsePeriodError, Period};
pub use crate::run::{Args, run};
pub use crate::secret::Secret;
pub use crate::tasks::{DrainError, TaskOutcome, Tasks};
pub use crate::telemetry::TelemetryError;
