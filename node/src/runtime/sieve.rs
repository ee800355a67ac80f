//! Counts what comes in on a socket, and keeps from the transport what no peer of ours can have sent.
//!
//! quinn passes over garbage without counting it, and answers some of it. Peers speak QUIC version 1 and leave
//! the fixed bit alone, so most garbage shows in its first five bytes.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use metrics::{Counter, counter};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, ConnectionId, ConnectionIdGenerator, UdpPoller};
use quinn_proto::HashedConnectionIdGenerator;

use super::metrics::{DATAGRAMS, DATAGRAMS_REFUSED, class_name};
use crate::core::hello::Class;

/// The one version that is spoken.
pub(crate) const QUIC_VERSION: u32 = 1;
/// The bit that says long header.
const LONG: u8 = 0x80;
/// The bit that every packet of QUIC version 1 has set.
const FIXED: u8 = 0x40;
/// Bytes of the connection ids that this node gives out.
const CONNECTION_ID_BYTES: usize = 8;

/// A socket that counts.
#[derive(Debug)]
pub(crate) struct Sieve {
    socket: Arc<dyn AsyncUdpSocket>,
    ids: Ids,
    received: Count,
    not_quic: Count,
    version: Count,
    no_connection: Count,
    warned: AtomicBool,
}

/// The connection ids of a node: made and recognised by a key, in this life and the next.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Ids(u64);

impl Ids {
    pub(crate) fn new(key: u64) -> Self {
        Self(key)
    }

    pub(crate) fn generator(self) -> HashedConnectionIdGenerator {
        HashedConnectionIdGenerator::from_key(self.0)
    }
}

/// A counter that can be shown.
struct Count(Counter);

impl std::fmt::Debug for Count {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Count")
    }
}

/// What the first bytes of a datagram say.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Looks {
    /// Like a packet for one of this node's connections, or the first of a new one.
    Good,
    /// Like a packet for a connection that never was, or a reset.
    Unknown,
    /// Like a version that nobody here speaks.
    Version,
    /// Like nothing.
    Noise,
}

fn looks(datagram: &[u8], ids: Ids) -> Looks {
    match datagram.split_first() {
        Some((first, _)) if first & FIXED == 0 => Looks::Noise,
        Some((first, rest)) if first & LONG != 0 => match rest.first_chunk() {
            // Version 0 says which versions the other end speaks.
            Some(version) if [0, QUIC_VERSION].contains(&u32::from_be_bytes(*version)) => Looks::Good,
            Some(_) => Looks::Version,
            None => Looks::Noise,
        },
        Some((_, rest)) => match rest.get(..CONNECTION_ID_BYTES) {
            Some(id) if ids.generator().validate(&ConnectionId::new(id)).is_ok() => Looks::Good,
            Some(_) => Looks::Unknown,
            None => Looks::Noise,
        },
        None => Looks::Noise,
    }
}

impl Sieve {
    pub(crate) fn new(socket: Arc<dyn AsyncUdpSocket>, class: Class, ids: Ids) -> Self {
        let class = class_name(class);
        let refused = |reason| Count(counter!(DATAGRAMS_REFUSED, "class" => class, "reason" => reason));
        Self {
            socket,
            ids,
            received: Count(counter!(DATAGRAMS, "class" => class)),
            not_quic: refused("not_quic"),
            version: refused("version"),
            no_connection: refused("no_connection"),
            warned: AtomicBool::new(false),
        }
    }

    /// Counts the datagrams of one buffer; true if the transport has to see any of them.
    fn count(&self, from: SocketAddr, buffer: &[u8], stride: usize) -> bool {
        let mut wanted = false;
        for datagram in buffer.chunks(stride.max(1)) {
            self.received.0.increment(1);
            match looks(datagram, self.ids) {
                Looks::Good => wanted = true,
                Looks::Unknown => {
                    self.no_connection.0.increment(1);
                    wanted = true;
                }
                Looks::Version => self.version.0.increment(1),
                Looks::Noise => self.not_quic.0.increment(1),
            }
        }
        if !wanted && !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(%from, "datagrams come in that no node sends; from now on they are only counted");
        }
        wanted
    }
}

impl AsyncUdpSocket for Sieve {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.socket.poll_recv(context, buffers, metas))?;
        for (meta, buffer) in metas[..count].iter_mut().zip(buffers.iter()) {
            if !self.count(meta.addr, &buffer[..meta.len], meta.stride) {
                meta.len = 0;
            }
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_peer_can_have_sent_looks_good() {
        let ids = Ids::new(7);
        let own = ids.generator().generate_cid();
        let short = |id: &[u8]| [&[0x41], id, &[0; 20]].concat();
        assert_eq!(looks(&short(&own), ids), Looks::Good);
        assert_eq!(looks(&short(&[9; 8]), ids), Looks::Unknown);
        assert_eq!(looks(&[0xc3, 0, 0, 0, 1, 8], ids), Looks::Good);
        assert_eq!(looks(&[0xc3, 0, 0, 0, 2, 8], ids), Looks::Version);
        assert_eq!(looks(&[0x01; 40], ids), Looks::Noise);
        for short in [&[][..], &[0x41], &[0xc3, 0, 0]] {
            assert_eq!(looks(short, ids), Looks::Noise);
        }
    }
}
