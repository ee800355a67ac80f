//! Calls of others: admitted by whoever reads them, run in a task of their own, answered on the same link.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;

use quinn::{RecvStream, VarInt};
use swimring_forwarder::wire::{CallHeader, LANE_BODY_BYTES_MAX, Scope};
use swimring_forwarder::{Incoming, Ownership, Permit, Verdict};
use swimring_membership::codec::Slice;
use tokio::sync::OwnedSemaphorePermit;

use super::super::bodies::Duplex;
use super::super::gossip::Ask;
use super::super::node::CALL_TIMEOUT_MAX;
use super::super::sabotage;
use super::super::service::{self, Begun, BoxedService, Entry, Handles, Request, ServiceError};
use super::connections::Lane;
use super::duplex::Exchange;
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

/// A body that is here, or comes on a stream; or the beginning of one, and the stream of the rest.
pub(super) enum Body {
    Here(Bytes),
    Coming(RecvStream, usize),
    /// And how many bytes are booked for all of it.
    Opening(Bytes, Box<Exchange>, usize),
}

impl Body {
    fn len(&self) -> usize {
        match self {
            Self::Here(body) => body.len(),
            Self::Coming(_, length) => *length,
            Self::Opening(_, _, bytes) => *bytes,
        }
    }

    /// The whole body, or the opening of one; none if it ends early or takes too long.
    async fn whole(self) -> Option<(Bytes, Option<Box<Exchange>>)> {
        match self {
            Self::Here(body) => Some((body, None)),
            Self::Opening(body, exchange, _) => Some((body, Some(exchange))),
            Self::Coming(mut stream, length) => {
                let reading = async move { read_body(&mut stream, length, || {}).await };
                Some((Box::pin(tokio::time::timeout(LARGE_TIMEOUT, reading)).await.ok()??.into(), None))
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

/// For how long calls are begun in place before others have their turn.
const IN_PLACE_MAX: Duration = Duration::from_micros(200);

/// Room for the answers to a few short calls.
const ANSWERS: usize = 4 * 1_024;

/// What whoever reads a lane keeps from one frame to the next.
#[derive(Default)]
pub(super) struct Reader {
    handles: Handles,
    /// For how long it may still begin calls in place.
    spare: Duration,
    /// What the clock showed when it last looked, if that was just now.
    now: Option<Instant>,
    /// When it took the first of what it has read.
    read: Option<Instant>,
    /// Answers to calls that ended in place.
    answers: Vec<u8>,
}

impl Reader {
    /// It has its turn.
    pub(super) fn has_time(&mut self) {
        (self.spare, self.now) = (IN_PLACE_MAX, None);
    }

    /// More was read than it has taken.
    pub(super) fn has_read(&mut self) {
        self.read = None;
    }

    /// It takes some of what was read.
    pub(super) fn takes(&mut self, now: Instant) {
        self.read.get_or_insert(now);
    }

    pub(super) fn has_time_left(&self) -> bool {
        !self.spare.is_zero()
    }

    /// Begins a call that was admitted just now, at `from`.
    fn begin(&mut self, clock: &Clock, from: Instant, entry: &Arc<Entry>, request: &mut Option<Request>) -> Begun {
        let begun = self.handles.begin(entry, request);
        let to = clock.now();
        self.spare = self.spare.saturating_sub(entry.began_in_place(from, to));
        self.now = Some(to);
        begun
    }

    /// Takes a short answer; gives everything else back.
    fn take_answer(&mut self, begun: Begun, seq: u64, fence: u64) -> Option<Begun> {
        if self.answers.capacity() == 0 {
            self.answers.reserve(ANSWERS);
        }
        match begun {
            Begun::Done(Ok(body)) if body.len() <= LANE_BODY_BYTES_MAX => {
                Frame::Ok { seq, fence }.encode(&body, &mut self.answers);
                None
            }
            Begun::Done(Err(ServiceError(error))) if error.len() <= LANE_BODY_BYTES_MAX => {
                Frame::Executed { seq, fence }.encode(&error, &mut self.answers);
                None
            }
            other => Some(other),
        }
    }

    /// Whether so many bytes of answers are there.
    pub(super) fn has_answered(&self, bytes: usize) -> bool {
        self.answers.len() >= bytes
    }

    /// Sends the answers that are there. Whether the other end has left too many unread.
    pub(super) fn answer(&mut self, lane: &Lane) -> bool {
        !self.answers.is_empty()
            && lane.link.queue(|link| {
                link.reply_encoded(lane.conn, &mut self.answers);
                link.is_choked()
            })
    }
}

/// Another process wants something run. In place while the reader has time.
pub(super) fn on_call(lane: &Lane, header: CallHeader<'_>, body: Body, reader: Option<&mut Reader>) {
    let calls = &lane.calls;
    let read = reader.as_ref().and_then(|reader| reader.read).unwrap_or_else(|| calls.clock.now());
    let hash = calls.hash(header.key.0);
    // Nobody is sent away by a view that is known to be old: neither to its caller, who brought a record, nor here. Asked
    // before the view is, which has by then whatever was not behind.
    let is_behind = header.record.is_some() || calls.behind.load(Ordering::Acquire) > 0;
    let seen = Seen::now(calls, hash, header.scope);
    let waits = is_behind && seen.owned != Ownership::Mine;
    let place = waits.then(|| Arc::clone(&calls.merging).try_acquire_owned().ok()).flatten();
    let Some(place) = place else {
        return admit(lane, read, header, seen, body, reader);
    };
    judge_later(lane, read, header, hash, body, place);
}

/// Waits until the view is what it should be, in a task of its own.
#[cold]
fn judge_later(
    lane: &Lane,
    read: Instant,
    header: CallHeader<'_>,
    hash: KeyHash,
    body: Body,
    place: OwnedSemaphorePermit,
) {
    let lane = lane.clone();
    let (service, key, context) = (header.service.to_owned(), header.key.0.to_vec(), header.context.0.to_vec());
    let record = header.record.map(|record| record.0.to_vec());
    let CallHeader { seq, floor, life, deadline, error_us, hop, scope, .. } = header;
    let calls = Arc::clone(&lane.calls);
    calls.spawn(async move {
        lane.calls.catch_up(lane.from.node, record, MERGE_TIMEOUT).await;
        drop(place);
        let (service, key, record, context) = (service.as_str(), Slice(&key), None, Slice(&context));
        let header = CallHeader { seq, floor, life, deadline, error_us, hop, service, key, record, scope, context };
        let seen = Seen::now(&lane.calls, hash, scope);
        admit(&lane, read, header, seen, body, None);
    });
}

/// What a call says, its body aside.
struct Asked {
    key: Bytes,
    hash: KeyHash,
    scope: Scope,
    context: Bytes,
}

impl Asked {
    fn of(header: &CallHeader<'_>, hash: KeyHash) -> Self {
        let (key, context) = (Bytes::copy_from_slice(header.key.0), Bytes::copy_from_slice(header.context.0));
        Self { key, hash, scope: header.scope, context }
    }

    /// As a service sees it, from now on.
    fn request(
        self,
        body: Bytes,
        caller: Instance,
        (received, deadline): (Instant, Instant),
        view: Arc<View>,
    ) -> Request {
        let Self { key, hash, scope, context } = self;
        let fence = view.fence();
        let duplex = Duplex::default();
        Request { key, hash, scope, body, context, caller, received, deadline, view, fence, duplex }
    }
}

/// A call that may run here, in a task of its own.
struct Admitted {
    place: Place,
    entry: Arc<Entry>,
    asked: Asked,
    read: Instant,
    /// When it is too late to begin.
    latest: Instant,
}

/// The view of a moment, and what it says of a key. Asked before any lock that everybody needs: among many members it takes
/// a while.
struct Seen {
    hash: KeyHash,
    view: Arc<View>,
    owned: Ownership,
}

impl Seen {
    fn now(calls: &Calls, hash: KeyHash, scope: Scope) -> Self {
        let view = calls.view();
        let owned = if sabotage::calls_are_misrouted() { Ownership::Mine } else { view.ownership(hash, scope) };
        Self { hash, view, owned }
    }
}

fn admit(lane: &Lane, read: Instant, header: CallHeader<'_>, seen: Seen, body: Body, reader: Option<&mut Reader>) {
    let (calls, scope) = (&lane.calls, header.scope);
    let Seen { hash, view, owned } = seen;
    let now = reader.as_ref().and_then(|reader| reader.now).unwrap_or_else(|| calls.clock.now());
    let incoming = Incoming { caller: lane.from, header: &header, body_bytes: body.len() };
    let confirmed = calls.is_confirmed(&view, now);
    let verdict = calls.lock_admission().admit(now, incoming, confirmed, || owned);
    let permit = match verdict {
        Verdict::Run(permit) => permit,
        Verdict::Refuse(why, owner) => {
            refuse(&lane.link, lane.conn, read, header.seq, why, owner);
            return body.refuse();
        }
        Verdict::Ignore => return body.refuse(),
    };
    let Some(entry) = calls.services.find(header.service, scope) else {
        calls.lock_admission().complete(now, permit);
        refuse(&lane.link, lane.conn, read, header.seq, Refusal::NoService, None);
        return body.refuse();
    };
    let (seq, asked, latest) = (header.seq, Asked::of(&header, hash), header.latest());
    // Whatever it says: no call takes longer.
    let deadline = latest.min(now + CALL_TIMEOUT_MAX + CLOCKS_APART);
    let reader = reader.filter(|reader| reader.has_time_left() && !calls.leaving.load(Ordering::Relaxed));
    let in_place = entry.begins_in_place(now) && !sabotage::calls_run_twice();
    match (body, reader) {
        (Body::Here(body), Some(reader)) if in_place => {
            let fence = view.fence();
            let mut request = Some(asked.request(body, lane.from, (now, latest), view));
            let begun = reader.begin(&calls.clock, now, entry, &mut request);
            if let Some(begun) = reader.take_answer(begun, seq, fence) {
                let place = Place::new(lane, permit);
                let ending = end(place, Arc::clone(entry), latest, fence, begun, request);
                go_on(lane, seq, deadline, Box::pin(ending));
            } else {
                // It began a moment ago, and has not waited.
                calls.lock_admission().complete(now, permit);
            }
        }
        (body, ..) => {
            let place = Place::new(lane, permit);
            let call = Admitted { place, entry: Arc::clone(entry), asked, read, latest };
            go_on(lane, seq, deadline, Box::pin(run(call, body)));
        }
    }
}

/// Brings a call that was begun in place to its end.
async fn end(place: Place, entry: Arc<Entry>, latest: Instant, fence: u64, begun: Begun, request: Option<Request>) {
    match begun {
        Begun::Done(result) => finish(place, fence, result.map_err(|error| error.0)).await,
        Begun::Waiting(begun) => finish(place, fence, service::end(begun).await).await,
        Begun::NotReady => {
            let request = request.expect("what has not begun was not taken");
            let Request { key, hash, scope, context, body, received: read, .. } = request;
            let asked = Asked { key, hash, scope, context };
            run(Admitted { place, entry, asked, read, latest }, Body::Here(body)).await;
        }
    }
}

/// A call runs in a task of its own until it ends, is cancelled, or nobody waits any more.
fn go_on(lane: &Lane, seq: u64, deadline: Instant, call: Pin<Box<dyn Future<Output = ()> + Send>>) {
    let Some(listed) = Listed::list(&lane.link, seq) else {
        // It was cancelled meanwhile, on the other lane. What an application's layers do when they are dropped must not
        // end the reader.
        _ = catch_unwind(AssertUnwindSafe(|| drop(call)));
        return;
    };
    let (clock, cancelled) = (lane.calls.clock.clone(), listed.cancelled.clone());
    lane.calls.spawn(async move {
        let _listed = listed;
        tokio::select! {
            () = call => {}
            () = cancelled.cancelled() => {}
            () = clock.wait_until(deadline) => {}
        }
    });
}

async fn run(call: Admitted, body: Body) {
    let Some((body, exchange)) = body.whole().await else {
        return;
    };
    let Admitted { place, entry, asked, read, latest } = call;
    let (calls, link, on) = (Arc::clone(&place.calls), Arc::clone(&place.link), place.on);
    let seq = place.permit().seq();
    let mut service = entry.service();
    let ready = service::ready(&mut service).await;
    let now = calls.clock.now();
    let Seen { view, owned, .. } = Seen::now(&calls, asked.hash, asked.scope);
    let confirmed = calls.is_confirmed(&view, now);
    let begins = calls.lock_admission().begin(now, latest, confirmed, || owned);
    if let Err((why, owner)) = begins {
        drop(place);
        return refuse(&link, on, read, seq, why, owner);
    }
    if link.lock().is_choked() {
        drop(place);
        let why = calls.lock_admission().overloaded(now);
        return refuse(&link, on, read, seq, why, None);
    }
    let fence = view.fence();
    let request = asked.request(body, place.permit().caller(), (now, latest), view);
    if sabotage::calls_run_twice() {
        let _ = service::run(&mut service.clone(), request.clone()).await;
    }
    if let Some(exchange) = exchange {
        return Box::pin(converse(place, *exchange, service, ready, request)).await;
    }
    let result = match ready {
        Ok(()) => service::run(&mut service, request).await,
        Err(error) => Err(error),
    };
    finish(place, fence, result).await;
}

/// Runs a duplex call by a service that is ready, or failed to be.
async fn converse(
    place: Place,
    mut exchange: Exchange,
    mut service: BoxedService,
    ready: Result<(), Bytes>,
    request: Request,
) {
    let (seq, fence, bytes_max) = (place.permit().seq(), request.fence, place.calls.body_bytes_max);
    let run = async |duplex| match ready {
        Ok(()) => service::run(&mut service, Request { duplex, ..request }).await,
        Err(error) => Err(error),
    };
    let Some(result) = exchange.run(seq, run).await else { return };
    let (frame, body) = answer(seq, fence, result, bytes_max);
    exchange.answer(&frame, body, place).await;
}

/// Answers a call that ran.
async fn finish(place: Place, fence: u64, result: Result<Bytes, Bytes>) {
    let (calls, link, on) = (Arc::clone(&place.calls), Arc::clone(&place.link), place.on);
    let seq = place.permit().seq();
    // Its place is kept until the other end reads: answers that wait are bytes, too.
    let bytes = result.as_ref().map_or_else(Bytes::len, Bytes::len).min(calls.body_bytes_max);
    if link.lock().is_choked() {
        let Ok(_room) = calls.unread.try_acquire_many(bytes as u32) else {
            return metrics::dropped("answer");
        };
        Box::pin(link.wait_for_room()).await;
    }
    drop(place);
    let (frame, body) = answer(seq, fence, result, calls.body_bytes_max);
    link.queue(|link| link.answer(on, &frame, body));
}

/// What is said of a call that ran.
fn answer(seq: u64, fence: u64, result: Result<Bytes, Bytes>, bytes_max: usize) -> (Frame<'static>, Bytes) {
    match result {
        Ok(body) | Err(body) if body.len() > bytes_max => {
            (Frame::Executed { seq, fence }, Bytes::from_static(ANSWER_TOO_LONG))
        }
        Ok(body) => (Frame::Ok { seq, fence }, body),
        Err(error) => (Frame::Executed { seq, fence }, error),
    }
}

/// Says no to a call that was read then.
fn refuse(link: &PeerLink, on: ConnId, read: Instant, seq: u64, why: Refusal, owner: Option<(NodeId, Blob)>) {
    let (owner, record) = owner.map_or((None, None), |(owner, record)| (Some(owner), Some(record)));
    link.queue(|waiting| {
        waiting.reply(on, &Frame::Refused { seq, why, owner, record });
        link.refusals.add(read);
    });
}

/// The caller does not wait any more.
pub(super) fn on_cancel(lane: &Lane, seq: u64) {
    lane.calls.lock_admission().cancel(lane.from, seq);
    lane.link.running.lock().cancel(seq);
}

impl Calls {
    /// Waits until the view has everything that is known here, and a record that decided something elsewhere.
    pub(super) async fn catch_up(&self, from: NodeId, record: Option<Vec<u8>>, patience: Duration) {
        let (done, told) = oneshot::channel();
        let ask = Input::Ask(match record {
            Some(record) => Ask::Merge(from, record, done),
            None => Ask::Publish(done),
        });
        let waiting = async {
            if self.control.send(ask).await.is_ok() {
                let _ = told.await;
            }
        };
        let _ = tokio::time::timeout(patience.min(MERGE_TIMEOUT), waiting).await;
    }
}

/// The place that a call of another takes. Gives it back, also when its task is dropped.
pub(super) struct Place {
    calls: Arc<Calls>,
    link: Arc<PeerLink>,
    /// The connection on which the call came.
    on: ConnId,
    permit: Option<Permit>,
}

impl Place {
    fn new(lane: &Lane, permit: Permit) -> Self {
        Self { calls: Arc::clone(&lane.calls), link: Arc::clone(&lane.link), on: lane.conn, permit: Some(permit) }
    }

    fn permit(&self) -> &Permit {
        self.permit.as_ref().expect("it is given back last")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            let now = self.calls.clock.now();
            self.calls.lock_admission().complete(now, permit);
        }
    }
}

/// Most cancelled calls without a task that are remembered: for the moment between a call's beginning and its task.
const MISSED_MAX: usize = 64;

/// Calls of one process that have a task here.
#[derive(Debug, Default)]
pub(super) struct Running {
    tasks: HashMap<u64, CancellationToken>,
    /// Cancelled lately, and without a task.
    missed: VecDeque<u64>,
}

impl Running {
    fn cancel(&mut self, seq: u64) {
        if let Some(task) = self.tasks.get(&seq) {
            return task.cancel();
        }
        if self.missed.len() >= MISSED_MAX {
            self.missed.pop_front();
        }
        self.missed.push_back(seq);
    }
}

/// A call that is listed among those with a task, for as long as that runs.
struct Listed {
    link: Arc<PeerLink>,
    seq: u64,
    cancelled: CancellationToken,
}

impl Listed {
    /// None if it was cancelled already.
    fn list(link: &Arc<PeerLink>, seq: u64) -> Option<Self> {
        let mut running = link.running.lock();
        if running.missed.contains(&seq) {
            return None;
        }
        let cancelled = CancellationToken::new();
        running.tasks.insert(seq, cancelled.clone());
        Some(Self { link: Arc::clone(link), seq, cancelled })
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.link.running.lock().tasks.remove(&self.seq);
    }
}
