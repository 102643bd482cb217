//! NATS, the only crate that names it: subjects, streams, the event envelope, publishing and
//! consuming. Postgres is the truth and NATS carries notices: every message may be lost, doubled or
//! reordered, and only latency suffers.

pub mod connection;
pub mod consume;
pub mod envelope;
pub mod event;
pub mod subjects;
pub mod terminal;
pub mod trace;

pub use connection::{Bus, BusConfig, BusError, StreamState};
pub use consume::{Consumer, Delivery, HandlerError};
