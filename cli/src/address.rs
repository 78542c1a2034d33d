//! Ports of this machine that are free right now.
//! Parsing and checking of addresses belongs to the rooms that use them.

use anyhow::Context;

/// As many free TCP ports of the loopback interface; nobody holds them, so use them soon.
pub(crate) fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    let mut held = Vec::new();
    for _ in 0..count {
        held.push(std::net::TcpListener::bind("127.0.0.1:0").context("no free port on 127.0.0.1")?);
    }
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}
