//! Who is who: names, node ids, incarnations, peers.
//!
//! An id never depends on an address: a node that moves keeps its id.

use alloc::string::String;
use alloc::sync::Arc;
use core::fmt;
use core::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Longest node or cluster name, in bytes.
pub const NAME_BYTES_MAX: usize = 63;

/// A node's or a cluster's name: `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

/// A name that does not follow the rule; the caller's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a name: 1 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'")]
pub struct InvalidName(pub String);

impl Name {
    /// Checks `text` against the rule.
    pub fn new(text: &str) -> Result<Self, InvalidName> {
        let bytes = text.as_bytes();
        let letters = bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
        let ends = bytes.first().is_some_and(|b| *b != b'-') && bytes.last().is_some_and(|b| *b != b'-');
        if letters && ends && bytes.len() <= NAME_BYTES_MAX {
            Ok(Self(Arc::from(text)))
        } else {
            Err(InvalidName(text.chars().take(80).collect()))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl core::str::FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::new(text)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A node's identity: 16 bytes of blake3 over its length-prefixed cluster and name.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId([u8; 16]);

impl NodeId {
    /// The lowest id; a bound for ranges, not a node.
    pub const MIN: Self = Self([0; 16]);
    /// The highest id; a bound for ranges, not a node.
    pub const MAX: Self = Self([255; 16]);

    /// The id of the node `name` in `cluster`.
    pub fn of(cluster: &Name, name: &Name) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("swimring 1 node id");
        for part in [cluster, name] {
            hasher.update(&(part.as_str().len() as u64).to_le_bytes());
            hasher.update(part.as_str().as_bytes());
        }
        let mut id = [0; 16];
        hasher.finalize_xof().fill(&mut id);
        Self(id)
    }

    /// An id from its bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes of the id.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The id as a number, in the order of ids.
    pub const fn to_u128(self) -> u128 {
        u128::from_be_bytes(self.0)
    }

    /// The id with this number.
    pub const fn from_u128(number: u128) -> Self {
        Self(number.to_be_bytes())
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.to_u128())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.to_u128() >> 96)
    }
}

/// How new a statement about a node is: its boot (process life), then a count within that boot.
///
/// Only the subject raises it. Written `BOOT.COUNT`.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct Incarnation {
    /// Which life of the name; kept in the state directory and raised by every start. The first is 1.
    pub boot: u32,
    /// How often the process has restated itself (refutations, changes of its record).
    pub count: u32,
}

impl Incarnation {
    /// The incarnation `count` of `boot`.
    pub const fn new(boot: u32, count: u32) -> Self {
        Self { boot, count }
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.boot, self.count)
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One process of a node: what a call is bound to.
///
/// The life is a random number of the process, not its boot: a boot can be claimed twice (a lost or copied
/// state directory), a life cannot.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Instance {
    /// The node.
    pub node: NodeId,
    /// The process.
    pub life: u64,
}

/// The other end of a connection: a node at the gossip address that it advertises.
///
/// The id is authenticated by the driver. The address tells apart two processes that hold one certificate.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// The node that the certificate names.
    pub id: NodeId,
    /// Where it says it listens for gossip.
    pub address: SocketAddr,
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn names_follow_the_rule() {
        for good in ["a", "a1", "node-1", &"x".repeat(63)] {
            assert!(Name::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "ä", &"x".repeat(64)] {
            assert!(Name::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_depend_on_where_the_cluster_ends_and_the_name_begins() {
        let name = |text| Name::new(text).unwrap();
        assert_ne!(NodeId::of(&name("ab"), &name("c")), NodeId::of(&name("a"), &name("bc")));
    }

    #[test]
    fn ids_are_pinned_across_releases() {
        let id = NodeId::of(&Name::new("demo").unwrap(), &Name::new("n1").unwrap());
        assert_eq!(id.to_string(), "e7acff30c36a700576ce89eb9e4177fc");
    }
}
