//! The data plane: each call drives its own [`Call`] in the task that asked; what lies between two processes is
//! a [`Link`], written and read by two tasks a connection.
//!
//! Locks are held for synchronous code only, never across an await.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use dashmap::DashMap;
use quinn::{Connection, RecvStream, SendStream};
use swimring_forwarder::wire::{CallHeader, Frame, Refusal, SERVICE_BYTES_MAX};
use swimring_forwarder::{
    Admission, Budget, Call, CallConfig, CallSpec, Incoming, NeverSent, NotExecuted, Outcome, Ownership, Permit, Step,
    Unsent, Verdict, Why,
};
use swimring_membership::codec::Blob;
use swimring_membership::{Instance, Instant, NodeId, Peer, Rng};
use swimring_ring::{KEY_BYTES_MAX, KeyHash, KeyHasher};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::endpoint::{Established, Port, close_code};
use super::gossip::{Ask, Input};
use super::metrics;
use super::sabotage;
use super::service::{self, Request, Services};
use super::system::Clock;
use crate::core::hello::{Answer, Class, Hello, Refusal as HelloRefusal};
use crate::core::link::{Arrival, Link, Outbound};
use crate::core::peers::{Command, ConnId, DialId, Goodbye, Peers, PeersEvent, Route, Target};
use crate::core::view::View;

use self::streams::{accept, keep_time, read, refuse, reply, write};
use self::under_way::UnderWay;

mod streams;
mod under_way;

/// Most bytes written at once.
const BATCH: usize = 64 * 1_024;
/// Most bytes read at once.
const READ: usize = 64 * 1_024;
/// Most attempts under way to one process.
const CALLS_OF_PEER_MAX: usize = 4_096;
/// How long the view may take to take in a record that a caller brought.
const MERGE_TIMEOUT: Duration = Duration::from_millis(100);

/// What becomes of an attempt.
#[derive(Debug)]
enum Report {
    Unsent(NeverSent),
    Lost,
    Ran(Result<Bytes, Bytes>, u64),
    Refused(Instance, Refusal, Option<NodeId>, Option<Blob>),
}

type Token = oneshot::Sender<Report>;

/// Everything between this process and one other.
struct PeerLink {
    link: Mutex<Link<Token>>,
    /// The writers of its connections, to be told that something waits.
    writers: Mutex<Vec<(ConnId, Arc<Notify>)>>,
    /// Calls of the other process that run here, to cancel them.
    running: Mutex<HashMap<u64, CancellationToken>>,
}

impl PeerLink {
    fn lock(&self) -> MutexGuard<'_, Link<Token>> {
        self.link.lock().expect("nothing panics while it holds the lock")
    }

    fn is_connected_with_work(&self) -> bool {
        let link = self.lock();
        link.is_connected() && link.has_work()
    }

    /// Something waits to be written. Every writer is told: only the one whose connection is kept takes it.
    fn wake(&self) {
        let writers = self.writers.lock().expect("nothing panics while it holds the lock");
        writers.iter().for_each(|(_, work)| work.notify_one());
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
    /// The fence of the owner's hold on the key, if the handler ran.
    pub fence: u64,
}

/// What a caller wants.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) service: Arc<str>,
    pub(crate) key: Bytes,
    pub(crate) body: Bytes,
    pub(crate) timeout: Duration,
    pub(crate) idempotent: bool,
}

/// The data plane of one node.
pub(crate) struct Calls {
    me: Instance,
    peer: Peer,
    fingerprint: [u8; 16],
    clock: Clock,
    hasher: KeyHasher,
    view: Arc<ArcSwap<View>>,
    control: mpsc::Sender<Input>,
    services: Services,
    port: Port,
    peers: Mutex<Peers>,
    links: DashMap<Instance, Arc<PeerLink>>,
    conns: DashMap<ConnId, (Connection, Instance)>,
    dials: Mutex<HashMap<DialId, tokio::task::AbortHandle>>,
    /// Attempts that wait for a dial, by peer.
    waiting: Mutex<HashMap<Peer, Vec<Instance>>>,
    admission: Mutex<Admission>,
    budget: Mutex<Budget>,
    rng: Rng,
    next_call: AtomicU64,
    succeeded: AtomicU64,
    open: AtomicU64,
    leaving: AtomicBool,
    timers: Notify,
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
        let calls = Arc::new(Self {
            me: start.me,
            peer: start.peer,
            fingerprint: start.fingerprint,
            clock: start.clock,
            hasher: start.hasher,
            view: start.view,
            control: start.control,
            services: start.services,
            port: start.port,
            peers: Mutex::new(start.peers),
            links: DashMap::new(),
            conns: DashMap::new(),
            dials: Mutex::default(),
            waiting: Mutex::default(),
            admission: Mutex::new(start.admission),
            budget: Mutex::default(),
            rng: start.rng,
            next_call: AtomicU64::new(0),
            succeeded: AtomicU64::new(0),
            open: AtomicU64::new(0),
            leaving: AtomicBool::new(false),
            timers: Notify::new(),
            tracker: TaskTracker::new(),
            ending: CancellationToken::new(),
            body_bytes_max,
        });
        calls.spawn(accept(Arc::clone(&calls)));
        calls.spawn(keep_time(Arc::clone(&calls)));
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

    /// Calls under way: of this node, and of others here.
    pub(crate) fn under_way(&self) -> usize {
        let unwritten = self.links.iter().filter(|link| link.is_connected_with_work()).count();
        self.open.load(Ordering::Relaxed) as usize + self.lock_admission().running() + unwritten
    }

    fn lock_admission(&self) -> MutexGuard<'_, Admission> {
        self.admission.lock().expect("nothing panics while it holds the lock")
    }

    fn lock_budget(&self) -> MutexGuard<'_, Budget> {
        self.budget.lock().expect("nothing panics while it holds the lock")
    }

    fn lock_peers(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().expect("nothing panics while it holds the lock")
    }

    /// Makes one call: exactly one outcome, by the deadline.
    pub(crate) async fn call(self: &Arc<Self>, wish: Wish) -> Answered {
        if let Some(problem) = self.problem_with(&wish) {
            let outcome = Outcome::NotExecuted(NotExecuted::untried(problem));
            metrics::call_failed(&outcome);
            return Answered { outcome, owner: None, hops: 0, fence: 0 };
        }
        self.lock_budget().earn();
        self.open.fetch_add(1, Ordering::Relaxed);
        let deadline = self.clock.now() + wish.timeout;
        let number = self.next_call.fetch_add(1, Ordering::Relaxed);
        let spec = CallSpec { deadline, idempotent: wish.idempotent };
        let under_way = UnderWay {
            call: Call::new(spec, CallConfig::default(), self.rng.fork(number)),
            hash: self.hash(&wish.key),
            view: self.view(),
            key: Arc::from(wish.key.as_ref()),
            body: Arc::from(wish.body.as_ref()),
            wish,
            calls: Arc::clone(self),
            report: None,
            sent: None,
            record: None,
            owner: None,
            fence: 0,
        };
        let answered = under_way.drive(self).await;
        match &answered.outcome {
            Outcome::Ok(_) => _ = self.succeeded.fetch_add(1, Ordering::Relaxed),
            failure => metrics::call_failed(failure),
        }
        answered
    }

    fn problem_with(&self, wish: &Wish) -> Option<Why> {
        if wish.key.is_empty() || wish.key.len() > KEY_BYTES_MAX {
            Some(Why::Invalid("a key has 1 to 1,024 bytes"))
        } else if wish.body.len() > self.body_bytes_max {
            Some(Why::Invalid("the body is too long"))
        } else if wish.service.len() > SERVICE_BYTES_MAX {
            Some(Why::Invalid("the name of a service has at most 64 bytes"))
        } else if self.leaving.load(Ordering::Acquire) || self.ending.is_cancelled() {
            Some(Why::Leaving)
        } else {
            None
        }
    }

    fn link(&self, to: Instance) -> Arc<PeerLink> {
        let made = || {
            Arc::new(PeerLink {
                link: Mutex::new(Link::new(to, CALLS_OF_PEER_MAX)),
                writers: Mutex::default(),
                running: Mutex::default(),
            })
        };
        Arc::clone(&self.links.entry(to).or_insert_with(made))
    }

    /// Queues an attempt, and sees to it that there is or will be a connection.
    fn enqueue(
        self: &Arc<Self>,
        to: Instance,
        outbound: Outbound,
    ) -> Result<(u64, oneshot::Receiver<Report>), NeverSent> {
        let (report, receiver) = oneshot::channel();
        let link = self.link(to);
        let (queued, connected) = {
            let mut held = link.lock();
            (held.enqueue(outbound, report).map_err(|(_, proof)| proof), held.is_connected())
        };
        let seq = queued?;
        link.wake();
        if !connected {
            self.connect(to);
        }
        Ok((seq, receiver))
    }

    fn connect(self: &Arc<Self>, to: Instance) {
        let view = self.view();
        let address = view.member(to.node).map(|member| (member.record.peer(), member.record.profile().calls));
        let Some((peer, calls)) = address else {
            return self.give_back(to, Unsent::Unreachable);
        };
        let target = Target::Peer(peer, calls);
        {
            // Held until it is noted who waits: the dial may end at any moment.
            let mut waiting = self.waiting.lock().expect("nothing panics while it holds the lock");
            let mut route = self.lock_peers().route(self.clock.now(), target);
            if self.link(to).lock().is_connected() {
                return;
            }
            if matches!(route, Route::Connected(_)) {
                // To another process of that node, which is dead or about to be forgotten.
                route = self.lock_peers().route_anew(self.clock.now(), target);
            }
            if route == Route::Dialling {
                let waiting = waiting.entry(peer).or_default();
                if !waiting.contains(&to) {
                    waiting.push(to);
                }
            } else {
                self.give_back(to, Unsent::Unreachable);
            }
        }
        self.settle();
    }

    fn give_back(&self, to: Instance, why: Unsent) {
        let back = self.link(to).lock().give_back(why);
        for (token, proof) in back {
            let _ = token.send(Report::Unsent(proof));
        }
    }

    /// Does what the connections want.
    fn settle(self: &Arc<Self>) {
        loop {
            let command = self.lock_peers().poll_command();
            let Some(command) = command else { break };
            match command {
                Command::Dial { dial, address, expect } => {
                    let calls = Arc::clone(self);
                    let task = self.tracker.spawn(async move { calls.dial(dial, address, expect).await });
                    self.dials
                        .lock()
                        .expect("nothing panics while it holds the lock")
                        .insert(dial, task.abort_handle());
                }
                Command::Abort { dial } => {
                    let task = self.dials.lock().expect("nothing panics while it holds the lock").remove(&dial);
                    if let Some(task) = task {
                        metrics::dial_failed(Class::Calls, "silent");
                        task.abort();
                    }
                }
                Command::Close { conn, why } => {
                    if let Some((_, (connection, _))) = self.conns.remove(&conn) {
                        connection.close(close_code(why), b"");
                    }
                }
            }
        }
        loop {
            let event = self.lock_peers().poll_event();
            let Some(event) = event else { break };
            if let PeersEvent::Failed { target: Target::Peer(peer, _), why } = event {
                tracing::debug!(address = %peer.address, why, "cannot connect for calls");
                let waiting = self.waiting.lock().expect("nothing panics while it holds the lock").remove(&peer);
                waiting.unwrap_or_default().into_iter().for_each(|to| self.give_back(to, Unsent::Unreachable));
            }
        }
        self.timers.notify_one();
    }

    fn hello(&self) -> Hello {
        let clock = self.clock.now().as_nanos();
        Hello { class: Class::Calls, peer: self.peer, life: self.me.life, fingerprint: self.fingerprint, clock }
    }

    async fn dial(self: Arc<Self>, dial: DialId, address: SocketAddr, expect: Option<NodeId>) {
        let result = self.port.dial(address, expect, self.hello()).await;
        let now = self.clock.now();
        self.dials.lock().expect("nothing panics while it holds the lock").remove(&dial);
        match result {
            Ok(established) => {
                let certified = super::tls::certified(&established.connection).ok_or(HelloRefusal::Identity);
                let judged =
                    certified.and_then(|node| self.lock_peers().judge(&established.hello, node, &self.fingerprint));
                match judged {
                    Ok(()) => {
                        self.adopt(established, |peers, id, hello| peers.handle_dialled(now, dial, id, hello));
                    }
                    Err(refusal) => {
                        metrics::dial_refused(Class::Calls, refusal);
                        self.lock_peers().handle_dial_failed(now, dial, refusal.to_string());
                    }
                }
            }
            Err(problem) => {
                metrics::dial_failed(Class::Calls, metrics::dial_reason(&problem));
                self.lock_peers().handle_dial_failed(now, dial, problem.explain());
            }
        }
        self.settle();
    }

    /// A connection stands: its link writes and reads on it.
    fn adopt(self: &Arc<Self>, established: Established, register: impl FnOnce(&mut Peers, ConnId, &Hello)) {
        let Established { id, connection, send, recv, hello, asked } = established;
        let instance = Instance { node: hello.peer.id, life: hello.life };
        let link = self.link(instance);
        self.conns.insert(id, (connection.clone(), instance));
        let work = Arc::new(Notify::new());
        link.writers.lock().expect("nothing panics while it holds the lock").push((id, Arc::clone(&work)));
        link.lock().connected(self.clock.now(), id, asked, hello.clock());
        let kept = {
            let mut peers = self.lock_peers();
            register(&mut peers, id, &hello);
            peers.connection(hello.peer)
        };
        link.lock().prefer(kept);
        link.wake();
        let others = self.waiting.lock().expect("nothing panics while it holds the lock").remove(&hello.peer);
        others.unwrap_or_default().into_iter().filter(|other| *other != instance).for_each(|other| {
            self.give_back(other, Unsent::Replaced);
        });
        let closing = CancellationToken::new();
        self.spawn(write(Arc::clone(self), Arc::clone(&link), (id, work), send, closing.clone()));
        let calls = Arc::clone(self);
        self.tracker.spawn(async move {
            tokio::select! {
                () = read(&calls, &link, instance, recv) => {}
                () = calls.ending.cancelled() => {}
            }
            connection.close(close_code(Goodbye::Gone), b"");
            closing.cancel();
            calls.on_closed(id, &link);
        });
    }

    fn on_closed(self: &Arc<Self>, conn: ConnId, link: &PeerLink) {
        self.conns.remove(&conn);
        link.writers.lock().expect("nothing panics while it holds the lock").retain(|(id, _)| *id != conn);
        let cut = link.lock().closed(conn, Unsent::Unreachable);
        link.wake();
        for token in cut.lost {
            let _ = token.send(Report::Lost);
        }
        for (token, proof) in cut.unsent {
            let _ = token.send(Report::Unsent(proof));
        }
        self.lock_peers().handle_closed(conn);
        self.settle();
    }

    /// A member is gone: so are its connections, and what waits for it.
    pub(crate) fn forget(self: &Arc<Self>, peer: Peer) {
        self.lock_peers().forget(peer, Goodbye::Gone);
        self.settle();
    }

    /// Another process wants something run.
    async fn on_incoming(self: Arc<Self>, from: Instance, link: Arc<PeerLink>, header: CallHeader, body: Bytes) {
        let seq = header.seq;
        let hash = self.hash(&header.key.0);
        if let Some(record) = &header.record
            && self.view().ownership(hash) != Ownership::Mine
        {
            self.merge(from.node, record).await;
        }
        let view = self.view();
        let incoming = Incoming { caller: from, header: &header, body_bytes: body.len() };
        let service = self.services.find(&header.service);
        let verdict =
            self.lock_admission().admit(self.clock.now(), incoming, view.is_confirmed(), || ownership(&view, hash));
        match (verdict, service) {
            (Verdict::Run(permit), Some(service)) => {
                let request = Request {
                    key: header.key.0.into(),
                    hash,
                    body,
                    caller: from,
                    deadline: Instant::from_nanos(header.deadline) + Duration::from_micros(u64::from(header.error_us)),
                    view: Arc::clone(&view),
                    fence: view.fence(),
                };
                self.run(permit, link, service, request).await;
            }
            (Verdict::Run(permit), None) => {
                self.lock_admission().complete(permit);
                refuse(&link, seq, Refusal::NoService, None);
            }
            (Verdict::Refuse(why, owner), _) => refuse(&link, seq, why, owner),
            (Verdict::Ignore, _) => {}
        }
    }

    async fn run(&self, permit: Permit, link: Arc<PeerLink>, service: service::BoxedService, request: Request) {
        let (seq, fence, deadline) = (permit.seq(), request.fence, request.deadline);
        let cancelled = CancellationToken::new();
        link.running.lock().expect("nothing panics while it holds the lock").insert(seq, cancelled.clone());
        let guard = Running { calls: self, link: &link, permit: Some(permit) };
        if sabotage::calls_run_twice() {
            let _ = service::run(service.clone(), request.clone()).await;
        }
        // A handler that panics has run, and failed.
        let handler = tokio::spawn(service::run(service, request));
        let abort = handler.abort_handle();
        let result = tokio::select! {
            result = handler => Some(result.unwrap_or_else(|_| Err(Bytes::from_static(b"the handler panicked")))),
            () = cancelled.cancelled() => None,
            // Nobody waits any more.
            () = self.clock.wait_until(deadline) => None,
        };
        match result {
            Some(Ok(body) | Err(body)) if body.len() > self.body_bytes_max => {
                reply(&link, &Frame::Executed { seq, fence }, b"the answer is too long");
            }
            Some(Ok(body)) => reply(&link, &Frame::Ok { seq, fence }, &body),
            Some(Err(error)) => reply(&link, &Frame::Executed { seq, fence }, &error),
            None => abort.abort(),
        }
        drop(guard);
    }

    /// Has the control plane take in a record that decided something elsewhere.
    async fn merge(&self, from: NodeId, record: &Blob) {
        let (done, merged) = oneshot::channel();
        let ask = Input::Ask(Ask::Merge(from, record.0.clone(), done));
        let merging = async {
            if self.control.send(ask).await.is_ok() {
                let _ = merged.await;
            }
        };
        let _ = tokio::time::timeout(MERGE_TIMEOUT, merging).await;
    }

    /// From now on nothing of others begins here.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
        self.lock_admission().leave();
    }

    /// Whether nothing new begins here.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// Ends everything.
    pub(crate) async fn close(&self) {
        self.ending.cancel();
        self.lock_peers().close();
        self.tracker.close();
        let _ = tokio::time::timeout(super::system::CLOSE_GRACE, self.tracker.wait()).await;
        self.port.close().await;
    }
}

fn ownership(view: &View, hash: KeyHash) -> Ownership {
    if sabotage::calls_are_misrouted() { Ownership::Mine } else { view.ownership(hash) }
}

/// Gives a call's place back, even when its task is dropped.
struct Running<'a> {
    calls: &'a Calls,
    link: &'a PeerLink,
    permit: Option<Permit>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            self.link.running.lock().expect("nothing panics while it holds the lock").remove(&permit.seq());
            self.calls.lock_admission().complete(permit);
        }
    }
}
