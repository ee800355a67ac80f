//! Keyed calls in the world: the data plane of every host, driven through the shipping values.
//!
//! What the runtime does with tasks and streams is done here with happenings. The handler waits, and answers
//! with what it was asked, so that a mixed-up answer is seen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use swimring::core::breaker::ASKED_AFTER;
use swimring::core::hello::{Class, Hello};
use swimring::core::link::{Arrival, Link, Outbound, Payload};
use swimring::core::peers::{Command, ConnId, DialId, Goodbye, Peers, PeersEvent, Route, Target};
use swimring::core::publishing::Publishing;
use swimring::core::view::View;
use swimring::forwarder::wire::{CallHeader, Frame, LANE_BODY_BYTES_MAX, Refusal, Scope};
use swimring::forwarder::{
    Admission, Budget, Call, CallConfig, CallSpec, Incoming, Limits, NeverSent, Outcome, Ownership, Permit, Resolution,
    Step, Unsent, Verdict,
};
use swimring::ring::{Hashing, KeyHash, KeyHasher};
use swimring_membership::codec::Blob;
use swimring_membership::{Instance, Instant, NodeId, Peer, Rng};

use crate::conns::Process;
use crate::flow::LANES;
use crate::host::{Home, peers_config};
use crate::network::draw;
use crate::oracles::Property;
use crate::plan;
use crate::world::{Happening, World};

use self::ledger::Entry;
pub(crate) use self::ledger::Ledger;
use self::links::Links;

mod connections;
mod driving;
mod isolation;
mod ledger;
mod links;
mod load;
mod serving;
mod zipf;

/// How much later than its deadline a call's end may be noticed.
const LATE: Duration = Duration::from_millis(20);
/// Share of the calls for which more of the body waits until they have begun, in millionths.
const DUPLEX: u32 = 100_000;
/// Most bytes written at once.
const BATCH: usize = 64 * 1_024;

/// An attempt of a call of this host.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Token {
    call: u64,
    attempt: u32,
}

/// A call of this host that has no outcome yet.
#[derive(Debug)]
struct Active {
    call: Call<Vec<u8>>,
    payload: Arc<Payload<Arc<[u8]>>>,
    /// The node that it is for, if it is not for the owner.
    at: Option<NodeId>,
    record: Option<Blob>,
    sent: Option<(Instance, u64)>,
    started: bool,
    /// Which hop its attempt is, and how often it looked for a node that was named to it.
    hop: u8,
    finds: u32,
}

/// A handler that runs.
#[derive(Debug)]
enum Running {
    /// For a call of this host.
    Here { call: u64, body: Vec<u8> },
    /// For a call of another, which came on this connection.
    There { permit: Permit, on: ConnId, body: Vec<u8> },
}

impl Running {
    /// The other node that wants it, by whichever process.
    fn peer(&self) -> Option<NodeId> {
        match self {
            Self::Here { .. } => None,
            Self::There { permit, .. } => Some(permit.caller().node),
        }
    }
}

/// Few enough to be reached by what a plan asks of a host.
const TIGHT: Limits = Limits {
    calls_of_peer_max: 8,
    calls_max: 24,
    callers_max: 128,
    body_bytes_max: 80_000,
    bytes_of_peer_max: 8 << 20,
    bytes_max: 24 << 20,
};

/// What a process takes of others.
fn limits(limits: plan::Limits) -> Limits {
    match limits {
        plan::Limits::Tight => TIGHT,
        // A body that is too large is drawn, and has to be carried.
        plan::Limits::Shipped => Limits { body_bytes_max: TIGHT.body_bytes_max, ..Limits::default() },
    }
}

/// The data plane of one process.
#[derive(Debug)]
pub(crate) struct App {
    me: Instance,
    peer: Peer,
    home: Home,
    pub(crate) publishing: Publishing,
    /// The highest fence under which each key ran here.
    held: BTreeMap<KeyHash, u64>,
    pub(crate) peers: Peers,
    pub(crate) links: Links,
    conns: BTreeMap<ConnId, Instance>,
    waiting: BTreeMap<Peer, BTreeSet<Instance>>,
    admission: Admission,
    pub(crate) leaving: bool,
    /// Calls of this process, those that are over, and how often they were tried again.
    fresh: u32,
    over: u32,
    repeats: u32,
    moves: u32,
    view: Option<Arc<View>>,
    budget: Budget,
    active: BTreeMap<u64, Active>,
    running: BTreeMap<u64, Running>,
    armed: Option<Instant>,
    /// When something was first, and last, handed to a connection since the transport heard of its other end.
    unheard: BTreeMap<ConnId, (Instant, Instant)>,
    /// When each process was heard last.
    heard: BTreeMap<Instance, Instant>,
    /// When links are looked at.
    watched: BTreeMap<Instance, Instant>,
    /// What others have sent, and what they have cancelled.
    seen: BTreeSet<(Instance, u64)>,
    cancelled: BTreeSet<(Instance, u64)>,
    rng: Rng,
}

impl App {
    pub(crate) fn new(
        me: Instance,
        peer: Peer,
        home: Home,
        publishing: Publishing,
        limits: plan::Limits,
        rng: Rng,
    ) -> Self {
        Self {
            me,
            peer,
            home,
            publishing,
            held: BTreeMap::new(),
            peers: Peers::new(Class::Calls, peer, me.life, peers_config(Class::Calls, limits), rng.fork(1)),
            links: Links::default(),
            conns: BTreeMap::new(),
            waiting: BTreeMap::new(),
            admission: Admission::new(me, self::limits(limits)),
            leaving: false,
            fresh: 0,
            over: 0,
            repeats: 0,
            moves: 0,
            view: None,
            budget: Budget::default(),
            active: BTreeMap::new(),
            running: BTreeMap::new(),
            armed: None,
            unheard: BTreeMap::new(),
            heard: BTreeMap::new(),
            watched: BTreeMap::new(),
            seen: BTreeSet::new(),
            cancelled: BTreeSet::new(),
            rng: rng.fork(2),
        }
    }

    pub(crate) fn hello(&self, clock: Instant) -> Hello {
        Hello {
            class: Class::Calls,
            peer: self.peer,
            life: self.me.life,
            fingerprint: self.home.fingerprint(),
            clock: clock.as_nanos(),
            anew: false,
        }
    }

    /// From now on nothing of others begins here.
    pub(crate) fn leave(&mut self) {
        self.leaving = true;
        self.admission.leave();
    }

    /// The processes of a peer to which a connection stands.
    fn connected_to(&self, peer: Peer) -> BTreeSet<u64> {
        self.peers.connections().filter(|(_, other, _)| *other == peer).map(|(_, _, life)| life).collect()
    }

    /// Processes that are waited for.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.values().map(BTreeSet::len).sum()
    }

    /// A process for which calls wait that no connection, and no dial, will end; of those whose links have changed.
    pub(crate) fn stuck(&mut self) -> Option<Instance> {
        let dialled = |to: &Instance| self.waiting.values().any(|waiting| waiting.contains(to));
        // The connection that the link prefers, nearly always: there may be hundreds of others.
        let connected = |to: &Instance, link: &Link<Token, Arc<[u8]>>| {
            let preferred = link.preferred().and_then(|conn| self.conns.get(&conn));
            preferred == Some(to) || self.conns.values().any(|other| other == to)
        };
        self.links.find_changed(|links, to| {
            let Some(link) = links.get(to) else { return false };
            let queued = link.queued_count();
            (queued > 0 && !link.is_connected() && !dialled(to)) || (link.open_count() > queued && !connected(to, link))
        })
    }

    pub(crate) fn remembered(&self) -> swimring::forwarder::Remembered {
        self.admission.remembered()
    }

    /// Something comes on a connection that the transport takes for nothing new.
    pub(crate) fn hears(&mut self, conn: ConnId) {
        self.unheard.remove(&conn);
    }

    /// Whether anything is under way.
    pub(crate) fn is_busy(&self) -> bool {
        !self.active.is_empty() || !self.running.is_empty()
    }

    /// Tells everybody that this process goes.
    pub(crate) fn say_goodbye(&mut self) {
        for to in self.links.ends().collect::<Vec<_>>() {
            self.links.get_mut(&to).into_iter().for_each(|link| link.send(&Frame::Goodbye));
        }
    }

    /// The view that is in use.
    pub(crate) fn view(&self) -> Option<&View> {
        self.view.as_deref()
    }

    /// Calls without an outcome.
    pub(crate) fn open_calls(&self) -> impl Iterator<Item = u64> {
        self.active.keys().copied()
    }
}

/// Something of a data plane that happens at a moment.
#[derive(Clone, Debug)]
pub(crate) enum CallHappening {
    /// Somebody calls.
    Arrive,
    /// A call's wait is over.
    Timer(Process, u64),
    /// Nobody waits for a call any more.
    Drop(Process, u64),
    /// A process is gone from this one's view: so are its connections.
    Forget(Process, Peer, u64),
    /// A handler ends.
    Done(Process, u64),
    /// The connections have something due.
    Peers(Process, Instant),
    /// A link has something due.
    Watch(Process, Instance, Instant),
    /// The load is what it was.
    Relax(u32),
    /// A process compares clocks, and forgets who is gone for good.
    KeepHouse(Process),
}

/// An input of a data plane.
#[derive(Clone, Debug)]
pub(crate) enum CallInput {
    Frame(ConnId, Arc<[u8]>),
    Dialled(DialId, ConnId, Hello, Instant),
    DialFailed(DialId, String),
    Accepted(ConnId, Hello),
    Closed(ConnId),
    Timer(u64),
    Drop(u64),
    Done(u64),
    Peers,
    Watch(Instance),
    Call(u64, Vec<u8>, CallSpec),
}

impl CallInput {
    pub(crate) fn is_of_time(&self) -> bool {
        matches!(self, Self::Timer(_) | Self::Drop(_) | Self::Done(_) | Self::Peers | Self::Watch(_))
    }
}

impl World {
    pub(crate) fn happen_call(&mut self, happening: CallHappening) {
        match happening {
            CallHappening::Arrive => self.on_call_arrives(),
            CallHappening::Timer(process, call) => self.give_call(process, CallInput::Timer(call)),
            CallHappening::Forget(process, peer, life) => {
                if self.hosts[process.host].process() == process {
                    self.forget_calls_to(process.host, peer, life);
                }
            }
            CallHappening::Drop(process, call) => self.give_call(process, CallInput::Drop(call)),
            CallHappening::Done(process, run) => self.give_call(process, CallInput::Done(run)),
            CallHappening::Peers(process, at) => {
                let host = &mut self.hosts[process.host];
                if let Some(app) = host.app.as_mut().filter(|app| app.armed == Some(at)) {
                    app.armed = None;
                    self.give_call(process, CallInput::Peers);
                }
            }
            CallHappening::Watch(process, to, at) => {
                let host = &mut self.hosts[process.host];
                let ours = host.process() == process;
                if let Some(app) = host.app.as_mut().filter(|app| ours && app.watched.get(&to) == Some(&at)) {
                    app.watched.remove(&to);
                    self.give_call(process, CallInput::Watch(to));
                }
            }
            CallHappening::Relax(factor) => self.overload /= factor,
            CallHappening::KeepHouse(process) => self.keep_house(process),
        }
    }

    fn give_call(&mut self, process: Process, input: CallInput) {
        self.give(process, crate::host::Input::Call(Box::new(input)));
    }

    /// The caller does not wait any more: what was not handed over is taken back, and the rest is cancelled.
    fn on_dropped(&mut self, index: usize, id: u64) {
        let Some(app) = &mut self.hosts[index].app else {
            return;
        };
        let Some(active) = app.active.remove(&id) else { return };
        app.over += 1;
        let Some((to, seq)) = active.sent else { return };
        if let Some(link) = app.links.get_mut(&to) {
            link.abandon(seq);
            self.close_what_is_over(index, to);
        }
    }

    /// Whatever happens to a data plane.
    pub(crate) fn handle_call(&mut self, index: usize, input: CallInput) {
        let now = self.hosts[index].local(self.now);
        let Some(app) = &mut self.hosts[index].app else {
            return;
        };
        match input {
            CallInput::Call(id, key, spec) => {
                let load = self.plan.load.as_ref().map_or(0, |load| load.body);
                // Among large bodies are small ones, which pass them by, and some that are too large.
                let load = match id % 16 {
                    _ if load <= LANE_BODY_BYTES_MAX => load,
                    0..4 => load,
                    4 => app.admission.limits().body_bytes_max + 1,
                    _ => 100,
                };
                let mut body = id.to_le_bytes().to_vec();
                body.resize(body.len() + load, 0);
                app.fresh += 1;
                app.budget.count(app.fresh.into());
                let call = Call::new(spec, CallConfig::default(), app.rng.fork(id));
                let draw = app.rng.fork(id).fork(1);
                let (at, scope) = self.draw_scope(index, draw, &key);
                let Some(app) = &mut self.hosts[index].app else { return };
                let duplex = body.len() <= LANE_BODY_BYTES_MAX && app.rng.fork(id).fork(2).chance(DUPLEX);
                if let Some(entry) = self.ledger.get_mut(id) {
                    entry.duplex = duplex;
                    // What is for a certain node fails if that one goes.
                    entry.orderly &= scope == Scope::Owner;
                }
                let active = Active {
                    call,
                    payload: Arc::new(Payload {
                        service: "sim".into(),
                        key: key.into(),
                        body: body.into(),
                        scope,
                        context: Arc::default(),
                        duplex,
                    }),
                    at,
                    record: None,
                    sent: None,
                    started: false,
                    hop: 0,
                    finds: 0,
                };
                app.active.insert(id, active);
                self.drive(index, id);
            }
            CallInput::Timer(id) => self.on_call_timer(index, id),
            CallInput::Drop(id) => self.on_dropped(index, id),
            CallInput::Done(run) => self.on_handler_done(index, run),
            CallInput::Frame(conn, bytes) => self.on_call_frame(index, conn, &bytes),
            CallInput::Dialled(dial, conn, hello, asked) => {
                app.peers.handle_dialled(now, dial, conn, &hello);
                self.on_call_conn(index, conn, &hello, Some(asked));
            }
            CallInput::Accepted(conn, hello) => {
                app.peers.handle_accepted(now, conn, &hello);
                self.on_call_conn(index, conn, &hello, None);
            }
            CallInput::DialFailed(dial, why) => app.peers.handle_dial_failed(now, dial, why),
            CallInput::Closed(conn) => {
                app.peers.handle_closed(conn);
                self.on_call_conn_closed(index, conn);
            }
            CallInput::Peers => app.peers.handle_timeout(now),
            CallInput::Watch(to) => self.expire(index, to),
        }
        self.pump_calls(index);
    }

    /// The view of a host's process, as it is now: published, if it is new.
    pub(crate) fn view(&mut self, index: usize) -> Arc<View> {
        let host = &mut self.hosts[index];
        let now = host.local(self.now);
        let (Some(control), Some(app)) = (&mut host.control, &mut host.app) else {
            unreachable!("only running processes look at their views")
        };
        let Some(edition) = app.publishing.next(now, control) else {
            return Arc::clone(app.view.as_ref().expect("the first view is published when it is first looked at"));
        };
        host.disk.fence = host.disk.fence.max(edition.view.fence());
        let view = Arc::new(edition.view);
        app.view = Some(Arc::clone(&view));
        self.check_owners(index, &view);
        view
    }

    /// Hands a batch of frames to the connection, one by one, in order: on the lane whose writer came first.
    fn write(&mut self, process: Process, conn: ConnId, bytes: &[u8]) {
        let lane = self.load_rng.index(LANES);
        let mut rest = bytes;
        while let Ok(Some(length)) = Frame::length(rest, bytes.len()) {
            let (frame, tail) = rest.split_at(length);
            self.send_call_frame(process, conn.0, Some(lane), frame);
            rest = tail;
        }
    }

    /// The hasher of every world.
    pub(crate) fn sim_hasher() -> KeyHasher {
        KeyHasher::new(Hashing::Keyed, &[7; 32])
    }
}
