//! One call of this node, driven by the task that asked: does what [`Call`] says, and tells it what came of it.

use swimring_forwarder::{Resolution, Step};
use tokio::sync::oneshot;

use super::super::sabotage;
use super::super::service::{self, Request};
use super::*;

/// One call of this node, from the wish to the outcome.
pub(super) struct UnderWay {
    pub(super) calls: Arc<Calls>,
    pub(super) call: Call<Bytes>,
    pub(super) wish: Wish,
    pub(super) hash: KeyHash,
    pub(super) view: Arc<View>,
    pub(super) report: Option<(u32, oneshot::Receiver<Report>)>,
    pub(super) sent: Option<(Arc<PeerLink>, u64)>,
    pub(super) record: Option<Blob>,
    pub(super) owner: Option<NodeId>,
    pub(super) fence: u64,
}

impl UnderWay {
    pub(super) async fn drive(mut self, calls: &Arc<Calls>) -> Answered {
        loop {
            let step = match self.call.step() {
                Step::Resolve => {
                    self.view = calls.view();
                    let wrong = if sabotage::calls_are_misrouted() { 32 } else { 0 };
                    self.call.resolved(calls.clock.now(), self.view.resolve(KeyHash(self.hash.0.rotate_left(wrong))))
                }
                Step::Find(node) => {
                    self.view = calls.view();
                    let found = self.view.named(node, self.hash);
                    self.call.named(calls.clock.now(), found, &mut calls.lock_budget())
                }
                step => Some(step),
            };
            match step {
                None | Some(Step::Resolve | Step::Find(_)) => {}
                Some(Step::Run) => self.run_here(calls).await,
                Some(Step::Send { attempt, to, hop }) => self.send(calls, attempt, to, hop),
                Some(Step::Withdraw { attempt }) => self.withdraw(calls, attempt),
                Some(Step::Wait(until)) => self.wait(calls, until).await,
                Some(Step::Done(outcome)) => {
                    let hops = if self.owner == Some(calls.me.node) { 0 } else { self.call.hops };
                    return Answered { outcome, owner: self.owner, hops, fence: self.fence };
                }
            }
        }
    }

    /// This node owns the key: the handler runs at once, in place.
    async fn run_here(&mut self, calls: &Arc<Calls>) {
        self.owner = Some(calls.me.node);
        let deadline = self.call.deadline();
        let Some(mut service) = calls.services.find(&self.wish.service) else {
            return self.call.not_run(calls.clock.now(), Refusal::NoService, &mut calls.lock_budget());
        };
        let ready = tokio::select! {
            biased;
            ready = service::ready(&mut service) => ready,
            () = calls.clock.wait_until(deadline) => Ok(()),
        };
        // What is asked right before it begins, for a layer of the service can have made it wait.
        let (now, view) = (calls.clock.now(), calls.view());
        let mine = sabotage::calls_are_misrouted() || view.resolve(self.hash) == Resolution::Here;
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
            key: self.wish.key.clone(),
            hash: self.hash,
            body: self.wish.body.clone(),
            caller: calls.me,
            received: now,
            deadline,
            view,
            fence: self.fence,
        };
        tokio::select! {
            biased;
            result = service::run(&mut service, request) => self.call.ran(result),
            () = calls.clock.wait_until(deadline) => self.call.timeout(calls.clock.now().max(deadline)),
        }
    }

    fn send(&mut self, calls: &Arc<Calls>, attempt: u32, to: Instance, hop: u8) {
        self.owner = Some(to.node);
        let outbound = Outbound {
            service: Arc::clone(&self.wish.service),
            key: self.wish.key.clone(),
            body: self.wish.body.clone(),
            deadline: self.call.deadline(),
            idempotent: self.wish.idempotent,
            hop,
            record: self.record.take().filter(|_| hop > 1),
        };
        match calls.enqueue(to, outbound) {
            Ok((link, seq, report)) => {
                self.sent = Some((link, seq));
                self.report = Some((attempt, report));
            }
            Err(proof) => self.call.unsent(calls.clock.now(), attempt, proof, &mut calls.lock_budget()),
        }
    }

    fn withdraw(&mut self, calls: &Calls, attempt: u32) {
        let proof = self.sent.as_ref().and_then(|(link, seq)| link.lock().withdraw(*seq));
        match proof {
            Some(proof) => self.call.unsent(calls.clock.now(), attempt, proof, &mut calls.lock_budget()),
            None => {
                self.call.not_withdrawn(attempt);
                self.abandon();
            }
        }
    }

    /// Nobody waits for the answer any more.
    fn abandon(&mut self) {
        if let Some((link, seq)) = self.sent.take() {
            link.lock().abandon(seq);
            link.wake();
            self.calls.close_over(&link);
        }
    }

    async fn wait(&mut self, calls: &Arc<Calls>, until: Instant) {
        let Some((attempt, mut report)) = self.report.take() else {
            calls.clock.wait_until(until).await;
            return self.call.timeout(calls.clock.now().max(until));
        };
        tokio::select! {
            biased;
            said = &mut report => self.on_report(calls, attempt, said.unwrap_or(Report::Lost)).await,
            () = calls.clock.wait_until(until) => {
                self.report = Some((attempt, report));
                self.call.timeout(calls.clock.now().max(until));
            }
        }
    }

    async fn on_report(&mut self, calls: &Arc<Calls>, attempt: u32, report: Report) {
        self.sent = None;
        if let Report::Refused(_, _, Some(record)) = &report
            && let Some(from) = self.owner
        {
            calls.merge(from, record, self.call.deadline().since(calls.clock.now())).await;
        }
        let now = || calls.clock.now();
        match report {
            Report::Unsent(proof) => self.call.unsent(now(), attempt, proof, &mut calls.lock_budget()),
            Report::Lost => self.call.lost(now(), attempt, &mut calls.lock_budget()),
            Report::Ran(result, fence) => {
                self.fence = fence;
                self.call.answered(attempt, result);
            }
            Report::Refused(why, owner, record) => {
                self.record = record;
                self.call.refused(now(), attempt, why, owner, &mut calls.lock_budget());
            }
        }
    }
}

/// The call has its outcome, or its caller has gone away: nothing of it stays behind.
impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some((link, seq)) = self.sent.take()
            && link.lock().withdraw(seq).is_none()
        {
            link.lock().abandon(seq);
            link.wake();
            self.calls.close_over(&link);
        }
        self.calls.open.fetch_sub(1, Ordering::Relaxed);
    }
}
