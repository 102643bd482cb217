//! Ports on the loopback interface.

use std::net::{Ipv4Addr, TcpListener};

use crate::DevstackError;
use crate::error::file;

/// A port of 127.0.0.1 that nobody listens on at this moment. Another process may take it before
/// the caller does: be ready to try again.
pub fn free_port() -> Result<u16, DevstackError> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|addr| addr.port())
        .map_err(file("find a free port on", "127.0.0.1"))
}
