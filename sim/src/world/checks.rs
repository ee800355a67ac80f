//! What must hold of the connections of every process.

use std::collections::{BTreeMap, BTreeSet};

use swimring::core::peers::PeersEvent;
use swimring_membership::Peer;

use super::*;
use crate::host::peers_config;

impl World {
    /// After the connections of a process have changed.
    pub(crate) fn check_connections(&mut self, host: usize, class: Class) {
        self.check_limits(host, class);
        self.check_lives(host, class);
    }

    /// No process has more connections than it says, in all and to one node.
    fn check_limits(&mut self, host: usize, class: Class) {
        let Some(peers) = self.hosts[host].peers(class) else { return };
        let limits = peers_config(class);
        let total = peers.len();
        let mut nodes = BTreeMap::new();
        peers.connections().for_each(|(_, peer, _)| *nodes.entry(peer.id).or_insert(0) += 1);
        let most = nodes.into_values().max().unwrap_or(0);
        self.check(host, "B2", total <= limits.connections_max && most <= limits.connections_of_node_max, || {
            format!("{total} connections, {most} of them of one node")
        });
    }

    /// Of two processes of a peer, the earlier one is dead: no connection to it is kept beside one to the next.
    fn check_lives(&mut self, host: usize, class: Class) {
        let Some(peers) = self.hosts[host].peers(class) else { return };
        let mut lives = BTreeMap::<Peer, BTreeSet<u64>>::new();
        peers.connections().for_each(|(_, peer, life)| _ = lives.entry(peer).or_default().insert(life));
        let both =
            lives.into_iter().find(|(peer, lives)| lives.len() > 1 && self.by_address.contains_key(&peer.address));
        self.check(host, "P5", both.is_none(), || format!("is connected to two processes of a node: {both:?}"));
    }

    /// Every call that has been queued or handed over waits for something that will end.
    pub(crate) fn check_calls(&mut self, index: usize) {
        let stuck = self.hosts[index].app.as_ref().and_then(crate::calls::App::stuck);
        self.check(index, "P4", stuck.is_none(), || format!("calls to {stuck:?} wait for nothing"));
    }

    /// What is closed as a duplicate is one of two.
    pub(crate) fn check_close(&mut self, process: Process, conn: ConnId, why: Goodbye) {
        let Some(held) = self.network.conns.get(&conn.0).filter(|_| why == Goodbye::Duplicate) else { return };
        let Some(other) = held.ends.iter().map(|end| end.process).find(|other| *other != process) else { return };
        let (class, address) = (held.class, self.hosts[other.host].address);
        let Some(peers) = self.hosts[process.host].peers(class) else { return };
        let another = peers.connections().any(|(id, peer, _)| id != conn && peer.address == address);
        self.check(process.host, "P6", another, || format!("closes its only connection to {address} as a duplicate"));
    }

    /// A shared address is tried again, whoever answered there before; even if that was the process itself.
    pub(crate) fn check_shared_address(&mut self, host: usize) {
        let machine = &self.hosts[host];
        // The first node began the cluster, and knows no seed.
        let old = self.now.since(machine.started) > Duration::from_secs(150) && (host > 0 || machine.life > 1);
        if self.plan.world.balanced && old {
            let tried = self.dials.has_tried(self.now, machine.process(), Class::Gossip, transport::balancer());
            self.check(host, "P7", tried, || "has not tried the shared address for two minutes".into());
        }
    }

    /// A process is gone from the view: its gossip connections are closed.
    pub(crate) fn check_gone(&mut self, host: usize, peer: Peer, life: u64) {
        let Some(peers) = self.hosts[host].peers(Class::Gossip) else { return };
        let held = peers.connections().any(|(_, other, process)| (other, process) == (peer, life));
        self.check(host, "P5", !held, || format!("is still connected to {}, which is gone", peer.address));
    }

    /// What waits for a connection is waiting for a dial; unless the word of its end is still to be read.
    pub(crate) fn check_waiting(&mut self, index: usize, class: Class) {
        let host = &self.hosts[index];
        let waiting = match class {
            Class::Gossip => host.control.as_ref().map_or(0, |control| control.waiting()),
            Class::Calls => host.app.as_ref().map_or(0, crate::calls::App::waiting),
        };
        let unread = !host.inbox.is_empty() || host.busy_until > self.now;
        let idle = self.dials.are_over(host.process(), class) && !unread && !host.closed;
        self.check(index, "P4", waiting == 0 || !idle, || {
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
                self.dials.wait(process, class, *target, self.now + *wait * 998 / 1_000);
                let limits = peers_config(class);
                let doubled = limits.retry_min * (1 << (failures - 1).min(10));
                // Jitter is a quarter, either way.
                let due = doubled.min(limits.retry_max);
                self.check(index, "H2", *wait <= due * 5 / 4 && *wait >= due * 3 / 4, || {
                    format!("waits {wait:?} after {failures} failures in a row")
                });
            }
            _ => {}
        }
    }
}
