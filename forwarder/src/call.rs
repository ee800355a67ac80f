//! The caller's side of one call: from the wish to exactly one outcome.
//!
//! ```text
//!   Resolve ─┬─ Run here ──────────────────────────────► done
//!            └─ Send ── queued ── handed over ── answer ► done, or the next hop, or a pause and Resolve
//! ```
//!
//! An attempt opens when the transport takes its first byte. Only a refusal by the very process it was sent to
//! closes it again; a lost connection or the deadline leave it open, and a call that may not run twice is then
//! never tried again.

use core::time::Duration;

use swimring_membership::{Instance, Instant, NodeId, Rng};

use crate::budget::{Budget, Repeat};
use crate::outcome::{NeverSent, NotExecuted, Outcome, Unknown, Unsent, Why};
use crate::wire::Refusal;

/// Most processes asked in one attempt at finding the owner: the one believed, and the one that it names.
pub const HOPS_MAX: u8 = 2;

/// What the caller wants.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct CallSpec {
    /// By when there is an outcome.
    pub deadline: Instant,
    /// Whether it may run more than once.
    pub idempotent: bool,
}

/// The waits of a call.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct CallConfig {
    /// The first pause before a repeat; doubles, with jitter.
    pub pause_min: Duration,
    /// The longest pause before a repeat.
    pub pause_max: Duration,
}

impl Default for CallConfig {
    fn default() -> Self {
        Self { pause_min: Duration::from_millis(3), pause_max: Duration::from_millis(100) }
    }
}

/// Who owns the key, in the caller's view.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Resolution {
    /// This process does.
    Here,
    /// Another one does.
    There(Instance),
    /// Nobody does.
    Nobody,
    /// The call is for a certain node, which is no member.
    Gone,
}

/// What the driver has to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step<B> {
    /// Look the owner up and tell [`Call::resolved`].
    Resolve,
    /// Run the handler in place and tell [`Call::ran`].
    Run,
    /// Queue the attempt for this process.
    Send {
        /// Which attempt, for matching what is reported.
        attempt: u32,
        /// To which process.
        to: Instance,
        /// 1 or 2.
        hop: u8,
    },
    /// The process of this node was named as the owner: find it in the view, and tell [`Call::named`].
    Find(NodeId),
    /// Wait for what becomes of the attempt that was sent. Whoever holds it says so at the deadline, too: it alone knows
    /// whether it was handed over.
    Await,
    /// Wait until this, then tell [`Call::timeout`].
    Wait(Instant),
    /// This came of the call.
    Done(Outcome<B>),
}

#[derive(Clone, Debug)]
enum State<B> {
    Resolving,
    Finding(NodeId),
    Running,
    /// An attempt waits to be sent.
    Starting,
    /// An attempt waits in a queue, or for an answer.
    Attempting,
    Pausing(Instant),
    Done(Option<Outcome<B>>),
}

/// One call of this node. `B` is a body.
#[derive(Clone, Debug)]
pub struct Call<B> {
    spec: CallSpec,
    config: CallConfig,
    state: State<B>,
    attempt: u32,
    to: Option<Instance>,
    hop: u8,
    repeats: u32,
    moves: u32,
    /// An earlier attempt was handed over and its end will never be known.
    open: bool,
    rng: Rng,
    /// Most hops any attempt took, for reports.
    pub hops: u8,
}

impl<B> Call<B> {
    /// A call that wants to begin.
    pub fn new(spec: CallSpec, config: CallConfig, rng: Rng) -> Self {
        Self {
            spec,
            config,
            state: State::Resolving,
            attempt: 0,
            to: None,
            hop: 0,
            repeats: 0,
            moves: 0,
            open: false,
            rng,
            hops: 0,
        }
    }

    /// What to do next. Ask again after every report.
    pub fn step(&mut self) -> Step<B> {
        match &mut self.state {
            State::Resolving => Step::Resolve,
            State::Finding(node) => Step::Find(*node),
            State::Running => Step::Wait(self.spec.deadline),
            State::Starting => {
                self.state = State::Attempting;
                let to = self.to.expect("an attempt that starts has an addressee");
                Step::Send { attempt: self.attempt, to, hop: self.hop }
            }
            State::Attempting => Step::Await,
            State::Pausing(until) => Step::Wait((*until).min(self.spec.deadline)),
            State::Done(outcome) => Step::Done(outcome.take().expect("an outcome is given once")),
        }
    }

    /// The owner was looked up. Returns [`Step::Run`] if the handler runs here.
    pub fn resolved(&mut self, now: Instant, resolution: Resolution) -> Option<Step<B>> {
        if now >= self.spec.deadline {
            self.give_up(Why::Deadline);
            return None;
        }
        match resolution {
            Resolution::Here => {
                self.state = State::Running;
                return Some(Step::Run);
            }
            Resolution::There(to) => self.start(to, 1),
            Resolution::Nobody => self.give_up(Why::NoOwner),
            Resolution::Gone => self.give_up(Why::Gone),
        }
        None
    }

    /// The node named as the owner was found, or not.
    pub fn named(&mut self, now: Instant, found: Resolution, budget: &mut Budget) -> Option<Step<B>> {
        match found {
            Resolution::Nobody | Resolution::Gone => {
                self.pause(now, NotExecuted::because(Why::Refused(Refusal::NotOwner)), budget);
                None
            }
            Resolution::There(to) => {
                self.start(to, self.hop + 1);
                None
            }
            Resolution::Here => self.resolved(now, Resolution::Here),
        }
    }

    fn start(&mut self, to: Instance, hop: u8) {
        self.attempt += 1;
        (self.to, self.hop) = (Some(to), hop);
        self.hops = self.hops.max(hop);
        self.state = State::Starting;
    }

    /// The handler ran here.
    pub fn ran(&mut self, result: Result<B, B>) {
        let outcome = match result {
            Ok(body) => Outcome::Ok(body),
            Err(error) => Outcome::Executed(error),
        };
        self.finish(outcome);
    }

    /// The handler could not begin here.
    pub fn not_run(&mut self, now: Instant, why: Refusal, budget: &mut Budget) {
        let proof = NotExecuted::because(Why::Refused(why));
        if why.is_passing() { self.pause(now, proof, budget) } else { self.end_unrun(proof) }
    }

    /// The attempt was never handed over, and will not be.
    pub fn unsent(&mut self, now: Instant, attempt: u32, proof: NeverSent, budget: &mut Budget) {
        if self.is_attempting(attempt) {
            let silent = proof.0 == Unsent::Silent;
            match now >= self.spec.deadline {
                true if !silent => self.end_unrun(NotExecuted::because(Why::Deadline)),
                true => self.end_unrun(NotExecuted::never_sent(proof)),
                false => self.pause(now, NotExecuted::never_sent(proof), budget),
            }
        }
    }

    /// The handler has begun there, and was given what came behind the call's body: that can be given to nobody else, so
    /// the call is not tried again once it has begun.
    pub fn begun(&mut self, attempt: u32) {
        if self.is_attempting(attempt) {
            self.spec.idempotent = false;
        }
    }

    /// The handler ran there.
    pub fn answered(&mut self, attempt: u32, result: Result<B, B>) {
        if self.is_attempting(attempt) {
            self.ran(result);
        }
    }

    /// The process that the attempt was sent to refused it, perhaps naming the owner: it is over, and did not run.
    pub fn refused(&mut self, now: Instant, attempt: u32, why: Refusal, owner: Option<NodeId>, budget: &mut Budget) {
        if !self.is_attempting(attempt) {
            return;
        }
        let proof = NotExecuted::because(Why::Refused(why));
        match owner {
            Some(owner) if why == Refusal::NotOwner && self.hop < HOPS_MAX => self.state = State::Finding(owner),
            _ if why.is_passing() => self.pause(now, proof, budget),
            _ => self.end_unrun(proof),
        }
    }

    /// The connection ended after the attempt was handed over.
    pub fn lost(&mut self, now: Instant, attempt: u32, budget: &mut Budget) {
        if self.is_attempting(attempt) {
            self.lose(now, Unknown::Lost, budget);
        }
    }

    /// The deadline came after the attempt was handed over.
    pub fn late(&mut self, attempt: u32) {
        if self.is_attempting(attempt) {
            self.finish(Outcome::Unknown(Unknown::Deadline));
        }
    }

    fn is_attempting(&self, attempt: u32) -> bool {
        attempt == self.attempt && matches!(self.state, State::Attempting)
    }

    /// The attempt stays open: only a call that may run twice is tried again.
    fn lose(&mut self, now: Instant, why: Unknown, budget: &mut Budget) {
        self.open = true;
        if self.spec.idempotent {
            self.pause_or(now, Duration::ZERO, Outcome::Unknown(why), Repeat::Trouble, budget);
        } else {
            self.finish(Outcome::Unknown(why));
        }
    }

    fn pause(&mut self, now: Instant, otherwise: NotExecuted, budget: &mut Budget) {
        let why = if otherwise.why().is_moving() { Repeat::Moving } else { Repeat::Trouble };
        let least = otherwise.retry_after().unwrap_or_default();
        self.pause_or(now, least, self.unrun(otherwise), why, budget);
    }

    /// Waits, for as long as was asked for at least, and tries again, if the time and the budget allow it.
    fn pause_or(&mut self, now: Instant, least: Duration, otherwise: Outcome<B>, why: Repeat, budget: &mut Budget) {
        let doubled = (self.config.pause_min * (1 << (self.repeats + self.moves).min(10))).min(self.config.pause_max);
        let doubled = doubled.max(least * 2);
        let until = now + self.rng.span(doubled / 2, doubled);
        if until < self.spec.deadline && budget.spend(why) {
            match why {
                Repeat::Trouble => self.repeats += 1,
                Repeat::Moving => self.moves += 1,
            }
            self.state = State::Pausing(until);
        } else {
            self.finish(otherwise);
        }
    }

    /// Time has passed: the pause is over, or the deadline is here.
    pub fn timeout(&mut self, now: Instant) {
        let late = now >= self.spec.deadline;
        match &self.state {
            State::Pausing(until) if now >= *until && !late => self.state = State::Resolving,
            State::Pausing(_) | State::Resolving | State::Finding(_) | State::Starting if late => {
                self.give_up(Why::Deadline)
            }
            State::Running if late => self.finish(Outcome::Unknown(Unknown::Deadline)),
            _ => {}
        }
    }

    fn give_up(&mut self, why: Why) {
        self.end_unrun(NotExecuted::because(why));
    }

    fn end_unrun(&mut self, proof: NotExecuted) {
        self.finish(self.unrun(proof));
    }

    /// What came of the call if its last attempt did not run: an earlier one may have.
    fn unrun(&self, proof: NotExecuted) -> Outcome<B> {
        if self.open { Outcome::Unknown(Unknown::Lost) } else { Outcome::NotExecuted(proof) }
    }

    fn finish(&mut self, outcome: Outcome<B>) {
        self.state = State::Done(Some(outcome));
    }

    /// How often it was tried again, for this reason.
    pub fn repeats(&self, why: Repeat) -> u32 {
        match why {
            Repeat::Trouble => self.repeats,
            Repeat::Moving => self.moves,
        }
    }

    /// Whether it may run more than once.
    pub fn is_idempotent(&self) -> bool {
        self.spec.idempotent
    }

    /// By when there is an outcome.
    pub fn deadline(&self) -> Instant {
        self.spec.deadline
    }
}

#[cfg(test)]
mod tests;
