//! The data plane: each call drives its own [`Call`] in the task that asked; what lies between two processes is
//! a [`Link`], written and read by two tasks a connection.
//!
//! Mutexes are held for synchronous code only, never across an await, and taken in the order of [`rank`]. No code of an
//! application runs meanwhile, but for what a thread keeps for itself (`local.rs`), which nobody waits for.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use dashmap::DashMap;
use quinn::Connection;
use swimring_forwarder::wire::{CONTEXT_BYTES_MAX, Frame, LANE_BODY_BYTES_MAX, Refusal, SERVICE_BYTES_MAX};
use swimring_forwarder::{
    Admission, Budget, Call, CallConfig, CallSpec, NeverSent, NotExecuted, Outcome, Resolution, Unknown, Unsent, Why,
};
use swimring_membership::codec::Blob;
use swimring_membership::{Instance, Instant, NodeId, Peer, Rng, State};
use swimring_ring::{KEY_BYTES_MAX, KeyHash, KeyHasher};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::bodies::{Duplex, DuplexCall, Over};
use super::endpoint::{Port, close_code};
use super::gossip::Input;
use super::metrics;
use super::publisher::Behind;
use super::pulse::Pulse;
use super::ranked::{Held, Ranked};
use super::sabotage;
use super::service::{self, Begun, Request, Rest, ServiceError, Services};
use super::system::Clock;
use crate::core::breaker::ASKED_AFTER;
use crate::core::link::{CutOff, Link, LinkLimits, Outbound, Payload};
use crate::core::peers::{ConnId, DialId, Goodbye, Peers};
use crate::core::view::View;

use self::connections::{accept, keep_deadlines, keep_time};
use self::local::{Beginning, Threads};
use self::open::{Counts, Open};
use self::peer_link::{PeerLink, Writers};
use self::serving::{MERGES_MAX, Running, UNREAD_BYTES_MAX};
use self::under_way::UnderWay;

mod connections;
pub(super) mod duplex;
mod local;
mod open;
mod peer_link;
mod serving;
pub(super) mod streams;
mod under_way;

/// The order in which mutexes are taken, if one is taken while another is held. A link is looked up before it is locked.
mod rank {
    pub(super) const WAITING: u8 = 0;
    pub(super) const DIALS: u8 = 1;
    pub(super) const PEERS: u8 = 2;
    pub(super) const LINK: u8 = 3;
    /// Whatever else belongs to one link.
    pub(super) const BESIDE_LINK: u8 = 4;
    pub(super) const ADMISSION: u8 = 5;
    pub(super) const BUDGET: u8 = 6;
}

/// Most calls of this node under way.
const CALLS_MAX: u64 = 65_536;

/// What is said in the place of an answer that is longer than it may be, here or there: its handler has run.
const ANSWER_TOO_LONG: &[u8] = b"the answer is too long";

/// What becomes of an attempt.
#[derive(Debug)]
enum Report {
    Unsent(NeverSent),
    Lost,
    /// The deadline came after it was handed over.
    Late,
    Ran(Result<Bytes, Bytes>, u64),
    Refused(Refusal, Option<NodeId>, Option<Blob>),
}

type Token = oneshot::Sender<Report>;

impl Calls {
    /// Closes the connections of a link on which nothing more will come: so the other end hears that all has arrived.
    fn close_over(&self, link: &PeerLink) {
        let over: Vec<ConnId> = link.lock().over().collect();
        for conn in over {
            if let Some((_, (connection, _))) = self.conns.remove(&conn) {
                connection.close(close_code(Goodbye::Gone), b"");
            }
        }
    }
}

/// An answered call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answered {
    /// What came of it.
    pub outcome: Outcome<Bytes>,
    /// Who was asked last.
    pub owner: Option<NodeId>,
    /// How many other processes were asked; 0 if the handler ran here.
    pub hops: u8,
    /// How often it was tried again after a refusal, a lost connection, or one that could not be made.
    pub repeats: u32,
    /// The fence of the owner's hold on the key, if the handler ran.
    pub fence: u64,
}

fn outcome_of(result: Result<Bytes, Bytes>) -> Outcome<Bytes> {
    match result {
        Ok(body) => Outcome::Ok(body),
        Err(error) => Outcome::Executed(error),
    }
}

/// A process that is connected here, and down or left.
pub(crate) struct Gone {
    pub(crate) peer: Peer,
    pub(crate) instance: Instance,
    pub(crate) state: State,
}

/// What a caller wants.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) payload: Payload<Bytes>,
    /// The node that it is for, if it is not for the owner.
    pub(crate) at: Option<NodeId>,
    pub(crate) timeout: Duration,
    pub(crate) idempotent: bool,
    /// Its bodies, if they come in pieces.
    pub(crate) duplex: Option<Arc<DuplexCall>>,
}

/// The data plane of one node.
pub(crate) struct Calls {
    me: Instance,
    peer: Peer,
    fingerprint: [u8; 16],
    clock: Clock,
    hasher: KeyHasher,
    view: Arc<ArcSwap<View>>,
    behind: Behind,
    pulse: Arc<Pulse>,
    control: mpsc::Sender<Input>,
    services: Services,
    port: Port,
    peers: Ranked<Peers, { rank::PEERS }>,
    links: DashMap<Instance, Arc<PeerLink>, foldhash::fast::RandomState>,
    conns: DashMap<ConnId, (Connection, Instance)>,
    dials: Ranked<HashMap<DialId, tokio::task::AbortHandle>, { rank::DIALS }>,
    /// Attempts that wait for a dial, by peer.
    waiting: Ranked<HashMap<Peer, Vec<Instance>>, { rank::WAITING }>,
    admission: Ranked<Admission, { rank::ADMISSION }>,
    /// Calls that wait for a record to be merged.
    merging: Arc<Semaphore>,
    /// Room for answers that wait for whoever does not read.
    unread: Semaphore,
    budget: Ranked<Budget, { rank::BUDGET }>,
    rng: Rng,
    next_call: AtomicU64,
    counts: Counts,
    threads: Threads,
    leaving: AtomicBool,
    /// Large frames that the transport has, and the other end may not.
    unacknowledged: AtomicU64,
    timers: Notify,
    /// No attempt's deadline is before this, in nanoseconds of the clock.
    earliest: AtomicU64,
    /// Told when there is an earlier one.
    earlier: Notify,
    tracker: TaskTracker,
    ending: CancellationToken,
    body_bytes_max: usize,
}

/// What a data plane starts with.
pub(crate) struct CallsStart {
    pub(crate) me: Instance,
    pub(crate) peer: Peer,
    pub(crate) fingerprint: [u8; 16],
    pub(crate) clock: Clock,
    pub(crate) hasher: KeyHasher,
    pub(crate) view: Arc<ArcSwap<View>>,
    pub(crate) behind: Behind,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) control: mpsc::Sender<Input>,
    pub(crate) services: Services,
    pub(crate) port: Port,
    pub(crate) peers: Peers,
    pub(crate) admission: Admission,
    pub(crate) rng: Rng,
}

impl Calls {
    /// Starts accepting.
    pub(crate) fn start(start: CallsStart) -> Arc<Self> {
        let body_bytes_max = start.admission.limits().body_bytes_max;
        let threads = Threads::new(&start.view);
        let calls = Arc::new(Self {
            me: start.me,
            peer: start.peer,
            fingerprint: start.fingerprint,
            clock: start.clock,
            hasher: start.hasher,
            view: start.view,
            behind: start.behind,
            pulse: start.pulse,
            control: start.control,
            services: start.services,
            port: start.port,
            peers: Ranked::new(start.peers),
            links: DashMap::default(),
            conns: DashMap::new(),
            dials: Ranked::default(),
            waiting: Ranked::default(),
            admission: Ranked::new(start.admission),
            merging: Arc::new(Semaphore::new(MERGES_MAX)),
            unread: Semaphore::new(UNREAD_BYTES_MAX),
            budget: Ranked::default(),
            rng: start.rng,
            next_call: AtomicU64::new(0),
            counts: Counts::default(),
            threads,
            leaving: AtomicBool::new(false),
            unacknowledged: AtomicU64::new(0),
            timers: Notify::new(),
            earliest: AtomicU64::new(u64::MAX),
            earlier: Notify::new(),
            tracker: TaskTracker::new(),
            ending: CancellationToken::new(),
            body_bytes_max,
        });
        calls.spawn(accept(Arc::clone(&calls)));
        calls.spawn(keep_time(Arc::clone(&calls)));
        calls.spawn(keep_deadlines(Arc::clone(&calls)));
        calls
    }

    fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let ending = self.ending.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                () = task => {}
                () = ending.cancelled() => {}
            }
        });
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.port.local_addr()
    }

    pub(crate) fn hash(&self, key: &[u8]) -> KeyHash {
        self.hasher.hash(key)
    }

    pub(crate) fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    pub(crate) fn admission_stats(&self) -> swimring_forwarder::AdmissionStats {
        self.lock_admission().stats()
    }

    /// How many calls of this node their handlers have answered.
    fn succeeded(&self) -> u64 {
        self.counts.succeeded() + self.threads.succeeded()
    }

    /// Calls under way: of this node, and of others here.
    pub(crate) fn under_way(&self) -> usize {
        // In the order in which a call goes from one to the next, so that none is missed on its way.
        let here = self.threads.in_use() + self.counts.open() as usize;
        let running = self.lock_admission().running().calls;
        let unwritten = self.links.iter().filter(|link| link.is_connected_with_work()).count();
        here + running + unwritten + self.unacknowledged.load(Ordering::Relaxed) as usize
    }

    fn lock_admission(&self) -> Held<'_, Admission, { rank::ADMISSION }> {
        self.admission.lock()
    }

    /// With what all calls so far have earned.
    fn lock_budget(&self) -> Held<'_, Budget, { rank::BUDGET }> {
        let mut budget = self.budget.lock();
        budget.count(self.next_call.load(Ordering::Relaxed));
        budget
    }

    fn lock_peers(&self) -> Held<'_, Peers, { rank::PEERS }> {
        self.peers.lock()
    }

    /// Makes one call: exactly one outcome, by the deadline.
    #[expect(clippy::manual_async_fn, reason = "an async function copies its arguments once more")]
    pub(crate) fn call(self: &Arc<Self>, mut wish: Wish) -> impl Future<Output = Answered> + Send + '_ {
        async move {
            if let Some(problem) = self.problem_with(&wish) {
                let outcome = Outcome::NotExecuted(NotExecuted::because(problem));
                metrics::call_failed(&outcome);
                return Answered { outcome, owner: None, hops: 0, repeats: 0, fence: 0 };
            }
            let _over = wish.duplex.clone().map(Over);
            let (now, hash) = (self.clock.now(), self.hash(&wish.payload.key));
            let (answered, open) = match self.begin_here(now, hash, &mut wish) {
                Beginning::Over(fence, result) => {
                    (self.ran_here(fence, outcome_of(result.map_err(|error| error.0))), None)
                }
                Beginning::Waits(fence, rest, deadline, open) => {
                    let outcome = Box::pin(self.end_here(deadline, rest)).await;
                    (self.ran_here(fence, outcome), Some(open))
                }
                Beginning::NotYet(found, open) => {
                    let mut under_way = UnderWay::new(self, now, wish, hash);
                    (under_way.drive(now, found).await, Some(open))
                }
            };
            match &answered.outcome {
                Outcome::Ok(_) => open.into_iter().for_each(Open::succeeds),
                failure => metrics::call_failed(failure),
            }
            answered
        }
    }

    fn problem_with(&self, wish: &Wish) -> Option<Why> {
        let Payload { service, key, body, context, duplex, .. } = &wish.payload;
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            Some(Why::Invalid("a key has 1 to 1,024 bytes"))
        } else if body.len() > self.body_bytes_max {
            Some(Why::Invalid("the body is too long"))
        } else if *duplex && body.len() > LANE_BODY_BYTES_MAX {
            Some(Why::Invalid("what opens a duplex call has at most 64 KiB"))
        } else if context.len() > CONTEXT_BYTES_MAX {
            Some(Why::Invalid("a context has at most 1,024 bytes"))
        } else if service.len() > SERVICE_BYTES_MAX {
            Some(Why::Invalid("the name of a service has at most 64 bytes"))
        } else if self.leaving.load(Ordering::Acquire) {
            Some(Why::Leaving)
        } else if self.counts.reach(CALLS_MAX) {
            Some(Why::Overloaded)
        } else if wish.duplex.as_ref().is_some_and(|duplex| !duplex.make()) {
            Some(Why::Invalid("a duplex call is made once"))
        } else {
            None
        }
    }

    /// Whether this process is still the one that others mean.
    fn is_confirmed(&self, view: &View, now: Instant) -> bool {
        view.is_confirmed() && self.pulse.beats(now)
    }

    /// The same, at this moment.
    pub(crate) fn is_confirmed_now(&self, view: &View) -> bool {
        self.is_confirmed(view, self.clock.now())
    }

    fn link(&self, to: Instance) -> Arc<PeerLink> {
        self.at_link(to, Arc::clone)
    }

    /// Looks at a link, or does something short with it: meanwhile no link is added or forgotten.
    fn at_link<R>(&self, to: Instance, look: impl FnOnce(&Arc<PeerLink>) -> R) -> R {
        match self.links.get(&to) {
            Some(link) => look(&link),
            None => look(&self.new_link(to)),
        }
    }

    /// The link, if anything has been on it lately.
    fn known_link(&self, to: Instance) -> Option<Arc<PeerLink>> {
        self.links.get(&to).map(|link| Arc::clone(&link))
    }

    #[cold]
    fn new_link(&self, to: Instance) -> Arc<PeerLink> {
        let made = || Arc::new(PeerLink::new(Link::new(self.clock.now(), to, LinkLimits::default())));
        Arc::clone(&self.links.entry(to).or_insert_with(made))
    }

    /// Queues an attempt, and sees to it that there is or will be a connection.
    fn enqueue(
        self: &Arc<Self>,
        to: Instance,
        outbound: Outbound<Bytes>,
        duplex: Option<Arc<DuplexCall>>,
    ) -> Result<(u64, oneshot::Receiver<Report>), NeverSent> {
        let (report, receiver) = oneshot::channel();
        let deadline = outbound.deadline.as_nanos();
        let (queued, connected) = self.at_link(to, |link| {
            link.queue(|held| {
                let queued = held.enqueue(outbound, report);
                if let (Ok(seq), Some(duplex)) = (&queued, duplex) {
                    link.duplex.lock().insert(*seq, duplex);
                }
                (queued, held.is_connected())
            })
        });
        let seq = queued.map_err(|(_, proof)| proof)?;
        // Where anything is open, links are looked at that often already.
        let nothing = self.earliest.load(Ordering::Acquire) == u64::MAX;
        let soon = if nothing { (self.clock.now() + ASKED_AFTER).as_nanos() } else { u64::MAX };
        self.look_by(deadline.min(soon));
        if !connected {
            self.connect(to);
        }
        Ok((seq, receiver))
    }

    /// Links are looked at by then, in nanoseconds of the clock.
    fn look_by(&self, at: u64) {
        if at < self.earliest.load(Ordering::Acquire) {
            self.earliest.fetch_min(at, Ordering::AcqRel);
            self.earlier.notify_one();
        }
    }

    /// Ends what is late on any link, and asks who says nothing.
    fn expire(self: &Arc<Self>) {
        let now = self.clock.now();
        // Whoever queues something from here on is seen below, or lowers it again.
        self.earliest.store(u64::MAX, Ordering::Release);
        let links: Vec<_> = self.links.iter().map(|link| Arc::clone(link.value())).collect();
        for link in links {
            let ((over, silent), earliest, open) =
                link.queue(|link| (link.expire(now), link.earliest(), link.open_count()));
            let some = !over.lost.is_empty();
            PeerLink::report(over, || Report::Late);
            if let Some(silent) = silent {
                self.give_up(&link, silent);
            }
            if some {
                self.close_over(&link);
            }
            let soon = (open > 0).then(|| now + ASKED_AFTER);
            if let Some(earliest) = earliest.into_iter().chain(soon).min() {
                self.earliest.fetch_min(earliest.as_nanos(), Ordering::AcqRel);
            }
        }
    }

    /// From now on this node calls nobody, and begins nothing for others.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
        self.lock_admission().leave();
    }

    /// How many connections there are. After a goodbye the other ends close them once they have every answer.
    pub(crate) fn connections(&self) -> usize {
        self.conns.len()
    }

    /// Tells everybody that nothing new is taken here.
    pub(crate) fn say_goodbye(&self) {
        for link in self.links.iter() {
            link.queue(|link| link.send(&Frame::Goodbye));
        }
    }

    /// Ends everything.
    pub(crate) async fn close(&self) {
        self.leave();
        self.ending.cancel();
        self.lock_peers().close();
        // Nobody else ends what waits for a dial now.
        let waiting: Vec<Instance> = self.waiting.lock().drain().flat_map(|(_, waiting)| waiting).collect();
        waiting.into_iter().for_each(|to| self.give_back(to, Unsent::Unreachable));
        self.tracker.close();
        let _ = tokio::time::timeout(super::system::CLOSE_GRACE, self.tracker.wait()).await;
        self.port.close().await;
    }
}
