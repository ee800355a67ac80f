//! Connections that no member asked for: of other clusters, under borrowed names, too many, or speaking nonsense.
//!
//! Their ends are not in the network: nothing that is sent to a stranger arrives anywhere.

use std::net::SocketAddr;
use std::time::Duration;

use swimring::core::hello::{Class, Hello};
use swimring::core::peers::ConnId;
use swimring::forwarder::wire::{CallHeader, Frame, Scope};
use swimring_membership::codec::Slice;
use swimring_membership::wire::{Header, Message, RowBody, Update};
use swimring_membership::{Incarnation, Name, NodeId, Peer, Rng, State};

use crate::calls::CallInput;
use crate::conns::Process;
use crate::host::{Input, cluster, peers_config};
use crate::oracles::Property;
use crate::world::{Happening, World};

/// How many connections a node of strangers opens: more than anybody lets it have.
const CONNECTIONS_OF_NODE: usize = 40;
/// How many lies are told at once.
const LIES: usize = 6;

/// What a stranger tries.
#[derive(Copy, Clone, Debug)]
enum Trick {
    /// Gossip at the port of calls, or the other way round.
    OtherClass,
    /// The secret of another cluster.
    OtherCluster,
    /// Another name than the certificate's.
    BorrowedName,
    /// Nothing: it has a certificate, and does not belong to any node that joins.
    Stay,
    /// The same, and then bytes that are no message.
    Babble,
    /// The same, and has something run.
    Call,
    /// The same, and says of members, and of fences, what nobody can have said.
    Lie,
}

/// A stranger at the door, or what becomes of it.
#[derive(Clone, Debug)]
pub(crate) enum Stranger {
    /// Comes.
    Knocks { at: Process, class: Class, number: usize, until: swimring_membership::Instant },
    /// Says something; perhaps what nobody understands.
    Says { at: Process, class: Class, conn: ConnId, bytes: Vec<u8>, babbles: bool },
    /// Was it shown out?
    Looked { at: Process, class: Class, conn: ConnId },
    /// Goes.
    Goes { at: Process, class: Class, conn: ConnId, since: Duration },
}

impl World {
    /// `count` strangers come to each of some hosts until `until`.
    pub(crate) fn strangers(&mut self, hosts: &[usize], count: usize, until: swimring_membership::Instant) -> usize {
        let span = until.since(self.now);
        for host in hosts {
            let at = self.hosts[*host].process();
            for number in 0..count {
                let class = if self.rng.chance(500_000) { Class::Gossip } else { Class::Calls };
                let when = self.now + self.rng.span(Duration::ZERO, span / 2);
                self.schedule(when, Happening::Stranger(Stranger::Knocks { at, class, number, until }));
            }
        }
        hosts.len()
    }

    pub(crate) fn on_stranger(&mut self, stranger: Stranger) {
        match stranger {
            Stranger::Knocks { at, class, number, until } if self.is_running(at) => {
                self.knock(at, class, number, until);
            }
            Stranger::Says { at, class, conn, bytes, babbles } => {
                let says = input(class, Input::Message(conn, bytes.clone()), CallInput::Frame(conn, bytes.into()));
                // What a busy process never reads breaks nothing.
                let is_read = self.hosts[at.host].has_room_for(&says);
                self.give(at, says);
                if babbles && is_read {
                    let when = self.now + Duration::from_secs(1);
                    self.schedule(when, Happening::Stranger(Stranger::Looked { at, class, conn }));
                }
            }
            Stranger::Looked { at, class, conn } if self.is_running(at) && self.hosts[at.host].inbox.is_empty() => {
                let held = self.peer_of(at.host, class, conn).is_some();
                self.check(at.host, Property::P2, !held, || {
                    "somebody who broke the protocol is still connected".into()
                });
            }
            Stranger::Goes { at, class, conn, since } => {
                if self.is_running(at) {
                    let held = self.peer_of(at.host, class, conn).is_some();
                    let aged = since > peers_config(class, self.plan.world.limits).age_max * 3;
                    self.check(at.host, Property::P2, !(held && aged), || format!("a connection is {since:?} old"));
                }
                self.give(at, input(class, Input::Closed(conn), CallInput::Closed(conn)));
            }
            Stranger::Knocks { .. } | Stranger::Looked { .. } => {}
        }
    }

    fn is_running(&self, process: Process) -> bool {
        let host = &self.hosts[process.host];
        host.process() == process && host.is_up() && !host.stands_still()
    }

    fn knock(&mut self, at: Process, class: Class, number: usize, until: swimring_membership::Instant) {
        let trick = match self.rng.below(8) {
            0 => Trick::OtherClass,
            1 => Trick::OtherCluster,
            2 => Trick::BorrowedName,
            3 => Trick::Babble,
            4 | 5 if class == Class::Calls => Trick::Call,
            4 | 5 => Trick::Lie,
            _ => Trick::Stay,
        };
        let (certified, hello) = stranger(&mut self.rng, class, number, trick);
        let refused = self.judge(at.host, class, &hello, certified).is_err();
        if matches!(trick, Trick::OtherClass | Trick::OtherCluster | Trick::BorrowedName) {
            return self.check(at.host, Property::P2, refused, || format!("let a stranger in: {trick:?}"));
        }
        if refused {
            return;
        }
        let (conn, of) = (ConnId(self.network.conns.number()), hello.peer.id);
        self.give(at, input(class, Input::Accepted(conn, hello), CallInput::Accepted(conn, hello)));
        self.check_connections(at.host, class, of);
        let says = match trick {
            Trick::Babble => Some(vec![0xff; 40]),
            Trick::Call => Some(self.call_of_a_stranger(at.host)),
            Trick::Lie => self.lies(at.host),
            _ => None,
        };
        if let Some(bytes) = says {
            let babbles = matches!(trick, Trick::Babble);
            let when = self.now + Duration::from_millis(10);
            self.schedule(when, Happening::Stranger(Stranger::Says { at, class, conn, bytes, babbles }));
        }
        // A few stay for longer than a connection may last.
        let until = if self.rng.chance(50_000) {
            self.now + peers_config(class, self.plan.world.limits).age_max * 3
        } else {
            until
        };
        let since = until.since(self.now) + Duration::from_nanos(1);
        self.schedule(until, Happening::Stranger(Stranger::Goes { at, class, conn, since }));
    }

    /// A call like any other, but of nobody who belongs to the cluster.
    fn call_of_a_stranger(&mut self, host: usize) -> Vec<u8> {
        let machine = &self.hosts[host];
        let life = machine.control.as_ref().map_or(0, |control| control.membership().record().life());
        let deadline = machine.local(self.now + Duration::from_secs(1)).as_nanos();
        let key = if self.rng.chance(250_000) { String::new() } else { format!("k{}", self.rng.below(1_000)) };
        let life = if self.rng.chance(250_000) { life + 1 } else { life };
        let hop = self.rng.below(5) as u8;
        let (key, service, record, scope) = (Slice(key.as_bytes()), "sim", None, Scope::Owner);
        let context = Slice(&[]);
        let header =
            CallHeader { seq: 1, floor: 0, life, deadline, error_us: 0, hop, service, key, record, scope, context };
        let mut bytes = Vec::new();
        Frame::Call(header).encode(&u64::MAX.to_le_bytes(), &mut bytes);
        bytes
    }

    /// Of everybody the host knows, itself among them: they have lived for so long, and are gone.
    fn lies(&mut self, host: usize) -> Option<Vec<u8>> {
        let roster = self.hosts[host].control.as_ref()?.membership().roster();
        let known: Vec<NodeId> = roster.iter().map(|(id, _)| id).collect();
        let mut bytes = Vec::new();
        if self.rng.chance(500_000) {
            let rows = (0..LIES).map(|_| {
                let id = known[self.rng.index(known.len())];
                let state = if self.rng.chance(500_000) { State::Down } else { State::Left };
                RowBody { id, state, incarnation: Incarnation::new(u32::MAX, 0), record: None }
            });
            Message::Rows { fence: u64::MAX, rows: rows.collect() }.encode(&mut bytes);
            return Some(bytes);
        }
        let updates = (0..LIES).map(|_| {
            let id = known[self.rng.index(known.len())];
            let at = Incarnation::new(u32::MAX - self.rng.below(2) as u32, u32::MAX - self.rng.below(2) as u32);
            match self.rng.below(4) {
                0 => Update::Suspect(id, at, known[0]),
                1 => Update::Down(id, at, vec![0]),
                2 => Update::Notice(id, at),
                _ => Update::Left(id, at),
            }
        });
        let updates = updates.collect();
        let fence = u64::MAX - self.rng.below(2);
        let header = Header { belief: None, digest: 1, fence, fence_heard: fence, updates };
        Message::Rumours { header }.encode(&mut bytes);
        Some(bytes)
    }

    fn peer_of(&self, host: usize, class: Class, conn: ConnId) -> Option<Peer> {
        self.hosts[host].peers(class).and_then(|peers| peers.peer(conn))
    }
}

fn input(class: Class, gossip: Input, calls: CallInput) -> Input {
    match class {
        Class::Gossip => gossip,
        Class::Calls => Input::Call(Box::new(calls)),
    }
}

/// The node that a stranger's certificate names, and what it says.
fn stranger(rng: &mut Rng, class: Class, number: usize, trick: Trick) -> (NodeId, Hello) {
    let name = |number: usize| Name::new(&format!("stranger-{number}")).expect("the name follows the rule");
    let node = number / CONNECTIONS_OF_NODE;
    let certified = NodeId::of(&cluster(), &name(node));
    let named = if matches!(trick, Trick::BorrowedName) { NodeId::of(&cluster(), &name(node + 1)) } else { certified };
    let address = SocketAddr::from(([10, 250, (number >> 8) as u8, number as u8], 7_946));
    let said = match (trick, class) {
        (Trick::OtherClass, Class::Gossip) => Class::Calls,
        (Trick::OtherClass, Class::Calls) => Class::Gossip,
        _ => class,
    };
    let fingerprint = if matches!(trick, Trick::OtherCluster) { [8; 16] } else { [7; 16] };
    (
        certified,
        Hello {
            class: said,
            peer: Peer { id: named, address },
            life: rng.next_u64(),
            fingerprint,
            clock: 1,
            anew: false,
        },
    )
}
