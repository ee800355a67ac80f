//! What lies between this process and one other: the attempts on their way, which of them were handed over,
//! and what the other's clock shows.
//!
//! The only place that knows whether an attempt was handed to the transport, and so the only one that
//! testifies that it was not. Knows no streams; the shell writes what [`Link::take`] gives it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use swimring_forwarder::wire::{CallHeader, Frame, Refusal};
use swimring_forwarder::{NeverSent, Unsent};
use swimring_membership::codec::{Blob, Malformed};
use swimring_membership::{Instance, Instant, NodeId};

use super::peers::ConnId;

/// By how much two clocks may drift apart, in millionths: what is added to an estimate as it ages.
const DRIFT_PPM: u64 = 500;

/// A call to send, before it has a number and a deadline in the other's time.
#[derive(Clone, Debug)]
pub struct Outbound {
    /// Which service.
    pub service: Arc<str>,
    /// Which key.
    pub key: Arc<[u8]>,
    /// What for.
    pub body: Arc<[u8]>,
    /// By when, on this process's clock.
    pub deadline: Instant,
    /// 1 or 2.
    pub hop: u8,
    /// The record that sent it here.
    pub record: Option<Blob>,
}

/// What a frame of the other process means here. `T` is the caller's token of an attempt.
#[derive(Debug)]
pub enum Arrival<'a, T> {
    /// It wants something run.
    Call(CallHeader, &'a [u8]),
    /// It ran an attempt of ours: the answer, or the handler's error.
    Ran(T, Result<&'a [u8], &'a [u8]>, u64),
    /// It refused an attempt of ours.
    Refused(T, Refusal, Option<NodeId>, Option<Blob>),
    /// It does not wait any more for what it sent under this number.
    Cancel(u64),
    /// Nothing that anybody has to hear of.
    Nothing,
}

/// What was cut off by the end of a connection.
#[derive(Debug)]
pub struct CutOff<T> {
    /// Attempts that were handed over: nobody knows.
    pub lost: Vec<T>,
    /// Attempts that were not, and have nowhere to go.
    pub unsent: Vec<(T, NeverSent)>,
}

#[derive(Debug)]
struct Queued<T> {
    seq: u64,
    token: T,
    call: Outbound,
}

/// The other's clock: what to add to ours, and how wrong that was when it was measured.
#[derive(Copy, Clone, Debug)]
struct Timebase {
    offset: i64,
    error: Duration,
    at: Instant,
}

impl Timebase {
    /// Asked at `sent`, answered with `clock`, heard at `now`.
    fn measured(sent: Instant, clock: Instant, now: Instant) -> Self {
        let half = now.since(sent) / 2;
        let middle = sent + half;
        Self { offset: (clock.as_nanos() as i64).wrapping_sub(middle.as_nanos() as i64), error: half, at: now }
    }

    fn error(&self, now: Instant) -> Duration {
        self.error + Duration::from_nanos(now.since(self.at).as_nanos() as u64 / 1_000_000 * DRIFT_PPM)
    }
}

/// Everything between this process and one other.
#[derive(Debug)]
pub struct Link<T> {
    to: Instance,
    conns: Vec<ConnId>,
    /// The connection that both ends keep.
    kept: Option<ConnId>,
    timebase: Option<Timebase>,
    next_seq: u64,
    queue: VecDeque<Queued<T>>,
    control: VecDeque<Vec<u8>>,
    pending: BTreeMap<u64, (ConnId, T)>,
    calls_max: usize,
}

impl<T> Link<T> {
    /// No connection yet; at most `calls_max` attempts under way.
    pub fn new(to: Instance, calls_max: usize) -> Self {
        Self {
            to,
            conns: Vec::new(),
            kept: None,
            timebase: None,
            next_seq: 1,
            queue: VecDeque::new(),
            control: VecDeque::new(),
            pending: BTreeMap::new(),
            calls_max,
        }
    }

    /// The other process.
    pub fn to(&self) -> Instance {
        self.to
    }

    /// A connection stands. Its hello was sent at `asked`, answered with the other's `clock`, and heard `now`;
    /// the accepting end has only the `clock`, and measures at once.
    pub fn connected(&mut self, now: Instant, conn: ConnId, asked: Option<Instant>, clock: Instant) {
        self.conns.push(conn);
        match asked {
            Some(asked) => self.improve(now, Timebase::measured(asked, clock, now)),
            None => self.ask_clock(now),
        }
    }

    fn improve(&mut self, now: Instant, new: Timebase) {
        if self.timebase.is_none_or(|held| new.error <= held.error(now)) {
            self.timebase = Some(new);
        }
    }

    /// Asks what the other's clock shows.
    pub fn ask_clock(&mut self, now: Instant) {
        self.send(&Frame::Clock { sent: now.as_nanos() }, &[]);
    }

    /// Whether there is a connection.
    pub fn is_connected(&self) -> bool {
        !self.conns.is_empty()
    }

    /// Of several connections, [`Peers`](super::peers::Peers) keeps this one: only on it is anything written.
    pub fn prefer(&mut self, conn: Option<ConnId>) {
        self.kept = conn;
    }

    /// The connection to write on: the one that both ends keep, or the newest.
    pub fn preferred(&self) -> Option<ConnId> {
        self.kept.filter(|kept| self.conns.contains(kept)).or(self.conns.last().copied())
    }

    /// Whether something waits to be written.
    pub fn has_work(&self) -> bool {
        !self.control.is_empty() || (!self.queue.is_empty() && self.timebase.is_some())
    }

    /// How many attempts are queued or wait for an answer.
    pub fn open_count(&self) -> usize {
        self.queue.len() + self.pending.len()
    }

    /// Queues an attempt. It has its number from now on.
    ///
    /// # Errors
    /// With the proof that it was not sent, when too many are under way.
    pub fn enqueue(&mut self, call: Outbound, token: T) -> Result<u64, (T, NeverSent)> {
        if self.open_count() >= self.calls_max {
            return Err((token, NeverSent::testify(Unsent::Full)));
        }
        let seq = self.next_seq;
        self.next_seq += 1;
        self.queue.push_back(Queued { seq, token, call });
        Ok(seq)
    }

    /// Takes an attempt back, if it was not handed over.
    pub fn withdraw(&mut self, seq: u64) -> Option<NeverSent> {
        let index = self.queue.iter().position(|queued| queued.seq == seq)?;
        self.queue.remove(index);
        Some(NeverSent::testify(Unsent::Withdrawn))
    }

    /// The caller does not wait any more for an attempt that was handed over.
    pub fn abandon(&mut self, seq: u64) {
        if self.pending.remove(&seq).is_some() {
            self.send(&Frame::Cancel { seq }, &[]);
        }
    }

    /// Queues a frame that nobody waits for: a reply, mostly.
    pub fn send(&mut self, frame: &Frame, body: &[u8]) {
        if self.conns.is_empty() {
            return;
        }
        let mut bytes = Vec::with_capacity(64 + body.len());
        frame.encode(body, &mut bytes);
        self.control.push_back(bytes);
    }

    /// Appends what waits to `out`, up to about `bytes_max`, for the shell to write on `conn`. From this moment
    /// the attempts among it are handed over; each of their tokens is shown to `handed`.
    pub fn take(
        &mut self,
        now: Instant,
        conn: ConnId,
        bytes_max: usize,
        out: &mut Vec<u8>,
        mut handed: impl FnMut(&T),
    ) {
        // A writer may still ask for a connection that has ended, or that lost to another one.
        if self.preferred() != Some(conn) {
            return;
        }
        while out.len() < bytes_max {
            if let Some(frame) = self.control.pop_front() {
                out.extend_from_slice(&frame);
                continue;
            }
            let Some(timebase) = self.timebase else {
                return;
            };
            let Some(queued) = self.queue.pop_front() else {
                return;
            };
            let floor = self.pending.first_key_value().map_or(queued.seq, |(first, _)| *first);
            let header = CallHeader {
                seq: queued.seq,
                floor,
                life: self.to.life,
                deadline: queued.call.deadline.offset(timebase.offset).as_nanos(),
                error_us: u32::try_from(timebase.error(now).as_micros()).unwrap_or(u32::MAX),
                hop: queued.call.hop,
                service: queued.call.service.as_ref().into(),
                key: Blob(queued.call.key.to_vec()),
                record: queued.call.record,
            };
            Frame::Call(header).encode(&queued.call.body, out);
            handed(&queued.token);
            self.pending.insert(queued.seq, (conn, queued.token));
        }
    }

    /// A whole frame came in.
    ///
    /// # Errors
    /// If it is none; the other's fault.
    pub fn handle_frame<'a>(&mut self, now: Instant, bytes: &'a [u8]) -> Result<Arrival<'a, T>, Malformed> {
        let Some((frame, body)) = Frame::decode(bytes)? else {
            return Ok(Arrival::Nothing);
        };
        let mut end = |seq| self.pending.remove(&seq).map(|(_, token)| token);
        Ok(match frame {
            Frame::Call(header) => Arrival::Call(header, body),
            Frame::Ok { seq, fence } => end(seq).map_or(Arrival::Nothing, |token| Arrival::Ran(token, Ok(body), fence)),
            Frame::Executed { seq, fence } => {
                end(seq).map_or(Arrival::Nothing, |token| Arrival::Ran(token, Err(body), fence))
            }
            Frame::Refused { seq, why, owner, record } => {
                end(seq).map_or(Arrival::Nothing, |token| Arrival::Refused(token, why, owner, record))
            }
            Frame::Cancel { seq } => Arrival::Cancel(seq),
            Frame::Clock { sent } => {
                self.send(&Frame::ClockIs { sent, clock: now.as_nanos() }, &[]);
                Arrival::Nothing
            }
            Frame::ClockIs { sent, clock } => {
                let (sent, clock) = (Instant::from_nanos(sent), Instant::from_nanos(clock));
                if sent <= now {
                    self.improve(now, Timebase::measured(sent, clock, now));
                }
                Arrival::Nothing
            }
            Frame::Goodbye => Arrival::Nothing,
        })
    }

    /// A connection has ended: what was handed over on it is lost, and without another connection what waits
    /// goes back.
    pub fn closed(&mut self, conn: ConnId, why: Unsent) -> CutOff<T> {
        self.conns.retain(|held| *held != conn);
        let lost: Vec<u64> = self.pending.iter().filter(|(_, (on, _))| *on == conn).map(|(seq, _)| *seq).collect();
        let lost = lost.into_iter().filter_map(|seq| self.pending.remove(&seq)).map(|(_, token)| token).collect();
        let unsent = if self.conns.is_empty() { self.give_back(why) } else { Vec::new() };
        CutOff { lost, unsent }
    }

    /// There will be no connection: what waits goes back.
    pub fn give_back(&mut self, why: Unsent) -> Vec<(T, NeverSent)> {
        if self.conns.is_empty() {
            self.control.clear();
        }
        self.queue.drain(..).map(|queued| (queued.token, NeverSent::testify(why))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO: Instance = Instance { node: NodeId::from_u128(1), life: 7 };
    const NOW: Instant = Instant::from_millis(100);

    fn outbound(deadline: Instant) -> Outbound {
        Outbound {
            service: "kv".into(),
            key: Arc::from(&b"k"[..]),
            body: Arc::from(&b"v"[..]),
            deadline,
            hop: 1,
            record: None,
        }
    }

    fn link() -> Link<&'static str> {
        let mut link = Link::new(TO, 2);
        // Asked at 90, heard at 100, and its clock showed 1,000: at 95 here.
        link.connected(NOW, ConnId(1), Some(Instant::from_millis(90)), Instant::from_millis(1_000));
        link
    }

    fn take(link: &mut Link<&'static str>) -> Vec<Frame> {
        let mut bytes = Vec::new();
        link.take(NOW, ConnId(1), 1 << 20, &mut bytes, |_| {});
        let mut frames = Vec::new();
        let mut rest = &bytes[..];
        while let Some(length) = Frame::length(rest, 1 << 20).unwrap() {
            frames.push(Frame::decode(&rest[..length]).unwrap().unwrap().0);
            rest = &rest[length..];
        }
        frames
    }

    #[test]
    fn a_deadline_is_told_in_the_others_time() {
        let mut link = link();
        link.enqueue(outbound(NOW + Duration::from_millis(50)), "a").unwrap();
        let Some(Frame::Call(header)) = take(&mut link).pop() else { panic!("a call waits") };
        assert_eq!(header.deadline, Instant::from_millis(1_055).as_nanos());
        assert_eq!(header.error_us, 5_000);
    }

    #[test]
    fn what_is_queued_can_be_taken_back_and_what_is_handed_over_cannot() {
        let mut link = link();
        let first = link.enqueue(outbound(NOW), "a").unwrap();
        assert!(link.withdraw(first).is_some());
        let second = link.enqueue(outbound(NOW), "b").unwrap();
        take(&mut link);
        assert!(link.withdraw(second).is_none());
    }

    #[test]
    fn the_end_of_a_connection_tells_the_lost_from_the_unsent() {
        let mut link = link();
        link.enqueue(outbound(NOW), "handed over").unwrap();
        take(&mut link);
        link.enqueue(outbound(NOW), "queued").unwrap();
        let cut = link.closed(ConnId(1), Unsent::Unreachable);
        assert_eq!(cut.lost, ["handed over"]);
        assert_eq!(cut.unsent.iter().map(|(token, _)| *token).collect::<Vec<_>>(), ["queued"]);
    }

    #[test]
    fn nothing_is_handed_to_a_connection_that_has_ended_or_is_not_kept() {
        let mut link = link();
        link.connected(NOW, ConnId(2), Some(NOW), NOW);
        link.prefer(Some(ConnId(1)));
        link.enqueue(outbound(NOW), "a").unwrap();
        let taken = |link: &mut Link<&'static str>, conn| {
            let mut bytes = Vec::new();
            link.take(NOW, ConnId(conn), 1 << 20, &mut bytes, |_| {});
            !bytes.is_empty()
        };
        assert!(!taken(&mut link, 2), "the other one is kept");
        link.closed(ConnId(1), Unsent::Unreachable);
        assert!(!taken(&mut link, 1), "it has ended");
        assert!(taken(&mut link, 2), "now it is the only one");
    }

    #[test]
    fn an_answer_finds_its_attempt_once() {
        let mut link = link();
        let seq = link.enqueue(outbound(NOW), "a").unwrap();
        take(&mut link);
        let mut answer = Vec::new();
        Frame::Ok { seq, fence: 3 }.encode(b"yes", &mut answer);
        assert!(matches!(link.handle_frame(NOW, &answer), Ok(Arrival::Ran("a", Ok(b"yes"), 3))));
        assert!(matches!(link.handle_frame(NOW, &answer), Ok(Arrival::Nothing)));
    }

    #[test]
    fn too_many_under_way_are_refused_with_proof() {
        let mut link = link();
        assert!(link.enqueue(outbound(NOW), "a").is_ok() && link.enqueue(outbound(NOW), "b").is_ok());
        assert!(matches!(link.enqueue(outbound(NOW), "c"), Err(("c", _))));
    }

    #[test]
    fn the_floor_is_the_first_attempt_that_is_waited_for() {
        let mut link = link();
        let first = link.enqueue(outbound(NOW), "a").unwrap();
        take(&mut link);
        link.enqueue(outbound(NOW), "b").unwrap();
        let Some(Frame::Call(header)) = take(&mut link).pop() else { panic!("a call waits") };
        assert_eq!((header.seq, header.floor), (first + 1, first));
    }
}
