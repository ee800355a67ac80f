//! Calls of this node for keys of its own: begun by whoever asks, in its own thread, without a queue or a lock that anybody
//! waits for.

use std::mem::take;
use std::sync::{Mutex, TryLockError};

use arc_swap::Cache;

use super::open::Open;
use super::*;
use crate::runtime::service::Handles;

/// For how many threads of callers something is kept.
const THREADS: usize = 32;

/// What threads keep from one call to the next, each for itself.
pub(super) struct Threads(Box<[OfThread]>);

/// One for each thread, as a rule. Apart by two cache lines, so that no thread's writes slow another one's down.
#[repr(align(128))]
struct OfThread {
    kept: Mutex<Kept>,
    /// Calls that ended well while `kept` was held, and are counted nowhere else.
    succeeded: AtomicU64,
}

/// What the next call need not make anew.
struct Kept {
    view: Cache<Arc<ArcSwap<View>>, Arc<View>>,
    handles: Handles,
}

/// How a call of this node begins.
pub(super) enum Beginning<'a> {
    /// Its handler has run here, under this fence.
    Over(u64, Result<Bytes, ServiceError>),
    /// Its handler has begun here, under this fence, and waits, until the deadline at most.
    Waits(u64, Rest, Instant, Open<'a>),
    /// It goes the way of all calls, to the owner that was found, if one was looked for.
    NotYet(Option<Resolution>, Open<'a>),
}

impl Kept {
    fn new(view: &Arc<ArcSwap<View>>) -> Self {
        Self { view: Cache::new(Arc::clone(view)), handles: Handles::default() }
    }
}

impl Threads {
    pub(super) fn new(view: &Arc<ArcSwap<View>>) -> Self {
        let place = || OfThread { kept: Mutex::new(Kept::new(view)), succeeded: AtomicU64::new(0) };
        Self(std::iter::repeat_with(place).take(THREADS).collect())
    }

    /// This thread's.
    fn own(&self) -> &OfThread {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static NUMBER: usize = NEXT.fetch_add(1, Ordering::Relaxed) % THREADS);
        &self.0[NUMBER.with(|number| *number)]
    }

    /// At how many of them a call is being made.
    pub(super) fn in_use(&self) -> usize {
        self.0.iter().filter(|place| matches!(place.kept.try_lock(), Err(TryLockError::WouldBlock))).count()
    }

    /// How many calls have ended well there.
    pub(super) fn succeeded(&self) -> u64 {
        self.0.iter().map(|place| place.succeeded.load(Ordering::Relaxed)).sum()
    }
}

impl OfThread {
    /// Whoever calls holds `kept`, so that nobody else writes.
    fn count(&self) {
        self.succeeded.store(self.succeeded.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

impl Calls {
    /// Begins a call that is for the owner of its key, if that is this node, and goes as far with it as it goes without
    /// waiting.
    pub(super) fn begin_here(&self, now: Instant, hash: KeyHash, wish: &mut Wish) -> Beginning<'_> {
        if wish.at.is_some() || sabotage::calls_are_misrouted() {
            return Beginning::NotYet(None, self.counts.begin());
        }
        let own = self.threads.own();
        let mut kept = match own.kept.try_lock() {
            Ok(kept) => kept,
            // What an application made panicked as it was dropped.
            Err(TryLockError::Poisoned(kept)) => kept.into_inner(),
            Err(TryLockError::WouldBlock) => return self.begin_apart(now, hash, wish),
        };
        let beginning = self.begin_with(&mut kept, now, hash, wish);
        if matches!(beginning, Beginning::Over(_, Ok(_))) {
            own.count();
        }
        beginning
    }

    /// A handler makes this call while it begins, or there are many threads: nothing is kept of it.
    fn begin_apart(&self, now: Instant, hash: KeyHash, wish: &mut Wish) -> Beginning<'_> {
        let open = self.counts.begin();
        let beginning = self.begin_with(&mut Kept::new(&self.view), now, hash, wish);
        if matches!(beginning, Beginning::Over(_, Ok(_))) {
            open.succeeds();
        }
        beginning
    }

    fn begin_with(&self, kept: &mut Kept, now: Instant, hash: KeyHash, wish: &mut Wish) -> Beginning<'_> {
        let view = kept.view.load();
        let found = view.resolve(hash);
        let may_begin = found == Resolution::Here && wish.duplex.is_none() && !wish.timeout.is_zero();
        if !may_begin || !self.is_confirmed(view, now) {
            return Beginning::NotYet(Some(found), self.counts.begin());
        }
        let Some(entry) = self.services.find(&wish.payload.service, wish.payload.scope) else {
            return Beginning::NotYet(Some(found), self.counts.begin());
        };
        let (fence, deadline) = (view.fence(), now + wish.timeout);
        let Payload { key, body, context, scope, .. } = &mut wish.payload;
        let mut request = Some(Request {
            key: take(key),
            hash,
            scope: *scope,
            body: take(body),
            context: take(context),
            caller: self.me,
            received: now,
            deadline,
            view: Arc::clone(view),
            fence,
            duplex: Duplex::default(),
        });
        match kept.handles.begin(entry, &mut request) {
            Begun::Done(result) => Beginning::Over(fence, result),
            Begun::Waiting(rest) => Beginning::Waits(fence, rest, deadline, self.counts.begin()),
            Begun::NotReady => {
                if let Some(request) = request {
                    (*key, *body, *context) = (request.key, request.body, request.context);
                }
                Beginning::NotYet(Some(found), self.counts.begin())
            }
        }
    }

    /// Brings it to its end, or its deadline.
    pub(super) async fn end_here(&self, deadline: Instant, rest: Rest) -> Outcome<Bytes> {
        tokio::select! {
            biased;
            result = service::end(rest) => outcome_of(result),
            () = self.clock.wait_until(deadline) => Outcome::Unknown(Unknown::Deadline),
        }
    }

    pub(super) fn ran_here(&self, fence: u64, outcome: Outcome<Bytes>) -> Answered {
        Answered { outcome, owner: Some(self.me.node), hops: 0, repeats: 0, fence }
    }
}
