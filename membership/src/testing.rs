//! What unit tests build nodes from.

use alloc::vec::Vec;
use core::net::SocketAddr;

use crate::{Name, Profile};

pub(crate) fn cluster() -> Name {
    Name::new("test").unwrap()
}

pub(crate) fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7_000 + port))
}

pub(crate) fn profile(name: &str, port: u16) -> Profile {
    Profile {
        name: Name::new(name).unwrap(),
        gossip: address(port),
        calls: address(port + 1_000),
        zone: None,
        weight: 1,
        tags: Vec::new(),
    }
}
