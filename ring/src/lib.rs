//! Who owns a key: a pure function of a member set.
//!
//! The hash space is a circle cut into 2^L equal arcs; a [`Ring`] is a table that gives each arc its owner, so
//! that a lookup is one hash and one load. Which member gets an arc is decided by a *weighted slot race* (see
//! [`race`](crate::Ring::build)): consistent hashing over the set of (node, weight) and nothing else, strictly
//! minimal, in integers. Equal sets give equal rings on every platform and in every release; golden vectors
//! hold that.
//!
//! Knows no SWIM states, no time and no I/O; the crate is `no_std`.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod change;
mod hash;
mod race;
mod ring;

pub use hash::{Arc, Hashing, KEY_BYTES_MAX, KeyHash, KeyHasher};
pub use ring::{ARCS_LOG2_MAX, ARCS_LOG2_MIN, ArcMove, EmptyRing, Explained, Placement, Ring, RingMember, ZonedOwner};
