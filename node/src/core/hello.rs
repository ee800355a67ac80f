//! The first frame of every connection: who speaks, in which version, for which cluster.
//!
//! The certificate has proved the node and the cluster's name before; the hello proves that both ends share
//! the cluster's secret and constants, and tells apart two processes with one certificate.

use serde::{Deserialize, Serialize};
use swimring_membership::codec::{self, Malformed};
use swimring_membership::{Instant, Peer};

/// The first bytes of a hello: tells a stranger's stream at once.
const MAGIC: [u8; 4] = *b"swrg";
/// The newest protocol version that this release speaks.
pub const VERSION: u8 = 1;
/// The oldest one that it still speaks: the one before, once there is one.
pub const OLDEST: u8 = 1;
/// Longest hello or answer, in bytes.
pub const HELLO_BYTES_MAX: usize = 256;

/// What a connection carries.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Serialize, Deserialize)]
pub enum Class {
    /// Membership.
    Gossip,
    /// Calls and replies.
    Calls,
}

/// What a process says first.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// What the connection is for.
    pub class: Class,
    /// The node, and where it listens for gossip.
    pub peer: Peer,
    /// A random number that no other process has.
    pub life: u64,
    /// Keyed by the cluster's secret, over the cluster's constants: differs when either does.
    pub fingerprint: [u8; 16],
    /// The sender's clock when it spoke; the base of the deadlines on this connection.
    pub clock: u64,
    /// The sender dialled, for it has no connection to the other end: one that the other end has is dead.
    pub anew: bool,
}

/// Why a hello was refused.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The other end has another `cluster.key`, or other cluster constants.
    #[error("the other end has another cluster.key or other cluster constants")]
    Cluster,
    /// The hello names another node than the certificate does.
    #[error("the hello names another node than the certificate")]
    Identity,
    /// Dialled oneself.
    #[error("the address is this process itself")]
    Oneself,
    /// The connection is for the other port.
    #[error("the connection is of the other class: gossip and calls have ports of their own")]
    Class,
    /// The versions have nothing in common.
    #[error("the protocol versions have nothing in common")]
    Version,
    /// The process is going away.
    #[error("the process is going away")]
    Leaving,
    /// The process has as many connections as it takes.
    #[error("too many connections")]
    Full,
}

/// The answer to a hello.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Welcome; this is me.
    Welcome(Hello),
    /// No.
    Refused(Refusal),
}

impl Hello {
    /// Appends the hello, length first.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode(self, out);
    }

    /// Reads a hello (without its length).
    ///
    /// # Errors
    /// [`Refusal::Version`] for a stranger, or one who speaks no version of ours.
    pub fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        decode(bytes)
    }

    /// The sender's clock.
    pub fn clock(&self) -> Instant {
        Instant::from_nanos(self.clock)
    }
}

impl Answer {
    /// Appends the answer, length first.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode(self, out);
    }

    /// Reads an answer (without its length).
    ///
    /// # Errors
    /// [`Refusal::Version`] for one who speaks no version of ours.
    pub fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        decode(bytes)
    }
}

/// Length (2 bytes, little endian), magic, the oldest and the newest version that the sender speaks, body. Both ends
/// speak the newest that they have in common. Later versions may append to the body, and change nothing else of it.
fn encode<T: Serialize>(body: &T, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[OLDEST, VERSION]);
    codec::encode(body, out);
    let length = out.len() - start - 2;
    assert!(length <= HELLO_BYTES_MAX, "a hello has a fixed shape");
    out[start..start + 2].copy_from_slice(&(length as u16).to_le_bytes());
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    let body = bytes.strip_prefix(&MAGIC).ok_or(Refusal::Version)?;
    let (&[oldest, newest], body) = body.split_first_chunk().ok_or(Refusal::Version)?;
    if oldest > VERSION || newest < OLDEST {
        return Err(Refusal::Version);
    }
    let (body, _tail) = codec::decode_prefix(body).map_err(|_: Malformed| Refusal::Version)?;
    Ok(body)
}

#[cfg(test)]
mod tests {
    use swimring_membership::NodeId;

    use super::*;

    fn hello() -> (Hello, Vec<u8>) {
        let peer = Peer { id: NodeId::from_u128(1), address: ([10, 0, 0, 1], 7_946).into() };
        let hello = Hello { class: Class::Gossip, peer, life: 2, fingerprint: [3; 16], clock: 4, anew: true };
        let mut bytes = Vec::new();
        hello.encode(&mut bytes);
        (hello, bytes.split_off(2))
    }

    #[test]
    fn a_later_release_that_speaks_this_version_too_is_understood_whatever_it_appends() {
        let (hello, mut bytes) = hello();
        bytes[5] = VERSION + 3;
        bytes.extend_from_slice(b"and more");
        assert_eq!(Hello::decode(&bytes), Ok(hello));
    }

    #[test]
    fn releases_without_a_version_in_common_refuse_each_other() {
        let (_, good) = hello();
        for (oldest, newest) in [(VERSION + 1, VERSION + 2), (0, OLDEST - 1)] {
            let mut bytes = good.clone();
            (bytes[4], bytes[5]) = (oldest, newest);
            assert_eq!(Hello::decode(&bytes), Err(Refusal::Version));
        }
        for length in 0..good.len() {
            assert_eq!(Hello::decode(&good[..length]), Err(Refusal::Version), "{length}");
        }
    }
}
