//! What lies between this process and one other: the attempts on their way, which of them were handed over,
//! and what the other's clock shows.
//!
//! The only place that knows whether an attempt was handed to the transport, and so the only one that
//! testifies that it was not. Knows no streams; the shell writes what [`Link::take`], [`Link::take_large`] and
//! [`Link::take_duplex`] give it.

use std::sync::Arc;
use std::time::Duration;

use swimring_forwarder::wire::{CallHeader, Frame, Prefix};
use swimring_forwarder::{NeverSent, Unsent};
use swimring_membership::codec::{Malformed, Slice};
use swimring_membership::{Instance, Instant};

use super::backlog::{BYTES_MAX, Backlog, Large};
use super::breaker::{Breaker, Look};
use super::peers::ConnId;
use super::timebase::Timebase;

pub use self::attempts::{Arrival, CutOff, Opening, Outbound, Payload};

use self::aside::Aside;
use self::numbered::Numbered;
use self::queues::{Queued, Queues, Way};

mod aside;
mod attempts;
mod numbered;
mod queues;

/// A connection that nothing came on for longer is asked before it is trusted with a call that may not run twice:
/// the other end may have given it up and the word of it been lost.
const FRESH: Duration = Duration::from_secs(3);
/// Clocks that were compared longer ago are compared before any call: by then they may be a tenth of a second apart.
const CLOCK_FRESH: Duration = Duration::from_secs(200);

/// How many attempts wait for a process that does not answer; more are turned away at once.
const HELD_MAX: usize = 64;

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

/// An attempt that was handed over.
#[derive(Debug)]
struct Pending<T> {
    on: ConnId,
    deadline: Instant,
    duplex: bool,
    token: T,
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
    /// When something was first wanted of the other since it was heard.
    wanted: Option<Instant>,
    breaker: Breaker,
    /// The other was asked whether it is there; calls wait for its answer.
    asking: bool,
    /// A call was handed over since the clocks were compared.
    used: bool,
    /// When they were compared last.
    compared: Instant,
    next_seq: u64,
    queued: Queues<T, B>,
    backlog: Backlog<B>,
    /// What replies to what came on another connection than the preferred one, and goes back on that.
    aside: Aside<B>,
    pending: Numbered<Pending<T>>,
    /// No attempt's deadline is before this.
    earliest: Option<Instant>,
}

impl<T, B: AsRef<[u8]> + Clone> Link<T, B> {
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
            wanted: None,
            breaker: Breaker::default(),
            asking: false,
            used: false,
            compared: now,
            next_seq: now.as_nanos() / 1_000 + 1,
            queued: Queues::default(),
            backlog: Backlog::default(),
            aside: Aside::default(),
            pending: Numbered::default(),
            earliest: None,
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

    /// Something has come in, or a part of it.
    pub fn hear(&mut self, now: Instant) {
        (self.heard, self.asking, self.wanted) = (now, false, None);
        self.breaker.heard();
    }

    /// The clock by which a call goes now. There is none while nothing is handed over, until the other has been heard or
    /// until its clock is known well enough: it is asked, if that was not done.
    fn clock_for(&mut self, now: Instant, idempotent: bool) -> Option<Timebase> {
        if self.breaker.is_open() {
            return None;
        }
        let silent = !idempotent && now.since(self.heard) > FRESH;
        let known = self.timebase.filter(|_| !silent && now.since(self.compared) <= CLOCK_FRESH);
        if known.is_none() && !self.asking {
            self.asking = true;
            self.ask_clock(now);
            self.want(now);
        }
        known
    }

    /// Something is wanted of the other: whether it answers is looked at in time.
    fn want(&mut self, now: Instant) {
        let wanted = *self.wanted.get_or_insert(now);
        self.earliest = self.earliest.into_iter().chain(self.breaker.due(Some(wanted))).min();
    }

    fn improve(&mut self, now: Instant, new: Timebase) {
        self.compared = now;
        if self.timebase.is_none_or(|held| new.error(now) <= held.error(now)) {
            self.timebase = Some(new);
        }
    }

    /// Compares clocks again, if calls went by the last comparison: clocks drift. Asks again as well, if a question was
    /// never answered: an end that could not keep up passes over some.
    pub fn keep_clock(&mut self, now: Instant) {
        if std::mem::take(&mut self.used) || self.asking {
            self.ask_clock(now);
            self.want(now);
        }
    }

    /// Asks what the other's clock shows.
    fn ask_clock(&mut self, now: Instant) {
        self.send(&Frame::Clock { sent: now.as_nanos() });
    }

    /// Whether there is a connection that takes something new.
    pub fn is_connected(&self) -> bool {
        !self.conns.is_empty()
    }

    /// Whether nothing is under way, so that the link can be forgotten.
    pub fn is_idle(&self) -> bool {
        self.conns.is_empty() && self.open_count() == 0
    }

    /// Of several connections, [`Peers`](super::peers::Peers) keeps this one: only on it is anything written
    /// but replies to what came on another one.
    pub fn prefer(&mut self, conn: Option<ConnId>) {
        self.kept = conn;
    }

    /// The connection to write on: the one that both ends keep, or the newest.
    pub fn preferred(&self) -> Option<ConnId> {
        self.kept.filter(|kept| self.conns.contains(kept)).or(self.conns.last().copied())
    }

    /// Whether something waits for [`take`](Self::take).
    pub fn has_work(&self) -> bool {
        self.has_frames() || self.has_calls(Way::Lane)
    }

    /// Whether something that nobody waits for, an answer mostly, is among that.
    pub fn has_frames(&self) -> bool {
        self.backlog.has_pieces()
    }

    /// Whether something waits for [`take_large`](Self::take_large).
    pub fn has_large_work(&self) -> bool {
        self.backlog.has_large() || self.has_calls(Way::Large)
    }

    /// Whether something waits for [`take_duplex`](Self::take_duplex).
    pub fn has_duplex_work(&self) -> bool {
        self.has_calls(Way::Duplex)
    }

    fn has_calls(&self, way: Way) -> bool {
        !self.asking && !self.breaker.is_open() && self.queued.front(way).is_some()
    }

    /// Whether the other does not answer, so that nothing more is handed over until it does.
    pub fn is_broken(&self) -> bool {
        self.breaker.is_open()
    }

    /// Since when something has been wanted, and nothing heard.
    fn silent_since(&self) -> Option<Instant> {
        self.wanted.or((self.open_count() > 0).then_some(self.heard))
    }

    /// Whether the other does not read what it is sent: its calls are better passed over.
    pub fn is_choked(&self) -> bool {
        self.backlog.bytes() + self.aside.bytes() > BYTES_MAX
    }

    /// How many attempts are queued or wait for an answer.
    pub fn open_count(&self) -> usize {
        self.queued_count() + self.pending_count()
    }

    /// How many attempts were handed over and wait for an answer.
    pub fn pending_count(&self) -> usize {
        self.pending.len()
    }

    /// How many attempts wait to be handed over.
    pub fn queued_count(&self) -> usize {
        self.queued.len()
    }

    /// Whether somebody waits for the answer to this attempt.
    pub fn is_pending(&self, seq: u64) -> bool {
        self.pending.get(seq).is_some()
    }

    /// Who waits for it.
    pub fn pending(&self, seq: u64) -> Option<&T> {
        self.pending.get(seq).map(|pending| &pending.token)
    }

    /// Queues an attempt. It has its number from now on.
    ///
    /// # Errors
    /// With the proof that it was not sent, when too many are under way, or wait for a process that does not answer.
    pub fn enqueue(&mut self, call: Outbound<B>, token: T) -> Result<u64, (T, NeverSent)> {
        let bytes = call.payload.body.as_ref().len();
        if self.breaker.is_open() && self.queued_count() >= HELD_MAX {
            return Err((token, NeverSent::testify(Unsent::Silent)));
        }
        if self.open_count() >= self.limits.calls_max || self.queued.bytes() + bytes > self.limits.bytes_max {
            return Err((token, NeverSent::testify(Unsent::Full)));
        }
        let seq = self.next_seq;
        self.next_seq += 1;
        self.earliest = Some(self.earliest.map_or(call.deadline, |earliest| earliest.min(call.deadline)));
        self.queued.push(Queued { seq, token, call });
        Ok(seq)
    }

    /// The caller does not wait for an attempt any more: it is taken back, or cancelled at the other end.
    pub fn abandon(&mut self, seq: u64) {
        self.queued.remove(seq);
        if self.pending.remove(seq).is_some() {
            self.send(&Frame::Cancel { seq });
        }
    }

    /// When [`expire`](Self::expire) is to be called: at some attempt's deadline, when the other is to be asked whether it
    /// is there, or before. Where anything is open it may come sooner by handing over, so it is asked for again after
    /// [`ASKED_AFTER`](super::breaker::ASKED_AFTER) at most.
    pub fn earliest(&self) -> Option<Instant> {
        self.earliest
    }

    /// Ends the attempts whose deadline is here: takes back what was not handed over, and cancels the rest. Asks the other
    /// whether it is there, if that is due. If it has been silent for too long, also names the connection that the shell is
    /// to close.
    pub fn expire(&mut self, now: Instant) -> (CutOff<T>, Option<ConnId>) {
        let (mut over, mut silent) = (CutOff { lost: Vec::new(), unsent: Vec::new() }, None);
        if self.earliest.is_none_or(|earliest| earliest > now) {
            return (over, silent);
        }
        let why = if self.breaker.is_open() { Unsent::Silent } else { Unsent::Late };
        over.unsent.extend(self.queued.take_late(now).into_iter().map(|token| (token, NeverSent::testify(why))));
        let late = self.pending.iter().filter(|(_, pending)| pending.deadline <= now).map(|(seq, _)| seq);
        for seq in late.collect::<Vec<_>>() {
            over.lost.extend(self.pending.remove(seq).map(|pending| pending.token));
            self.send(&Frame::Cancel { seq });
        }
        let silent_since = self.silent_since();
        if self.is_connected() {
            match self.breaker.look(now, silent_since, self.pending_count() > 0) {
                Look::Wait => {}
                Look::Ask => self.ask_clock(now),
                Look::GiveUp => silent = self.preferred(),
            }
        }
        let due = self.breaker.due(silent_since).filter(|_| self.is_connected());
        self.earliest =
            self.queued.deadlines().chain(self.pending.values().map(|pending| pending.deadline)).chain(due).min();
        (over, silent)
    }

    /// Queues a frame without a body, that nobody waits for.
    pub fn send(&mut self, frame: &Frame<'_>) {
        if !self.conns.is_empty() {
            self.backlog.push_short(frame, &[]);
        }
    }

    /// Where what replies to something that came `on` a connection waits: it goes back the same way. The other end takes
    /// for lost what it sent on a connection that has ended, and nothing else, so that no answer may end with another one.
    fn way_back(&mut self, on: ConnId) -> Option<&mut Backlog<B>> {
        if !self.conns.contains(&on) || self.preferred() == Some(on) {
            return (!self.conns.is_empty()).then_some(&mut self.backlog);
        }
        Some(self.aside.of(on))
    }

    /// Queues a frame without a body that replies to what came `on` a connection.
    pub fn reply(&mut self, on: ConnId, frame: &Frame<'_>) {
        if let Some(back) = self.way_back(on) {
            back.push_short(frame, &[]);
        }
    }

    /// Queues the answer to an attempt of the other that came `on` a connection.
    pub fn answer(&mut self, on: ConnId, frame: &Frame<'_>, body: B) {
        if let Some(back) = self.way_back(on) {
            back.push(frame, body);
        }
    }

    /// Queues replies that were encoded before, one behind the other, each with a body that a lane may carry. Leaves
    /// `frames` empty.
    pub fn reply_encoded(&mut self, on: ConnId, frames: &mut Vec<u8>) {
        if !frames.is_empty()
            && let Some(back) = self.way_back(on)
        {
            back.push_encoded(frames);
        }
        frames.clear();
    }

    /// Whether replies wait for the lanes of a connection that is not the preferred one.
    pub fn has_returns_on(&self, conn: ConnId) -> bool {
        self.aside.has_pieces(conn)
    }

    /// A connection beside the preferred one on which replies wait.
    pub fn returns_on(&self) -> Option<ConnId> {
        self.aside.first()
    }

    /// Appends what waits for the lanes to `out`, up to about `bytes_max`, for the shell to write on `conn`. From
    /// this moment the attempts among it are handed over.
    pub fn take(&mut self, now: Instant, conn: ConnId, bytes_max: usize, out: &mut Vec<u8>) {
        self.aside.take(conn, |aside| aside.take(bytes_max, out));
        // A writer may still ask for a connection that has ended, or that lost to another one.
        if self.preferred() != Some(conn) {
            return;
        }
        self.backlog.take(bytes_max, out);
        let mut room = self.queued.frame_bytes(Way::Lane).min(bytes_max.saturating_sub(out.len()));
        while out.len() < bytes_max
            && let Some(idempotent) = self.queued.front(Way::Lane).map(|queued| queued.call.idempotent)
        {
            let Some(timebase) = self.clock_for(now, idempotent) else {
                return self.backlog.take(bytes_max, out);
            };
            // At once, and only for what goes: the transport keeps the bytes until they are acknowledged.
            out.reserve(std::mem::take(&mut room));
            if let Some(queued) = self.queued.pop(Way::Lane) {
                let payload = self.hand_over(now, conn, timebase, queued, out);
                out.extend_from_slice(payload.body.as_ref());
            }
        }
    }

    /// The next frame with a large body, for the shell to write on a stream of its own on `conn`.
    pub fn take_large(&mut self, now: Instant, conn: ConnId) -> Option<Large<B>> {
        if let Some(large) = self.aside.take(conn, Backlog::take_large).flatten() {
            return Some(large);
        }
        if self.preferred() != Some(conn) {
            return None;
        }
        if let Some(large) = self.backlog.take_large() {
            return Some(large);
        }
        self.take_alone(now, conn, Way::Large).map(|opening| opening.frame)
    }

    /// The next attempt that goes on behind its body, for the shell to write on a stream of its own on `conn`.
    pub fn take_duplex(&mut self, now: Instant, conn: ConnId) -> Option<Opening<B>> {
        if self.preferred() == Some(conn) { self.take_alone(now, conn, Way::Duplex) } else { None }
    }

    fn take_alone(&mut self, now: Instant, conn: ConnId, way: Way) -> Option<Opening<B>> {
        let idempotent = self.queued.front(way).map(|queued| queued.call.idempotent)?;
        let timebase = self.clock_for(now, idempotent)?;
        let queued = self.queued.pop(way)?;
        let (seq, mut head) = (queued.seq, Vec::new());
        let payload = self.hand_over(now, conn, timebase, queued, &mut head);
        Some(Opening { seq, frame: Large { head, body: payload.body.clone() } })
    }

    /// Appends what stands before the body of an attempt, and counts it as handed over.
    fn hand_over(
        &mut self,
        now: Instant,
        conn: ConnId,
        timebase: Timebase,
        queued: Queued<T, B>,
        out: &mut Vec<u8>,
    ) -> Arc<Payload<B>> {
        self.want(now);
        let Queued { seq, token, call } = queued;
        // What waits in a queue has a number, too, and must not fall below the floor.
        let lowest = self.queued.lowest().into_iter().chain(self.pending.first()).min();
        let header = CallHeader {
            seq,
            floor: lowest.map_or(seq, |lowest| lowest.min(seq)),
            life: self.to.life,
            deadline: call.deadline.offset(timebase.offset).as_nanos(),
            error_us: u32::try_from(timebase.error(now).as_micros()).unwrap_or(u32::MAX),
            hop: call.hop,
            service: &call.payload.service,
            key: Slice(call.payload.key.as_ref()),
            record: call.record.as_ref().map(|record| Slice(&record.0)),
            scope: call.payload.scope,
            context: Slice(call.payload.context.as_ref()),
        };
        Frame::Call(header).encode_head(call.payload.body.as_ref().len(), out);
        self.pending.insert(seq, Pending { on: conn, deadline: call.deadline, duplex: call.payload.duplex, token });
        self.used = true;
        call.payload
    }

    /// A whole frame came in `on` a connection.
    ///
    /// # Errors
    /// If it is none; the other's fault.
    pub fn handle_frame<'a>(
        &mut self,
        now: Instant,
        on: ConnId,
        bytes: &'a [u8],
    ) -> Result<Arrival<'a, T, &'a [u8]>, Malformed> {
        // As `Frame::decode` does, but a header is copied less often.
        let (prefix, header, body) = Prefix::split(bytes)?;
        match prefix.frame(header)? {
            Some(frame) => Ok(self.handle(now, on, frame, body)),
            None => Ok(Arrival::Nothing),
        }
    }

    /// A frame came in `on` a connection, and its body.
    #[inline]
    pub fn handle<'a, P>(&mut self, now: Instant, on: ConnId, frame: Frame<'a>, body: P) -> Arrival<'a, T, P> {
        self.hear(now);
        let mut end = |seq: u64| self.pending.remove(seq).map(|pending| pending.token);
        match frame {
            Frame::Call(header) => Arrival::Call(header, body),
            Frame::Ok { seq, fence } => end(seq).map_or(Arrival::Nothing, |token| Arrival::Ran(token, Ok(body), fence)),
            Frame::Executed { seq, fence } => {
                end(seq).map_or(Arrival::Nothing, |token| Arrival::Ran(token, Err(body), fence))
            }
            Frame::Refused { seq, why, owner, record } => {
                end(seq).map_or(Arrival::Nothing, |token| Arrival::Refused(token, why, owner, record))
            }
            Frame::Cancel { seq } => Arrival::Cancel(seq),
            Frame::Begun { seq } if self.pending.get(seq).is_some_and(|held| held.duplex) => Arrival::Begun(seq),
            // Pieces have a stream of their own.
            Frame::Begun { .. } | Frame::Piece => Arrival::Nothing,
            // Whoever does not read its answers gets none of these.
            Frame::Clock { .. } if self.is_choked() => Arrival::Nothing,
            Frame::Clock { sent } => {
                self.reply(on, &Frame::ClockIs { sent, clock: now.as_nanos() });
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
                Arrival::Goodbye(self.give_back(Unsent::Leaving))
            }
        }
    }

    /// A connection has ended: what was handed over on it is lost, and without another connection what waits
    /// goes back.
    pub fn closed(&mut self, now: Instant, conn: ConnId, why: Unsent) -> CutOff<T> {
        let lost: Vec<u64> = self.pending.iter().filter(|(_, held)| held.on == conn).map(|(seq, _)| seq).collect();
        let lost = lost.into_iter().filter_map(|seq| self.pending.remove(seq)).map(|held| held.token).collect();
        self.ending.retain(|held| *held != conn);
        let unsent = self.retire(conn, why);
        if self.timebase.is_none() || self.breaker.has_asked() {
            // The question was on it, or its answer.
            self.ask_clock(now);
            self.breaker.asked_on_another(now);
        }
        CutOff { lost, unsent }
    }

    /// The connections on which nothing more will come, for the other has said goodbye and owes no answer on them: the
    /// shell closes them, and so tells the other that everything has arrived.
    pub fn over(&self) -> impl Iterator<Item = ConnId> {
        let owes = |conn: &ConnId| self.pending.values().any(|pending| pending.on == *conn);
        self.ending.iter().copied().filter(move |conn| !owes(conn))
    }

    /// Nothing new goes on this connection.
    fn retire(&mut self, conn: ConnId, why: Unsent) -> Vec<(T, NeverSent)> {
        self.conns.retain(|held| *held != conn);
        // Who waits may not know yet that it has ended.
        self.aside.end(conn).into_iter().for_each(|left| self.backlog.append(left));
        // The question may have gone with it.
        self.asking = false;
        if !self.conns.is_empty() {
            return Vec::new();
        }
        // The silence was that of the connection.
        (self.breaker, self.wanted) = (Breaker::default(), None);
        self.give_back(why)
    }

    /// There will be no connection: what waits goes back.
    pub fn give_back(&mut self, why: Unsent) -> Vec<(T, NeverSent)> {
        if self.conns.is_empty() {
            self.backlog.clear();
            self.aside = Aside::default();
        }
        self.queued.drain().map(|token| (token, NeverSent::testify(why))).collect()
    }
}

#[cfg(test)]
mod tests;
