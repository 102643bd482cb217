//! Finds or fetches Postgres and nats-server and runs private ones under a lifeline.
