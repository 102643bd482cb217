//! Ports on the loopback interface.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::iter;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;

use crate::DevstackError;
use crate::error::file;

/// Below those that systems give to outgoing connections: one that was free a moment ago is rarely
/// taken here.
const QUIET: RangeInclusive<u16> = 20_000..=32_000;
/// Ports of that range that are tried.
const TRIES: usize = 64;

/// A port of 127.0.0.1 that nobody listens on at this moment. Another process may take it before
/// the caller does: be ready to try again.
pub fn free_port() -> Result<u16, DevstackError> {
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    if let Some(port) = iter::repeat_with(any_quiet_port).take(TRIES).find(is_free) {
        return Ok(port);
    }
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|addr| addr.port())
        .map_err(file("find a free port on", "127.0.0.1"))
}

/// One of the range, whichever. The standard library's hashers begin with random keys.
fn any_quiet_port() -> u16 {
    let count = u64::from(QUIET.end() - QUIET.start()) + 1;
    let offset = RandomState::new().build_hasher().finish() % count;
    QUIET.start() + u16::try_from(offset).expect("less than the range is long")
}
