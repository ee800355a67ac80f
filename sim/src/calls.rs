//! Keyed calls in the world: the data plane of every host, driven through the shipping values.
//!
//! What the runtime does with tasks and streams is done here with happenings. The handler waits, and answers
//! with what it was asked, so that a mixed-up answer is seen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use swimring::core::hello::{Class, Hello};
use swimring::core::link::{Arrival, Link, Outbound};
use swimring::core::peers::{
    Command, ConnId, DialId, Goodbye, Peers, PeersConfig, PeersEvent, Route, Target,
};
use swimring::core::view::View;
use swimring::forwarder::wire::{CallHeader, Frame, Refusal};
use swimring::forwarder::{
    Admission, Budget, Call, CallConfig, CallSpec, Incoming, Limits, NeverSent, Outcome, Ownership,
    Permit, Resolution, Step, Unsent, Verdict,
};
use swimring::ring::{KeyHasher, Placement};
use swimring_membership::codec::Blob;
use swimring_membership::{Instance, Instant, Peer, Rng};

use crate::network::{Process, draw};
use crate::plan::{Keys, Load};
use crate::world::{Happening, World};

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
    key: Arc<[u8]>,
    body: Arc<[u8]>,
    record: Option<Blob>,
    sent: Option<(Instance, u64)>,
    started: bool,
}

/// A handler that runs.
#[derive(Debug)]
enum Running {
    /// For a call of this host.
    Here { call: u64, body: Vec<u8> },
    /// For a call of another.
    There { permit: Permit, body: Vec<u8> },
}

/// The data plane of one process.
#[derive(Debug)]
pub(crate) struct App {
    me: Instance,
    peer: Peer,
    pub(crate) peers: Peers,
    pub(crate) links: BTreeMap<Instance, Link<Token>>,
    conns: BTreeMap<ConnId, Instance>,
    waiting: BTreeMap<Peer, BTreeSet<Instance>>,
    admission: Admission,
    view: Option<Arc<View>>,
    budget: Budget,
    active: BTreeMap<u64, Active>,
    running: BTreeMap<u64, Running>,
    armed: Option<Instant>,
    rng: Rng,
}

impl App {
    pub(crate) fn new(me: Instance, peer: Peer, rng: Rng) -> Self {
        Self {
            me,
            peer,
            peers: Peers::new(
                Class::Calls,
                peer,
                me.life,
                PeersConfig::default(),
                rng.fork(1),
            ),
            links: BTreeMap::new(),
            conns: BTreeMap::new(),
            waiting: BTreeMap::new(),
            admission: Admission::new(me, Limits::default()),
            view: None,
            budget: Budget::default(),
            active: BTreeMap::new(),
            running: BTreeMap::new(),
            armed: None,
            rng: rng.fork(2),
        }
    }

    pub(crate) fn hello(&self, clock: Instant) -> Hello {
        Hello {
            class: Class::Calls,
            peer: self.peer,
            life: self.me.life,
            fingerprint: [7; 16],
            clock: clock.as_nanos(),
        }
    }

    /// Calls without an outcome.
    pub(crate) fn open_calls(&self) -> impl Iterator<Item = u64> {
        self.active.keys().copied()
    }
}

/// What the world knows of every call.
#[derive(Debug)]
struct Entry {
    deadline: Instant,
    idempotent: bool,
    executed: u32,
    outcome: Option<&'static str>,
}

/// Every call ever made: who made it, how often it ran, and what its caller was told.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: BTreeMap<u64, Entry>,
    next: u64,
    /// Calls made.
    pub calls: u64,
    /// Calls by outcome.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Most hops of any call.
    pub hops_max: u8,
}

/// Something of a data plane that happens at a moment.
#[derive(Clone, Debug)]
pub(crate) enum CallHappening {
    /// Somebody calls.
    Arrive,
    /// A call's wait is over.
    Timer(Process, u64),
    /// A handler ends.
    Done(Process, u64),
    /// The connections have something due.
    Peers(Process, Instant),
    /// The load is what it was.
    Relax(u32),
}

/// An input of a data plane.
#[derive(Clone, Debug)]
pub(crate) enum CallInput {
    Frame(ConnId, Vec<u8>),
    Dialled(DialId, ConnId, Hello, Instant),
    DialFailed(DialId, String),
    Accepted(ConnId, Hello),
    Closed(ConnId),
    Timer(u64),
    Done(u64),
    Peers,
    Call(u64, Vec<u8>, CallSpec),
}

impl World {
    /// Schedules the first call, if the plan has a load.
    pub(crate) fn start_load(&mut self) {
        if self.plan.load.is_some() {
            self.schedule(
                Instant::ORIGIN + Duration::from_secs(5),
                Happening::Call(CallHappening::Arrive),
            );
        }
    }

    pub(crate) fn happen_call(&mut self, happening: CallHappening) {
        match happening {
            CallHappening::Arrive => self.on_call_arrives(),
            CallHappening::Timer(process, call) => self.give_call(process, CallInput::Timer(call)),
            CallHappening::Done(process, run) => self.give_call(process, CallInput::Done(run)),
            CallHappening::Peers(process, at) => {
                let host = &mut self.hosts[process.host];
                if let Some(app) = host.app.as_mut().filter(|app| app.armed == Some(at)) {
                    app.armed = None;
                    self.give_call(process, CallInput::Peers);
                }
            }
            CallHappening::Relax(factor) => self.overload /= factor,
        }
    }

    fn give_call(&mut self, process: Process, input: CallInput) {
        self.give(process, crate::host::Input::Call(Box::new(input)));
    }

    /// A call of a random process, and the moment of the next one.
    fn on_call_arrives(&mut self) {
        let Some(load) = self.plan.load.clone() else {
            return;
        };
        let rate = load.rate * self.overload;
        let gap = draw(
            &mut self.load_rng,
            crate::plan::Latency::Exp(Duration::from_secs(1) / rate),
        );
        self.schedule(
            self.now + gap.max(Duration::from_micros(1)),
            Happening::Call(CallHappening::Arrive),
        );
        let pick = self.load_rng.index(self.hosts.len());
        let (key, idempotent) = (
            draw_key(&mut self.load_rng, load.keys),
            self.load_rng.chance(load.idempotent),
        );
        let host = &self.hosts[pick];
        if !host.is_up() || host.paused || host.app.is_none() {
            return;
        }
        let process = host.process();
        self.ledger.next += 1;
        let call = self.ledger.next;
        let entry = Entry {
            deadline: self.now + load.deadline,
            idempotent,
            executed: 0,
            outcome: None,
        };
        self.ledger.entries.insert(call, entry);
        self.ledger.calls += 1;
        let spec = CallSpec {
            deadline: host.local(self.now + load.deadline),
            idempotent,
        };
        self.give_call(process, CallInput::Call(call, key, spec));
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
                let mut body = id.to_le_bytes().to_vec();
                body.resize(body.len() + load, 0);
                app.budget.earn();
                let call = Call::new(spec, CallConfig::default(), app.rng.fork(id));
                let active = Active {
                    call,
                    key: key.into(),
                    body: body.into(),
                    record: None,
                    sent: None,
                    started: false,
                };
                app.active.insert(id, active);
                self.drive(index, id);
            }
            CallInput::Timer(id) => {
                if let Some(active) = app.active.get_mut(&id) {
                    active.call.timeout(now);
                    self.drive(index, id);
                }
            }
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
        }
        self.pump_calls(index);
    }

    fn on_call_conn(&mut self, index: usize, conn: ConnId, hello: &Hello, asked: Option<Instant>) {
        let now = self.hosts[index].local(self.now);
        let Some(app) = &mut self.hosts[index].app else {
            return;
        };
        let instance = Instance {
            node: hello.peer.id,
            life: hello.life,
        };
        app.conns.insert(conn, instance);
        let link = app
            .links
            .entry(instance)
            .or_insert_with(|| Link::new(instance, 4_096));
        link.connected(now, conn, asked, hello.clock());
        // Whoever waits for another process of this node waits in vain.
        let others = app.waiting.remove(&hello.peer).unwrap_or_default();
        let mut back: Vec<(Token, NeverSent)> = Vec::new();
        for other in others.into_iter().filter(|other| *other != instance) {
            back.extend(
                app.links
                    .get_mut(&other)
                    .map(|link| link.give_back(Unsent::Replaced))
                    .unwrap_or_default(),
            );
        }
        back.into_iter()
            .for_each(|(token, proof)| self.on_unsent(index, token, proof));
    }

    fn on_call_conn_closed(&mut self, index: usize, conn: ConnId) {
        let Some(app) = &mut self.hosts[index].app else {
            return;
        };
        let Some(instance) = app.conns.remove(&conn) else {
            return;
        };
        let Some(link) = app.links.get_mut(&instance) else {
            return;
        };
        let cut = link.closed(conn, Unsent::Unreachable);
        for (token, proof) in cut.unsent {
            self.on_unsent(index, token, proof);
        }
        for token in cut.lost {
            self.report(index, token, |call, now, budget| {
                call.lost(now, token.attempt, budget)
            });
        }
    }

    fn on_unsent(&mut self, index: usize, token: Token, proof: NeverSent) {
        self.report(index, token, |call, now, budget| {
            call.unsent(now, token.attempt, proof, budget)
        });
    }

    /// Tells a call something, and does what it wants next.
    fn report(
        &mut self,
        index: usize,
        token: Token,
        tell: impl FnOnce(&mut Call<Vec<u8>>, Instant, &mut Budget),
    ) {
        let now = self.hosts[index].local(self.now);
        let Some(app) = &mut self.hosts[index].app else {
            return;
        };
        if let Some(active) = app.active.get_mut(&token.call) {
            tell(&mut active.call, now, &mut app.budget);
            self.drive(index, token.call);
        }
    }

    /// Does what a call wants, until it waits or ends.
    fn drive(&mut self, index: usize, id: u64) {
        loop {
            let now = self.hosts[index].local(self.now);
            let view = self.view(index);
            let host = &mut self.hosts[index];
            let Some(app) = &mut host.app else { return };
            let Some(active) = app.active.get_mut(&id) else {
                return;
            };
            let step = match active.call.step() {
                Step::Resolve => active
                    .call
                    .resolved(view.resolve(self.hasher.hash(&active.key))),
                Step::Find(node) => active.call.named(now, view.instance(node), &mut app.budget),
                step => Some(step),
            };
            match step {
                None | Some(Step::Resolve | Step::Find(_)) => {}
                Some(Step::Run) => self.run_here(index, id, &view),
                Some(Step::Send { attempt, to, hop }) => {
                    self.send_attempt(index, Token { call: id, attempt }, to, hop, &view)
                }
                Some(Step::Withdraw { attempt }) => {
                    let (to, seq) = active.sent.expect("an attempt under way has its number");
                    match app.links.get_mut(&to).and_then(|link| link.withdraw(seq)) {
                        Some(proof) => active.call.unsent(now, attempt, proof, &mut app.budget),
                        None => active.call.not_withdrawn(attempt),
                    }
                }
                Some(Step::Wait(until)) => {
                    let at = host.world(until).max(self.now);
                    let process = host.process();
                    return self.schedule(at, Happening::Call(CallHappening::Timer(process, id)));
                }
                Some(Step::Done(outcome)) => return self.on_outcome(index, id, &outcome),
            }
        }
    }

    /// The caller's own node owns the key: the handler runs in place, unless this process may be a ghost.
    fn run_here(&mut self, index: usize, id: u64, view: &View) {
        let now = self.hosts[index].local(self.now);
        let Some(app) = &mut self.hosts[index].app else {
            return;
        };
        let Some(active) = app.active.get_mut(&id) else {
            return;
        };
        if !view.is_confirmed() {
            return active
                .call
                .not_run(now, Refusal::Unconfirmed, &mut app.budget);
        }
        if active.started {
            return;
        }
        active.started = true;
        let (body, key) = (active.body.to_vec(), Arc::clone(&active.key));
        self.execute(index, id, &key, Running::Here { call: id, body });
    }

    fn send_attempt(&mut self, index: usize, token: Token, to: Instance, hop: u8, view: &View) {
        let now = self.hosts[index].local(self.now);
        let Some(app) = &mut self.hosts[index].app else {
            return;
        };
        let Some(active) = app.active.get_mut(&token.call) else {
            return;
        };
        let outbound = Outbound {
            service: "sim".into(),
            key: Arc::clone(&active.key),
            body: Arc::clone(&active.body),
            deadline: active.call.deadline(),
            hop,
            record: active.record.clone().filter(|_| hop > 1),
        };
        let link = app.links.entry(to).or_insert_with(|| Link::new(to, 4_096));
        match link.enqueue(outbound, token) {
            Ok(seq) => active.sent = Some((to, seq)),
            Err((_, proof)) => {
                return active
                    .call
                    .unsent(now, token.attempt, proof, &mut app.budget);
            }
        }
        if link.is_connected() {
            return;
        }
        let address = view
            .member(to.node)
            .map(|member| (member.record.peer(), member.record.profile().calls));
        let route =
            address.map(|(peer, calls)| (peer, app.peers.route(now, Target::Peer(peer, calls))));
        match route {
            Some((peer, Route::Dialling)) => {
                app.waiting.entry(peer).or_default().insert(to);
            }
            // A connection, but to another process of that node.
            Some((_, Route::Connected(_))) => self.give_back(index, to, Unsent::Replaced),
            _ => self.give_back(index, to, Unsent::Unreachable),
        }
    }

    fn give_back(&mut self, index: usize, to: Instance, why: Unsent) {
        let now = self.hosts[index].local(self.now);
        let Some(app) = &mut self.hosts[index].app else {
            return;
        };
        let back = app
            .links
            .get_mut(&to)
            .map(|link| link.give_back(why))
            .unwrap_or_default();
        let mut calls = Vec::new();
        for (token, proof) in back {
            if let Some(active) = app.active.get_mut(&token.call) {
                active
                    .call
                    .unsent(now, token.attempt, proof, &mut app.budget);
                calls.push(token.call);
            }
        }
        for call in calls {
            self.schedule(
                self.now,
                Happening::Call(CallHappening::Timer(self.hosts[index].process(), call)),
            );
        }
    }

    /// A frame of another process.
    fn on_call_frame(&mut self, index: usize, conn: ConnId, bytes: &[u8]) {
        self.trace.note(self.now, index, 3, bytes);
        let now = self.hosts[index].local(self.now);
        let Some(app) = &mut self.hosts[index].app else {
            return;
        };
        let Some(from) = app.conns.get(&conn).copied() else {
            return;
        };
        let Some(link) = app.links.get_mut(&from) else {
            return;
        };
        match link.handle_frame(now, bytes) {
            Ok(Arrival::Call(header, body)) => self.on_incoming(index, from, header, body.to_vec()),
            Ok(Arrival::Ran(token, result, _)) => {
                let result = result.map(<[u8]>::to_vec).map_err(<[u8]>::to_vec);
                self.report(index, token, |call, _, _| {
                    call.answered(token.attempt, result)
                });
            }
            Ok(Arrival::Refused(token, why, owner, record)) => {
                if let Some(record) = &record {
                    self.merge(index, from, record);
                }
                if let Some(active) = self.hosts[index]
                    .app
                    .as_mut()
                    .and_then(|app| app.active.get_mut(&token.call))
                {
                    active.record = record;
                }
                self.report(index, token, |call, now, budget| {
                    call.refused(now, token.attempt, from, why, owner, budget)
                });
            }
            Ok(Arrival::Cancel(_) | Arrival::Nothing) => {}
            Err(problem) => self.check(index, "W2", false, || {
                format!("refused a frame of another node: {problem}")
            }),
        }
    }

    fn merge(&mut self, index: usize, from: Instance, record: &Blob) {
        let host = &mut self.hosts[index];
        let now = host.local(self.now);
        if let Some(control) = &mut host.control {
            let merged = control
                .membership_mut()
                .merge_record(now, from.node, &record.0);
            self.check(index, "W2", merged.is_ok(), || {
                "refused a record of another node".into()
            });
        }
        self.pump(index);
    }

    /// Another process wants something run.
    fn on_incoming(&mut self, index: usize, from: Instance, header: CallHeader, body: Vec<u8>) {
        let hash = self.hasher.hash(&header.key.0);
        if let Some(record) = &header.record
            && self.view(index).ownership(hash) != Ownership::Mine
        {
            self.merge(index, from, record);
        }
        let view = self.view(index);
        let now = self.hosts[index].local(self.now);
        let Some(app) = &mut self.hosts[index].app else {
            return;
        };
        let incoming = Incoming {
            caller: from,
            header: &header,
            body_bytes: body.len(),
        };
        match app
            .admission
            .admit(now, incoming, view.is_confirmed(), || view.ownership(hash))
        {
            Verdict::Run(permit) => {
                let call = u64::from_le_bytes(
                    *body
                        .first_chunk()
                        .expect("bodies of the load begin with a number"),
                );
                self.execute(index, call, &header.key.0, Running::There { permit, body });
            }
            Verdict::Refuse(why, owner) => {
                let (owner, record) =
                    owner.map_or((None, None), |(owner, record)| (Some(owner), Some(record)));
                if let Some(link) = app.links.get_mut(&from) {
                    link.send(
                        &Frame::Refused {
                            seq: header.seq,
                            why,
                            owner,
                            record,
                        },
                        &[],
                    );
                }
            }
            Verdict::Ignore => {}
        }
    }

    /// A handler begins: counted before anything else can happen.
    fn execute(&mut self, index: usize, call: u64, key: &[u8], running: Running) {
        self.trace.note(self.now, index, 4, &call.to_le_bytes());
        let view = self.view(index);
        let owner = view.resolve(self.hasher.hash(key));
        self.check(index, "F6", owner == Resolution::Here, || {
            format!("ran call {call}, which {owner:?} owns")
        });
        if let Some(entry) = self.ledger.entries.get_mut(&call) {
            entry.executed += 1;
            let (executed, idempotent, outcome) = (entry.executed, entry.idempotent, entry.outcome);
            self.check(index, "F2", idempotent || executed == 1, || {
                format!("call {call} ran {executed} times")
            });
            let told = outcome == Some("not_executed");
            self.check(index, "F3", !told, || {
                format!("call {call} runs, after its caller was told that it would not")
            });
        }
        let handler = self
            .plan
            .load
            .as_ref()
            .map_or(crate::plan::Latency::Const(Duration::ZERO), |load| {
                load.handler
            });
        let host = &mut self.hosts[index];
        let slow = host.slow;
        let process = host.process();
        let Some(app) = &mut host.app else { return };
        let span = draw(&mut app.rng, handler) * slow;
        self.runs += 1;
        app.running.insert(self.runs, running);
        self.schedule(
            self.now + span,
            Happening::Call(CallHappening::Done(process, self.runs)),
        );
    }

    fn on_handler_done(&mut self, index: usize, run: u64) {
        let Some(app) = &mut self.hosts[index].app else {
            return;
        };
        match app.running.remove(&run) {
            Some(Running::Here { call, body }) => {
                if let Some(active) = app.active.get_mut(&call) {
                    active.call.ran(Ok(body));
                    self.drive(index, call);
                }
            }
            Some(Running::There { permit, body }) => {
                if let Some(link) = app.links.get_mut(&permit.caller()) {
                    link.send(
                        &Frame::Ok {
                            seq: permit.seq(),
                            fence: 0,
                        },
                        &body,
                    );
                }
                app.admission.complete(permit);
            }
            None => {}
        }
    }

    fn on_outcome(&mut self, index: usize, id: u64, outcome: &Outcome<Vec<u8>>) {
        let Some(app) = &mut self.hosts[index].app else {
            return;
        };
        let Some(active) = app.active.remove(&id) else {
            return;
        };
        let Some(entry) = self.ledger.entries.get_mut(&id) else {
            return;
        };
        let kind = match outcome {
            Outcome::Ok(_) => "ok",
            Outcome::Executed(_) => "executed_error",
            Outcome::NotExecuted(_) => "not_executed",
            Outcome::Unknown(_) => "unknown",
        };
        let before = entry.outcome.replace(kind);
        let (deadline, executed) = (entry.deadline, entry.executed);
        *self.ledger.outcomes.entry(kind).or_insert(0) += 1;
        self.ledger.hops_max = self.ledger.hops_max.max(active.call.hops);
        self.say(|| format!("n{:<4} call {id}: {outcome:?}", index + 1));
        let troubled = self.hosts[index].slow > 1
            || self.hosts[index]
                .troubled
                .is_some_and(|at| self.now.since(at) < LATE * 50);
        let on_time = self.now <= deadline + LATE || troubled;
        self.check(index, "F1", before.is_none() && on_time, || {
            format!("call {id} ended {kind} too late, or again after {before:?}")
        });
        let honest = kind != "not_executed" || executed == 0;
        self.check(index, "F3", honest, || {
            format!("call {id} ran {executed} times, and its caller was told that it did not")
        });
        let right = !matches!(outcome, Outcome::Ok(body) if !body.starts_with(&id.to_le_bytes()));
        self.check(index, "F8", right, || {
            format!("call {id} got the answer of another")
        });
        self.check(index, "F5", active.call.hops <= 2, || {
            format!("call {id} took {} hops", active.call.hops)
        });
    }

    /// Calls of live processes that are past their deadline and have no outcome.
    pub(crate) fn check_open_calls(&mut self) {
        for index in 0..self.hosts.len() {
            let host = &self.hosts[index];
            let Some(app) = host.app.as_ref().filter(|_| !host.paused && host.slow == 1) else {
                continue;
            };
            let open: Vec<u64> = app.open_calls().collect();
            for id in open {
                let late = self
                    .ledger
                    .entries
                    .get(&id)
                    .is_some_and(|entry| self.now > entry.deadline + LATE * 50);
                self.check(index, "F1", !late, || {
                    format!("call {id} has no outcome long after its deadline")
                });
            }
        }
    }

    /// The view of a host's process, as it is now.
    fn view(&mut self, index: usize) -> Arc<View> {
        let host = &mut self.hosts[index];
        let (Some(control), Some(app)) = (&host.control, &mut host.app) else {
            unreachable!("only running processes look at their views")
        };
        let membership = control.membership();
        let current = app.view.as_ref().filter(|view| {
            view.version() == membership.roster().version()
                && view.is_confirmed() == membership.is_confirmed()
        });
        if let Some(view) = current {
            return Arc::clone(view);
        }
        let placement = Placement {
            arcs_log2: self.plan.world.arcs,
        };
        let view = Arc::new(View::of(membership, placement, &self.rings));
        app.view = Some(Arc::clone(&view));
        view
    }

    /// A member is gone from this host's view: so are its connections.
    pub(crate) fn forget_calls_to(&mut self, index: usize, peer: Peer) {
        if let Some(app) = &mut self.hosts[index].app {
            app.peers.forget(peer, Goodbye::Gone);
        }
        self.pump_calls(index);
    }

    /// Writes what waits, and does what the connections want.
    pub(crate) fn pump_calls(&mut self, index: usize) {
        loop {
            let host = &mut self.hosts[index];
            let (now, process) = (host.local(self.now), host.process());
            let Some(app) = &mut host.app else { return };
            if let Some(command) = app.peers.poll_command() {
                match command {
                    Command::Dial { dial, address, .. } => {
                        self.dial(process, Class::Calls, dial, address)
                    }
                    Command::Abort { .. } => {}
                    Command::Close { conn, .. } => {
                        self.close(conn.0, process);
                        self.on_call_conn_closed(index, conn);
                    }
                }
                continue;
            }
            if let Some(event) = app.peers.poll_event() {
                self.on_call_peers_event(index, &event);
                continue;
            }
            let ready = app
                .links
                .iter_mut()
                .find(|(_, link)| link.has_work() && link.is_connected());
            let Some((_, link)) = ready else { break };
            let Some(conn) = link.preferred() else { break };
            let mut bytes = Vec::new();
            let mut handed = Vec::new();
            link.take(now, conn, BATCH, &mut bytes, |token| handed.push(*token));
            for token in handed {
                if let Some(active) = app.active.get_mut(&token.call) {
                    active.call.handed_over(token.attempt);
                }
            }
            self.write(process, conn, &bytes);
        }
        self.arm_calls(index);
    }

    fn on_call_peers_event(&mut self, index: usize, event: &PeersEvent) {
        if let PeersEvent::Failed {
            target: Target::Peer(peer, _),
            ..
        } = event
        {
            let waiting = self.hosts[index]
                .app
                .as_mut()
                .and_then(|app| app.waiting.remove(peer))
                .unwrap_or_default();
            waiting
                .into_iter()
                .for_each(|to| self.give_back(index, to, Unsent::Unreachable));
        }
    }

    fn arm_calls(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        let process = host.process();
        let Some(due) = host.app.as_ref().and_then(|app| app.peers.poll_timeout()) else {
            return;
        };
        let at = host.world(due).max(self.now);
        let Some(app) = &mut host.app else { return };
        if app.armed != Some(at) {
            app.armed = Some(at);
            self.schedule(at, Happening::Call(CallHappening::Peers(process, at)));
        }
    }

    /// Hands a batch of frames to the connection, one by one, in order.
    fn write(&mut self, process: Process, conn: ConnId, bytes: &[u8]) {
        let mut rest = bytes;
        while let Ok(Some(length)) = Frame::length(rest, BATCH) {
            let (frame, tail) = rest.split_at(length);
            self.send_ordered(process, conn.0, frame.to_vec());
            rest = tail;
        }
    }

    /// The hasher of every world.
    pub(crate) fn sim_hasher() -> KeyHasher {
        KeyHasher::new(&[7; 32])
    }
}

/// How much later than its deadline a call's end may be noticed.
const LATE: Duration = Duration::from_millis(20);

fn draw_key(rng: &mut Rng, keys: Keys) -> Vec<u8> {
    let key = match keys {
        Keys::Uniform(count) => rng.below(u64::from(count.max(1))),
        // Rejection-free approximation of a Zipf law: the rank is the range raised to a random power.
        Keys::Zipf(_, count) => {
            let power = rng.below(1_000);
            let most = u64::from(count.max(2)).ilog2() as u64;
            let high = 1u64 << (most * power / 1_000);
            rng.below(high)
        }
    };
    format!("k{key}").into_bytes()
}

/// The load of a plan, with its factor.
pub(crate) fn overload(load: Option<&Load>) -> u32 {
    u32::from(load.is_some())
}
