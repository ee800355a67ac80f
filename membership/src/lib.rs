//! Who is in the cluster: SWIM membership as a state machine.
//!
//! ```text
//!   commands: join, leave, set_phase, update_profile
//!   handle_message(now, from, bytes) ─┐               ┌─ poll_transmit(now, out)  what to send, to whom
//!   handle_timeout(now) ──────────────┤  Membership   ├─ poll_event()             what became true
//!   handle_unsent(transmit) ──────────┘               └─ poll_timeout()           when to call again
//! ```
//!
//! [`Membership`] takes `(now, input)` and gives outputs. There is no socket, no clock, no entropy, no thread
//! and no environment in here; the crate is `no_std`. The runtime of the `swimring` package pumps it over
//! QUIC, the simulator pumps the same type in virtual time.
//!
//! The driver's side of the contract: `from` is authenticated; a [`Delivery::Datagram`] may be lost,
//! doubled, delayed and overtaken; a [`Delivery::Stream`] arrives whole or not at all; what was not handed to
//! the transport is reported at once with [`Membership::handle_unsent`].
//!
//! The protocol: SWIM (Das, Gupta, Motivala, DSN 2002) with suspicion and time-bounded completeness, local
//! health after Lifeguard (Dadgar, Phillips, Currey 2018), range reconciliation, and a merge that never kills
//! the healthy. Knows no keys and no ring.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod boots;
pub mod codec;
mod config;
mod contacts;
mod event;
mod fence;
mod health;
mod id;
mod identity;
mod join;
mod members;
mod membership;
mod merge;
mod news;
mod overlay;
mod probe;
mod record;
mod rng;
mod roster;
mod rumours;
mod suspicion;
#[cfg(test)]
mod testing;
mod time;
mod timers;
mod turns;
mod verdicts;
pub mod wire;

pub use config::{Config, InvalidConfig, Preset, Settings};
pub use event::{Event, Stats};
pub use id::{Incarnation, Instance, InvalidName, NAME_BYTES_MAX, Name, NodeId, Peer};
pub use members::Members;
pub use membership::{Delivery, Destination, Membership, Start, Transmit};
pub use record::{
    InvalidProfile, Phase, Profile, RECORD_BYTES_MAX, Record, TAG_KEY_BYTES_MAX, TAG_VALUE_BYTES_MAX, TAGS_MAX,
    WEIGHT_MAX, ZONE_BYTES_MAX,
};
pub use rng::Rng;
pub use roster::{Admitted, Member, Roster, State, Tombstone, supersedes};
pub use time::Instant;
pub use timers::Timers;
