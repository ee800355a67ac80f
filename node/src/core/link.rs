//! What lies between this process and one other: the attempts on their way, which of them were handed over,
//! and what the other's clock shows.
//!
//! The only place that knows whether an attempt was handed to the transport, and so the only one that
//! testifies that it was not. Knows no streams; the shell writes what [`Link::take`] and [`Link::take_large`]
//! give it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use swimring_forwarder::wire::{CallHeader, Frame, LANE_BODY_BYTES_MAX, Refusal};
use swimring_forwarder::{NeverSent, Unsent};
use swimring_membership::codec::{Blob, Malformed};
use swimring_membership::{Instance, Instant, NodeId};

use super::peers::ConnId;

/// By how much two clocks may drift apart, in millionths: what is added to an estimate as it ages.
const DRIFT_PPM: u64 = 500;
/// A connection that nothing came on for longer is asked before it is trusted with a call that may not run twice:
/// the other end may have given it up and the word of it been lost.
const FRESH: Duration = Duration::from_secs(3);
/// Clocks that were compared longer ago are compared before any call: by then they may be a tenth of a second apart.
const CLOCK_FRESH: Duration = Duration::from_secs(200);
/// What a frame that waits takes besides its bytes.
const FRAME_OVERHEAD_BYTES: usize = 64;
/// Most bytes of replies that wait to be written before calls of the other are passed over: it does not read.
const BACKLOG_BYTES_MAX: usize = 64 * 1_024 * 1_024;

/// How much may be under way to one process.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct LinkLimits {
    /// Most attempts that are queued or wait for an answer.
    pub calls_max: usize,
    /// Most bytes of bodies that are queued.
    pub bytes_max: usize,
}

impl Default for LinkLimits {
    fn default() -> Self {
        Self { calls_max: 4_096, bytes_max: 128 * 1_024 * 1_024 }
    }
}

/// A call to send, before it has a number and a deadline in the other's time. `B` holds bytes.
#[derive(Clone, Debug)]
pub struct Outbound<B> {
    /// Which service.
    pub service: Arc<str>,
    /// Which key.
    pub key: B,
    /// What for.
    pub body: B,
    /// By when, on this process's clock.
    pub deadline: Instant,
    /// Whether it may run more than once.
    pub idempotent: bool,
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
    /// It takes nothing new, and these go back.
    Goodbye(Vec<(T, NeverSent)>),
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
struct Queued<T, B> {
    seq: u64,
    token: T,
    call: Outbound<B>,
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

/// Frames on their way out that share the lanes, or each have a stream of their own.
#[derive(Debug)]
struct Outbox<T, B> {
    calls: VecDeque<Queued<T, B>>,
    /// Frames that nobody waits for: replies, mostly.
    frames: VecDeque<Vec<u8>>,
}

impl<T, B> Default for Outbox<T, B> {
    fn default() -> Self {
        Self { calls: VecDeque::new(), frames: VecDeque::new() }
    }
}

impl<T, B> Outbox<T, B> {
    fn has_work(&self, takes_calls: bool) -> bool {
        !self.frames.is_empty() || (takes_calls && !self.calls.is_empty())
    }
}

/// Everything between this process and one other.
#[derive(Debug)]
pub struct Link<T, B> {
    to: Instance,
    limits: LinkLimits,
    /// Connections that take something new, the oldest first.
    conns: Vec<ConnId>,
    /// The connection that both ends keep.
    kept: Option<ConnId>,
    /// The connections that stood when the other said goodbye.
    ending: Vec<ConnId>,
    timebase: Option<Timebase>,
    /// When something last came in.
    heard: Instant,
    /// The other was asked whether it is there; calls wait for its answer.
    asking: bool,
    /// A call was handed over since the clocks were compared.
    used: bool,
    /// When they were compared last.
    compared: Instant,
    next_seq: u64,
    lanes: Outbox<T, B>,
    large: Outbox<T, B>,
    queued_bytes: usize,
    backlog_bytes: usize,
    pending: BTreeMap<u64, (ConnId, T)>,
}

impl<T, B: AsRef<[u8]>> Link<T, B> {
    /// No connection yet. Attempts are numbered from the microsecond: a link to the same process that was
    /// forgotten meanwhile never numbered as many.
    pub fn new(now: Instant, to: Instance, limits: LinkLimits) -> Self {
        Self {
            to,
            limits,
            conns: Vec::new(),
            kept: None,
            ending: Vec::new(),
            timebase: None,
            heard: now,
            asking: false,
            used: false,
            compared: now,
            next_seq: now.as_nanos() / 1_000 + 1,
            lanes: Outbox::default(),
            large: Outbox::default(),
            queued_bytes: 0,
            backlog_bytes: 0,
            pending: BTreeMap::new(),
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
        self.hear(now);
        match asked {
            Some(asked) => self.improve(now, Timebase::measured(asked, clock, now)),
            None => self.ask_clock(now),
        }
    }

    fn hear(&mut self, now: Instant) {
        (self.heard, self.asking) = (now, false);
    }

    /// Whether a call must wait until the other has been heard, or its clock is known well enough. Asks it, if that was
    /// not done.
    fn must_ask(&mut self, now: Instant, idempotent: bool) -> bool {
        let silent = !idempotent && now.since(self.heard) > FRESH;
        if !silent && now.since(self.compared) <= CLOCK_FRESH {
            return false;
        }
        if !self.asking {
            self.asking = true;
            self.ask_clock(now);
        }
        true
    }

    fn improve(&mut self, now: Instant, new: Timebase) {
        self.compared = now;
        if self.timebase.is_none_or(|held| new.error <= held.error(now)) {
            self.timebase = Some(new);
        }
    }

    /// Compares clocks again, if calls went by the last comparison: clocks drift.
    pub fn keep_clock(&mut self, now: Instant) {
        if std::mem::take(&mut self.used) {
            self.ask_clock(now);
        }
    }

    /// Asks what the other's clock shows.
    fn ask_clock(&mut self, now: Instant) {
        self.send(&Frame::Clock { sent: now.as_nanos() }, &[]);
    }

    /// Whether there is a connection that takes something new.
    pub fn is_connected(&self) -> bool {
        !self.conns.is_empty()
    }

    /// Whether nothing is under way, so that the link can be forgotten.
    pub fn is_idle(&self) -> bool {
        self.conns.is_empty() && self.open_count() == 0
    }

    /// Of several connections, [`Peers`](super::peers::Peers) keeps this one: only on it is anything written.
    pub fn prefer(&mut self, conn: Option<ConnId>) {
        self.kept = conn;
    }

    /// The connection to write on: the one that both ends keep, or the newest.
    pub fn preferred(&self) -> Option<ConnId> {
        self.kept.filter(|kept| self.conns.contains(kept)).or(self.conns.last().copied())
    }

    /// Whether something waits for [`take`](Self::take).
    pub fn has_work(&self) -> bool {
        self.lanes.has_work(self.takes_calls())
    }

    /// Whether something waits for [`take_large`](Self::take_large).
    pub fn has_large_work(&self) -> bool {
        self.large.has_work(self.takes_calls())
    }

    fn takes_calls(&self) -> bool {
        self.timebase.is_some() && !self.asking
    }

    /// Whether the other does not read what it is sent: its calls are better passed over.
    pub fn is_choked(&self) -> bool {
        self.backlog_bytes > BACKLOG_BYTES_MAX
    }

    /// How many attempts are queued or wait for an answer.
    pub fn open_count(&self) -> usize {
        self.queued_count() + self.pending.len()
    }

    /// How many attempts wait to be handed over.
    pub fn queued_count(&self) -> usize {
        self.lanes.calls.len() + self.large.calls.len()
    }

    /// Whether somebody waits for the answer to this attempt.
    pub fn is_pending(&self, seq: u64) -> bool {
        self.pending.contains_key(&seq)
    }

    /// Queues an attempt. It has its number from now on.
    ///
    /// # Errors
    /// With the proof that it was not sent, when too many are under way.
    pub fn enqueue(&mut self, call: Outbound<B>, token: T) -> Result<u64, (T, NeverSent)> {
        let bytes = call.body.as_ref().len();
        if self.open_count() >= self.limits.calls_max || self.queued_bytes + bytes > self.limits.bytes_max {
            return Err((token, NeverSent::testify(Unsent::Full)));
        }
        let seq = self.next_seq;
        self.next_seq += 1;
        self.queued_bytes += bytes;
        let outbox = if bytes > LANE_BODY_BYTES_MAX { &mut self.large } else { &mut self.lanes };
        outbox.calls.push_back(Queued { seq, token, call });
        Ok(seq)
    }

    /// Takes an attempt back, if it was not handed over.
    pub fn withdraw(&mut self, seq: u64) -> Option<NeverSent> {
        for outbox in [&mut self.lanes, &mut self.large] {
            if let Ok(index) = outbox.calls.binary_search_by_key(&seq, |queued| queued.seq) {
                let taken = outbox.calls.remove(index)?;
                self.queued_bytes -= taken.call.body.as_ref().len();
                return Some(NeverSent::testify(Unsent::Withdrawn));
            }
        }
        None
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
        self.backlog_bytes += bytes.len() + FRAME_OVERHEAD_BYTES;
        let outbox = if body.len() > LANE_BODY_BYTES_MAX { &mut self.large } else { &mut self.lanes };
        outbox.frames.push_back(bytes);
    }

    /// Appends what waits for the lanes to `out`, up to about `bytes_max`, for the shell to write on `conn`. From
    /// this moment the attempts among it are handed over.
    pub fn take(&mut self, now: Instant, conn: ConnId, bytes_max: usize, out: &mut Vec<u8>) {
        // A writer may still ask for a connection that has ended, or that lost to another one.
        if self.preferred() != Some(conn) {
            return;
        }
        while out.len() < bytes_max {
            if let Some(frame) = self.lanes.frames.pop_front() {
                self.backlog_bytes -= frame.len() + FRAME_OVERHEAD_BYTES;
                out.extend_from_slice(&frame);
                continue;
            }
            let Some(timebase) = self.timebase else {
                return;
            };
            let Some(idempotent) = self.lanes.calls.front().map(|queued| queued.call.idempotent) else {
                return;
            };
            if self.must_ask(now, idempotent) {
                if self.lanes.frames.is_empty() {
                    return;
                }
                continue;
            }
            if let Some(queued) = self.lanes.calls.pop_front() {
                self.hand_over(now, conn, timebase, queued, out);
            }
        }
    }

    /// Appends one frame with a large body to `out`, for the shell to write on a stream of its own on `conn`.
    /// False if there is none.
    pub fn take_large(&mut self, now: Instant, conn: ConnId, out: &mut Vec<u8>) -> bool {
        if self.preferred() != Some(conn) {
            return false;
        }
        if let Some(frame) = self.large.frames.pop_front() {
            self.backlog_bytes -= frame.len() + FRAME_OVERHEAD_BYTES;
            *out = frame;
            return true;
        }
        let Some(timebase) = self.timebase else {
            return false;
        };
        let Some(idempotent) = self.large.calls.front().map(|queued| queued.call.idempotent) else {
            return false;
        };
        if self.must_ask(now, idempotent) {
            return false;
        }
        let Some(queued) = self.large.calls.pop_front() else {
            return false;
        };
        self.hand_over(now, conn, timebase, queued, out);
        true
    }

    fn hand_over(&mut self, now: Instant, conn: ConnId, timebase: Timebase, queued: Queued<T, B>, out: &mut Vec<u8>) {
        let Queued { seq, token, call } = queued;
        let body = call.body.as_ref();
        self.queued_bytes -= body.len();
        // What waits in a queue has a number, too, and must not fall below the floor.
        let waiting = [&self.lanes, &self.large].into_iter().filter_map(|outbox| outbox.calls.front());
        let lowest = waiting.map(|queued| queued.seq).chain(self.pending.keys().next().copied()).min();
        let header = CallHeader {
            seq,
            floor: lowest.map_or(seq, |lowest| lowest.min(seq)),
            life: self.to.life,
            deadline: call.deadline.offset(timebase.offset).as_nanos(),
            error_us: u32::try_from(timebase.error(now).as_micros()).unwrap_or(u32::MAX),
            hop: call.hop,
            service: call.service.as_ref().into(),
            key: Blob(call.key.as_ref().to_vec()),
            record: call.record,
        };
        Frame::Call(header).encode(body, out);
        self.pending.insert(seq, (conn, token));
        self.used = true;
    }

    /// A whole frame came in.
    ///
    /// # Errors
    /// If it is none; the other's fault.
    pub fn handle_frame<'a>(&mut self, now: Instant, bytes: &'a [u8]) -> Result<Arrival<'a, T>, Malformed> {
        let Some((frame, body)) = Frame::decode(bytes)? else {
            return Ok(Arrival::Nothing);
        };
        self.hear(now);
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
            // Whoever does not read its answers gets none of these.
            Frame::Clock { .. } if self.is_choked() => Arrival::Nothing,
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
            Frame::Goodbye => {
                // The process goes, whichever of its connections said so.
                self.ending.append(&mut self.conns);
                Arrival::Goodbye(self.give_back(Unsent::Unreachable))
            }
        })
    }

    /// A connection has ended: what was handed over on it is lost, and without another connection what waits
    /// goes back.
    pub fn closed(&mut self, now: Instant, conn: ConnId, why: Unsent) -> CutOff<T> {
        let lost: Vec<u64> = self.pending.iter().filter(|(_, (on, _))| *on == conn).map(|(seq, _)| *seq).collect();
        let lost = lost.into_iter().filter_map(|seq| self.pending.remove(&seq)).map(|(_, token)| token).collect();
        self.ending.retain(|held| *held != conn);
        let unsent = self.retire(conn, why);
        if self.timebase.is_none() {
            // The question was on it, or its answer.
            self.ask_clock(now);
        }
        CutOff { lost, unsent }
    }

    /// The connections on which nothing more will come, for the other has said goodbye and owes no answer on them: the
    /// shell closes them, and so tells the other that everything has arrived.
    pub fn over(&self) -> impl Iterator<Item = ConnId> {
        let owes = |conn: &ConnId| self.pending.values().any(|(on, _)| on == conn);
        self.ending.iter().copied().filter(move |conn| !owes(conn))
    }

    /// Nothing new goes on this connection.
    fn retire(&mut self, conn: ConnId, why: Unsent) -> Vec<(T, NeverSent)> {
        self.conns.retain(|held| *held != conn);
        // The question may have gone with it.
        self.asking = false;
        if self.conns.is_empty() { self.give_back(why) } else { Vec::new() }
    }

    /// There will be no connection: what waits goes back.
    pub fn give_back(&mut self, why: Unsent) -> Vec<(T, NeverSent)> {
        let mut back = Vec::new();
        for outbox in [&mut self.lanes, &mut self.large] {
            if self.conns.is_empty() {
                outbox.frames.clear();
                self.backlog_bytes = 0;
            }
            back.extend(outbox.calls.drain(..).map(|queued| (queued.token, NeverSent::testify(why))));
        }
        self.queued_bytes = 0;
        back
    }
}

#[cfg(test)]
mod tests;
