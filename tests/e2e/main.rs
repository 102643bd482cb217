//! Stories of the whole system with real processes: one module each.

mod access;
mod agents;
mod architecture;
mod archive;
mod claim_failure;
mod contract;
mod faults;
mod main_job;
mod nats;
mod notify;
mod operator;
mod overcreate;
mod preset;
mod promotion;
mod race;
mod rehearsal;
mod reinit;
mod secret;
mod secret_place;
mod shell;
mod tag;
mod template;
mod terraform;
mod trace;
mod watch;

/// The binary under test.
const BERTH: &str = env!("CARGO_BIN_EXE_berth");
