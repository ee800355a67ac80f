//! What a node says of itself, as the bytes it said it in.
//!
//! Records are relayed and digested as the subject's own bytes, an unknown tail included, so that nodes of
//! different versions agree on them. Only the subject mints one.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::codec::{self, Malformed};
use crate::{Incarnation, Name, NodeId, Peer};

/// Most tags of a node.
pub const TAGS_MAX: usize = 16;
/// Longest tag key, in bytes.
pub const TAG_KEY_BYTES_MAX: usize = 32;
/// Longest tag value, in bytes.
pub const TAG_VALUE_BYTES_MAX: usize = 128;
/// Longest zone, in bytes.
pub const ZONE_BYTES_MAX: usize = 32;
/// Highest weight of a node.
pub const WEIGHT_MAX: u16 = 1_024;
/// Longest record, in bytes: everything at its limit, and room for fields of later versions.
pub const RECORD_BYTES_MAX: usize = 4_096;

const _: () = assert!(TAGS_MAX * (TAG_KEY_BYTES_MAX + TAG_VALUE_BYTES_MAX + 4) + 512 < RECORD_BYTES_MAX);

/// Whether a live node takes keys. Minted by the node itself.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Phase {
    /// Started, not yet able to serve.
    Joining,
    /// Serves; the only phase in which a node owns keys.
    Ready,
    /// On its way out: finishes what it has and takes nothing new.
    Draining,
}

/// What a node says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Profile {
    /// Its name.
    pub name: Name,
    /// Where it listens for gossip.
    pub gossip: SocketAddr,
    /// Where it listens for calls.
    pub calls: SocketAddr,
    /// Its failure domain, if it has one; at most [`ZONE_BYTES_MAX`] printable bytes.
    pub zone: Option<String>,
    /// Its share of the keys relative to others, 0 to [`WEIGHT_MAX`]; 0 owns nothing.
    pub weight: u16,
    /// Free words for the application, sorted by key, at most [`TAGS_MAX`].
    pub tags: Vec<(String, String)>,
}

/// A profile outside its limits; the caller's (or the peer's) fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProfile {
    /// More than [`TAGS_MAX`] tags.
    #[error("{0} tags, at most {TAGS_MAX} are allowed")]
    TooManyTags(usize),
    /// A tag's key is empty, too long or not printable.
    #[error("tag key {0:?} is not 1 to {TAG_KEY_BYTES_MAX} printable bytes")]
    TagKey(String),
    /// A tag's value is too long or not printable.
    #[error("the value of tag {0:?} is not at most {TAG_VALUE_BYTES_MAX} printable bytes")]
    TagValue(String),
    /// A key appears twice, or the tags are not sorted.
    #[error("tag {0:?} appears twice or out of order")]
    TagOrder(String),
    /// The zone is empty, too long or not printable.
    #[error("zone {0:?} is not 1 to {ZONE_BYTES_MAX} printable bytes")]
    Zone(String),
    /// The weight is above [`WEIGHT_MAX`].
    #[error("weight {0} is above {WEIGHT_MAX}")]
    Weight(u16),
}

impl Profile {
    /// Checks every limit.
    pub fn validate(&self) -> Result<(), InvalidProfile> {
        if self.tags.len() > TAGS_MAX {
            return Err(InvalidProfile::TooManyTags(self.tags.len()));
        }
        for (index, (key, value)) in self.tags.iter().enumerate() {
            if key.is_empty() || key.len() > TAG_KEY_BYTES_MAX || !printable(key) {
                return Err(InvalidProfile::TagKey(key.clone()));
            }
            if value.len() > TAG_VALUE_BYTES_MAX || !printable(value) {
                return Err(InvalidProfile::TagValue(key.clone()));
            }
            if index > 0 && self.tags[index - 1].0 >= *key {
                return Err(InvalidProfile::TagOrder(key.clone()));
            }
        }
        if let Some(zone) = &self.zone
            && (zone.is_empty() || zone.len() > ZONE_BYTES_MAX || !printable(zone))
        {
            return Err(InvalidProfile::Zone(zone.clone()));
        }
        if self.weight > WEIGHT_MAX { Err(InvalidProfile::Weight(self.weight)) } else { Ok(()) }
    }
}

fn printable(text: &str) -> bool {
    text.chars().all(|c| !c.is_control())
}

/// A member record: a profile at one incarnation and phase, with the bytes that the subject minted.
///
/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Record(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: NodeId,
    incarnation: Incarnation,
    phase: Phase,
    life: u64,
    profile: Profile,
    bytes: Vec<u8>,
    hash: u128,
}

/// The fields on the wire, in their order; later versions append.
#[derive(Serialize, Deserialize)]
struct Body {
    name: String,
    incarnation: Incarnation,
    life: u64,
    phase: Phase,
    gossip: SocketAddr,
    calls: SocketAddr,
    zone: Option<String>,
    weight: u16,
    tags: Vec<(String, String)>,
    /// Reserved for a signature by the subject; empty in this version.
    signature: Vec<u8>,
}

impl Record {
    /// Mints a record. Only the subject may.
    pub(crate) fn mint(cluster: &Name, profile: &Profile, incarnation: Incarnation, phase: Phase, life: u64) -> Self {
        let body = Body {
            name: profile.name.as_str().into(),
            incarnation,
            life,
            phase,
            gossip: profile.gossip,
            calls: profile.calls,
            zone: profile.zone.clone(),
            weight: profile.weight,
            tags: profile.tags.clone(),
            signature: Vec::new(),
        };
        let mut bytes = Vec::new();
        codec::encode(&body, &mut bytes);
        assert!(bytes.len() <= RECORD_BYTES_MAX, "a valid profile fits a record");
        Self::parse(cluster, bytes).expect("a minted record is well-formed, for its profile was validated")
    }

    /// Reads a record of a node of `cluster`. Bytes behind the known fields are kept and relayed.
    pub fn parse(cluster: &Name, bytes: Vec<u8>) -> Result<Self, Malformed> {
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(Malformed::TooLong);
        }
        let (body, _tail): (Body, &[u8]) = codec::decode_prefix(&bytes)?;
        let name = Name::new(&body.name).map_err(|_| Malformed::OutOfRange("name"))?;
        if body.incarnation.boot == 0 {
            return Err(Malformed::OutOfRange("boot"));
        }
        let profile = Profile {
            name,
            gossip: body.gossip,
            calls: body.calls,
            zone: body.zone,
            weight: body.weight,
            tags: body.tags,
        };
        profile.validate().map_err(|_| Malformed::OutOfRange("profile"))?;
        Ok(Self(Arc::new(Inner {
            id: NodeId::of(cluster, &profile.name),
            incarnation: body.incarnation,
            phase: body.phase,
            life: body.life,
            profile,
            hash: hash(&bytes),
            bytes,
        })))
    }

    /// The subject.
    pub fn id(&self) -> NodeId {
        self.0.id
    }

    /// At which incarnation the subject said this.
    pub fn incarnation(&self) -> Incarnation {
        self.0.incarnation
    }

    /// Whether the subject takes keys.
    pub fn phase(&self) -> Phase {
        self.0.phase
    }

    /// A random number of the subject's process: tells apart two processes that claim one boot.
    pub fn life(&self) -> u64 {
        self.0.life
    }

    /// What the subject says of itself.
    pub fn profile(&self) -> &Profile {
        &self.0.profile
    }

    /// The subject as the other end of a gossip connection.
    pub fn peer(&self) -> Peer {
        Peer { id: self.0.id, address: self.0.profile.gossip }
    }

    /// The process that said this.
    pub fn instance(&self) -> crate::Instance {
        crate::Instance { node: self.0.id, life: self.0.life }
    }

    /// The bytes that the subject minted.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// The first 64 bits of [`hash`](Self::hash), which decide between two records like all of it.
    pub(crate) fn hash_prefix(&self) -> u64 {
        (self.0.hash >> 64) as u64
    }

    /// 128 bits of blake3 over the bytes; the record's term in a view's digest.
    pub fn hash(&self) -> u128 {
        self.0.hash
    }
}

impl PartialEq for Record {
    fn eq(&self, other: &Self) -> bool {
        self.0.bytes == other.0.bytes
    }
}

impl Eq for Record {}

fn hash(bytes: &[u8]) -> u128 {
    let mut out = [0; 16];
    blake3::Hasher::new_derive_key("swimring 1 record").update(bytes).finalize_xof().fill(&mut out);
    u128::from_le_bytes(out)
}

/// How many records are kept to be recognised.
const HEARD: usize = 2_048;

/// The last records that were heard: a rumour comes many times, and need not be read and hashed each time. Each has its
/// place, which the next one with the same place takes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard {
    records: Vec<Option<Record>>,
}

/// The place of a record: all of it is mixed, eight bytes at a time, for records of one node differ in a few bytes only.
fn place(bytes: &[u8]) -> usize {
    let mix = |sum: u64, word: u64| (sum.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let (words, rest) = bytes.as_chunks::<8>();
    let mixed = words.iter().fold(bytes.len() as u64, |sum, word| mix(sum, u64::from_le_bytes(*word)));
    let mixed = rest.iter().fold(mixed, |sum, byte| mix(sum, u64::from(*byte)));
    (mixed >> 32) as usize % HEARD
}

impl Heard {
    /// Reads a record, or recognises it.
    pub(crate) fn parse(&mut self, cluster: &Name, bytes: Vec<u8>) -> Result<Record, Malformed> {
        if self.records.is_empty() {
            self.records.resize(HEARD, None);
        }
        let held = &mut self.records[place(&bytes)];
        if let Some(known) = held.as_ref().filter(|known| known.0.bytes == bytes) {
            return Ok(known.clone());
        }
        let record = Record::parse(cluster, bytes)?;
        *held = Some(record.clone());
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, profile};

    #[test]
    fn a_record_survives_the_wire_with_an_unknown_tail() {
        let minted = Record::mint(&cluster(), &profile("a", 1), Incarnation::new(3, 4), Phase::Ready, 9);
        let mut bytes = minted.bytes().to_vec();
        bytes.extend_from_slice(b"a field of a later version");
        let read = Record::parse(&cluster(), bytes.clone()).unwrap();
        assert_eq!(read.profile(), minted.profile());
        assert_eq!((read.incarnation(), read.phase(), read.life()), (Incarnation::new(3, 4), Phase::Ready, 9));
        assert_eq!(read.bytes(), bytes);
        assert_ne!(read.hash(), minted.hash(), "the digest covers what this version cannot read");
    }

    #[test]
    fn profiles_beyond_their_limits_are_refused() {
        let mut long = profile("a", 1);
        long.tags = alloc::vec![("k".into(), "v".repeat(129))];
        assert_eq!(long.validate(), Err(InvalidProfile::TagValue("k".into())));
        let mut many = profile("a", 1);
        many.tags = (0..17).map(|i| (alloc::format!("{i:02}"), String::new())).collect();
        assert_eq!(many.validate(), Err(InvalidProfile::TooManyTags(17)));
        let mut heavy = profile("a", 1);
        heavy.weight = WEIGHT_MAX + 1;
        assert_eq!(heavy.validate(), Err(InvalidProfile::Weight(WEIGHT_MAX + 1)));
    }

    #[test]
    fn a_record_that_was_heard_is_recognised_and_another_is_read() {
        let mut heard = Heard::default();
        let record = |count| {
            Record::mint(&cluster(), &profile("a", 1), Incarnation::new(1, count), Phase::Ready, 1).bytes().to_vec()
        };
        let first = heard.parse(&cluster(), record(0)).unwrap();
        assert!(Arc::ptr_eq(&first.0, &heard.parse(&cluster(), record(0)).unwrap().0));
        for count in 1..=10 * HEARD as u32 {
            assert_eq!(heard.parse(&cluster(), record(count)).unwrap().incarnation(), Incarnation::new(1, count));
        }
        assert_eq!(heard.records.len(), HEARD);
        assert!(!Arc::ptr_eq(&first.0, &heard.parse(&cluster(), record(0)).unwrap().0), "only the last ones are kept");
        assert!(heard.parse(&cluster(), alloc::vec![0xff; 20]).is_err());
    }
}
