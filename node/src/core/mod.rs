//! One node's decisions, composed: values without sockets, clocks or tasks.
//!
//! The runtime and the simulator drive these same types: [`control::Control`] is the control plane (membership
//! over its connections), [`view::View`] what it publishes and [`publishing::Publishing`] when, [`arcs::Arcs`] what that means for whoever holds state, [`peers::Peers`] the connections of a class, and
//! [`link::Link`] the attempts between two processes, with a [`backlog::Backlog`] of answers and a breaker.

pub mod arcs;
pub mod backlog;
pub mod breaker;
pub mod control;
pub mod hello;
pub mod link;
pub mod passing;
pub mod peers;
pub mod publishing;
pub(crate) mod timebase;
pub mod view;
