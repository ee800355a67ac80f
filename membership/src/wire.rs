//! The messages of membership and their envelope.
//!
//! Envelope: kind (1 byte), version (1), body length (2, little endian), body. A datagram or a stream
//! carries one. An unknown kind is skipped by its length, an unknown version refused.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::codec::{self, BODY_BYTES_MAX, Blob, Malformed};
use crate::{Incarnation, NodeId, Peer, State};

/// The protocol version that this release speaks.
pub const VERSION: u8 = 1;
/// Bytes before the body.
pub const ENVELOPE_BYTES: usize = 4;
/// Most marks of observers in one update.
pub const MARKS_MAX: usize = 16;
/// Most updates in one message.
pub const UPDATES_MAX: usize = 128;
/// Most rows in one reconciliation message.
pub const ROWS_MAX: usize = 64;
/// Most ranges in one reconciliation message.
pub const RANGES_MAX: usize = 256;
/// Most summaries in one reconciliation message.
pub const SUMMARIES_MAX: usize = 1_024;

/// What the sender believes of the receiver, or of a third node: nothing, or a state at an incarnation.
pub type Belief = Option<(State, Incarnation)>;

/// News about a member, as it rides on messages.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Update {
    /// The subject said this of itself.
    Alive(Blob),
    /// The subject said something of itself that is too long for a datagram: ask for it.
    Notice(NodeId, Incarnation),
    /// The last node suspects the subject.
    Suspect(NodeId, Incarnation, NodeId),
    /// The subject was not heard of in time, by those of its observers that have these marks.
    Down(NodeId, Incarnation, Vec<u16>),
    /// The subject said goodbye.
    Left(NodeId, Incarnation),
}

impl Update {
    fn keeps_caps(&self) -> bool {
        !matches!(self, Self::Down(_, _, marks) if marks.len() > MARKS_MAX)
    }
}

/// What every gossip message carries about its sender.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Header {
    /// What the sender believes of the receiver.
    pub belief: Belief,
    /// The digest of the sender's view.
    pub digest: u128,
    /// The fence under which the sender holds its keys by that view; 0 if it does not own any by it yet.
    pub fence: u64,
    /// The highest fence that the sender has heard of.
    pub fence_heard: u64,
    /// News.
    pub updates: Vec<Update>,
}

/// A row of a view, as a reconciliation or a join carries it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RowBody {
    /// The subject.
    pub id: NodeId,
    /// What the sender believes of it.
    pub state: State,
    /// The highest incarnation that the sender has admitted.
    pub incarnation: Incarnation,
    /// The subject's last record, when the sender still has it.
    pub record: Option<Blob>,
}

/// The members from `low` to `high` (both inclusive), summed up.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Range {
    /// The first id.
    pub low: NodeId,
    /// The last id.
    pub high: NodeId,
    /// How many present members the sender has there.
    pub count: u32,
    /// The sum of their record hashes.
    pub digest: u128,
}

/// One present member of a range: enough to see whether two views differ about it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// The member.
    pub id: NodeId,
    /// The incarnation of the record that the sender holds.
    pub incarnation: Incarnation,
    /// The first 64 bits of that record's hash.
    pub hash: u64,
}

/// A message between two nodes' memberships.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// Are you there?
    Ping {
        /// Matches the answer to the question.
        seq: u32,
        /// About the sender.
        header: Header,
    },
    /// I am.
    Ack {
        /// Of the ping.
        seq: u32,
        /// About the sender.
        header: Header,
    },
    /// Ping this node for me.
    PingReq {
        /// Of the requester; comes back with the answer.
        seq: u32,
        /// Whom to ping.
        target: Peer,
        /// How long the requester still waits, in milliseconds.
        budget_ms: u32,
        /// About the sender.
        header: Header,
    },
    /// The node you asked me to ping has answered.
    Reached {
        /// Of the ping-req.
        seq: u32,
        /// About the sender.
        header: Header,
    },
    /// The node you asked me to ping has not answered yet; I am well.
    Nack {
        /// Of the ping-req.
        seq: u32,
        /// About the sender.
        header: Header,
    },
    /// News, without a question.
    Rumours {
        /// About the sender.
        header: Header,
    },
    /// I want to be a member.
    JoinRequest {
        /// The joiner's record.
        record: Blob,
    },
    /// You are a member, and these are the others; a large view takes several.
    JoinReply {
        /// Which list this belongs to: the version of the sender's view.
        list: u64,
        /// Which part this is; they may arrive in any order.
        part: u16,
        /// How many there are.
        parts: u16,
        /// Whether the sender is in a cluster itself; if not, it is only another one that looks for it.
        settled: bool,
        /// The highest fence that the sender has heard of.
        fence: u64,
        /// A part of the view.
        rows: Vec<RowBody>,
    },
    /// Your name has lived up to this incarnation: start above it and ask again.
    JoinHeld {
        /// The highest one admitted.
        incarnation: Incarnation,
    },
    /// Your name belongs to a live process.
    JoinRefused {
        /// The process that holds it.
        holder: Peer,
    },
    /// My view, range by range: answer for those that differ.
    Ranges {
        /// The ranges.
        ranges: Vec<Range>,
    },
    /// My view of small ranges, member by member.
    Summaries {
        /// The ranges, each from its first to its last id.
        ranges: Vec<(NodeId, NodeId)>,
        /// Every present member in them.
        members: Vec<Summary>,
    },
    /// Rows that you lack or hold otherwise.
    Rows {
        /// The highest fence that the sender has heard of: whoever owns keys by these rows holds them above it.
        fence: u64,
        /// The rows.
        rows: Vec<RowBody>,
    },
    /// Send me your rows of these.
    Want {
        /// The subjects.
        ids: Vec<NodeId>,
    },
}

macro_rules! kinds {
    ($($kind:literal => $variant:ident { $($field:ident),* },)*) => {
        impl Message {
            /// The kind as text, for counters.
            pub fn kind(&self) -> &'static str {
                match self { $(Self::$variant { .. } => stringify!($variant),)* }
            }

            /// Appends the message with its envelope.
            ///
            /// # Panics
            /// If the body is longer than an envelope can say: the sender split it wrongly.
            pub fn encode(&self, out: &mut Vec<u8>) {
                let start = out.len();
                match self {
                    $(Self::$variant { $($field),* } => {
                        out.extend_from_slice(&[$kind, VERSION, 0, 0]);
                        codec::encode(&($($field,)*), out);
                    })*
                }
                let body = u16::try_from(out.len() - start - ENVELOPE_BYTES).expect("senders keep bodies below 64 KiB");
                out[start + 2..start + ENVELOPE_BYTES].copy_from_slice(&body.to_le_bytes());
            }

            fn decode_body(kind: u8, body: &[u8]) -> Result<Option<Self>, Malformed> {
                Ok(Some(match kind {
                    $($kind => {
                        let ($($field,)*) = codec::decode(body)?;
                        Self::$variant { $($field),* }
                    })*
                    _ => return Ok(None),
                }))
            }
        }
    };
}

kinds! {
    1 => Ping { seq, header },
    2 => Ack { seq, header },
    3 => PingReq { seq, target, budget_ms, header },
    4 => Reached { seq, header },
    5 => Nack { seq, header },
    6 => Rumours { header },
    7 => JoinRequest { record },
    8 => JoinReply { list, part, parts, settled, fence, rows },
    9 => JoinHeld { incarnation },
    10 => JoinRefused { holder },
    11 => Ranges { ranges },
    12 => Summaries { ranges, members },
    13 => Rows { fence, rows },
    14 => Want { ids },
}

impl Message {
    /// Reads one message. `Ok(None)`: a kind of a later version, to be skipped.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        let (&[kind, version, low, high], rest) = bytes.split_first_chunk().ok_or(Malformed::Truncated)?;
        if version != VERSION {
            return Err(Malformed::Version(version));
        }
        let length = usize::from(u16::from_le_bytes([low, high]));
        if rest.len() < length {
            return Err(Malformed::Truncated);
        }
        if rest.len() > length {
            return Err(Malformed::Trailing);
        }
        let message = Self::decode_body(kind, rest)?;
        if let Some(message) = &message {
            message.check_caps()?;
        }
        Ok(message)
    }

    /// Every collection has its own cap, below what the body limit allows.
    fn check_caps(&self) -> Result<(), Malformed> {
        let within = match self {
            Self::Ping { header, .. }
            | Self::Ack { header, .. }
            | Self::PingReq { header, .. }
            | Self::Reached { header, .. }
            | Self::Nack { header, .. }
            | Self::Rumours { header } => {
                header.updates.len() <= UPDATES_MAX && header.updates.iter().all(Update::keeps_caps)
            }
            Self::JoinRequest { .. } | Self::JoinHeld { .. } | Self::JoinRefused { .. } => true,
            Self::JoinReply { part, parts, rows, .. } => part < parts && rows.len() <= ROWS_MAX,
            Self::Rows { rows, .. } => rows.len() <= ROWS_MAX,
            Self::Ranges { ranges } => ranges.len() <= RANGES_MAX,
            Self::Summaries { ranges, members } => ranges.len() <= RANGES_MAX && members.len() <= SUMMARIES_MAX,
            Self::Want { ids } => ids.len() <= ROWS_MAX,
        };
        if within { Ok(()) } else { Err(Malformed::TooLong) }
    }
}

/// How many bytes an update takes in a header.
pub(crate) fn update_bytes(update: &Update, scratch: &mut Vec<u8>) -> usize {
    scratch.clear();
    codec::encode(update, scratch);
    scratch.len()
}

const _: () = assert!(BODY_BYTES_MAX <= 1 << 16);
const _: () = assert!(ROWS_MAX * 900 < BODY_BYTES_MAX, "rows of an ordinary size fit a message");
