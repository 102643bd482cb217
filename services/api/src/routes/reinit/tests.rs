//! Every row of the table of reinitialisation: as a rule over values, and through the router on a
//! real Postgres and a real NATS.

mod limit;
mod rule;
mod stand;
mod stream;
