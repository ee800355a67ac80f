//! Calls of others: admitted by whoever reads them, run in a task of their own, answered on the same link.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll, Waker};

use quinn::{RecvStream, VarInt};
use swimring_forwarder::wire::CallHeader;
use swimring_forwarder::{Incoming, Ownership, Permit, Verdict};

use super::super::gossip::Ask;
use super::super::node::CALL_TIMEOUT_MAX;
use super::super::sabotage;
use super::super::service::{self, Request};
use super::connections::Lane;
use super::streams::{LARGE_TIMEOUT, read_body};
use super::*;

/// How long the view may take to take in a record that a caller brought.
const MERGE_TIMEOUT: Duration = Duration::from_millis(100);
/// Most bytes of answers that wait, in all, for processes that do not read what they asked for.
pub(super) const UNREAD_BYTES_MAX: usize = 256 * 1_024 * 1_024;
/// How much longer than any call may take a caller's clock may say that it does.
const CLOCKS_APART: Duration = Duration::from_secs(10);
/// Most calls that wait for a record to be taken in; the others are judged by what is known.
pub(super) const MERGES_MAX: usize = 256;

/// A body that is here, or comes on a stream.
pub(super) enum Body {
    Here(Bytes),
    Coming(RecvStream, usize),
}

impl Body {
    fn len(&self) -> usize {
        match self {
            Self::Here(body) => body.len(),
            Self::Coming(_, length) => *length,
        }
    }

    /// The whole body; none if it ends early or takes too long.
    async fn whole(self) -> Option<Bytes> {
        match self {
            Self::Here(body) => Some(body),
            Self::Coming(mut stream, length) => {
                let mut body = Vec::new();
                let reading = read_body(&mut stream, length, &mut body);
                tokio::time::timeout(LARGE_TIMEOUT, reading).await.ok()??;
                Some(body.into())
            }
        }
    }

    /// Nobody wants it.
    fn refuse(self) {
        if let Self::Coming(mut stream, _) = self {
            let _ = stream.stop(VarInt::from_u32(0));
        }
    }
}

/// Another process wants something run. In place while there is time to `spare`, which it takes from.
pub(super) fn on_call(lane: &Lane, header: CallHeader, body: Body, spare: Option<&mut Duration>) {
    let calls = &lane.calls;
    if lane.link.lock().is_choked() {
        // It does not read its answers, so it gets none; its caller hears nothing, and ends as unknown.
        metrics::dropped("call");
        return body.refuse();
    }
    let hash = calls.hash(&header.key.0);
    let merging = header.record.is_some() && calls.view().ownership(hash) != Ownership::Mine;
    if merging && let Ok(place) = Arc::clone(&calls.merging).try_acquire_owned() {
        let lane = lane.clone();
        calls.spawn(async move {
            if let Some(record) = &header.record {
                lane.calls.merge(lane.from.node, record, MERGE_TIMEOUT).await;
            }
            drop(place);
            admit(&lane, header, hash, body, None);
        });
    } else {
        admit(lane, header, hash, body, spare);
    }
}

fn admit(lane: &Lane, header: CallHeader, hash: KeyHash, body: Body, spare: Option<&mut Duration>) {
    let calls = &lane.calls;
    let (now, view) = (calls.clock.now(), calls.view());
    let incoming = Incoming { caller: lane.from, header: &header, body_bytes: body.len() };
    let confirmed = calls.is_confirmed(&view, now);
    // Held until it can be cancelled: its cancel may be on the other lane.
    let mut table = lock(&lane.link.running);
    let verdict = calls.lock_admission().admit(now, incoming, confirmed, || ownership(&view, hash));
    let permit = match verdict {
        Verdict::Run(permit) => permit,
        Verdict::Refuse(why, owner) => {
            drop(table);
            refuse(&lane.link, header.seq, why, owner);
            return body.refuse();
        }
        Verdict::Ignore => return body.refuse(),
    };
    table.insert(header.seq, None);
    drop(table);
    let running =
        Running { calls: Arc::clone(calls), link: Arc::clone(&lane.link), permit: Some(permit), seq: header.seq };
    // Whatever it says: no call takes longer.
    let deadline = latest(&header).min(now + CALL_TIMEOUT_MAX + CLOCKS_APART);
    let (seq, service) = (header.seq, header.service.clone());
    let spare = spare.filter(|spare| !spare.is_zero() && !calls.ending.is_cancelled());
    let in_place = matches!(body, Body::Here(_)) && calls.services.begins_in_place(&service, now);
    let mut call = Box::pin(run(running, header, hash, body));
    if let Some(spare) = spare.filter(|_| in_place) {
        let begun = calls.clock.now();
        let begin = || call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        // What an application's layers do when they are cloned or dropped must not end the reader.
        let polled = catch_unwind(AssertUnwindSafe(begin));
        *spare = spare.saturating_sub(calls.services.began_in_place(&service, begun, calls.clock.now()));
        if !matches!(polled, Ok(Poll::Pending)) {
            return;
        }
    }
    go_on(lane, seq, deadline, call);
}

/// A call runs in a task of its own until it ends, is cancelled, or nobody waits any more.
fn go_on(lane: &Lane, seq: u64, deadline: Instant, call: impl Future<Output = ()> + Send + 'static) {
    let cancelled = CancellationToken::new();
    let wanted = lock(&lane.link.running).get_mut(&seq).map(|place| *place = Some(cancelled.clone())).is_some();
    if !wanted {
        // It was cancelled meanwhile, on the other lane.
        _ = catch_unwind(AssertUnwindSafe(|| drop(call)));
        return;
    }
    let clock = lane.calls.clock.clone();
    lane.calls.spawn(async move {
        tokio::select! {
            () = call => {}
            () = cancelled.cancelled() => {}
            () = clock.wait_until(deadline) => {}
        }
    });
}

/// When nobody waits any more, on this process's clock.
fn latest(header: &CallHeader) -> Instant {
    Instant::from_nanos(header.deadline) + Duration::from_micros(u64::from(header.error_us))
}

async fn run(running: Running, header: CallHeader, hash: KeyHash, body: Body) {
    let (calls, link, seq) = (Arc::clone(&running.calls), Arc::clone(&running.link), running.seq);
    let Some(body) = body.whole().await else {
        return;
    };
    let Some(mut service) = calls.services.find(&header.service) else {
        drop(running);
        return refuse(&link, seq, Refusal::NoService, None);
    };
    let ready = service::ready(&mut service).await;
    let (now, view) = (calls.clock.now(), calls.view());
    let confirmed = calls.is_confirmed(&view, now);
    let begins = calls.lock_admission().begin(now, &header, confirmed, || ownership(&view, hash));
    if let Err((why, owner)) = begins {
        drop(running);
        return refuse(&link, seq, why, owner);
    }
    if link.lock().is_choked() {
        drop(running);
        return refuse(&link, seq, Refusal::Overloaded, None);
    }
    let fence = view.fence();
    let deadline = latest(&header);
    let caller = running.permit.as_ref().expect("it runs").caller();
    let request = Request { key: header.key.0.into(), hash, body, caller, received: now, deadline, view, fence };
    if sabotage::calls_run_twice() {
        let _ = service::run(&mut service.clone(), request.clone()).await;
    }
    let result = match ready {
        Ok(()) => service::run(&mut service, request).await,
        Err(error) => Err(error),
    };
    // Its place is kept until the other end reads: answers that wait are bytes, too.
    let bytes = result.as_ref().map_or_else(Bytes::len, Bytes::len).min(calls.body_bytes_max);
    if link.lock().is_choked() {
        let Ok(_room) = calls.unread.try_acquire_many(bytes as u32) else {
            return metrics::dropped("answer");
        };
        link.wait_for_room().await;
    }
    drop(running);
    match result {
        Ok(body) | Err(body) if body.len() > calls.body_bytes_max => {
            reply(&link, &Frame::Executed { seq, fence }, b"the answer is too long");
        }
        Ok(body) => reply(&link, &Frame::Ok { seq, fence }, &body),
        Err(error) => reply(&link, &Frame::Executed { seq, fence }, &error),
    }
}

fn reply(link: &PeerLink, frame: &Frame, body: &[u8]) {
    link.queue(|link| link.send(frame, body));
}

fn refuse(link: &PeerLink, seq: u64, why: Refusal, owner: Option<(NodeId, Blob)>) {
    let (owner, record) = owner.map_or((None, None), |(owner, record)| (Some(owner), Some(record)));
    reply(link, &Frame::Refused { seq, why, owner, record }, &[]);
}

fn ownership(view: &View, hash: KeyHash) -> Ownership {
    if sabotage::calls_are_misrouted() { Ownership::Mine } else { view.ownership(hash) }
}

/// The caller does not wait any more.
pub(super) fn on_cancel(lane: &Lane, seq: u64) {
    lane.calls.lock_admission().cancel(lane.from, seq);
    // One that is just being begun sees that its place is gone.
    if let Some(Some(running)) = lock(&lane.link.running).remove(&seq) {
        running.cancel();
    }
}

impl Calls {
    /// Has the control plane take in a record that decided something elsewhere.
    pub(super) async fn merge(&self, from: NodeId, record: &Blob, patience: Duration) {
        let (done, merged) = oneshot::channel();
        let ask = Input::Ask(Ask::Merge(from, record.0.clone(), done));
        let merging = async {
            if self.control.send(ask).await.is_ok() {
                let _ = merged.await;
            }
        };
        let _ = tokio::time::timeout(patience.min(MERGE_TIMEOUT), merging).await;
    }
}

/// A call of another that was admitted. Gives its place back, also when its task is dropped.
struct Running {
    calls: Arc<Calls>,
    link: Arc<PeerLink>,
    permit: Option<Permit>,
    seq: u64,
}

impl Drop for Running {
    fn drop(&mut self) {
        lock(&self.link.running).remove(&self.seq);
        if let Some(permit) = self.permit.take() {
            self.calls.lock_admission().complete(permit);
        }
    }
}
