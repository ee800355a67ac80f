//! The first frame of every connection: who speaks, in which version, for which cluster.
//!
//! The certificate has proved the node and the cluster's name before; the hello proves that both ends share
//! the cluster's secret and constants, and tells apart two processes with one certificate.

use serde::{Deserialize, Serialize};
use swimring_membership::codec::{self, Malformed};
use swimring_membership::{Instant, Peer};

/// The first bytes of a hello: tells a stranger's stream at once.
const MAGIC: [u8; 4] = *b"swrg";
/// The protocol version that this release speaks.
pub const VERSION: u8 = 1;
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
    /// [`Refusal::Version`] for a stranger or a version that is not ours.
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
    /// [`Refusal::Version`] for a version that is not ours.
    pub fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        decode(bytes)
    }
}

/// Length (2 bytes, little endian), magic, version, body.
fn encode<T: Serialize>(body: &T, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&MAGIC);
    out.push(VERSION);
    codec::encode(body, out);
    let length = out.len() - start - 2;
    assert!(length <= HELLO_BYTES_MAX, "a hello has a fixed shape");
    out[start..start + 2].copy_from_slice(&(length as u16).to_le_bytes());
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    let body = bytes.strip_prefix(&MAGIC).ok_or(Refusal::Version)?;
    match body.split_first() {
        Some((&VERSION, body)) => codec::decode(body).map_err(|_: Malformed| Refusal::Version),
        _ => Err(Refusal::Version),
    }
}
