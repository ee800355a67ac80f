//! The event loop: one queue, one clock, every host's process driven through its own verbs.
//!
//! Decides nothing about the protocol. What a packet suffers is decided by `network`, what a fault does by
//! `faults`, what must hold by `oracles`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use swimring::core::control::{Control, ControlEvent};
use swimring::core::hello::{Class, Hello};
use swimring::core::peers::{Command, ConnId, DialId, Goodbye};
use swimring_membership::{Delivery, Event, Instant, Profile, Rng, State};

use crate::calls::CallInput;
use crate::conns::{Conn, Process};
use crate::flow::Packet;
use crate::host::{Host, Input};
use crate::network::Network;
use crate::oracles::{self, Facts, Findings, Oracle, Property};
use crate::plan::{Memory, Plan};
use crate::queue::Queue;
use crate::recording::{self, Believed};
use crate::trace::{Flip, Trace};

mod checks;
mod lives;
mod measured;
mod transport;
mod verdict;

pub use measured::Measured;
pub use verdict::Verdict;

/// How long the connection to a member that has left is kept for its last answers.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Most that happens within a millisecond, and for every node.
const AT_ONCE_MAX: usize = 20_000;
const AT_ONCE_PER_NODE: usize = 500;
/// When an unanswered handshake packet is sent again; doubles.
const HANDSHAKE_RETRY: Duration = Duration::from_millis(60);
/// After how long without a packet an end gives a connection up, at least.
const IDLE: Duration = Duration::from_secs(30);
/// And that much longer for every node, for every pair is probed once in a round.
const IDLE_PER_NODE: Duration = Duration::from_secs(3);

/// What happens at a moment.
#[derive(Clone, Debug)]
pub(crate) enum Happening {
    /// A deadline of a process may have passed, unless it was armed anew since.
    Wake(Process, Instant),
    /// A busy process is done with what it had.
    Next(Process),
    /// A packet arrives at one end of a connection.
    Packet { conn: u64, end: usize, packet: Packet },
    /// A frame arrives at one end of a connection once more, late.
    Stray { conn: u64, end: usize, bytes: Arc<[u8]> },
    /// The timer of a connection's sender at one end, or an acknowledgement that it waits for.
    Timer { conn: u64, end: usize },
    /// A process hears that the other end of a connection does not know it any more.
    Reset { conn: u64, process: Process },
    /// A packet of a handshake arrives.
    Handshake(Handshake),
    /// An end checks whether its connection is idle.
    Idle { conn: u64, process: Process },
    /// A step of the plan begins.
    Begin(usize),
    /// A layer is lifted, a paused process goes on, and so on.
    End(crate::faults::Ending),
    /// Something of the data planes.
    Call(crate::calls::CallHappening),
    /// A process that leaves takes its next step.
    Leaving(Process, crate::leaving::Stage),
    /// Somebody who does not belong here.
    Stranger(crate::strangers::Stranger),
    /// Chaos is over.
    Quiet,
    /// The core is looked at.
    Look,
    /// The core has served for long enough.
    Over,
    /// It is recorded who owns what.
    SeeOwners,
}

/// A handshake: four packets, the last one being the answer to the hello.
#[derive(Clone, Debug)]
pub(crate) struct Handshake {
    dialler: Process,
    dial: DialId,
    /// The host that answers there, and who should.
    there: usize,
    expect: Option<swimring_membership::NodeId>,
    class: Class,
    /// What its hello says.
    anew: bool,
    asked: Instant,
    stage: u8,
    tries: u32,
    conn: Option<u64>,
}

/// A cluster under a plan.
pub struct World {
    pub(crate) plan: Plan,
    /// See [`Plan::is_orderly`].
    pub(crate) is_orderly: bool,
    pub(crate) now: Instant,
    queue: Queue<Happening>,
    pub(crate) hosts: Vec<Host>,
    /// How many processes are up.
    up: usize,
    pub(crate) by_address: BTreeMap<SocketAddr, usize>,
    /// The network.
    pub network: Network,
    pub(crate) rng: Rng,
    pub(crate) seed: u64,
    oracles: Vec<Box<dyn Oracle>>,
    /// What the oracles found.
    pub findings: Findings,
    /// For messages on their way out, and in.
    scratch: Vec<u8>,
    ready: Vec<Arc<[u8]>>,
    /// The rolling hash.
    pub trace: Trace,
    /// Faults that really happened, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// What passed while the plan said to measure.
    pub measured: Vec<Measured>,
    downs: Option<Vec<crate::memberlist::Failure>>,
    /// The hosts that the step under way has chosen.
    pub(crate) selected: Vec<usize>,
    /// The core of the quiet phase.
    pub(crate) core: Option<Vec<usize>>,
    pub(crate) quiet_at: Instant,
    /// How often in a row the core was seen to agree.
    pub(crate) agreed: u32,
    /// Every call.
    pub ledger: crate::calls::Ledger,
    pub(crate) load_rng: Rng,
    pub(crate) overload: u32,
    pub(crate) runs: u64,
    /// At which hosts each key ran.
    pub(crate) ran_at: BTreeMap<swimring::ring::KeyHash, BTreeSet<usize>>,
    pub(crate) rings: Arc<swimring::core::view::Rings>,
    pub(crate) rings_seen: crate::rings::Seen,
    pub(crate) asked: crate::asked::Asked,
    pub(crate) hasher: swimring::ring::KeyHasher,
    /// The core was found to disagree at the end, and is looked at once more.
    pub(crate) doubted: bool,
    /// Nothing is left to see.
    pub(crate) over: bool,
    crashed: bool,
    /// The first violation is enough.
    pub hasty: bool,
    pub(crate) recorder: Option<Box<recording::Recorder>>,
    /// Something to change.
    pub flip: Option<Flip>,
    /// When which host dialled whom lately.
    pub(crate) dials: crate::dials::Dials,
    /// How long after quiet the core agreed.
    pub converged_after: Option<Duration>,
    /// Nanoseconds that processes were up, summed up.
    node_nanos: u128,
    log: Option<Vec<String>>,
}

impl World {
    /// A world for a plan: its hosts are started at the beginning, in a random order within a second.
    pub fn new(plan: Plan, seed: u64) -> Self {
        let rng = Rng::new(seed);
        let mut world = Self {
            is_orderly: plan.is_orderly(),
            network: Network::new(plan.links.clone(), rng.fork(1).next_u64()),
            now: Instant::ORIGIN,
            queue: Queue::default(),
            up: 0,
            hosts: Vec::new(),
            by_address: BTreeMap::new(),
            rng: rng.fork(2),
            seed,
            oracles: oracles::all(),
            findings: Findings::default(),
            scratch: Vec::new(),
            ready: Vec::new(),
            trace: Trace::default(),
            faults: BTreeMap::new(),
            measured: Vec::new(),
            downs: None,
            selected: Vec::new(),
            core: None,
            quiet_at: Instant::ORIGIN,
            agreed: 0,
            ledger: crate::calls::Ledger::default(),
            load_rng: rng.fork(3),
            overload: 1,
            runs: 0,
            ran_at: BTreeMap::new(),
            rings: Arc::default(),
            rings_seen: crate::rings::Seen::default(),
            asked: crate::asked::Asked::default(),
            hasher: Self::sim_hasher(),
            doubted: false,
            over: false,
            crashed: false,
            hasty: false,
            recorder: None,
            flip: None,
            dials: crate::dials::Dials::default(),
            converged_after: None,
            node_nanos: 0,
            log: None,
            plan,
        };
        for _ in 0..world.plan.world.nodes {
            let host = world.add_host();
            let at = if host == 0 { Duration::ZERO } else { world.rng.span(Duration::ZERO, Duration::from_secs(1)) };
            world.schedule(Instant::ORIGIN + at, Happening::End(crate::faults::Ending::Start(host, Memory::Kept)));
        }
        for (index, step) in world.plan.steps.clone().iter().enumerate() {
            world.schedule(Instant::ORIGIN + step.at, Happening::Begin(index));
        }
        world.start_load();
        let quiet =
            world.plan.quiet.map_or(world.plan.end() - world.plan.expect.converged - Duration::from_secs(5), |q| q.at);
        world.schedule(Instant::ORIGIN + quiet, Happening::Quiet);
        world
    }

    /// Keeps a line for every event, for a person to read.
    pub fn keep_log(&mut self) {
        self.log = Some(Vec::new());
    }

    /// The kept lines.
    pub fn log(&self) -> &[String] {
        self.log.as_deref().unwrap_or_default()
    }

    pub(crate) fn say(&mut self, line: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            log.push(format!("{:>10.4} {}", self.now.as_nanos() as f64 / 1e9, line()));
        }
    }

    pub(crate) fn add_host(&mut self) -> usize {
        let index = self.hosts.len();
        let host = Host::new(index, self.seed);
        let zone = (b'a' + (index % self.plan.world.zones) as u8) as char;
        self.network.add_host(zone);
        self.by_address.insert(host.address, index);
        self.hosts.push(host);
        index
    }

    pub(crate) fn schedule(&mut self, at: Instant, happening: Happening) {
        self.queue.push(at, happening);
    }

    /// Runs until nothing is left to see, or to `until`. A panic ends the run, and no more.
    pub fn run(&mut self, until: Option<Duration>) -> Verdict {
        let end = Instant::ORIGIN + until.unwrap_or_else(|| self.plan.end() + crate::quiet::SERVED);
        self.crashed |= catch_unwind(AssertUnwindSafe(|| self.run_to(end))).is_err();
        if until.is_none() {
            (0..self.measured.len()).for_each(|number| self.end_measure(number));
        }
        self.verdict()
    }

    fn run_to(&mut self, end: Instant) {
        let (mut at_once, most) = (0, AT_ONCE_MAX + AT_ONCE_PER_NODE * self.hosts.len());
        while !self.over && (!self.hasty || self.findings.violations.is_empty()) {
            let Some((at, happening)) = self.queue.pop(end) else { break };
            at_once = if at.as_millis() == self.now.as_millis() { at_once + 1 } else { 0 };
            if at_once > most {
                self.check(0, Property::L7, false, || {
                    "time stands still: what happens in this millisecond does not end".into()
                });
                break;
            }
            self.node_nanos += at.since(self.now).as_nanos() * self.up as u128;
            (self.now, self.network.now) = (at, at);
            self.happen(happening);
            self.note_violations();
        }
        self.note_violations();
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Wake(process, at) => self.wake(process, at),
            Happening::Next(process) => self.next(process),
            Happening::Packet { conn, end, packet } => self.on_packet_arrives(conn, end, packet),
            Happening::Stray { conn, end, bytes } => self.on_stray(conn, end, bytes),
            Happening::Timer { conn, end } => self.on_flow_timer(conn, end),
            Happening::Reset { conn, process } => self.on_reset(conn, process),
            Happening::Handshake(handshake) => self.on_handshake(handshake),
            Happening::Idle { conn, process } => self.on_idle(conn, process),
            Happening::Begin(step) => self.begin(step),
            Happening::End(ending) => self.end(ending),
            Happening::Call(call) => self.happen_call(call),
            Happening::Leaving(process, stage) => self.on_leaving(process, stage),
            Happening::Stranger(stranger) => self.on_stranger(stranger),
            Happening::Quiet => self.quiet(),
            Happening::Look => self.look(),
            Happening::Over => self.over(),
            Happening::SeeOwners => self.see_owners(),
        }
    }

    // Processes.

    /// Gives an input to a process, or keeps it while the process stands still or is busy.
    pub(crate) fn give(&mut self, process: Process, input: Input) {
        let host = &mut self.hosts[process.host];
        if host.process() != process || !host.is_up() {
            return;
        }
        if host.is_unsure && !host.stands_still() {
            host.is_unsure = !self.network.conns.is_gossip(&input);
        }
        let waits = host.stands_still() || !host.inbox.is_empty() || host.busy_until > self.now;
        if waits && !(host.blocked && input.is_of_time()) {
            let first = host.inbox.is_empty() && !host.stands_still();
            host.wait(input);
            if first {
                let at = host.busy_until;
                self.schedule(at, Happening::Next(process));
            }
            return;
        }
        host.work(self.now);
        self.handle(process.host, input);
    }

    /// Gives a process the next input that waits for it.
    pub(crate) fn next(&mut self, process: Process) {
        let host = &mut self.hosts[process.host];
        if host.process() != process || !host.is_up() || host.stands_still() {
            return;
        }
        let Some(input) = host.inbox.pop_front() else {
            return;
        };
        host.work(self.now);
        if !host.inbox.is_empty() {
            let at = host.busy_until;
            self.schedule(at, Happening::Next(process));
        }
        self.handle(process.host, input);
    }

    fn handle(&mut self, index: usize, input: Input) {
        let dialled = input.dialled();
        self.take_in(index, input);
        dialled.into_iter().for_each(|conn| self.read_early(conn.0));
    }

    fn take_in(&mut self, index: usize, input: Input) {
        let host = &mut self.hosts[index];
        let now = host.local(self.now);
        let Some(control) = &mut host.control else {
            return;
        };
        match input {
            Input::Wake => {
                self.trace.note(self.now, index, 0, &[]);
                control.handle_timeout(now);
            }
            Input::Packet { conn, end, packet } => return self.on_packet(conn, end, packet),
            Input::Message(conn, bytes) => return self.handle_message(index, conn, &bytes),
            Input::Call(input) => return self.handle_call(index, *input),
            Input::Dialled(dial, conn, hello) => control.handle_dialled(now, dial, conn, &hello),
            Input::DialFailed(dial, why) => control.handle_dial_failed(now, dial, why),
            Input::Oneself(dial) => control.handle_oneself(now, dial),
            Input::Accepted(conn, hello) => control.handle_accepted(now, conn, &hello),
            Input::Closed(conn) => control.handle_closed(now, conn),
        }
        self.pump(index);
    }

    pub(crate) fn handle_message(&mut self, index: usize, conn: ConnId, bytes: &[u8]) {
        let flipped = self.flip(index, bytes);
        let bytes = flipped.as_deref().unwrap_or(bytes);
        self.trace.message(self.now, index, bytes);
        self.say(|| format!("n{:<4} <- {}", index + 1, describe(bytes)));
        self.note_message(index, || format!("reads {}", describe(bytes)));
        let host = &mut self.hosts[index];
        let now = host.local(self.now);
        let Some(control) = &mut host.control else {
            return;
        };
        if control.peers().peer(conn).is_none() {
            // What still comes on a connection that was given up is not looked at.
            return;
        }
        let held = self.network.conns.get(conn.0);
        let own = held.is_some();
        let abroad = held.is_some_and(|held| {
            held.ends.iter().any(|end| self.hosts[end.process.host].home != self.hosts[index].home)
        });
        let Some(control) = &mut self.hosts[index].control else {
            return;
        };
        let result = control.handle_message(now, conn, bytes);
        let header = oracles::header(bytes);
        self.with_oracles(|oracle, facts, out| oracle.after_message(facts, index, header.as_ref(), out));
        self.check(index, Property::W1, result.is_ok() || !own, || {
            format!("refused a message of another node: {result:?}")
        });
        self.check(index, Property::M13, !abroad, || "reads a message of another cluster".into());
        self.pump(index);
    }

    /// Changes what is to be changed, if it is time.
    fn flip(&mut self, index: usize, bytes: &[u8]) -> Option<Vec<u8>> {
        match self.flip {
            Some(Flip::Bit { message }) if message == self.trace.messages => {
                let mut bytes = bytes.to_vec();
                bytes.iter_mut().last().into_iter().for_each(|last| *last ^= 1);
                Some(bytes)
            }
            Some(Flip::Draw { message }) if message == self.trace.messages => {
                self.network.draw_once_more(index);
                None
            }
            _ => None,
        }
    }

    pub(crate) fn check(&mut self, host: usize, oracle: Property, holds: bool, message: impl FnOnce() -> String) {
        if holds {
            return self.findings.checks.count(oracle);
        }
        let facts = facts(self.now, &self.plan, &self.hosts, &self.network);
        self.findings.check(&facts, oracle, &[host], holds, message);
    }

    fn with_oracles(&mut self, mut each: impl FnMut(&mut dyn Oracle, &Facts<'_>, &mut Findings)) {
        let facts = facts(self.now, &self.plan, &self.hosts, &self.network);
        for oracle in &mut self.oracles {
            each(oracle.as_mut(), &facts, &mut self.findings);
        }
    }

    /// Takes everything a process has to say, until it has nothing left.
    pub(crate) fn pump(&mut self, index: usize) {
        let mut bytes = std::mem::take(&mut self.scratch);
        loop {
            // What happened comes before what follows from it.
            if let Some(event) = self.hosts[index].control.as_mut().and_then(Control::poll_event) {
                self.on_event(index, &event);
                continue;
            }
            self.run_commands(index);
            let host = &mut self.hosts[index];
            let now = host.local(self.now);
            let Some(control) = &mut host.control else {
                return;
            };
            bytes.clear();
            if let Some(sending) = control.poll_transmit(now, &mut bytes) {
                let process = host.process();
                if !self.send(process, sending.conn, sending.delivery, &bytes)
                    && let Some(control) = &mut self.hosts[index].control
                {
                    control.handle_unsent(&sending);
                }
                continue;
            }
            // Messages that found no connection have asked for dials.
            if !self.run_commands(index) {
                break;
            }
        }
        self.scratch = bytes;
        self.view(index);
        self.note_view(index);
        self.check_waiting(index, Class::Gossip);
        self.arm(index);
    }

    /// Does what a process wants done with connections; whether it wanted anything.
    fn run_commands(&mut self, index: usize) -> bool {
        let mut any = false;
        loop {
            let host = &mut self.hosts[index];
            let process = host.process();
            let Some(command) = host.control.as_mut().and_then(|control| control.poll_command()) else {
                return any;
            };
            any = true;
            match command {
                Command::Dial { dial, address, expect } => self.dial(process, Class::Gossip, dial, (address, expect)),
                Command::Abort { dial } => self.dials.end(process, Class::Gossip, dial),
                Command::Close { conn, why } => {
                    self.check_close(process, conn, why);
                    self.close(conn.0, process);
                }
            }
        }
    }

    fn on_event(&mut self, index: usize, event: &ControlEvent) {
        self.trace.note_value(self.now, index, 2, event);
        self.say(|| format!("n{:<4} {event:?}", index + 1));
        self.with_oracles(|oracle, facts, out| oracle.on_event(facts, index, event, out));
        match event {
            ControlEvent::Membership(Event::Changed { id, state, .. }) => {
                self.note_belief(index, *id, (*state).into());
            }
            ControlEvent::Membership(Event::Reaped { id, .. }) => self.note_belief(index, *id, Believed::Unknown),
            _ => {}
        }
        let host = &mut self.hosts[index];
        if let (ControlEvent::Membership(event), Some(control), Some(app)) = (event, &host.control, &mut host.app) {
            app.publishing.note(control.membership(), event);
        }
        match event {
            ControlEvent::Peers(event) => self.watch_waits(index, Class::Gossip, event),
            ControlEvent::Membership(Event::Rebooted { boot }) => self.hosts[index].disk.boot = *boot,
            ControlEvent::Membership(Event::NameTaken { .. } | Event::Superseded { .. }) => {
                self.give_way(index);
                let process = self.hosts[index].process();
                self.schedule(self.now, Happening::End(crate::faults::Ending::Exit(process)));
            }
            ControlEvent::Membership(Event::Changed { id, before, state, .. }) if !state.is_present() => {
                let process = self.hosts[index].process();
                let leaves = before.is_some_and(|(state, _)| state.is_present());
                if *state == State::Down && leaves {
                    self.count_down(index, *id);
                }
                let member = self.hosts[index].control.as_ref().and_then(|control| control.membership().member(*id));
                if let Some((peer, life)) = member.map(|member| (member.record.peer(), member.record.life())) {
                    // What a leaver still has to say may be on its way; whoever is down says nothing.
                    let wait = if *state == State::Left { LAST_WORDS } else { Duration::ZERO };
                    if leaves {
                        self.dials.forget(self.now, process, Class::Gossip, peer);
                        self.check_gone(index, peer, life);
                    }
                    let forget = crate::calls::CallHappening::Forget(process, peer, life);
                    self.schedule(self.now + wait, Happening::Call(forget));
                }
            }
            ControlEvent::Membership(Event::Joined) => {
                let host = &mut self.hosts[index];
                let now = host.local(self.now);
                if let Some(control) = &mut host.control {
                    control.command(now, |membership| membership.set_phase(now, swimring_membership::Phase::Ready));
                }
            }
            _ => {}
        }
    }

    fn arm(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        let Some(next) = host.control.as_ref().and_then(|control| control.poll_timeout()) else {
            return;
        };
        let at = host.world(next).max(self.now);
        if host.armed != Some(at) {
            host.armed = Some(at);
            let process = host.process();
            self.schedule(at, Happening::Wake(process, at));
        }
    }

    fn wake(&mut self, process: Process, at: Instant) {
        let host = &mut self.hosts[process.host];
        if host.process() == process && host.armed == Some(at) {
            host.armed = None;
            self.give(process, Input::Wake);
        }
    }
}

fn facts<'a>(now: Instant, plan: &Plan, hosts: &'a [Host], network: &'a Network) -> Facts<'a> {
    Facts { now, hosts, network, seeds: plan.world.seeds, balanced: plan.world.balanced }
}

fn describe(bytes: &[u8]) -> String {
    match swimring_membership::wire::Message::decode(bytes) {
        Ok(Some(message)) => format!("{} ({} bytes)", message.kind(), bytes.len()),
        other => format!("{other:?}"),
    }
}
