//! The agent inside a workspace: scripts, lifecycle, logs, reinitialisation.
//!
//! It talks to the API only. [`run`] is one agent; [`AgentArgs`] is `berth agent`, which can also
//! keep agents of workspaces that are plain folders on this machine.

mod agent;
mod api;
mod args;
mod clock;
mod credentials;
mod cron;
mod environment;
mod identity;
mod leftovers;
mod lines;
mod local;
mod logs;
mod manifest;
mod options;
mod outbox;
mod proc;
mod pty;
mod reinit;
mod reports;
mod retry;
mod script;
mod session;
pub mod sse;
mod supervisor;
pub mod websocket;

pub use agent::run;
pub use args::AgentArgs;
pub use clock::Clock;
pub use local::{resume_local, retarget_local, stop_local};
pub use options::{Auth, Cloud, Instance, Options, SCOPE_VARIABLE, Timing, Token};
pub use supervisor::write_supervisor_pid_file;

pub(crate) use args::environment_names;
