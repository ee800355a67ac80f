//! What membership tells the layer above, and what it counts.

use core::net::SocketAddr;
use core::time::Duration;

use crate::wire::Belief;
use crate::{Incarnation, NodeId, Peer, Phase, State};

/// A fact for the layer above, in the order in which it came true. Production telemetry; the simulator's
/// checks are fed by nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// What this node believes of a member changed. Itself included.
    Changed {
        /// The member.
        id: NodeId,
        /// What was believed before; `None` for an unknown one.
        before: Belief,
        /// What is believed now.
        state: State,
        /// At which incarnation.
        incarnation: Incarnation,
        /// The phase in the member's last record.
        phase: Phase,
    },
    /// A down or left member is no longer listed.
    Reaped {
        /// The member.
        id: NodeId,
        /// The highest incarnation admitted.
        incarnation: Incarnation,
    },
    /// This node is in the cluster.
    Joined,
    /// No seed has answered yet; it is tried again.
    JoinRetrying {
        /// How often it was tried.
        attempts: u32,
        /// When it is tried again.
        wait: Duration,
    },
    /// The name belongs to a live process elsewhere: this process must end.
    NameTaken {
        /// The process that holds the name.
        holder: Peer,
    },
    /// This node restated itself against something believed of it.
    Refuted {
        /// Its new incarnation.
        incarnation: Incarnation,
        /// What was believed. After *down* or *left* others may have owned this node's keys for a time.
        against: State,
    },
    /// Others held this node down at an incarnation that it has left behind: they may have owned its keys for a time. Said
    /// once for each incarnation.
    Removed {
        /// At which incarnation.
        incarnation: Incarnation,
    },
    /// The boot was raised, because the name had lived longer than the state directory knew: store it.
    Rebooted {
        /// The new boot.
        boot: u32,
    },
    /// This process stood still for so long that others may have taken its keys: it runs nothing that others
    /// send until it is confirmed.
    Stalled {
        /// For how long.
        stall: Duration,
    },
    /// A peer has confirmed, after a stall, that this process is still itself.
    Confirmed,
    /// A newer process holds the name: this one gives up its keys and must end.
    Superseded {
        /// Where the newer one is.
        by: SocketAddr,
    },
    /// A suspicion of a present member was started or confirmed here by the verdict of this node's own probe.
    ProbeFailed {
        /// Who did not answer.
        id: NodeId,
    },
}

/// What went by, since the start.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Messages that did not decode or broke a limit.
    pub malformed: u64,
    /// Messages of a kind that this version does not know.
    pub unknown_kinds: u64,
    /// Incarnations too far ahead to be believed from a third party.
    pub implausible: u64,
    /// Members refused because the table is full.
    pub members_refused: u64,
    /// Rumours dropped because the queue is full.
    pub rumours_dropped: u64,
    /// Requests dropped because too much was under way: relays, claims, candidates.
    pub shed: u64,
    /// Probes started.
    pub probes: u64,
    /// Probes that nobody answered.
    pub probes_failed: u64,
    /// Failed probes that were no evidence, because this node had reason to doubt itself.
    pub probes_doubted: u64,
    /// Times this node refuted something about itself.
    pub refutations: u64,
    /// Reconciliations started.
    pub reconciliations: u64,
    /// Processes refused because another one holds their name.
    pub names_refused: u64,
    /// Messages that the transport did not take: no connection, or too much that waited on it.
    pub unsent: u64,
}
