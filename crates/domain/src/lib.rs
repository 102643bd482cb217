//! Pure rules of Berth: ids, states, plans, schedules, parameters, authorization. No I/O, no clock,
//! no randomness: all of them are inputs.

pub mod id;
pub mod state;
