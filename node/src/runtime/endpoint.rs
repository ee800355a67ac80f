//! One QUIC endpoint of a class: dialling and accepting up to the answered hello.
//!
//! A dial has succeeded when the hello was answered, for in TLS 1.3 the dialler's handshake completes before
//! its certificate is judged.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quinn::{Connection, Endpoint, EndpointConfig, RecvStream, SendStream, TransportErrorCode, VarInt};
use swimring_membership::{Instant, NodeId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::metrics;
use super::once::Once;
use super::sieve::{Ids, QUIC_VERSION, Sieve};
use super::system::{Clock, Socket, System};
use super::tls::{CALLS_PACKET_BYTES_MAX, Tls, certified};
use crate::core::hello::{Answer, Class, HELLO_BYTES_MAX, Hello, Refusal};
use crate::core::peers::{ConnId, Goodbye};

/// How long the other end of a new connection may take to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(3);

/// Most strangers greeted at once, on each port.
pub(crate) const GREETINGS_MAX: usize = 256;

/// Numbers every connection of this process, whatever its class.
static NEXT_CONN: AtomicU64 = AtomicU64::new(1);

/// A connection whose hello was answered.
pub(crate) struct Established {
    pub(crate) id: ConnId,
    pub(crate) connection: Connection,
    /// The stream of the hello; it stays open and carries the class's frames.
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
    /// What the other end said.
    pub(crate) hello: Hello,
    /// When this end asked, if it dialled.
    pub(crate) asked: Option<Instant>,
}

/// Why a dial failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("{0}")]
    Connect(#[from] quinn::ConnectError),
    #[error("{0}")]
    Connection(quinn::ConnectionError),
    #[error("{0}")]
    Refused(Refusal),
    #[error("what the other end said first is no hello")]
    Malformed,
    #[error("the other end did not say who it is in time")]
    Silent,
}

impl From<quinn::ConnectionError> for DialError {
    fn from(error: quinn::ConnectionError) -> Self {
        Self::Connection(error)
    }
}

impl DialError {
    /// In words that say whose certificate was not accepted, where that is the reason.
    pub(crate) fn explain(&self) -> String {
        let theirs = match self {
            Self::Connection(quinn::ConnectionError::ConnectionClosed(close)) => Some(close.error_code),
            Self::Connection(quinn::ConnectionError::TransportError(error)) if error.reason.is_empty() => {
                Some(error.code)
            }
            _ => None,
        };
        match theirs {
            Some(code) if is_certificate_alert(code) => {
                format!("the other end does not accept this node's certificate ({self})")
            }
            _ => self.to_string(),
        }
    }

    /// Whether one of the two certificates was not accepted.
    pub(crate) fn is_about_a_certificate(&self) -> bool {
        match self {
            Self::Connection(quinn::ConnectionError::ConnectionClosed(close)) => is_certificate_alert(close.error_code),
            Self::Connection(quinn::ConnectionError::TransportError(error)) => is_certificate_alert(error.code),
            _ => false,
        }
    }
}

/// The TLS alerts that a certificate or its proof leads to: 42 to 51, 113 to 116, carried as QUIC errors 0x100 and up.
fn is_certificate_alert(code: TransportErrorCode) -> bool {
    let code: u64 = code.into();
    matches!(code.checked_sub(0x100), Some(42..=51 | 113..=116))
}

/// What a node signs and recognises its own packets by. The same in every life, so that a restarted process can
/// tell the peers of its earlier one that their connections are gone.
#[derive(Copy, Clone)]
pub(crate) struct TransportKeys {
    reset: [u8; 32],
    ids: Ids,
}

impl TransportKeys {
    /// Of the port for `class` of the node with this private key. One port must not answer for the other: what it
    /// says of a connection that it does not know would end the other's.
    pub(crate) fn of(class: Class, private_key: &[u8]) -> Self {
        let derive = |context: &str| {
            let mut hasher = blake3::Hasher::new_derive_key(context);
            *hasher.update(metrics::class_name(class).as_bytes()).update(private_key).finalize().as_bytes()
        };
        let ids = derive("swimring 1 connection ids");
        Self {
            reset: derive("swimring 1 stateless reset"),
            ids: Ids::new(u64::from_le_bytes(*ids.first_chunk().expect("a key has 32 bytes"))),
        }
    }
}

/// A class's endpoint.
#[derive(Clone)]
pub(crate) struct Port {
    class: Class,
    endpoint: Endpoint,
    tls: Tls,
    clock: Clock,
    said: Arc<Once>,
}

impl Port {
    /// Listens. Must be called within the runtime that drives the socket.
    pub(crate) fn open(
        class: Class,
        socket: Socket,
        system: &Arc<dyn System>,
        tls: Tls,
        keys: TransportKeys,
    ) -> io::Result<Self> {
        let runtime = system.runtime();
        let socket = Arc::new(Sieve::new(socket.open(runtime.as_ref())?, class, keys.ids));
        let mut config = EndpointConfig::new(Arc::new(ResetKey(keys.reset)));
        config.cid_generator(move || Box::new(keys.ids.generator()));
        // The fixed bit, which greasing would leave to chance, tells garbage from packets.
        config.grease_quic_bit(false).supported_versions(vec![QUIC_VERSION]);
        if class == Class::Calls {
            config.max_udp_payload_size(CALLS_PACKET_BYTES_MAX).map_err(io::Error::other)?;
        }
        let endpoint = Endpoint::new_with_abstract_socket(config, Some(tls.server(class)), socket, runtime)?;
        Ok(Self { class, endpoint, tls, clock: Clock::new(Arc::clone(system)), said: Arc::default() })
    }

    /// Whether this has to be said of whoever is at `address`, or was said before.
    pub(crate) fn is_new(&self, address: SocketAddr, problem: &impl std::fmt::Display) -> bool {
        // Whoever tries again does so from another port.
        self.is_news(&address.ip(), problem)
    }

    /// Whether this has to be said of `whom`, or was said before.
    pub(crate) fn is_news(&self, whom: &impl std::fmt::Display, problem: &impl std::fmt::Display) -> bool {
        self.said.is_new(self.clock.now(), format!("{whom} {problem}"))
    }

    /// Where it listens.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Connects and says hello.
    pub(crate) async fn dial(
        &self,
        address: SocketAddr,
        expect: Option<NodeId>,
        hello: Hello,
    ) -> Result<Established, DialError> {
        let config = self.tls.client(self.class, expect);
        let connection = self.endpoint.connect_with(config, address, "node.swimring")?.await?;
        let (mut send, mut recv) = connection.open_bi().await?;
        let asked = self.clock.now();
        let mut bytes = Vec::new();
        Hello { clock: asked.as_nanos(), ..hello }.encode(&mut bytes);
        let lost = |_| DialError::Connection(connection.close_reason().unwrap_or(quinn::ConnectionError::TimedOut));
        send.write_all(&bytes).await.map_err(lost)?;
        let answer = read_block(&mut recv).await;
        let Some(answer) = answer else {
            return Err(connection.close_reason().map_or(DialError::Malformed, DialError::Connection));
        };
        match Answer::decode(&answer) {
            Ok(Answer::Welcome(hello)) => {
                let id = next_conn();
                Ok(Established { id, connection, send, recv, hello, asked: Some(asked) })
            }
            Ok(Answer::Refused(refusal)) => Err(DialError::Refused(refusal)),
            Err(_) => Err(DialError::Malformed),
        }
    }

    /// The next connection that somebody wants, before its handshake, and its place among those greeted. Whoever
    /// comes when half of the places are taken has to prove its address first; when all are, it is turned away.
    pub(crate) async fn accept(&self, places: &Arc<Semaphore>) -> Option<(quinn::Incoming, OwnedSemaphorePermit)> {
        loop {
            let incoming = self.endpoint.accept().await?;
            let free = places.available_permits();
            match Arc::clone(places).try_acquire_owned() {
                Err(_) => {
                    metrics::hello_refused(self.class, Refusal::Full);
                    incoming.refuse();
                }
                Ok(_) if free < GREETINGS_MAX / 2 && incoming.may_retry() => _ = incoming.retry(),
                Ok(place) => return Some((incoming, place)),
            }
        }
    }

    /// Shakes hands with whoever dialled, and hears who it is. The answer is the caller's to give.
    pub(crate) async fn greet(incoming: quinn::Incoming) -> Result<(Established, NodeId), DialError> {
        let connection = match tokio::time::timeout(HELLO_TIMEOUT, incoming).await {
            Ok(connection) => connection?,
            Err(_) => return Err(DialError::Silent),
        };
        let stream = tokio::time::timeout(HELLO_TIMEOUT, connection.accept_bi()).await;
        let (send, mut recv) = match stream {
            Ok(stream) => stream?,
            Err(_) => return Err(hung_up(&connection, DialError::Silent)),
        };
        let block = match tokio::time::timeout(HELLO_TIMEOUT, read_block(&mut recv)).await {
            Ok(Some(block)) => block,
            Ok(None) => return Err(hung_up(&connection, DialError::Malformed)),
            Err(_) => return Err(hung_up(&connection, DialError::Silent)),
        };
        let hello = match Hello::decode(&block) {
            Ok(hello) => hello,
            Err(refusal) => {
                let mut stranger = Established { id: ConnId(0), connection, send, recv, hello: NOBODY, asked: None };
                stranger.answer(&Answer::Refused(refusal)).await;
                return Err(DialError::Refused(refusal));
            }
        };
        let Some(node) = certified(&connection) else {
            return Err(hung_up(&connection, DialError::Malformed));
        };
        Ok((Established { id: next_conn(), connection, send, recv, hello, asked: None }, node))
    }

    /// Ends everything.
    pub(crate) async fn close(&self) {
        self.endpoint.close(close_code(Goodbye::Leaving), b"leaving");
        let _ = tokio::time::timeout(super::system::CLOSE_GRACE, self.endpoint.wait_idle()).await;
    }
}

/// Stands in for whoever has not said who it is.
const NOBODY: Hello = Hello {
    class: Class::Gossip,
    peer: swimring_membership::Peer {
        id: NodeId::MIN,
        address: SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::UNSPECIFIED, 0)),
    },
    life: 0,
    fingerprint: [0; 16],
    clock: 0,
    anew: false,
};

fn hung_up(connection: &Connection, why: DialError) -> DialError {
    connection.close(close_code(Goodbye::Malformed), b"no hello");
    why
}

fn next_conn() -> ConnId {
    ConnId(NEXT_CONN.fetch_add(1, Ordering::Relaxed))
}

/// The application's error code on a closed connection.
pub(crate) fn close_code(why: Goodbye) -> VarInt {
    VarInt::from_u32(match why {
        Goodbye::Duplicate => 1,
        Goodbye::Gone => 2,
        Goodbye::Leaving => 3,
        Goodbye::Malformed => 4,
        Goodbye::Full => 5,
        Goodbye::Late => 6,
        Goodbye::Unused => 7,
        Goodbye::Silent => 8,
    })
}

impl Established {
    /// Answers the hello; a refusal ends the connection once it has arrived.
    pub(crate) async fn answer(&mut self, answer: &Answer) {
        let mut bytes = Vec::new();
        answer.encode(&mut bytes);
        // Whoever gives no credit for an answer gets none.
        let written = tokio::time::timeout(HELLO_TIMEOUT, self.send.write_all(&bytes)).await;
        let written = matches!(written, Ok(Ok(())));
        if matches!(answer, Answer::Refused(_)) || !written {
            let _ = self.send.finish();
            let _ = tokio::time::timeout(HELLO_TIMEOUT, self.send.stopped()).await;
            self.connection.close(close_code(Goodbye::Malformed), b"refused");
        }
    }
}

/// A block with its length in front, as hellos have.
async fn read_block(recv: &mut RecvStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    recv.read_exact(&mut length).await.ok()?;
    let length = usize::from(u16::from_le_bytes(length));
    if length > HELLO_BYTES_MAX {
        return None;
    }
    let mut block = vec![0; length];
    recv.read_exact(&mut block).await.ok()?;
    Some(block)
}

/// Signs stateless resets.
struct ResetKey([u8; 32]);

impl quinn::crypto::HmacKey for ResetKey {
    fn sign(&self, data: &[u8], out: &mut [u8]) {
        blake3::Hasher::new_keyed(&self.0).update(data).finalize_xof().fill(out);
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), quinn::crypto::CryptoError> {
        let mut expected = [0; 32];
        self.sign(data, &mut expected);
        if blake3::Hash::from(expected) == <[u8; 32]>::try_from(signature).map_err(|_| quinn::crypto::CryptoError)? {
            Ok(())
        } else {
            Err(quinn::crypto::CryptoError)
        }
    }
}
