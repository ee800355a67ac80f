//! One node's decisions, composed: values without sockets, clocks or tasks.
//!
//! The runtime and the simulator drive these same types.

pub mod control;
pub mod hello;
pub mod peers;
