//! What must hold of the connections of every process.

use swimring::core::peers::PeersEvent;
use swimring_membership::wire::Message;
use swimring_membership::{NodeId, Peer};

use super::*;
use crate::host::peers_config;

/// Most bytes of a datagram: the setting of every preset.
const DATAGRAM_BYTES_MAX: usize = 1_100;
/// Most bytes of any message, its envelope included.
const MESSAGE_BYTES_MAX: usize = 64 * 1_024 + 64;
/// Of how many messages one is read again.
const READ_EVERY: u64 = 16;

impl World {
    /// After a process got a connection to the node `of`: no process has more than it says, in all and to one node;
    /// and of two processes of a peer the earlier one is dead, so that no connection to it is kept beside one to the
    /// next.
    pub(crate) fn check_connections(&mut self, host: usize, class: Class, of: NodeId) {
        let Some(peers) = self.hosts[host].peers(class) else { return };
        let limits = peers_config(class, self.plan.world.limits);
        let mut theirs: Vec<(Peer, u64)> =
            peers.connections().filter(|(_, peer, _)| peer.id == of).map(|(_, peer, life)| (peer, life)).collect();
        let (total, count) = (peers.len(), theirs.len());
        self.check(
            host,
            Property::B2,
            total <= limits.connections_max && count <= limits.connections_of_node_max,
            || format!("{total} connections, {count} of them of one node"),
        );
        theirs.sort_unstable();
        theirs.dedup();
        let both = theirs
            .windows(2)
            .find(|pair| pair[0].0 == pair[1].0 && self.by_address.contains_key(&pair[0].0.address))
            .map(<[_]>::to_vec);
        self.check(host, Property::P5, both.is_none(), || format!("is connected to two processes of a node: {both:?}"));
    }

    /// A message keeps its limits; one of a few is read, and written again.
    pub(crate) fn check_wire(&mut self, host: usize, delivery: Delivery, bytes: &[u8]) {
        let most = if delivery == Delivery::Datagram { DATAGRAM_BYTES_MAX } else { MESSAGE_BYTES_MAX };
        let fits = bytes.len() <= most;
        let reads = |bytes: &[u8]| match Message::decode(bytes) {
            Ok(Some(message)) => {
                let mut again = Vec::new();
                message.encode(&mut again);
                again == bytes
            }
            _ => false,
        };
        let sound = !self.trace.messages.is_multiple_of(READ_EVERY) || reads(bytes);
        self.check(host, Property::M16, fits && sound, || {
            format!("sends {} bytes by {delivery:?} that break a limit, or read otherwise", bytes.len())
        });
    }

    /// Every call that has been queued or handed over waits for something that will end.
    pub(crate) fn check_calls(&mut self, index: usize) {
        let stuck = self.hosts[index].app.as_mut().and_then(crate::calls::App::stuck);
        self.check(index, Property::P4, stuck.is_none(), || format!("calls to {stuck:?} wait for nothing"));
    }

    /// What is closed as a duplicate is one of two.
    pub(crate) fn check_close(&mut self, process: Process, conn: ConnId, why: Goodbye) {
        let Some(held) = self.network.conns.get(conn.0).filter(|_| why == Goodbye::Duplicate) else { return };
        let Some(other) = held.ends.iter().map(|end| end.process).find(|other| *other != process) else { return };
        let (class, address) = (held.class, self.hosts[other.host].address);
        let Some(peers) = self.hosts[process.host].peers(class) else { return };
        // One that this very step gives up as well is still open.
        let open = |held: &Conn| {
            let mine = held.end_of(process).is_some_and(|end| held.ends[end].open);
            mine && held.class == class && held.ends.iter().any(|end| end.process == other)
        };
        let another = peers.connections().any(|(id, peer, _)| id != conn && peer.address == address)
            || self.network.conns.of_host(process.host).any(|(id, held)| id != conn.0 && open(held));
        self.check(process.host, Property::P6, another, || {
            format!("closes its only connection to {address} as a duplicate")
        });
    }

    /// A shared address is tried again, whoever answered there before; even if that was the process itself.
    pub(crate) fn check_shared_address(&mut self, host: usize) {
        let machine = &self.hosts[host];
        // The first node began the cluster, and knows no seed.
        let old = self.now.since(machine.started) > Duration::from_secs(150) && (host > 0 || machine.life > 1);
        if self.plan.world.balanced && old {
            let tried = self.dials.has_tried(self.now, machine.process(), Class::Gossip, transport::balancer());
            self.check(host, Property::P7, tried, || "has not tried the shared address for two minutes".into());
        }
    }

    /// A process is gone from the view: its gossip connections are closed.
    pub(crate) fn check_gone(&mut self, host: usize, peer: Peer, life: u64) {
        let Some(peers) = self.hosts[host].peers(Class::Gossip) else { return };
        let held = peers.connections().any(|(_, other, process)| (other, process) == (peer, life));
        self.check(host, Property::P5, !held, || format!("is still connected to {}, which is gone", peer.address));
    }

    /// What waits for a connection is waiting for a dial; unless the word of its end is still to be read.
    pub(crate) fn check_waiting(&mut self, index: usize, class: Class) {
        let host = &self.hosts[index];
        let waiting = match class {
            Class::Gossip => {
                let waiting = host.control.iter().flat_map(|control| control.waiting());
                let stuck = waiting.filter(|(target, _)| !self.dials.seed_waits(self.now, host.process(), *target));
                stuck.map(|(_, messages)| messages).sum()
            }
            Class::Calls => host.app.as_ref().map_or(0, crate::calls::App::waiting),
        };
        let is_idle = || {
            let unread = !host.inbox.is_empty() || host.busy_until > self.now;
            !unread && !host.closed && self.dials.are_over(host.process(), class)
        };
        let holds = waiting == 0 || !is_idle();
        self.check(index, Property::P4, holds, || {
            format!("{waiting} wait for a connection of {class:?}, and nobody dials")
        });
    }

    /// After a dial that failed there is a wait, which depends on how often it failed since it last did not.
    pub(crate) fn watch_waits(&mut self, index: usize, class: Class, event: &PeersEvent) {
        let process = self.hosts[index].process();
        match event {
            PeersEvent::Up { dialled: Some(target), .. } => {
                self.dials.failures(process, class, *target, true);
            }
            PeersEvent::Failed { target, .. } if self.dials.forgets(self.now, process, class, *target) => {}
            PeersEvent::Failed { target, wait, .. } => {
                let failures = self.dials.failures(process, class, *target, false);
                // A clock that drifts is a thousandth wrong at most.
                self.dials.wait(self.now, process, class, *target, self.now + *wait * 998 / 1_000);
                let limits = peers_config(class, self.plan.world.limits);
                let doubled = limits.retry_min * (1 << (failures - 1).min(10));
                // Jitter is a quarter, either way.
                let due = doubled.min(limits.retry_max);
                self.check(index, Property::H2, *wait <= due * 5 / 4 && *wait >= due * 3 / 4, || {
                    format!("waits {wait:?} after {failures} failures in a row")
                });
            }
            _ => {}
        }
    }
}
