//! Pure rules of Berth: ids, states, plans, schedules, parameters, authorization. No I/O, no clock,
//! no randomness: all of them are inputs.

// First, because its macro is used by the modules below.
#[macro_use]
pub mod state;

pub mod authz;
pub mod build;
pub mod certificate;
pub mod env;
pub mod id;
pub mod name;
pub mod notification;
pub mod parameter;
pub mod plan;
pub mod preset;
pub mod promotion;
pub mod quota;
pub mod schedule;
pub mod secret;
pub mod template;
pub mod terminal;
