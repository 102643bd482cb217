//! The membership reconciler against a real Postgres and a real nats-server.

mod pass;
mod unused;
mod wake;
mod world;
