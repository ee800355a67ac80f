//! The modelled network: which packets pass, how long they take, and what connections there are.
//!
//! A decision about a packet draws from the stream of its sender, so that one more packet elsewhere never
//! changes it. Cuts are layers over all pairs; nothing is kept per pair.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use swimring::core::hello::Class;
use swimring_membership::{Instant, Rng};

use crate::plan::{Latency, LinkRule, Pairs, Side};

/// A process: which host, and which of its lives.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Process {
    /// Index of the host.
    pub host: usize,
    /// Counts its starts.
    pub life: u32,
}

/// One end of a connection.
#[derive(Clone, Debug)]
pub struct End {
    /// Whose.
    pub process: Process,
    /// Whether this end still believes in the connection.
    pub open: bool,
    /// When it last heard anything of the other end.
    pub heard: Instant,
    lanes: [Lane; LANES],
}

/// A stream of ordered frames.
#[derive(Clone, Debug, Default)]
struct Lane {
    /// The next number to send.
    sent: u64,
    /// The next number to deliver.
    delivered: u64,
    early: BTreeMap<u64, Vec<u8>>,
}

/// The place of a frame: on which lane, and which number there.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Place {
    lane: usize,
    number: u64,
}

/// Streams of a connection that keep the order of what is written on them.
pub(crate) const LANES: usize = 2;

impl End {
    fn new(process: Process, now: Instant) -> Self {
        Self { process, open: true, heard: now, lanes: Default::default() }
    }
}

impl End {
    /// The place of the next frame on a lane.
    pub(crate) fn take_place(&mut self, lane: usize) -> Place {
        let number = self.lanes[lane].sent;
        self.lanes[lane].sent += 1;
        Place { lane, number }
    }

    /// A frame came: all frames of its lane that are there and whose turn it is.
    pub(crate) fn in_order(&mut self, place: Place, bytes: Vec<u8>) -> Vec<Vec<u8>> {
        let lane = &mut self.lanes[place.lane];
        lane.early.insert(place.number, bytes);
        let mut ready = Vec::new();
        while let Some(bytes) = lane.early.remove(&lane.delivered) {
            lane.delivered += 1;
            ready.push(bytes);
        }
        ready
    }
}

/// A connection: the dialler's end first.
#[derive(Clone, Debug)]
pub struct Conn {
    /// What it carries.
    pub class: Class,
    /// Dialler, acceptor.
    pub ends: [End; 2],
}

impl Conn {
    pub(crate) fn new(class: Class, dialler: Process, acceptor: Process, now: Instant) -> Self {
        Self { class, ends: [End::new(dialler, now), End::new(acceptor, now)] }
    }

    /// Whether `process` is one of the ends, and has not closed it.
    pub(crate) fn is_open_at(&self, process: Process) -> bool {
        self.ends.iter().any(|end| end.process == process && end.open)
    }

    /// The end of `process`.
    pub fn end_of(&self, process: Process) -> Option<usize> {
        self.ends.iter().position(|end| end.process == process)
    }
}

/// Something that changes what passes, while it lasts.
#[derive(Clone, Debug)]
pub enum Layer {
    /// Hosts of different groups do not reach each other; hosts not listed belong to group 0.
    Groups(Vec<u32>),
    /// Nothing from the first to the second.
    Oneway(BTreeSet<usize>, BTreeSet<usize>),
    /// The two sides reach each other through nobody but the bridge.
    Bridge(BTreeSet<usize>, BTreeSet<usize>),
    /// Loss in millionths, of packets to or from these hosts (or all).
    Loss(u32, Option<BTreeSet<usize>>),
    /// Duplication in millionths.
    Dup(u32),
    /// Additional delay up to this.
    Reorder(Duration),
}

impl Layer {
    fn blocks(&self, from: usize, to: usize) -> bool {
        match self {
            Self::Groups(groups) => {
                let group = |host: usize| groups.get(host).copied().unwrap_or(0);
                group(from) != group(to)
            }
            Self::Oneway(a, b) => a.contains(&from) && b.contains(&to),
            Self::Bridge(a, b) => a.contains(&from) && b.contains(&to) || b.contains(&from) && a.contains(&to),
            Self::Loss(..) | Self::Dup(_) | Self::Reorder(_) => false,
        }
    }
}

#[derive(Clone, Debug)]
struct Placed {
    layer: Layer,
    until: Option<Instant>,
}

/// What becomes of one packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fate {
    /// After which delays it arrives: none, one, or two when it is doubled.
    pub arrivals: Vec<Duration>,
    /// Why it does not arrive.
    pub dropped: Option<&'static str>,
}

/// Links and what is laid over them.
#[derive(Debug)]
pub struct Network {
    rules: Vec<LinkRule>,
    zones: Vec<char>,
    layers: Vec<Placed>,
    streams: Vec<Rng>,
    seed: u64,
    /// Every connection that an end still believes in.
    pub conns: BTreeMap<u64, Conn>,
    next_conn: u64,
}

impl Network {
    /// Links by `rules`; the last one that fits a pair holds for it.
    pub fn new(rules: Vec<LinkRule>, seed: u64) -> Self {
        Self {
            rules,
            zones: Vec::new(),
            layers: Vec::new(),
            streams: Vec::new(),
            seed,
            conns: BTreeMap::new(),
            next_conn: 1,
        }
    }

    /// How many connections of a class there are between any two processes that both still have them.
    pub(crate) fn connections(&self, class: Class) -> BTreeMap<(Process, Process), usize> {
        let mut counts = BTreeMap::new();
        for conn in self.conns.values().filter(|conn| conn.class == class && conn.ends.iter().all(|end| end.open)) {
            let [one, other] = [conn.ends[0].process, conn.ends[1].process];
            *counts.entry((one.min(other), one.max(other))).or_insert(0) += 1;
        }
        counts
    }

    /// The newest connection of a class between two processes that both still have it.
    pub(crate) fn newest(&self, class: Class, one: Process, other: Process) -> Option<(u64, usize)> {
        let between = |conn: &Conn| conn.class == class && conn.ends.iter().all(|end| end.open);
        let (id, conn) = self.conns.iter().rev().find(|(_, conn)| {
            between(conn) && conn.end_of(one).is_some() && conn.end_of(other).is_some() && one != other
        })?;
        Some((*id, conn.end_of(other)?))
    }

    /// A new host, in `zone`.
    pub fn add_host(&mut self, zone: char) {
        let index = self.streams.len() as u64;
        self.streams.push(Rng::new(self.seed).fork(index));
        self.zones.push(zone);
    }

    /// The zone of a host.
    pub fn zone(&self, host: usize) -> char {
        self.zones[host]
    }

    /// The hosts on a side.
    pub fn hosts(&self, side: &Side) -> BTreeSet<usize> {
        match side {
            Side::Node(node) => BTreeSet::from([node - 1]),
            Side::Zone(zone) => (0..self.zones.len()).filter(|host| self.zones[*host] == *zone).collect(),
        }
    }

    /// Lays `layer` over everything; returns its number, for lifting it.
    pub fn lay(&mut self, layer: Layer) -> usize {
        self.layers.push(Placed { layer, until: None });
        self.layers.len() - 1
    }

    /// Lifts a layer.
    pub fn lift(&mut self, now: Instant, layer: usize) {
        self.layers[layer].until.get_or_insert(now);
    }

    /// Lifts every layer.
    pub fn lift_all(&mut self, now: Instant) {
        self.layers.iter_mut().for_each(|placed| {
            placed.until.get_or_insert(now);
        });
    }

    fn active(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter().filter(|placed| placed.until.is_none()).map(|placed| &placed.layer)
    }

    /// Whether packets from one host can reach the other at all now.
    pub fn passes(&self, from: usize, to: usize) -> bool {
        !self.active().any(|layer| layer.blocks(from, to))
    }

    /// Since when two hosts reach each other both ways; `None` while they do not.
    pub fn reachable_since(&self, a: usize, b: usize) -> Option<Instant> {
        let blocking = self.layers.iter().filter(|placed| placed.layer.blocks(a, b) || placed.layer.blocks(b, a));
        blocking
            .map(|placed| placed.until)
            .try_fold(Instant::ORIGIN, |latest, until| until.map(|until| latest.max(until)))
    }

    /// The highest loss anywhere now, in millionths.
    pub fn worst_loss(&self) -> u32 {
        let layers = self.active().map(|layer| if let Layer::Loss(rate, _) = layer { *rate } else { 0 });
        layers.chain(self.rules.iter().map(|rule| rule.loss)).max().unwrap_or(0)
    }

    fn rule(&self, from: usize, to: usize) -> Option<&LinkRule> {
        let on = |side: &Side, host: usize| match side {
            Side::Node(node) => node - 1 == host,
            Side::Zone(zone) => self.zones[host] == *zone,
        };
        self.rules.iter().rev().find(|rule| match &rule.pairs {
            Pairs::All => true,
            Pairs::Between(a, b) => on(a, from) && on(b, to) || on(b, from) && on(a, to),
            Pairs::From(a, b) => on(a, from) && on(b, to),
        })
    }

    /// Draws from the stream of a host, for nothing.
    pub(crate) fn draw_once_more(&mut self, host: usize) {
        _ = self.streams[host].next_u64();
    }

    /// What becomes of a packet that leaves now.
    pub fn fate(&mut self, from: usize, to: usize) -> Fate {
        if !self.passes(from, to) {
            return Fate { arrivals: Vec::new(), dropped: Some("cut") };
        }
        let default = Latency::Uniform(Duration::from_micros(200), Duration::from_millis(1));
        let rule = self.rule(from, to).map(|rule| (rule.latency, rule.loss, rule.dup, rule.corrupt, rule.reorder));
        let (latency, mut loss, mut dup, corrupt, mut reorder) = rule.unwrap_or((default, 0, 0, 0, Duration::ZERO));
        for layer in self.layers.iter().filter(|placed| placed.until.is_none()).map(|placed| &placed.layer) {
            match layer {
                Layer::Loss(rate, hosts) if hosts.as_ref().is_none_or(|h| h.contains(&from) || h.contains(&to)) => {
                    loss = loss.max(*rate);
                }
                Layer::Dup(rate) => dup = dup.max(*rate),
                Layer::Reorder(span) => reorder = reorder.max(*span),
                _ => {}
            }
        }
        let rng = &mut self.streams[from];
        // Every draw is made for every packet, so that a rate of zero does not shift the others.
        let (lost, damaged, doubled) = (rng.chance(loss), rng.chance(corrupt), rng.chance(dup));
        let mut arrive = || draw(rng, latency) + rng.span(Duration::ZERO, reorder);
        let (first, second) = (arrive(), arrive());
        match (lost, damaged, doubled) {
            (true, ..) => Fate { arrivals: Vec::new(), dropped: Some("lost") },
            (_, true, _) => Fate { arrivals: Vec::new(), dropped: Some("corrupted") },
            (.., true) => Fate { arrivals: vec![first, second], dropped: None },
            _ => Fate { arrivals: vec![first], dropped: None },
        }
    }

    /// The number of a new connection.
    pub(crate) fn number(&mut self) -> u64 {
        self.next_conn += 1;
        self.next_conn - 1
    }

    /// A new connection.
    pub fn connect(&mut self, conn: Conn) -> u64 {
        let id = self.number();
        self.conns.insert(id, conn);
        id
    }

    /// One end gives a connection up. It is forgotten once both have.
    pub fn close_end(&mut self, conn: u64, process: Process) {
        let Some(held) = self.conns.get_mut(&conn) else {
            return;
        };
        held.ends.iter_mut().filter(|end| end.process == process).for_each(|end| end.open = false);
        if held.ends.iter().all(|end| !end.open) {
            self.conns.remove(&conn);
        }
    }

    /// A process is gone: its ends are.
    pub fn close_process(&mut self, process: Process) {
        let ids: Vec<u64> =
            self.conns.iter().filter(|(_, conn)| conn.end_of(process).is_some()).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.close_end(id, process));
    }
}

/// One value of a distribution. Integers only: every platform draws the same.
pub fn draw(rng: &mut Rng, latency: Latency) -> Duration {
    match latency {
        Latency::Const(value) => {
            let _ = rng.next_u64();
            value
        }
        Latency::Uniform(low, high) => rng.span(low, high),
        Latency::Exp(mean) => {
            // -ln(u) = -log2(u) * ln 2, with log2 from the position of the highest bit and a linear mantissa.
            let u = rng.next_u64() | 1;
            let zeros = u64::from(u.leading_zeros());
            let mantissa = (u << zeros << 1) >> 44;
            let log2_milli = (zeros + 1) * 1_000 - ((mantissa * 1_000) >> 20);
            let nanos = (mean.as_nanos() as u64 / 1_000).saturating_mul(log2_milli * 693 / 1_000);
            Duration::from_nanos(nanos.min(10 * mean.as_nanos() as u64))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exponential_latency_has_its_mean() {
        let mut rng = Rng::new(1);
        let mean = Duration::from_millis(10);
        let total: Duration = (0..10_000).map(|_| draw(&mut rng, Latency::Exp(mean))).sum();
        let seen = total.as_micros() / 10_000;
        assert!((9_000..11_500).contains(&seen), "{seen}");
    }

    #[test]
    fn a_cut_blocks_and_its_end_is_remembered() {
        let mut network = Network::new(Vec::new(), 1);
        (0..3).for_each(|_| network.add_host('a'));
        let cut = network.lay(Layer::Groups(vec![0, 1, 1]));
        assert!(!network.passes(0, 1) && network.passes(1, 2));
        assert_eq!(network.reachable_since(0, 1), None);
        network.lift(Instant::from_millis(5), cut);
        assert!(network.passes(0, 1));
        assert_eq!(network.reachable_since(0, 1), Some(Instant::from_millis(5)));
        assert_eq!(network.reachable_since(1, 2), Some(Instant::ORIGIN));
    }

    #[test]
    fn a_oneway_cut_blocks_one_way() {
        let mut network = Network::new(Vec::new(), 1);
        (0..2).for_each(|_| network.add_host('a'));
        network.lay(Layer::Oneway(BTreeSet::from([0]), BTreeSet::from([1])));
        assert!(!network.passes(0, 1) && network.passes(1, 0));
    }
}
