//! One call of this node, driven by the task that asked: does what [`Call`] says, and tells it what came of it.

use swimring_forwarder::{Ownership, Repeat, Step};
use tokio::sync::oneshot;

use super::*;

/// One call of this node, from the wish to the outcome.
pub(super) struct UnderWay<'a> {
    calls: &'a Arc<Calls>,
    call: Call<Bytes>,
    payload: Arc<Payload<Bytes>>,
    duplex: Option<Arc<DuplexCall>>,
    /// The node that it is for, if it is not for the owner.
    at: Option<NodeId>,
    hash: KeyHash,
    /// The attempt that is under way: its number here, what is told of it, and to which process it goes.
    sent: Option<Sent>,
    record: Option<Blob>,
    owner: Option<NodeId>,
    fence: u64,
}

struct Sent {
    attempt: u32,
    report: oneshot::Receiver<Report>,
    to: Instance,
    seq: u64,
}

impl<'a> UnderWay<'a> {
    pub(super) fn new(calls: &'a Arc<Calls>, now: Instant, wish: Wish, hash: KeyHash) -> Self {
        let Wish { payload, at, timeout, idempotent, duplex } = wish;
        let number = calls.next_call.fetch_add(1, Ordering::Relaxed);
        let spec = CallSpec { deadline: now + timeout, idempotent };
        let call = Call::new(spec, CallConfig::default(), calls.rng.fork(number));
        Self {
            calls,
            call,
            payload: Arc::new(payload),
            duplex,
            at,
            hash,
            sent: None,
            record: None,
            owner: None,
            fence: 0,
        }
    }

    /// From its beginning, `now`, when an owner may have been `found`, to its outcome. What seldom happens has a place of its
    /// own, so that every call has a short future to carry.
    pub(super) async fn drive(&mut self, now: Instant, mut found: Option<Resolution>) -> Answered {
        let (calls, mut beginning) = (self.calls, Some(now));
        loop {
            let runs_here = match self.call.step() {
                Step::Resolve => {
                    let there = found.take().unwrap_or_else(|| self.resolve());
                    let now = beginning.take().unwrap_or_else(|| calls.clock.now());
                    self.call.resolved(now, there).is_some()
                }
                Step::Find(node) => {
                    let there = calls.view.load().named(node, self.hash);
                    self.call.named(calls.clock.now(), there, &mut calls.lock_budget()).is_some()
                }
                Step::Run => true,
                Step::Send { attempt, to, hop } => {
                    self.send(attempt, to, hop);
                    false
                }
                Step::Await => {
                    self.hear().await;
                    false
                }
                Step::Wait(until) => {
                    Box::pin(calls.clock.wait_until(until)).await;
                    self.call.timeout(calls.clock.now().max(until));
                    false
                }
                Step::Done(outcome) => return self.answered(outcome),
            };
            if runs_here {
                Box::pin(self.run_here()).await;
            }
        }
    }

    fn resolve(&self) -> Resolution {
        let wrong = if sabotage::calls_are_misrouted() { 32 } else { 0 };
        let view = self.calls.view.load();
        match self.at {
            None => view.resolve(KeyHash(self.hash.0.rotate_left(wrong))),
            Some(node) => view.resolve_at(node, self.hash, self.payload.scope),
        }
    }

    fn answered(&self, outcome: Outcome<Bytes>) -> Answered {
        let hops = if self.owner == Some(self.calls.me.node) { 0 } else { self.call.hops };
        let repeats = self.call.repeats(Repeat::Trouble) + self.call.repeats(Repeat::Moving);
        Answered { outcome, owner: self.owner, hops, repeats, fence: self.fence }
    }

    /// The call is this node's: the handler runs at once, in place.
    async fn run_here(&mut self) {
        let calls = self.calls;
        self.owner = Some(calls.me.node);
        let deadline = self.call.deadline();
        let Some(mut service) =
            calls.services.find(&self.payload.service, self.payload.scope).map(|entry| entry.service())
        else {
            return self.call.not_run(calls.clock.now(), Refusal::NoService, &mut calls.lock_budget());
        };
        let ready = tokio::select! {
            biased;
            ready = service::ready(&mut service) => ready,
            () = calls.clock.wait_until(deadline) => Ok(()),
        };
        // What is asked right before it begins, for a layer of the service can have made it wait.
        let (now, view) = (calls.clock.now(), calls.view());
        let scope = self.payload.scope;
        let mine = sabotage::calls_are_misrouted() || view.ownership(self.hash, scope) == Ownership::Mine;
        let refusal = match () {
            () if now >= deadline => Some(Refusal::Expired),
            () if !calls.is_confirmed(&view, now) => Some(Refusal::Unconfirmed),
            () if !mine => Some(Refusal::NotOwner),
            () => None,
        };
        if let Some(refusal) = refusal {
            return self.call.not_run(now, refusal, &mut calls.lock_budget());
        }
        if let Err(error) = ready {
            return self.call.ran(Err(error));
        }
        self.fence = view.fence();
        let request = Request {
            key: self.payload.key.clone(),
            hash: self.hash,
            scope,
            body: self.payload.body.clone(),
            context: self.payload.context.clone(),
            caller: calls.me,
            received: now,
            deadline,
            view,
            fence: self.fence,
            duplex: self.duplex.as_ref().map(|duplex| duplex.ends.clone()).unwrap_or_default(),
        };
        tokio::select! {
            biased;
            result = service::run(&mut service, request) => self.call.ran(result),
            () = calls.clock.wait_until(deadline) => self.call.timeout(calls.clock.now().max(deadline)),
        }
    }

    fn send(&mut self, attempt: u32, to: Instance, hop: u8) {
        self.owner = Some(to.node);
        let outbound = Outbound {
            payload: Arc::clone(&self.payload),
            deadline: self.call.deadline(),
            idempotent: self.call.is_idempotent(),
            hop,
            record: self.record.take().filter(|_| hop > 1),
        };
        match self.calls.enqueue(to, outbound, self.duplex.clone()) {
            Ok((seq, report)) => self.sent = Some(Sent { attempt, report, to, seq }),
            Err(proof) => {
                self.call.unsent(self.calls.clock.now(), attempt, proof, &mut self.calls.lock_budget());
            }
        }
    }

    /// Waits for what becomes of the attempt. Its link says so by the deadline.
    async fn hear(&mut self) {
        let sent = self.sent.as_mut().expect("an attempt is waited for after it was sent");
        let (attempt, report) = (sent.attempt, (&mut sent.report).await.unwrap_or(Report::Lost));
        self.forget_sent();
        let calls = self.calls;
        let now = || calls.clock.now();
        let begun = self.duplex.as_ref().is_some_and(|duplex| duplex.has_begun());
        if begun {
            self.call.begun(attempt);
        }
        match report {
            // What has begun cannot be refused any more.
            Report::Refused(..) if begun => self.call.lost(now(), attempt, &mut calls.lock_budget()),
            Report::Unsent(proof) => self.call.unsent(now(), attempt, proof, &mut calls.lock_budget()),
            Report::Lost => self.call.lost(now(), attempt, &mut calls.lock_budget()),
            Report::Late => self.call.late(attempt),
            Report::Ran(result, fence) => {
                self.fence = fence;
                self.call.answered(attempt, result);
            }
            Report::Refused(why, owner, record) => {
                if let (Some(record), Some(from)) = (&record, self.owner) {
                    let patience = self.call.deadline().since(now());
                    Box::pin(calls.catch_up(from, Some(record.0.clone()), patience)).await;
                }
                self.record = record;
                // A call for a certain node is sent on to no other.
                let owner = owner.filter(|_| self.at.is_none());
                self.call.refused(now(), attempt, why, owner, &mut calls.lock_budget());
            }
        }
    }
}

impl UnderWay<'_> {
    fn forget_sent(&mut self) -> Option<Sent> {
        let sent = self.sent.take()?;
        if self.duplex.is_some() {
            self.calls.known_link(sent.to).into_iter().for_each(|link| _ = link.duplex.lock().remove(&sent.seq));
        }
        Some(sent)
    }
}

/// The call has its outcome, or its caller has gone away: nothing of it stays behind.
impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let Some(Sent { to, seq, report, .. }) = self.forget_sent() else { return };
        // Nobody is woken while the link is held.
        drop(report);
        if let Some(link) = self.calls.known_link(to) {
            link.queue(|link| link.abandon(seq));
            self.calls.close_over(&link);
        }
    }
}
