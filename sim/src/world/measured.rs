//! What passes in a stretch of time, and what is said of whom.

use std::fmt;

use serde::Serialize;

use super::*;
use crate::memberlist::Failure;
use crate::network::Traffic;

/// What passed in a stretch of time.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// From when, in seconds of world time.
    pub from_s: f64,
    /// To when.
    pub to_s: f64,
    /// Processes that were up, on average.
    pub nodes: f64,
    /// Bytes that a node sent in a second, headers and acknowledgements included.
    pub sent_bytes_per_node_s: f64,
    /// Bytes that a node got in a second.
    pub received_bytes_per_node_s: f64,
    /// Packets that a node sent in a second.
    pub sent_packets_per_node_s: f64,
    /// Handshakes that a node began in an hour.
    pub handshakes_per_node_h: f64,
    /// How often somebody was declared down.
    pub downs: u64,
    /// How often of them it was somebody who was up.
    pub false_downs: u64,
    #[serde(skip)]
    before: Option<(Traffic, f64)>,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "from {:.0} s to {:.0} s: {:.0} nodes, each sent {:.0} bytes in {:.1} packets a second, got {:.0} bytes, and \
             began {:.1} handshakes an hour; declared down {} times, of them {} somebody who was up",
            self.from_s,
            self.to_s,
            self.nodes,
            self.sent_bytes_per_node_s,
            self.sent_packets_per_node_s,
            self.received_bytes_per_node_s,
            self.handshakes_per_node_h,
            self.downs,
            self.false_downs
        )
    }
}

impl World {
    /// Begins to measure.
    pub(crate) fn measure(&mut self, until: Instant) -> usize {
        let number = self.measured.len();
        self.measured.push(Measured {
            from_s: self.now.as_nanos() as f64 / 1e9,
            to_s: 0.0,
            nodes: 0.0,
            sent_bytes_per_node_s: 0.0,
            received_bytes_per_node_s: 0.0,
            sent_packets_per_node_s: 0.0,
            handshakes_per_node_h: 0.0,
            downs: 0,
            false_downs: 0,
            before: Some((self.network.total(), self.node_seconds())),
        });
        self.schedule(until, Happening::End(crate::faults::Ending::Measure(number)));
        1
    }

    pub(crate) fn end_measure(&mut self, number: usize) {
        let (total, node_seconds, now) = (self.network.total(), self.node_seconds(), self.now);
        let measured = &mut self.measured[number];
        let Some((before, node_seconds_before)) = measured.before.take() else { return };
        measured.to_s = now.as_nanos() as f64 / 1e9;
        let node_seconds = (node_seconds - node_seconds_before).max(f64::MIN_POSITIVE);
        let per_node_s = |after: u64, before: u64| (after - before) as f64 / node_seconds;
        measured.nodes = node_seconds / (measured.to_s - measured.from_s);
        measured.sent_bytes_per_node_s = per_node_s(total.sent.bytes, before.sent.bytes);
        measured.received_bytes_per_node_s = per_node_s(total.received.bytes, before.received.bytes);
        measured.sent_packets_per_node_s = per_node_s(total.sent.packets, before.sent.packets);
        measured.handshakes_per_node_h = per_node_s(total.handshakes, before.handshakes) * 3_600.0;
    }

    /// How many members everybody who is up sees.
    pub fn sizes(&self) -> impl Iterator<Item = usize> {
        let up = self.hosts.iter().filter_map(|host| host.control.as_ref());
        up.map(|control| control.membership().roster().present_count())
    }

    /// From now on keeps who declares whom down.
    pub fn keep_downs(&mut self) {
        self.downs = Some(Vec::new());
    }

    /// Who declared whom down.
    pub fn downs(&self) -> &[Failure] {
        self.downs.as_deref().unwrap_or_default()
    }

    /// Somebody declared a node down.
    pub(super) fn count_down(&mut self, observer: usize, id: swimring_membership::NodeId) {
        if self.downs.is_none() && self.measured.iter().all(|measured| measured.before.is_none()) {
            return;
        }
        let Some(subject) = self.hosts.iter().position(|host| host.id == id) else { return };
        let up = self.hosts[subject].is_up();
        let at = self.now;
        self.downs.iter_mut().for_each(|downs| downs.push(Failure { at, observer, subject }));
        for measured in self.measured.iter_mut().filter(|measured| measured.before.is_some()) {
            measured.downs += 1;
            measured.false_downs += u64::from(up);
        }
    }
}
