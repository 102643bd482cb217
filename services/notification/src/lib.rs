//! Turns events into messages.
