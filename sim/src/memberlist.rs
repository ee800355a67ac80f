//! A model of HashiCorp's memberlist, for comparison only: SWIM with its one-at-a-time probe loop, and the parts of
//! Lifeguard (Dadgar, Phillips, Currey: arXiv 1707.00788), each of which can be switched on. Nothing of Swimring uses it.
//!
//! Members that are blocked stop just before they send and just after they receive; their timers go on. Whatever loop
//! wants to send waits there, one message deep; what comes in waits in order; all of it goes on when the block ends.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::Serialize;
use swimring_membership::{Instant, Rng};

use crate::queue::Queue;

mod broadcasts;
mod loops;
mod news;

use broadcasts::Broadcasts;
use loops::{Gossip, Probe, Relay};
use news::Row;

/// Every knob of the model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Model {
    /// Lifeguard's local health scales the probes, and helpers say when they reach nobody either.
    pub lha_probe: bool,
    /// The time to object begins long, and shrinks with every independent confirmation.
    pub lha_suspicion: bool,
    /// Whoever asks a suspect tells it.
    pub buddy: bool,
    /// How many members.
    pub members: usize,
    /// Time between two probes.
    pub probe_interval_ms: u64,
    /// How long a direct ping may take.
    pub probe_timeout_ms: u64,
    /// How many others are asked to ping.
    pub indirect_checks: usize,
    /// The least time to object, in probe intervals times log10 of the members.
    pub alpha: u32,
    /// The most time to object, as a multiple of the least. Used with `lha_suspicion` only.
    pub beta: u32,
    /// How many confirmations bring the time down to the least.
    pub confirmations: u32,
    /// Local health is at most this.
    pub health_max: u32,
    /// A helper says that it reached nobody after this share of the probe timeout, in percent.
    pub nack_percent: u64,
    /// Time between two rounds of gossip.
    pub gossip_interval_ms: u64,
    /// To how many members a round goes.
    pub gossip_nodes: usize,
    /// The dead get gossip for so long.
    pub gossip_to_the_dead_s: u64,
    /// A broadcast is sent so many times, times log10 of the members plus one, rounded up.
    pub retransmit_mult: u32,
    /// Time between two exchanges of full states: memberlist's 30 s, stretched for the number of members.
    pub push_pull_interval_s: u64,
    /// How long an exchange may take.
    pub tcp_timeout_s: u64,
    /// Most bytes of a packet.
    pub packet_bytes: usize,
    /// Bytes of an alive message with its metadata, of a suspect or dead one, and of a ping, an answer or a request, all
    /// of them compressed.
    pub message_bytes: [usize; 3],
    /// Least and most time until a packet is taken, or a timer's work begins: 128 agents share one machine.
    pub latency_us: [u64; 2],
    /// How long a member takes for each packet that has waited.
    pub service_us: u64,
}

impl Model {
    /// What the paper ran: Consul's settings, with every part of Lifeguard off.
    pub(crate) fn swim() -> Self {
        Self {
            lha_probe: false,
            lha_suspicion: false,
            buddy: false,
            members: 128,
            probe_interval_ms: 1_000,
            probe_timeout_ms: 500,
            indirect_checks: 3,
            alpha: 5,
            beta: 6,
            confirmations: 3,
            health_max: 8,
            nack_percent: 80,
            gossip_interval_ms: 200,
            gossip_nodes: 3,
            gossip_to_the_dead_s: 30,
            retransmit_mult: 4,
            push_pull_interval_s: 90,
            tcp_timeout_s: 10,
            packet_bytes: 1_400,
            message_bytes: [80, 40, 30],
            latency_us: [5_000, 20_000],
            service_us: 12,
        }
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(self.probe_interval_ms)
    }

    /// The least time to object. log10 in thousandths, by an integer table, as everything that decides.
    fn suspicion_min(&self) -> Duration {
        let log10_milli = log10_milli(self.members as u64).max(1_000);
        Duration::from_millis(self.probe_interval_ms * u64::from(self.alpha) * log10_milli / 1_000)
    }

    fn retransmit_limit(&self) -> u32 {
        let members = self.members as u64 + 1;
        let digits = (0..).find(|digits| 10_u64.pow(*digits) >= members).unwrap_or(1);
        self.retransmit_mult * digits
    }
}

/// log10 of a whole number in thousandths: from its binary logarithm with a mantissa squared bit by bit.
fn log10_milli(value: u64) -> u64 {
    let whole = u64::from(value.max(1).ilog2());
    let (mut mantissa, mut fraction) = ((u128::from(value.max(1)) << 32) >> whole, 0_u64);
    for bit in (0..16).rev() {
        mantissa = (mantissa * mantissa) >> 32;
        if mantissa >= 2 << 32 {
            mantissa >>= 1;
            fraction |= 1 << bit;
        }
    }
    (((whole << 16) | fraction) * 30_103 / 100) >> 16
}

type Id = usize;

/// What one member says of another.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
struct News {
    about: Id,
    claim: Claim,
    incarnation: u32,
    by: Id,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Claim {
    Alive,
    Suspect,
    Dead,
}

#[derive(Clone, Debug)]
enum Kind {
    Ping {
        seq: u32,
    },
    PingReq {
        seq: u32,
        target: Id,
        nack: bool,
    },
    Ack {
        seq: u32,
    },
    Nack {
        seq: u32,
    },
    Gossip,
    /// A ping over TCP, and its answer.
    TcpPing {
        seq: u32,
    },
    TcpAck {
        seq: u32,
    },
    /// A full state over TCP, and the other's in return.
    State {
        rows: Vec<News>,
        asked_at: Instant,
        is_reply: bool,
    },
}

#[derive(Clone, Debug)]
struct Packet {
    from: Id,
    kind: Kind,
    news: Vec<News>,
}

#[derive(Clone, Debug)]
enum Event {
    ProbeTick(Id),
    GossipTick(Id),
    PushPullTick(Id),
    Arrive(Id, Packet),
    /// A member takes the next packet that has waited.
    Next(Id),
    /// The direct ping of a probe has had its time.
    Direct(Id, u32),
    /// A probe has had its time.
    ProbeEnd(Id, u32),
    /// A helper has reached nobody so far.
    Nack(Id, u32),
    /// A helper forgets whom it helped.
    RelayEnd(Id, u32),
    /// The time to object may be over.
    Suspicion {
        at: Id,
        about: Id,
    },
}

/// A member declared another one failed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When.
    pub at: Instant,
    /// Who says so.
    pub observer: usize,
    /// Of whom.
    pub subject: usize,
}

#[derive(Debug)]
struct Member {
    rows: Vec<Option<Row>>,
    incarnation: u32,
    health: u32,
    broadcasts: Broadcasts,
    order: Vec<Id>,
    next: usize,
    seq: u32,
    probe: Option<Probe>,
    /// A tick that came while a probe was under way.
    tick_waits: bool,
    relays: BTreeMap<u32, Relay>,
    gossip: Gossip,
    /// With whom the loop that exchanges states stands before its first byte.
    push_pull: Option<Id>,
    blocked: bool,
    /// What other loops stand before sending.
    held: Vec<(Id, Packet)>,
    inbox: VecDeque<Packet>,
}

/// A cluster of the model: everybody knows everybody at the beginning.
#[derive(Debug)]
pub(crate) struct Cluster {
    model: Model,
    now: Instant,
    members: Vec<Member>,
    events: Queue<Event>,
    rng: Rng,
    /// Every member that was declared failed, by whom and when.
    pub failures: Vec<Failure>,
    /// Messages that were sent; what rides along with another is part of it.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Cluster {
    /// A cluster that begins.
    pub(crate) fn new(model: Model, seed: u64) -> Self {
        let count = model.members;
        let mut cluster = Self {
            now: Instant::ORIGIN,
            members: Vec::new(),
            events: Queue::default(),
            rng: Rng::new(seed),
            failures: Vec::new(),
            messages: 0,
            bytes: 0,
            model,
        };
        for id in 0..count {
            let mut order: Vec<Id> = (0..count).filter(|other| *other != id).collect();
            cluster.rng.shuffle(&mut order);
            cluster.members.push(Member {
                rows: vec![Some(Row::default()); count],
                incarnation: 1,
                health: 0,
                broadcasts: Broadcasts::default(),
                order,
                next: 0,
                seq: 0,
                probe: None,
                tick_waits: false,
                relays: BTreeMap::new(),
                gossip: Gossip::default(),
                push_pull: None,
                blocked: false,
                held: Vec::new(),
                inbox: VecDeque::new(),
            });
            let periods = [
                (Event::ProbeTick(id), cluster.model.probe_interval_ms),
                (Event::GossipTick(id), cluster.model.gossip_interval_ms),
                (Event::PushPullTick(id), cluster.model.push_pull_interval_s * 1_000),
            ];
            for (event, period) in periods {
                let first = cluster.rng.span(Duration::ZERO, Duration::from_millis(period));
                cluster.after(first, event);
            }
        }
        cluster
    }

    /// Runs up to a moment.
    pub(crate) fn run_to(&mut self, end: Duration) {
        let end = Instant::ORIGIN + end;
        while let Some((at, event)) = self.events.pop(end) {
            self.now = at;
            self.happen(event);
        }
        self.now = end;
    }

    /// Blocks members, or lets them go on.
    pub(crate) fn block(&mut self, ids: &[usize], blocked: bool) {
        for id in ids {
            self.members[*id].blocked = blocked;
        }
        if !blocked {
            ids.iter().for_each(|id| self.go_on(*id));
        }
    }

    /// Whether everybody holds everybody alive.
    pub(crate) fn is_healthy(&self) -> bool {
        self.members.iter().all(|member| member.rows.iter().all(|row| row.as_ref().is_some_and(Row::is_alive)))
    }

    fn after(&mut self, span: Duration, event: Event) {
        self.events.push(self.now + span, event);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::ProbeTick(id) => {
                self.after(self.model.interval(), Event::ProbeTick(id));
                self.on_probe_tick(id);
            }
            Event::GossipTick(id) => {
                self.after(Duration::from_millis(self.model.gossip_interval_ms), Event::GossipTick(id));
                self.on_gossip_tick(id);
            }
            Event::PushPullTick(id) => {
                self.after(Duration::from_secs(self.model.push_pull_interval_s), Event::PushPullTick(id));
                self.on_push_pull_tick(id);
            }
            Event::Arrive(id, packet) if self.members[id].blocked || !self.members[id].inbox.is_empty() => {
                self.members[id].inbox.push_back(packet);
            }
            Event::Next(id) => self.take_next(id),
            Event::Arrive(id, packet) => self.on_packet(id, packet),
            Event::Direct(id, seq) => self.on_direct_end(id, seq),
            Event::ProbeEnd(id, seq) => self.on_probe_end(id, seq),
            Event::Nack(id, seq) => self.on_nack_due(id, seq),
            Event::RelayEnd(id, seq) => _ = self.members[id].relays.remove(&seq),
            Event::Suspicion { at, about } => self.on_suspicion_due(at, about),
        }
    }

    /// A member goes on: its loops first, then what has come in meanwhile.
    fn go_on(&mut self, id: Id) {
        for (to, packet) in std::mem::take(&mut self.members[id].held) {
            self.put_on_wire(id, to, packet);
        }
        self.go_on_probing(id);
        self.go_on_gossiping(id);
        if let Some(other) = self.members[id].push_pull.take() {
            self.push_pull(id, other);
        }
        self.after(Duration::from_micros(self.model.service_us), Event::Next(id));
    }

    /// Takes one of the packets that have waited, unless the member is blocked again.
    fn take_next(&mut self, id: Id) {
        if !self.members[id].blocked
            && let Some(packet) = self.members[id].inbox.pop_front()
        {
            self.on_packet(id, packet);
            self.after(Duration::from_micros(self.model.service_us), Event::Next(id));
        }
    }

    /// A packet that carries as much news as it has room for.
    fn packet(&mut self, from: Id, kind: Kind) -> Packet {
        let [alive, other, own] = self.model.message_bytes;
        let room = self.model.packet_bytes - if matches!(kind, Kind::Gossip) { 0 } else { own };
        let limit = self.model.retransmit_limit();
        let size = |news: &News| if news.claim == Claim::Alive { alive } else { other };
        let news = self.members[from].broadcasts.take(room, limit, size);
        Packet { from, kind, news }
    }

    /// Sends a message, or stands before that.
    fn send(&mut self, from: Id, to: Id, kind: Kind) {
        let packet = self.packet(from, kind);
        self.send_packet(from, to, packet);
    }

    fn send_packet(&mut self, from: Id, to: Id, packet: Packet) {
        if self.members[from].blocked {
            self.members[from].held.push((to, packet));
        } else {
            self.put_on_wire(from, to, packet);
        }
    }

    fn put_on_wire(&mut self, _from: Id, to: Id, packet: Packet) {
        let [alive, other, own] = self.model.message_bytes;
        let size = |news: &News| if news.claim == Claim::Alive { alive } else { other };
        let rows = if let Kind::State { rows, .. } = &packet.kind { rows.len() * alive } else { 0 };
        self.messages += 1;
        self.bytes += (own + rows + packet.news.iter().map(size).sum::<usize>()) as u64;
        self.after_waking(self.now, Event::Arrive(to, packet));
    }

    /// Something happens at its time, as soon as whoever does it is scheduled.
    fn after_waking(&mut self, due: Instant, event: Event) {
        let [least, most] = self.model.latency_us.map(Duration::from_micros);
        let latency = self.rng.span(least, most);
        self.events.push(due + latency, event);
    }

    fn on_packet(&mut self, id: Id, packet: Packet) {
        let from = packet.from;
        match packet.kind {
            Kind::Ping { seq } => self.send(id, from, Kind::Ack { seq }),
            Kind::PingReq { seq, target, nack } => self.on_ping_req(id, from, seq, target, nack),
            Kind::Ack { seq } => self.on_ack(id, seq),
            Kind::Nack { seq } => self.on_nack(id, seq),
            Kind::Gossip => {}
            Kind::TcpPing { seq } => {
                self.send_packet(id, from, Packet { from: id, kind: Kind::TcpAck { seq }, news: Vec::new() });
            }
            Kind::TcpAck { seq } => self.on_tcp_ack(id, seq),
            Kind::State { rows, asked_at, is_reply } => self.on_state(id, from, rows, asked_at, is_reply),
        }
        packet.news.into_iter().for_each(|news| self.on_news(id, news));
    }

    /// Random members for which something holds.
    fn pick(&mut self, id: Id, count: usize, fits: impl Fn(Id, &Row) -> bool) -> Vec<Id> {
        let rows = self.members[id].rows.iter().enumerate();
        let fits = |other: Id, row: &Row| other != id && fits(other, row);
        let mut found: Vec<Id> =
            rows.filter_map(|(other, row)| row.as_ref().filter(|row| fits(other, row)).map(|_| other)).collect();
        for place in 0..count.min(found.len()) {
            let other = place + self.rng.index(found.len() - place);
            found.swap(place, other);
        }
        found.truncate(count);
        found
    }
}

#[cfg(test)]
mod tests;
