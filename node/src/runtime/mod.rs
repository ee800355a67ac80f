//! One process: QUIC, TLS, tasks and files around the decisions of [`crate::core`].

pub mod admin;
mod arcs;
pub mod bodies;
pub mod builder;
mod calls;
pub mod certs;
mod congestion;
mod endpoint;
pub mod gather;
mod gossip;
pub mod http;
pub mod identity;
pub mod kv;
pub mod metrics;
pub mod node;
mod once;
mod publisher;
mod pulse;
mod ranked;
mod sabotage;
pub mod service;
mod sieve;
mod state;
pub mod system;
mod tls;
pub mod typed;

pub use arcs::ArcEvents;
pub use calls::Answered;
pub use calls::duplex::DUPLEX_MAX;
pub use calls::streams::LANES;
pub use publisher::RingChange;
