//! What unit tests build nodes from.

use alloc::vec::Vec;
use core::net::SocketAddr;

use crate::{Config, Instant, Membership, Name, Preset, Profile, Settings, Start};

pub(crate) fn cluster() -> Name {
    Name::new("test").unwrap()
}

pub(crate) fn node(name: &str) -> Membership {
    let config = Config::new(Settings::preset(Preset::Lan)).unwrap();
    let start = Start { cluster: cluster(), profile: profile(name, 1), boot: 1, life: 1, seed: 1 };
    Membership::new(Instant::ORIGIN, config, start).unwrap()
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
