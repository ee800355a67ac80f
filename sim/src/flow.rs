//! One direction of a connection, as QUIC (RFC 9000, 9002) runs it: numbered packets, acknowledgements, retransmission,
//! a congestion window, ordered lanes.
//!
//! A value: what to send next is asked of it, what arrived is told to it. An acknowledgement is no event of its own; it
//! is noted with the moment at which it arrives, and seen by the sender the next time it looks, which is when it has
//! something to send or its timer ends.

mod assembly;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use swimring::core::hello::Class;
use swimring_membership::Instant;

use self::assembly::{Assembly, PAYLOAD_BYTES, Place};
pub(crate) use self::assembly::{LANES, Piece};

/// What IPv4, UDP and a short QUIC header with its tag take of every packet.
pub(crate) const OVERHEAD_BYTES: usize = 58;
/// What an acknowledgement takes in a packet.
const ACK_BYTES: usize = 6;
/// The window of a new connection, and the smallest.
const WINDOW_BYTES: usize = 12_000;
const WINDOW_BYTES_MIN: usize = 2_400;
/// The round trip that a new connection assumes.
const INITIAL_RTT: Duration = Duration::from_millis(20);
/// What is kept of the window after a loss, in tenths.
const AFTER_LOSS_TENTHS: usize = 7;
/// A packet is lost once one sent so many later has arrived.
const REORDERED: u64 = 3;
/// How often the timer doubles at most.
const BACKOFF_MAX: u32 = 16;

/// What a packet carries.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// Nothing but the wish for an acknowledgement.
    Probe,
    /// A datagram, which is not sent again.
    Datagram(Arc<[u8]>),
    /// Part of a stream, which is.
    Piece(Piece),
}

impl Content {
    fn bytes(&self) -> usize {
        match self {
            Self::Probe => 1,
            Self::Datagram(bytes) => bytes.len(),
            Self::Piece(piece) => piece.bytes(),
        }
    }
}

/// A packet on its way.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) number: u64,
    pub(crate) content: Content,
}

impl Packet {
    /// Its size on the wire.
    pub(crate) fn bytes(&self) -> usize {
        OVERHEAD_BYTES + self.content.bytes()
    }
}

/// A packet that was sent and of which nothing is known yet.
#[derive(Clone, Debug)]
struct Sent {
    number: u64,
    at: Instant,
    bytes: usize,
    piece: Option<Piece>,
}

/// How a class of connections is set.
#[derive(Copy, Clone, Debug)]
struct Settings {
    /// How long an acknowledgement waits for company, and how many packets it waits for.
    ack_delay: Duration,
    ack_after: usize,
    /// The window is always the same.
    steady: Option<usize>,
    /// No further datagram is taken while more bytes than these wait.
    datagram_bytes_max: usize,
    /// Most bytes that the receiver takes unread.
    unread_bytes_max: usize,
}

const GOSSIP: Settings = Settings {
    ack_delay: Duration::from_millis(25),
    ack_after: 2,
    steady: Some(64 << 10),
    datagram_bytes_max: 16 << 10,
    unread_bytes_max: 2 << 20,
};
const CALLS: Settings = Settings {
    ack_delay: Duration::from_millis(5),
    ack_after: 11,
    steady: None,
    datagram_bytes_max: 0,
    unread_bytes_max: 16 << 20,
};

/// One direction.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    class: Class,
    // The sender.
    next: u64,
    next_frame: u64,
    next_place: [u64; LANES],
    unacked: VecDeque<Sent>,
    in_flight: usize,
    acks: VecDeque<(Instant, Vec<u64>)>,
    pieces: VecDeque<Piece>,
    datagrams: VecDeque<Arc<[u8]>>,
    datagram_bytes: usize,
    rtt: Duration,
    variance: Duration,
    measured: bool,
    backoff: u32,
    window: usize,
    threshold: usize,
    recovery: Instant,
    last_sent: Instant,
    /// When the sender last heard of the other end.
    heard: Instant,
    /// For when its timer is set.
    pub(crate) timer: Option<Instant>,
    // The receiver.
    owed: Vec<u64>,
    /// Packets since an acknowledgement was sent, and when one is due.
    since_ack: usize,
    ack_due: Option<Instant>,
    assembly: Assembly,
}

/// What the sender wants when it has looked.
#[derive(Debug)]
pub(crate) enum Look {
    /// Nothing: all that was sent has arrived.
    Idle,
    /// To look again then.
    Wait(Instant),
    /// To send this, whatever the window says, and look again.
    Probe(Packet),
}

impl Flow {
    pub(crate) fn new(class: Class, now: Instant) -> Self {
        Self {
            class,
            next: 0,
            next_frame: 0,
            next_place: [0; LANES],
            unacked: VecDeque::new(),
            in_flight: 0,
            acks: VecDeque::new(),
            pieces: VecDeque::new(),
            datagrams: VecDeque::new(),
            datagram_bytes: 0,
            rtt: INITIAL_RTT,
            variance: INITIAL_RTT / 2,
            measured: false,
            backoff: 0,
            window: WINDOW_BYTES,
            threshold: usize::MAX,
            recovery: Instant::ORIGIN,
            last_sent: now,
            heard: now,
            timer: None,
            owed: Vec::new(),
            since_ack: 0,
            ack_due: None,
            assembly: Assembly::default(),
        }
    }

    fn settings(&self) -> &'static Settings {
        match self.class {
            Class::Gossip => &GOSSIP,
            Class::Calls => &CALLS,
        }
    }

    // The sender.

    /// A datagram to send, unless too many wait already; whether it was taken.
    pub(crate) fn push_datagram(&mut self, bytes: &[u8]) -> bool {
        let fits = self.datagram_bytes <= self.settings().datagram_bytes_max;
        if fits {
            self.datagram_bytes += bytes.len();
            self.datagrams.push_back(bytes.into());
        }
        fits
    }

    /// A frame to send: after those pushed for its lane before, or on a stream of its own.
    pub(crate) fn push_frame(&mut self, lane: Option<usize>, bytes: &[u8]) {
        let place = lane.map(|lane| {
            self.next_place[lane] += 1;
            Place { lane, number: self.next_place[lane] - 1 }
        });
        self.pieces.extend(Piece::cut(self.next_frame, place, bytes));
        self.next_frame += 1;
    }

    /// The next packet, if there is something to send and the window has room for it. Datagrams go first.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Packet> {
        let window = self.settings().steady.unwrap_or(self.window);
        let room = window.min(self.settings().unread_bytes_max).saturating_sub(self.in_flight);
        let next = self.datagrams.front().map(|bytes| bytes.len());
        let next = next.or_else(|| self.pieces.front().map(Piece::bytes))?;
        if self.in_flight > 0 && next + OVERHEAD_BYTES > room {
            return None;
        }
        let content = match self.datagrams.pop_front() {
            Some(bytes) => {
                self.datagram_bytes -= bytes.len();
                Content::Datagram(bytes)
            }
            None => Content::Piece(self.pieces.pop_front()?),
        };
        Some(self.send(now, content))
    }

    /// A packet that only asks whether the other end is there.
    pub(crate) fn probe(&mut self, now: Instant) -> Packet {
        self.send(now, Content::Probe)
    }

    fn send(&mut self, now: Instant, content: Content) -> Packet {
        let packet = Packet { number: self.next, content };
        let piece = if let Content::Piece(piece) = &packet.content { Some(piece.clone()) } else { None };
        self.unacked.push_back(Sent { number: self.next, at: now, bytes: packet.bytes(), piece });
        self.in_flight += packet.bytes();
        self.next += 1;
        self.last_sent = now;
        packet
    }

    /// How long the sender waits for an acknowledgement.
    fn patience(&self) -> Duration {
        let once = self.rtt + (self.variance * 4).max(Duration::from_millis(1)) + self.settings().ack_delay;
        once * (1 << self.backoff.min(BACKOFF_MAX))
    }

    /// Takes every acknowledgement that has arrived; then says what the sender's timer wants.
    pub(crate) fn look(&mut self, now: Instant) -> Look {
        self.resolve(now);
        let Some(oldest) = self.unacked.front() else {
            return Look::Idle;
        };
        let due = self.last_sent + self.patience();
        if now < due {
            return Look::Wait(due);
        }
        self.backoff = (self.backoff + 1).min(BACKOFF_MAX);
        let content = oldest.piece.clone().map_or(Content::Probe, Content::Piece);
        Look::Probe(self.send(now, content))
    }

    /// Takes every acknowledgement that has arrived.
    pub(crate) fn resolve(&mut self, now: Instant) {
        while self.acks.front().is_some_and(|(at, _)| *at <= now) {
            let (at, mut numbers) = self.acks.pop_front().expect("there is one");
            self.on_ack(at, &numbers);
            if self.owed.capacity() == 0 {
                // Room for the next.
                numbers.clear();
                self.owed = numbers;
            }
        }
    }

    fn on_ack(&mut self, at: Instant, numbers: &[u64]) {
        self.heard = self.heard.max(at);
        let mut highest = None;
        for number in numbers {
            let Ok(index) = self.unacked.binary_search_by_key(number, |sent| sent.number) else { continue };
            let sent = self.unacked.remove(index).expect("it was found");
            self.in_flight -= sent.bytes;
            if sent.at >= self.recovery {
                let slow = self.window >= self.threshold;
                self.window += if slow { PAYLOAD_BYTES * sent.bytes / self.window } else { sent.bytes };
            }
            highest = highest.max(Some((sent.number, sent.at)));
        }
        let Some((number, sent_at)) = highest else { return };
        let (waits, sample) = (self.backoff, at.since(sent_at));
        self.backoff = 0;
        self.measure(sample);
        self.lose(at, number, waits);
    }

    fn measure(&mut self, sample: Duration) {
        if self.measured {
            self.variance = (self.variance * 3 + self.rtt.abs_diff(sample)) / 4;
            self.rtt = (self.rtt * 7 + sample) / 8;
        } else {
            (self.rtt, self.variance, self.measured) = (sample, sample / 2, true);
        }
    }

    /// What was sent well before a packet that has arrived is lost: streams are sent again, datagrams are not.
    fn lose(&mut self, at: Instant, arrived: u64, waits: u32) {
        let long = self.rtt * 9 / 8;
        let lost =
            |sent: &Sent| sent.number + REORDERED <= arrived || (sent.number < arrived && at.since(sent.at) > long);
        let mut last = None;
        let mut again = Vec::new();
        let (in_flight, unacked) = (&mut self.in_flight, &mut self.unacked);
        unacked.retain_mut(|sent| {
            let keep = !lost(sent);
            if !keep {
                *in_flight -= sent.bytes;
                last = last.max(Some(sent.at));
                again.extend(sent.piece.take());
            }
            keep
        });
        again.into_iter().rev().for_each(|piece| self.pieces.push_front(piece));
        if last.is_some_and(|sent_at| sent_at >= self.recovery) {
            self.recovery = at;
            self.window = (self.window * AFTER_LOSS_TENTHS / 10).max(WINDOW_BYTES_MIN);
            if waits > 1 {
                // For several timers nothing came: the path is taken for congested.
                self.window = WINDOW_BYTES_MIN;
            }
            self.threshold = self.window;
        }
    }

    /// Whether something waits for what acknowledgements say: for room in the window, or to be sent again.
    pub(crate) fn wants_acks(&self) -> bool {
        !(self.pieces.is_empty() && self.datagrams.is_empty()) || self.backoff > 0
    }

    /// When the sender last heard anything of the other end; also by what came the other way.
    pub(crate) fn heard(&self) -> Instant {
        self.heard
    }

    /// When anything was last sent.
    pub(crate) fn last_sent(&self) -> Instant {
        self.last_sent
    }

    // The receiver.

    /// A packet was read: appends the frames that are complete now, in their order.
    pub(crate) fn receive(&mut self, now: Instant, packet: Packet, ready: &mut Vec<Arc<[u8]>>) {
        self.owed.push(packet.number);
        self.since_ack += 1;
        self.ack_due.get_or_insert(now + self.settings().ack_delay);
        match packet.content {
            Content::Probe => {}
            Content::Datagram(bytes) => ready.push(bytes),
            Content::Piece(piece) => self.assembly.put(piece, ready),
        }
    }

    /// Whether enough came to be acknowledged at once.
    pub(crate) fn owes_ack_now(&self) -> bool {
        self.since_ack >= self.settings().ack_after
    }

    /// Whether the first packet since the last acknowledgement has come.
    pub(crate) fn owes_one(&self) -> bool {
        self.since_ack == 1
    }

    /// When what is owed is acknowledged on its own, if nothing goes the other way before.
    pub(crate) fn ack_due(&self) -> Option<Instant> {
        self.ack_due
    }

    /// Something goes to the sender, with what is owed in it; it arrives then, or never. What an acknowledgement costs.
    pub(crate) fn acknowledge(&mut self, arrives: Option<Instant>) -> usize {
        if self.owed.is_empty() {
            return 0;
        }
        (self.since_ack, self.ack_due) = (0, None);
        if let Some(at) = arrives {
            let numbers = std::mem::take(&mut self.owed);
            let place = self.acks.iter().rposition(|(other, _)| *other <= at).map_or(0, |index| index + 1);
            self.acks.insert(place, (at, numbers));
        }
        ACK_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRIP: Duration = Duration::from_millis(5);

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    fn read(flow: &mut Flow, now: Instant, packet: Packet) -> Vec<Vec<u8>> {
        let mut ready = Vec::new();
        flow.receive(now, packet, &mut ready);
        ready.iter().map(|bytes| bytes.to_vec()).collect()
    }

    #[test]
    fn what_is_lost_of_a_stream_is_sent_again_when_nobody_answers() {
        let mut flow = Flow::new(Class::Gossip, at(0));
        flow.push_frame(None, b"list");
        let _lost = flow.poll(at(0)).expect("there is a frame");
        let Look::Wait(due) = flow.look(at(1)) else { panic!("it waits for an answer") };
        let Look::Probe(again) = flow.look(due) else { panic!("nobody answered") };
        assert_eq!(read(&mut flow, due, again.clone()), [b"list"]);
        assert!(read(&mut flow, due, again).is_empty(), "once is enough");
        flow.acknowledge(Some(due + TRIP));
        assert!(matches!(flow.look(due + TRIP), Look::Idle | Look::Wait(_)));
    }

    #[test]
    fn a_datagram_that_is_lost_stays_lost() {
        let mut flow = Flow::new(Class::Gossip, at(0));
        flow.push_datagram(b"ping");
        let _lost = flow.poll(at(0)).expect("there is a datagram");
        let Look::Wait(due) = flow.look(at(0)) else { panic!("it waits for an answer") };
        let Look::Probe(probe) = flow.look(due) else { panic!("nobody answered") };
        assert!(read(&mut flow, due, probe).is_empty());
    }

    #[test]
    fn the_wait_doubles_until_somebody_answers() {
        let mut flow = Flow::new(Class::Gossip, at(0));
        flow.push_datagram(b"ping");
        let _lost = flow.poll(at(0));
        let (mut now, mut waits, mut last) = (at(0), Vec::new(), None);
        for _ in 0..4 {
            let Look::Wait(due) = flow.look(now) else { panic!("it waits") };
            waits.push(due.since(now));
            now = due;
            let Look::Probe(probe) = flow.look(now) else { panic!("nobody answered") };
            last = Some(probe);
        }
        assert!(waits.windows(2).all(|pair| pair[1] == pair[0] * 2), "{waits:?}");
        let last = last.expect("it was probed");
        read(&mut flow, now, last);
        flow.acknowledge(Some(now));
        assert!(matches!(flow.look(now), Look::Idle), "a probe's answer tells of all before it");
        assert_eq!(flow.in_flight, 0);
    }

    #[test]
    fn frames_of_a_lane_keep_their_order_and_others_pass_them() {
        let mut flow = Flow::new(Class::Calls, at(0));
        flow.push_frame(Some(0), b"first");
        flow.push_frame(Some(0), b"second");
        flow.push_frame(Some(1), b"other");
        let packets: Vec<Packet> = std::iter::from_fn(|| flow.poll(at(0))).collect();
        assert!(read(&mut flow, at(1), packets[1].clone()).is_empty());
        assert_eq!(read(&mut flow, at(1), packets[2].clone()), [b"other"]);
        assert_eq!(read(&mut flow, at(1), packets[0].clone()), [&b"first"[..], b"second"]);
    }

    #[test]
    fn a_large_frame_takes_as_many_packets_as_it_needs_and_the_window_holds_the_rest_back() {
        let mut flow = Flow::new(Class::Calls, at(0));
        let body = vec![7; 100_000];
        flow.push_frame(None, &body);
        let (mut now, mut packets, mut whole) = (at(0), 0, Vec::new());
        while whole.is_empty() {
            let sent: Vec<Packet> = std::iter::from_fn(|| flow.poll(now)).collect();
            assert!(!sent.is_empty() && flow.in_flight <= flow.window, "{packets} packets");
            packets += sent.len();
            now = now + TRIP;
            for packet in sent {
                whole.extend(read(&mut flow, now, packet));
            }
            flow.acknowledge(Some(now + TRIP));
            now = now + TRIP;
            flow.resolve(now);
        }
        assert_eq!((packets, whole), (87, vec![body]));
        assert!(now >= at(30), "several round trips: {now:?}");
    }

    #[test]
    fn losses_make_the_window_smaller_and_arrivals_larger() {
        let mut flow = Flow::new(Class::Calls, at(0));
        flow.push_frame(None, &vec![7; 40_000]);
        let sent: Vec<Packet> = std::iter::from_fn(|| flow.poll(at(0))).collect();
        let last = sent.last().expect("there are some").clone();
        read(&mut flow, at(5), last);
        flow.acknowledge(Some(at(10)));
        flow.resolve(at(10));
        assert!(flow.window < WINDOW_BYTES, "{}", flow.window);
        let smaller = flow.window;
        let again: Vec<Packet> = std::iter::from_fn(|| flow.poll(at(11))).collect();
        again.into_iter().for_each(|packet| flow.receive(at(15), packet, &mut Vec::new()));
        flow.acknowledge(Some(at(20)));
        flow.resolve(at(20));
        assert!(flow.window > smaller);
    }

    #[test]
    fn datagrams_that_cannot_go_are_not_taken_for_ever() {
        let mut flow = Flow::new(Class::Gossip, at(0));
        let mut taken = 0;
        while flow.push_datagram(&[7; 1_000]) {
            taken += 1;
            while flow.poll(at(0)).is_some() {}
        }
        assert_eq!(taken, 61 + 17, "a window full of them in flight, and as many as may wait");
    }
}
