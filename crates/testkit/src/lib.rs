//! Vocabulary of the tests: private servers, databases and subject spaces, real processes of berth.
//!
//! [`servers`] gives every test process one Postgres and one nats-server; [`TestDatabase`] and
//! [`subject_space`] give each test its own part of them; [`TestStack`] runs the services and
//! daemons as the processes they are in production; [`App`] talks to their API.

#![expect(clippy::missing_panics_doc, reason = "panicking is how a test's helper fails the test")]
#![expect(clippy::must_use_candidate, reason = "an answer that is as expected needs no other use")]

mod app;
mod database;
mod proc;
mod scratch;
mod servers;
mod sink;
mod stack;
mod template;
mod wait;

pub use crate::app::{Answer, App, Exchange, User};
pub use crate::database::{HeldSession, TestDatabase};
pub use crate::proc::processes_of;
pub use crate::servers::{Servers, own_nats, servers, subject_space};
pub use crate::sink::{SeenSpan, TraceSink};
pub use crate::stack::{Builder, Service, TestStack};
pub use crate::template::{Archive, Link};
pub use crate::wait::{SOON, wait_patiently, wait_until};
