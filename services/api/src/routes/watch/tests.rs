//! Watching over real sockets, on a real Postgres and a real NATS, at two replicas of the API.

mod crowd;
mod one;
mod reader;
mod rights;
mod stream;
mod world;
