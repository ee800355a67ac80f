//! The modelled network: which packets pass, how long they take, and what connections there are.
//!
//! A decision about a packet draws from the stream of its sender, so that one more packet elsewhere never
//! changes it. Cuts are layers over all pairs; nothing is kept per pair.

use std::collections::BTreeSet;
use std::time::Duration;

use swimring_membership::{Instant, Rng};

use crate::conns::Conns;
use crate::plan::{Bursts, Latency, LinkRule, Pairs, Side};

/// The latency of a link that no rule is for.
const USUAL: Latency = Latency::Uniform(Duration::from_micros(200), Duration::from_millis(1));

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
    /// Bursts of loss, drawn anew with this salt.
    Bursts(Bursts, u64),
    /// Packets of more bytes are lost, to or from these hosts (or all).
    Hole(usize, Option<BTreeSet<usize>>),
    /// Each host has a place on a circle, and reaches its neighbours there: about half of all.
    Ring(Vec<usize>),
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
            Self::Ring(places) => places.get(from).zip(places.get(to)).is_some_and(|(a, b)| {
                let apart = a.abs_diff(*b);
                apart.min(places.len() - apart) > places.len().div_ceil(4)
            }),
            Self::Loss(..) | Self::Dup(_) | Self::Reorder(_) | Self::Bursts(..) | Self::Hole(..) => false,
        }
    }

    /// Whether it makes a difference to packets between two hosts.
    fn concerns(&self, a: usize, b: usize) -> bool {
        match self {
            Self::Loss(_, Some(hosts)) | Self::Hole(_, Some(hosts)) => hosts.contains(&a) || hosts.contains(&b),
            Self::Loss(_, None) | Self::Hole(_, None) | Self::Dup(_) | Self::Reorder(_) | Self::Bursts(..) => true,
            Self::Groups(_) | Self::Oneway(..) | Self::Bridge(..) | Self::Ring(_) => {
                self.blocks(a, b) || self.blocks(b, a)
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Placed {
    layer: Layer,
    until: Option<Instant>,
}

/// Packets and their bytes, headers included.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// How many packets.
    pub packets: u64,
    /// How many bytes.
    pub bytes: u64,
}

impl Volume {
    fn count(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes as u64;
    }
}

/// What went out of a host, and came into it.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Out.
    pub sent: Volume,
    /// In.
    pub received: Volume,
    /// Handshakes that were begun here.
    pub handshakes: u64,
}

impl Traffic {
    fn add(&mut self, other: &Self) {
        self.sent.packets += other.sent.packets;
        self.sent.bytes += other.sent.bytes;
        self.received.packets += other.received.packets;
        self.received.bytes += other.received.bytes;
        self.handshakes += other.handshakes;
    }
}

/// What becomes of one packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fate {
    /// After which delays it arrives: none, one, or two when it is doubled.
    pub arrivals: [Option<Duration>; 2],
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
    pub conns: Conns,
    /// What every host has sent and got.
    pub traffic: Vec<Traffic>,
    /// World time.
    pub now: Instant,
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
            conns: Conns::default(),
            traffic: Vec::new(),
            now: Instant::ORIGIN,
        }
    }

    /// A new host, in `zone`.
    pub fn add_host(&mut self, zone: char) {
        let index = self.streams.len() as u64;
        self.streams.push(Rng::new(self.seed).fork(index));
        self.zones.push(zone);
        self.traffic.push(Traffic::default());
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
        self.lifted_since(|layer| layer.blocks(a, b) || layer.blocks(b, a))
    }

    /// Since when nothing but the link itself has decided about packets between two hosts; `None` while something else does.
    pub fn undisturbed_since(&self, a: usize, b: usize) -> Option<Instant> {
        self.lifted_since(|layer| layer.concerns(a, b))
    }

    /// When the last of these layers was lifted; `None` while one of them lies.
    fn lifted_since(&self, these: impl Fn(&Layer) -> bool) -> Option<Instant> {
        let mut untils = self.layers.iter().filter(|placed| these(&placed.layer)).map(|placed| placed.until);
        untils.try_fold(Instant::ORIGIN, |latest, until| until.map(|until| latest.max(until)))
    }

    /// How long a packet and one that answers it take at most on the link alone; `None` if it loses some.
    pub fn round_trip(&self, a: usize, b: usize) -> Option<Duration> {
        let one_way = |from, to| match self.rule(from, to) {
            Some(rule) if rule.loss > 0 || rule.corrupt > 0 => None,
            Some(rule) => Some(rule.latency.longest() + rule.reorder),
            None => Some(USUAL.longest()),
        };
        Some(one_way(a, b)? + one_way(b, a)?)
    }

    /// The highest loss anywhere now, in millionths.
    pub fn worst_loss(&self) -> u32 {
        self.worst_loss_since(Instant::from_nanos(u64::MAX))
    }

    /// The highest loss anywhere, now or at any time since then, in millionths.
    pub fn worst_loss_since(&self, then: Instant) -> u32 {
        let lay = |placed: &&Placed| placed.until.is_none_or(|until| until > then);
        let layers = self.layers.iter().filter(lay).map(|placed| match &placed.layer {
            Layer::Loss(rate, _) => *rate,
            Layer::Bursts(bursts, _) => bursts.loss,
            // What is large does not pass at all.
            Layer::Hole(..) => 1_000_000,
            _ => 0,
        });
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

    /// What becomes of a packet of so many bytes that leaves now.
    pub fn fate(&mut self, from: usize, to: usize, bytes: usize) -> Fate {
        let fate = self.decide(from, to, bytes);
        self.traffic[from].sent.count(bytes);
        fate.arrivals.iter().flatten().for_each(|_| self.traffic[to].received.count(bytes));
        fate
    }

    /// What passed so far.
    pub fn total(&self) -> Traffic {
        let mut total = Traffic::default();
        self.traffic.iter().for_each(|traffic| total.add(traffic));
        total
    }

    /// When the last packet of a flight arrives, if all do.
    pub fn flight(&mut self, from: usize, to: usize, packets: &[usize]) -> Option<Duration> {
        // All of them leave, whatever becomes of the first.
        let mut last = Some(Duration::ZERO);
        for bytes in packets {
            let at = self.fate(from, to, *bytes).arrivals[0];
            last = last.zip(at).map(|(last, at)| last.max(at));
        }
        last
    }

    fn decide(&mut self, from: usize, to: usize, bytes: usize) -> Fate {
        if !self.passes(from, to) {
            return Fate { arrivals: [None; 2], dropped: Some("cut") };
        }
        let rule = self.rule(from, to).map(|rule| (rule.latency, rule.loss, rule.dup, rule.corrupt, rule.reorder));
        let (latency, mut loss, mut dup, corrupt, mut reorder) = rule.unwrap_or((USUAL, 0, 0, 0, Duration::ZERO));
        for layer in self.layers.iter().filter(|placed| placed.until.is_none()).map(|placed| &placed.layer) {
            match layer {
                Layer::Loss(rate, hosts) if hosts.as_ref().is_none_or(|h| h.contains(&from) || h.contains(&to)) => {
                    loss = loss.max(*rate);
                }
                Layer::Hole(most, hosts)
                    if bytes > *most && hosts.as_ref().is_none_or(|h| h.contains(&from) || h.contains(&to)) =>
                {
                    loss = 1_000_000;
                }
                Layer::Bursts(bursts, salt) if is_within(bursts, *salt, from, to, self.now) => {
                    loss = loss.max(bursts.loss);
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
            (true, ..) => Fate { arrivals: [None; 2], dropped: Some("lost") },
            (_, true, _) => Fate { arrivals: [None; 2], dropped: Some("corrupted") },
            (.., true) => Fate { arrivals: [Some(first), Some(second)], dropped: None },
            _ => Fate { arrivals: [Some(first), None], dropped: None },
        }
    }
}

/// Whether the packets of a pair are within a burst: by the pair and the time, so that nothing is kept for it.
fn is_within(bursts: &Bursts, salt: u64, from: usize, to: usize, now: Instant) -> bool {
    let turn = now.as_nanos() / (bursts.length.as_nanos() as u64).max(1);
    let pair = (from as u64) << 32 | to as u64;
    Rng::new(salt).fork(pair).fork(turn).chance(bursts.share)
}

/// One value of a distribution. Integers only: every platform draws the same.
pub fn draw(rng: &mut Rng, latency: Latency) -> Duration {
    match latency {
        Latency::Const(value) => {
            let _ = rng.next_u64();
            value
        }
        Latency::Uniform(low, high) => rng.span(low, high),
        Latency::Bimodal(usual, rare, share) => {
            if rng.chance(share) {
                rare
            } else {
                usual
            }
        }
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
    fn a_loss_that_is_over_is_remembered() {
        let mut network = Network::new(Vec::new(), 1);
        let hole = network.lay(Layer::Hole(600, None));
        assert_eq!(network.worst_loss(), 1_000_000);
        network.lift(Instant::from_millis(5), hole);
        let since = |ms| network.worst_loss_since(Instant::from_millis(ms));
        assert_eq!((network.worst_loss(), since(4), since(5)), (0, 1_000_000, 0));
    }

    #[test]
    fn a_oneway_cut_blocks_one_way() {
        let mut network = Network::new(Vec::new(), 1);
        (0..2).for_each(|_| network.add_host('a'));
        network.lay(Layer::Oneway(BTreeSet::from([0]), BTreeSet::from([1])));
        assert!(!network.passes(0, 1) && network.passes(1, 0));
    }
}
