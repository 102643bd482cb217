//! Finds or fetches Postgres and nats-server and runs private ones under a lifeline.
//!
//! [`Toolbox::locate`] finds the programs, [`Postgres`] and [`Nats`] run them, [`Supervised`] runs
//! any program so that it cannot outlive this process, not even when this process is killed with
//! SIGKILL. Used by `berth up` and by the tests; production brings its own servers.

mod account;
mod error;
mod fetch;
mod nats;
mod output;
mod port;
mod postgres;
mod secret;
mod supervise;
mod tools;

pub use crate::account::Account;
pub use crate::error::DevstackError;
pub use crate::nats::{Nats, NatsOptions};
pub use crate::output::{LineSink, Output, Source};
pub use crate::port::free_port;
pub use crate::postgres::{Postgres, PostgresOptions};
pub use crate::supervise::{CommandSpec, StopSignal, Supervised};
pub use crate::tools::{PostgresTool, Toolbox, Tools};
