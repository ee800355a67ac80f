//! Swimring: peer-to-peer cluster membership and sharding over QUIC.

pub mod core;

pub use swimring_forwarder as forwarder;
pub use swimring_membership as membership;
pub use swimring_ring as ring;

#[cfg(feature = "runtime")]
pub mod runtime;

/// What the README shows compiles.
#[cfg(all(doctest, feature = "runtime"))]
#[doc = include_str!("../../README.md")]
struct Readme;
