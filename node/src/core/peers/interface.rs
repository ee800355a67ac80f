//! What the connections of a class are told, and what they say.

use std::net::SocketAddr;
use std::time::Duration;

use swimring_membership::{NodeId, Peer};

/// A connection, numbered by the shell; never used twice.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnId(pub u64);

/// An attempt to connect, numbered here.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DialId(pub u64);

/// What is to be reached.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Target {
    /// This node at this gossip address; dialled at the second address, which is the class's own.
    Peer(Peer, SocketAddr),
    /// Whoever answers there.
    Seed(SocketAddr),
}

/// The limits and waits of a class.
#[derive(Clone, Debug)]
pub struct PeersConfig {
    /// How long a dial may take, its hello answered included.
    pub dial_timeout: Duration,
    /// The first wait after a dial failed; doubles.
    pub retry_min: Duration,
    /// The longest wait after a dial failed.
    pub retry_max: Duration,
    /// How long a connection that lost to another one stays open for what is under way on it.
    pub linger: Duration,
    /// Most connections; a hello beyond it is refused.
    pub connections_max: usize,
    /// Most connections to one node, whatever address it claims: a process has one, and two for a moment. Beyond it
    /// the oldest is closed.
    pub connections_of_node_max: usize,
    /// Most dials under way.
    pub dials_max: usize,
    /// After how long a connection is replaced by a new one, whose certificates are judged anew.
    pub age_max: Duration,
}

impl Default for PeersConfig {
    fn default() -> Self {
        Self {
            dial_timeout: Duration::from_secs(2),
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(3),
            linger: Duration::from_secs(2),
            connections_max: 2_048,
            connections_of_node_max: 8,
            dials_max: 256,
            age_max: Duration::from_secs(12 * 3_600),
        }
    }
}

impl PeersConfig {
    /// For calls: what is under way on a connection may take as long as the longest deadline.
    pub fn calls() -> Self {
        Self { linger: Duration::from_secs(300), ..Self::default() }
    }
}

/// What the shell has to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Connect, say hello, and report with [`handle_dialled`](super::Peers::handle_dialled) or [`handle_dial_failed`](super::Peers::handle_dial_failed).
    Dial {
        /// Which attempt.
        dial: DialId,
        /// Where.
        address: SocketAddr,
        /// Who must answer; the handshake fails for anybody else.
        expect: Option<NodeId>,
    },
    /// Give the attempt up.
    Abort {
        /// Which attempt.
        dial: DialId,
    },
    /// Close the connection.
    Close {
        /// Which.
        conn: ConnId,
        /// Why, for the other end and the log.
        why: Goodbye,
    },
}

/// Why a connection is closed from here.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Goodbye {
    /// Another connection between the same two processes is kept.
    Duplicate,
    /// It came of a dial that had been given up.
    Late,
    /// The member is down, has left, or was replaced by a newer process.
    Gone,
    /// This process ends.
    Leaving,
    /// This process has as many connections as it takes.
    Full,
    /// The other end broke the protocol.
    Malformed,
    /// Nothing went over it for a while, and the peer is no neighbour.
    Unused,
    /// Nothing came over it for long, though it was asked for.
    Silent,
}

/// What became of a route.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Route {
    /// Send on this connection.
    Connected(ConnId),
    /// A dial is under way, or will be as soon as this seed need not wait any more; hold the message.
    Dialling,
    /// The last dial to this peer failed and the next one waits.
    Unreachable,
    /// Not tried: a limit is reached, or the address is this process.
    Refused,
}

/// What changed.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum PeersEvent {
    /// A connection to this peer stands: the first, or one to whoever was dialled.
    Up {
        /// Who.
        peer: Peer,
        /// On which connection.
        conn: ConnId,
        /// The target that this end dialled, or would have if its peer had not come by itself.
        dialled: Option<Target>,
    },
    /// The last connection to this peer is gone.
    Down {
        /// Who.
        peer: Peer,
    },
    /// A dial failed.
    Failed {
        /// What was to be reached.
        target: Target,
        /// What the shell said.
        why: String,
        /// How long it is not dialled again.
        wait: Duration,
    },
    /// A seed is this process itself.
    Oneself {
        /// The seed.
        address: SocketAddr,
    },
}
