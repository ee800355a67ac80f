//! Connections of the world: handshakes, datagrams, frames, idle ends.

use swimring::core::hello::Refusal;
use swimring_membership::NodeId;

use super::*;
use crate::flow::{Content, Flow, Look, OVERHEAD_BYTES};
use crate::host::peers_config;

impl World {
    // Connections.

    /// Sends a message of membership; whether the connection stands and takes it.
    pub(super) fn send(&mut self, from: Process, conn: ConnId, delivery: Delivery, bytes: &[u8]) -> bool {
        self.check_wire(from.host, delivery, bytes);
        let Some((mine, held)) = self.open_end(conn.0, from) else {
            return false;
        };
        let to = held.ends[1 - mine].process.host;
        let taken = match delivery {
            Delivery::Datagram => held.flows[mine].push_datagram(bytes),
            Delivery::Stream => {
                held.flows[mine].push_frame(None, bytes);
                true
            }
        };
        self.say_more(conn.0, mine, Class::Gossip, None);
        self.note_asked(from.host, to, bytes);
        self.transmit(conn.0, mine);
        taken
    }

    /// Sends a frame that keeps its place among those sent on its lane before, or one on a stream of its own.
    pub(crate) fn send_call_frame(&mut self, from: Process, conn: u64, lane: Option<usize>, bytes: &[u8]) {
        if let Some((mine, held)) = self.open_end(conn, from) {
            held.flows[mine].push_frame(lane, bytes);
            self.say_more(conn, mine, Class::Calls, lane);
            self.transmit(conn, mine);
        }
    }

    /// A process of a later release says now and then what this one does not understand.
    fn say_more(&mut self, conn: u64, mine: usize, class: Class, lane: Option<usize>) {
        let Some(host) = self.network.conns.get(conn).map(|held| held.ends[mine].process.host) else { return };
        if !self.hosts[host].upgraded || !self.rng.chance(LATER_WORDS) {
            return;
        }
        let words = self.later_words(host, class);
        if let (Some(words), Some(held)) = (words, self.network.conns.get_mut(conn)) {
            held.flows[mine].push_frame(lane, &words);
        }
    }

    fn open_end(&mut self, conn: u64, process: Process) -> Option<(usize, &mut Conn)> {
        let held = self.network.conns.get_mut(conn)?;
        let mine = held.end_of(process).filter(|end| held.ends[*end].open)?;
        Some((mine, held))
    }

    /// Sends what the window has room for, and sets the timer.
    fn transmit(&mut self, conn: u64, mine: usize) {
        self.settle_acks(conn, mine);
        let sender = self.network.conns.get(conn).map(|held| held.ends[mine].process.host);
        if sender.is_some_and(|host| self.hosts[host].blocked) {
            return;
        }
        loop {
            let now = self.now;
            let held = self.network.conns.get_mut(conn).filter(|held| held.ends[mine].open);
            let Some(packet) = held.and_then(|held| held.flows[mine].poll(now)) else { break };
            self.put_on_wire(conn, mine, packet);
        }
        self.wait_for_ack(conn, mine);
        self.set_timer(conn, mine);
    }

    /// A sender that has no room in its window, or has long heard nothing, goes on once the other end acknowledges what it
    /// owes: that is settled when somebody looks, so somebody looks then.
    fn wait_for_ack(&mut self, conn: u64, mine: usize) {
        let flow = self.network.conns.get(conn).map(|held| &held.flows[mine]);
        let due = flow.filter(|flow| flow.wants_acks()).and_then(Flow::ack_due);
        // What is overdue is owed by a process that stands still.
        if let Some(due) = due.filter(|due| *due > self.now) {
            self.schedule(due, Happening::Timer { conn, end: mine });
        }
    }

    fn set_timer(&mut self, conn: u64, mine: usize) {
        let now = self.now;
        let Some(held) = self.network.conns.get_mut(conn).filter(|held| held.ends[mine].open) else { return };
        match held.flows[mine].look(now) {
            // It may have been set when little was heard, and be far away.
            Look::Wait(due) if held.flows[mine].timer.is_none_or(|set| set > due) => {
                held.flows[mine].timer = Some(due);
                self.schedule(due, Happening::Timer { conn, end: mine });
            }
            Look::Idle | Look::Wait(_) => {}
            Look::Probe(packet) => {
                self.put_on_wire(conn, mine, packet);
                self.set_timer(conn, mine);
            }
        }
    }

    /// The timer of a sender has ended, or an acknowledgement has come that it waits for.
    pub(super) fn on_flow_timer(&mut self, conn: u64, mine: usize) {
        let now = self.now;
        let Some(held) = self.network.conns.get_mut(conn).filter(|held| held.ends[mine].open) else { return };
        let flow = &mut held.flows[mine];
        if flow.timer.is_some_and(|due| due <= now) {
            flow.timer = None;
        }
        // Whoever stands still looks when it goes on.
        if !self.hosts[held.ends[mine].process.host].stands_still() {
            self.transmit(conn, mine);
        }
    }

    /// A process goes on: so do its timers.
    pub(crate) fn wake_flows(&mut self, process: Process) {
        let conns = self.network.conns.of_host(process.host);
        let ends: Vec<(u64, usize)> = conns.filter_map(|(conn, held)| Some((conn, held.end_of(process)?))).collect();
        ends.into_iter().for_each(|(conn, end)| self.schedule(self.now, Happening::Timer { conn, end }));
    }

    /// A packet leaves, and with it what is owed for those of the other way.
    fn put_on_wire(&mut self, conn: u64, mine: usize, packet: Packet) {
        let now = self.now;
        let Some(held) = self.network.conns.get_mut(conn) else { return };
        let (class, end) = (held.class, 1 - mine);
        let (from, to) = (held.ends[mine].process.host, held.ends[end].process.host);
        let fate = self.network.fate(from, to, packet.bytes());
        let arrives = fate.arrivals[0].map(|after| now + after);
        self.acknowledge(conn, end, arrives);
        self.note_sent(conn, end, packet.number);
        if let [Some(first), Some(second)] = fate.arrivals {
            match &packet.content {
                // QUIC delivers once. What lies below a message must not be trusted with that.
                Content::Datagram(_) => {
                    let packet = packet.clone();
                    self.schedule(now + second, Happening::Packet { conn, end, packet });
                }
                Content::Piece(piece) => {
                    if let Some(bytes) = piece.whole().filter(|bytes| class == Class::Calls && is_call(bytes)) {
                        let double = Happening::Stray { conn, end, bytes: bytes.into() };
                        self.schedule(now + first * LATE_DOUBLE, double);
                    }
                }
                Content::Probe => {}
            }
        }
        if let Some(at) = arrives {
            self.schedule(at, Happening::Packet { conn, end, packet });
        }
    }

    /// Something that goes to the sender `mine` acknowledges what it has sent so far; it arrives then, or never.
    fn acknowledge(&mut self, conn: u64, mine: usize, arrives: Option<Instant>) {
        let Some(held) = self.network.conns.get_mut(conn) else { return };
        let flow = &mut held.flows[mine];
        flow.acknowledge(arrives);
        if let Some(at) = arrives.filter(|_| flow.wants_acks()) {
            self.schedule(at, Happening::Timer { conn, end: mine });
        }
    }

    /// Acknowledgements on their own that the sender `mine` was owed by now, and what has arrived of them.
    fn settle_acks(&mut self, conn: u64, mine: usize) {
        let now = self.now;
        let Some(held) = self.network.conns.get(conn) else { return };
        if let Some(due) = held.flows[mine].ack_due().filter(|due| *due <= now) {
            self.send_ack(conn, mine, due);
        }
        if let Some(held) = self.network.conns.get_mut(conn) {
            held.flows[mine].resolve(now);
        }
    }

    /// The other end acknowledges what the sender `mine` has sent, in a packet of its own that left at `at`.
    fn send_ack(&mut self, conn: u64, mine: usize, at: Instant) {
        let Some(held) = self.network.conns.get(conn) else { return };
        let [to, from] = [mine, 1 - mine].map(|end| held.ends[end].process);
        let machine = &self.hosts[from.host];
        if held.ends[1 - mine].open && machine.process() == from && !machine.stands_still() {
            let fate = self.network.fate(from.host, to.host, OVERHEAD_BYTES);
            self.acknowledge(conn, mine, fate.arrivals[0].map(|after| at + after));
        }
    }

    /// A packet reaches a host. If the process there does not know the connection, it says so.
    pub(super) fn on_packet_arrives(&mut self, conn: u64, end: usize, packet: Packet) {
        let Some(held) = self.network.conns.get(conn) else { return };
        let (to, from) = (held.ends[end].process, held.ends[1 - end].process);
        if self.hosts[to.host].process() == to {
            self.give(to, Input::Packet { conn, end, packet });
        } else if self.hosts[to.host].is_up() {
            self.go_astray(conn, end, &packet);
            self.send_reset(conn, to.host, from);
        }
    }

    /// A process reads a packet.
    pub(super) fn on_packet(&mut self, conn: u64, end: usize, packet: Packet) {
        let now = self.now;
        let Some(held) = self.network.conns.get_mut(conn) else { return };
        let (class, to, from) = (held.class, held.ends[end].process, held.ends[1 - end].process);
        if !held.ends[end].open {
            self.go_astray(conn, end, &packet);
            return self.send_reset(conn, to.host, from);
        }
        held.ends[end].heard = now;
        self.note_reading(conn, end, packet.number, [from.host, to.host]);
        let Some(held) = self.network.conns.get_mut(conn) else { return };
        let flow = &mut held.flows[1 - end];
        let mut ready = std::mem::take(&mut self.ready);
        flow.receive(now, packet, &mut ready);
        let early = held.ends[end].early.as_mut().map(|early| early.append(&mut ready)).is_some();
        let flow = &held.flows[1 - end];
        if flow.owes_ack_now() {
            self.send_ack(conn, 1 - end, now);
        } else if flow.owes_one() {
            self.wait_for_ack(conn, 1 - end);
        }
        if early {
            self.ready = ready;
            return;
        }
        for bytes in ready.drain(..) {
            match class {
                Class::Gossip => self.handle_message(to.host, ConnId(conn), &bytes),
                Class::Calls => self.handle_call(to.host, CallInput::Frame(ConnId(conn), bytes)),
            }
        }
        self.ready = ready;
    }

    /// The dialler knows the connection now, and reads what came before.
    pub(super) fn read_early(&mut self, conn: u64) {
        let Some(held) = self.network.conns.get_mut(conn) else { return };
        let (class, host) = (held.class, held.ends[0].process.host);
        for bytes in held.ends[0].early.take().unwrap_or_default() {
            match class {
                Class::Gossip => self.handle_message(host, ConnId(conn), &bytes),
                Class::Calls => self.handle_call(host, CallInput::Frame(ConnId(conn), bytes)),
            }
        }
    }

    /// A frame comes once more.
    pub(super) fn on_stray(&mut self, conn: u64, end: usize, bytes: Arc<[u8]>) {
        let Some(held) = self.network.conns.get(conn) else { return };
        let to = held.ends[end].process;
        if held.ends[end].open {
            self.hosts[to.host].app.iter_mut().for_each(|app| app.hears(ConnId(conn)));
            self.give(to, Input::Call(Box::new(CallInput::Frame(ConnId(conn), bytes))));
        }
    }

    /// QUIC would drop what comes for a connection that has ended. What lies below a call must not be trusted with
    /// that either: a call may come out of the next connection, even at the next process.
    fn go_astray(&mut self, conn: u64, end: usize, packet: &Packet) {
        let Some(held) = self.network.conns.get(conn) else { return };
        let now_there = self.hosts[held.ends[end].process.host].process();
        let (class, from) = (held.class, held.ends[1 - end].process);
        let Content::Piece(piece) = &packet.content else { return };
        if let Some(bytes) = piece.whole().filter(|bytes| class == Class::Calls && is_call(bytes))
            && let Some(conn) = self.network.conns.newest(class, from, now_there)
        {
            self.give(now_there, Input::Call(Box::new(CallInput::Frame(ConnId(conn), bytes.into()))));
        }
    }

    /// A host tells a process that nobody there knows the connection.
    fn send_reset(&mut self, conn: u64, host: usize, process: Process) {
        if let [Some(after), _] = self.network.fate(host, process.host, OVERHEAD_BYTES).arrivals {
            self.schedule(self.now + after, Happening::Reset { conn, process });
        }
    }

    /// The other end does not know the connection: this one gives it up.
    pub(super) fn on_reset(&mut self, conn: u64, process: Process) {
        if let Some((_, held)) = self.open_end(conn, process) {
            let class = held.class;
            self.network.conns.close_end(conn, process);
            self.give(process, closed(class, conn));
        }
    }

    /// A process closes a connection; the other end hears of it if a packet passes, or when it sends something.
    pub(crate) fn close(&mut self, conn: u64, process: Process) {
        let Some(held) = self.network.conns.get(conn) else {
            return;
        };
        let other = held.ends.iter().find(|end| end.process != process).map(|end| end.process);
        self.network.conns.close_end(conn, process);
        if let Some(other) = other {
            self.send_reset(conn, process.host, other);
        }
    }

    fn idle(&self) -> Duration {
        IDLE + IDLE_PER_NODE * self.hosts.len().min(self.plan.world.mesh) as u32
    }

    pub(super) fn on_idle(&mut self, conn: u64, process: Process) {
        let (now, idle) = (self.now, self.idle());
        let Some(end) = self.open_end(conn, process).map(|(end, _)| end) else { return };
        if self.hosts[process.host].stands_still() {
            return self.schedule(now + PAUSED, Happening::Idle { conn, process });
        }
        self.settle_acks(conn, end);
        let Some((_, held)) = self.open_end(conn, process) else { return };
        let (class, due) = (held.class, held.heard(end) + idle);
        if due <= now {
            self.network.conns.close_end(conn, process);
            return self.give(process, closed(class, conn));
        }
        if class == Class::Calls && now.since(held.flows[end].last_sent()) >= KEEP_ALIVE {
            let packet = held.flows[end].probe(now);
            self.put_on_wire(conn, end, packet);
            self.set_timer(conn, end);
        }
        self.watch_idle(conn, class, process, due);
    }

    fn watch_idle(&mut self, conn: u64, class: Class, process: Process, due: Instant) {
        let soon = self.now + KEEP_ALIVE;
        let next = if class == Class::Calls { due.min(soon) } else { due };
        self.schedule(next.max(self.now + Duration::from_millis(1)), Happening::Idle { conn, process });
    }

    // Handshakes: out, back, hello, answer.

    pub(crate) fn dial(
        &mut self,
        dialler: Process,
        class: Class,
        dial: DialId,
        (address, expect): (SocketAddr, Option<NodeId>),
    ) {
        let machine = &self.hosts[dialler.host];
        let (closed, own) = (machine.closed, machine.address);
        self.check(dialler.host, Property::P2, !closed && address != own, || {
            format!("dialled {address}, which is itself, or although it goes away")
        });
        let waits = self.dials.waits(self.now, dialler, class, address, expect);
        self.check(dialler.host, Property::H2, !waits, || format!("dialled {address} again without the wait"));
        let count = self.dials.note(self.now, dialler, class, address);
        let alone = self.hosts[dialler.host].peers(class).is_none_or(|peers| peers.is_empty());
        let alone = self.dials.was_alone(self.now, dialler, alone);
        let most = if address == balancer() && !alone { DIALS_OF_A_BALANCER } else { DIALS_A_MINUTE };
        self.check(dialler.host, Property::H1, count <= most, || {
            format!("dialled {address} for {class:?} {count} times within a minute")
        });
        let under_way = self.dials.begin(dialler, class, dial);
        self.check(
            dialler.host,
            Property::B3,
            under_way <= peers_config(class, self.plan.world.limits).dials_max,
            || format!("{under_way} dials under way"),
        );
        let asked = self.hosts[dialler.host].local(self.now);
        self.network.traffic[dialler.host].handshakes += 1;
        if let Some(there) = self.host_at(class, address) {
            self.send_handshake(Handshake {
                dialler,
                dial,
                there,
                expect,
                class,
                anew: self.hosts[dialler.host].peers(class).is_some_and(|peers| peers.is_anew(dial)),
                asked,
                stage: 0,
                tries: 0,
                conn: None,
            });
        }
    }

    /// A dial has come to an end: the process is told how.
    fn dialled(&mut self, handshake: &Handshake, outcome: Result<(ConnId, Hello), Refusal>) {
        let (dial, process) = (handshake.dial, handshake.dialler);
        self.dials.end(process, handshake.class, dial);
        if outcome.is_ok() && handshake.class == Class::Calls {
            let there = self.hosts[handshake.there].address;
            let count = self.dials.reach(self.now, process, handshake.class, there);
            self.check(process.host, Property::H1, count <= REACHED_A_SECOND, || {
                format!("reached {there} {count} times within a second")
            });
        }
        let input = match (handshake.class, outcome) {
            (Class::Gossip, Ok((conn, hello))) => Input::Dialled(dial, conn, hello),
            (Class::Gossip, Err(Refusal::Oneself)) => Input::Oneself(dial),
            (Class::Gossip, Err(why)) => Input::DialFailed(dial, why.to_string()),
            (Class::Calls, Ok((conn, hello))) => {
                Input::Call(Box::new(CallInput::Dialled(dial, conn, hello, handshake.asked)))
            }
            (Class::Calls, Err(why)) => Input::Call(Box::new(CallInput::DialFailed(dial, why.to_string()))),
        };
        self.give(process, input);
    }

    pub(crate) fn judge(&self, host: usize, class: Class, hello: &Hello, certified: NodeId) -> Result<(), Refusal> {
        let gone = Err(Refusal::Leaving);
        let machine = &self.hosts[host];
        let now = machine.local(self.now);
        match class {
            Class::Gossip => machine.control.as_ref().map_or(gone, |control| control.judge(now, hello, certified)),
            Class::Calls => {
                let fingerprint = machine.home.fingerprint();
                machine.app.as_ref().map_or(gone, |app| app.peers.judge(now, hello, certified, &fingerprint))
            }
        }
    }

    /// Calls listen on the next port. Behind the balancer is any seed that runs.
    fn host_at(&mut self, class: Class, address: SocketAddr) -> Option<usize> {
        if address == balancer() {
            let seeds: Vec<usize> = (0..self.plan.world.seeds).filter(|seed| self.hosts[*seed].is_up()).collect();
            return (!seeds.is_empty()).then(|| seeds[self.rng.index(seeds.len())]);
        }
        let port = address.port() - u16::from(class == Class::Calls);
        self.by_address.get(&SocketAddr::new(address.ip(), port)).copied()
    }

    fn send_handshake(&mut self, handshake: Handshake) {
        let (here, there) = (handshake.dialler.host, handshake.there);
        let (from, to) = if handshake.stage.is_multiple_of(2) { (here, there) } else { (there, here) };
        match self.network.flight(from, to, FLIGHTS[usize::from(handshake.stage)]) {
            Some(after) => {
                let at = self.now + after;
                self.schedule(
                    at,
                    Happening::Handshake(Handshake { stage: handshake.stage + 1, tries: 0, ..handshake }),
                );
            }
            None if handshake.tries < 6 => {
                let wait = HANDSHAKE_RETRY * (1 << handshake.tries);
                self.schedule(
                    self.now + wait,
                    Happening::Handshake(Handshake { tries: handshake.tries + 1, ..handshake }),
                );
            }
            // The answer never comes: whoever dialled has given up, and drops what stands at the other end.
            None => handshake.conn.into_iter().for_each(|conn| self.close(conn, handshake.dialler)),
        }
    }

    pub(super) fn on_handshake(&mut self, mut handshake: Handshake) {
        let (here, there) = (handshake.dialler, handshake.there);
        if handshake.tries > 0 {
            return self.send_handshake(handshake);
        }
        let answering = matches!(handshake.stage, 1 | 3);
        let alive = if answering {
            self.hosts[there].is_up() && !self.hosts[there].stands_still()
        } else {
            self.hosts[here.host].process() == here && !self.hosts[here.host].blocked
        };
        if !alive {
            return;
        }
        match handshake.stage {
            // The certificate names somebody else.
            2 if handshake.expect.is_some_and(|id| id != self.hosts[there].id) => {
                self.dialled(&handshake, Err(Refusal::Identity));
            }
            2 => {
                handshake.asked = self.hosts[here.host].local(self.now);
                self.send_handshake(handshake);
            }
            3 => self.on_hello(there, handshake),
            4 => {
                let (Some(hello), Some(conn)) = (self.hello(there, handshake.class), handshake.conn) else {
                    return;
                };
                if self.open_end(conn, here).is_none() {
                    // The word of its end has overtaken the answer.
                    return self.dialled(&handshake, Err(Refusal::Leaving));
                }
                let hello = self.read_hello(there, &hello);
                let judged = hello.and_then(|hello| {
                    self.judge(here.host, handshake.class, &hello, self.hosts[there].id).map(|()| hello)
                });
                if judged.is_err() {
                    self.close(conn, here);
                }
                self.dialled(&handshake, judged.map(|hello| (ConnId(conn), hello)));
                let of = self.hosts[there].id;
                self.check_connections(here.host, handshake.class, of);
            }
            _ => self.send_handshake(handshake),
        }
    }

    fn on_hello(&mut self, there: usize, mut handshake: Handshake) {
        let (here, class) = (handshake.dialler, handshake.class);
        let Some(hello) = self.hello(here.host, class) else {
            return;
        };
        let hello = Hello { anew: handshake.anew, ..hello };
        let acceptor = self.hosts[there].process();
        let id = self.hosts[here.host].id;
        let judged = self.read_hello(here.host, &hello).and_then(|hello| self.judge(there, class, &hello, id));
        self.check(there, Property::W1, judged != Err(Refusal::Version), || {
            format!("refused the version of n{}", here.host + 1)
        });
        if let Err(refusal) = judged {
            return self.dialled(&handshake, Err(refusal));
        }
        let open = here != acceptor && !self.hosts[there].closed;
        self.check(there, Property::P2, open, || {
            format!("let {} in: itself, or although it goes away", hello.peer.address)
        });
        let conn = self.network.conns.connect(Conn::new(class, here, acceptor, self.now));
        handshake.conn = Some(conn);
        for process in [here, acceptor] {
            self.watch_idle(conn, class, process, self.now + self.idle());
        }
        let input = match class {
            Class::Gossip => Input::Accepted(ConnId(conn), hello),
            Class::Calls => Input::Call(Box::new(CallInput::Accepted(ConnId(conn), hello))),
        };
        self.give(acceptor, input);
        self.check_connections(there, class, id);
        self.send_handshake(handshake);
    }

    fn hello(&self, index: usize, class: Class) -> Option<Hello> {
        let host = &self.hosts[index];
        let now = host.local(self.now);
        match class {
            Class::Gossip => host.control.as_ref().map(|control| control.hello(now)),
            Class::Calls => host.app.as_ref().map(|app| app.hello(now)),
        }
    }
}

/// The address behind which every seed answers, if the world has one.
pub(super) fn balancer() -> SocketAddr {
    SocketAddr::from(([10, 255, 255, 254], 7_946))
}

/// The packets of a handshake, by stage: the first is padded; certificates go both ways; then a hello and its answer.
const FLIGHTS: [&[usize]; 4] = [&[1_228], &[1_228, 928], &[1_228, 328], &[258]];
/// With how many of its messages a process of a later release sends another one, in millionths.
const LATER_WORDS: u32 = 100_000;
/// When a process that stands still is looked at again.
const PAUSED: Duration = Duration::from_secs(1);
/// How often a connection of calls shows that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Most dials of one process for one address within a minute: as a seed and as a peer, about 17 each once the waits have
/// doubled.
const DIALS_A_MINUTE: usize = 45;
/// The same for an address behind which anybody may answer: whoever did is taken for the one who does, for a while. Not
/// while there is nobody else to talk to.
const DIALS_OF_A_BALANCER: usize = 24;
/// How many times longer than the first a double of a call takes.
/// How often one address is reached within a second at most: once, and once more for another process than it was.
const REACHED_A_SECOND: usize = 3;
const LATE_DOUBLE: u32 = 50;

fn is_call(bytes: &[u8]) -> bool {
    use swimring::forwarder::wire::Frame;
    matches!(Frame::decode(bytes), Ok(Some((Frame::Call(_), _))))
}

fn closed(class: Class, conn: u64) -> Input {
    match class {
        Class::Gossip => Input::Closed(ConnId(conn)),
        Class::Calls => Input::Call(Box::new(CallInput::Closed(ConnId(conn)))),
    }
}
