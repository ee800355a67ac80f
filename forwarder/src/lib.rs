//! Getting a call to the owner of its key, and exactly one outcome back: the decisions.
//!
//! [`Call`] is the caller's side of one call, [`Admission`] the owner's side of all calls that others send it.
//! Both take `(now, input)` and give outputs; sockets, tasks and handlers are elsewhere. The crate is `no_std`.
//!
//! What is promised: one outcome by the deadline. A call that may not run twice has at most one open attempt in
//! the world, and [`Outcome::NotExecuted`] is said only with proof: it was never handed to the transport, or
//! the very process it was sent to refused it.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod admission;
mod budget;
mod call;
mod outcome;
mod pace;
mod window;
pub mod wire;

pub use admission::{Admission, AdmissionStats, Incoming, Limits, Ownership, Permit, Remembered, Running, Verdict};
pub use budget::{Budget, Repeat};
pub use call::{Call, CallConfig, CallSpec, HOPS_MAX, Resolution, Step};
pub use outcome::{NeverSent, NotExecuted, Outcome, Unknown, Unsent, Why};
pub use window::Window;
