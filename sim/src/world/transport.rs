//! Connections of the world: handshakes, datagrams, frames, idle ends.

use swimring::core::hello::Refusal;
use swimring_membership::NodeId;

use super::*;
use crate::host::peers_config;

impl World {
    // Connections.

    pub(super) fn send(&mut self, from: Process, conn: ConnId, delivery: Delivery, bytes: &[u8]) -> bool {
        let Some(held) = self.network.conns.get(&conn.0) else {
            return false;
        };
        let Some(mine) = held.end_of(from).filter(|end| held.ends[*end].open) else {
            return false;
        };
        let end = 1 - mine;
        let to = held.ends[end].process;
        match delivery {
            Delivery::Datagram => {
                for after in self.network.fate(from.host, to.host).arrivals {
                    self.schedule(self.now + after, Happening::Datagram { conn: conn.0, end, bytes: bytes.to_vec() });
                }
            }
            Delivery::Stream => self.send_frame(conn.0, end, None, bytes.to_vec(), 0),
        }
        true
    }

    /// Sends a frame that keeps its place among those sent on its lane before, or one on a stream of its own.
    pub(crate) fn send_call_frame(&mut self, from: Process, conn: u64, lane: Option<usize>, bytes: Vec<u8>) {
        let Some(held) = self.network.conns.get_mut(&conn) else {
            return;
        };
        let Some(mine) = held.end_of(from).filter(|end| held.ends[*end].open) else {
            return;
        };
        let place = lane.map(|lane| held.ends[mine].take_place(lane));
        self.send_frame(conn, 1 - mine, place, bytes, 0);
    }

    /// Sends a frame, or sends it again: what is lost takes longer, and a cut holds it up.
    fn send_frame(&mut self, conn: u64, end: usize, place: Option<Place>, bytes: Vec<u8>, tries: u32) {
        let Some(held) = self.network.conns.get(&conn) else {
            return;
        };
        let class = held.class;
        let (from, to) = (held.ends[1 - end].process.host, held.ends[end].process.host);
        let fate = self.network.fate(from, to);
        match fate.arrivals.first() {
            Some(after) => {
                // QUIC delivers once. What lies below a call must not be trusted with that: a double may come
                // late, out of its place.
                if fate.arrivals.len() > 1 && class == Class::Calls && is_call(&bytes) {
                    let late = *after * LATE_DOUBLE;
                    let double = Happening::Frame { conn, end, place: None, bytes: bytes.clone(), tries: u32::MAX };
                    self.schedule(self.now + late, double);
                }
                self.schedule(self.now + *after, Happening::Frame { conn, end, place, bytes, tries: u32::MAX });
            }
            None => {
                let wait = (FRAME_RETRY * (1 << tries.min(10))).min(FRAME_RETRY_MAX);
                self.schedule(self.now + wait, Happening::Frame { conn, end, place, bytes, tries });
            }
        }
    }

    pub(super) fn on_frame(&mut self, conn: u64, end: usize, place: Option<Place>, bytes: Vec<u8>, tries: u32) {
        let Some(held) = self.network.conns.get_mut(&conn) else {
            return;
        };
        if tries != u32::MAX {
            if held.ends[1 - end].open {
                self.send_frame(conn, end, place, bytes, tries + 1);
            }
            return;
        }
        let ready = match place {
            Some(place) => held.ends[end].in_order(place, bytes),
            None => vec![bytes],
        };
        ready.into_iter().for_each(|bytes| self.arrive(conn, end, bytes));
    }

    pub(super) fn on_datagram(&mut self, conn: u64, end: usize, bytes: Vec<u8>) {
        self.arrive(conn, end, bytes);
    }

    /// A packet with a message reaches one end. Whoever gets a packet for a connection that it does not know
    /// says so.
    fn arrive(&mut self, conn: u64, end: usize, bytes: Vec<u8>) {
        let Some(held) = self.network.conns.get_mut(&conn) else {
            return;
        };
        let class = held.class;
        let (to, from) = (held.ends[end].process, held.ends[1 - end].process);
        if held.ends[end].open {
            held.ends[end].heard = self.now;
            if self.network.passes(to.host, from.host)
                && let Some(held) = self.network.conns.get_mut(&conn)
            {
                // The acknowledgement.
                held.ends[1 - end].heard = self.now;
            }
            let input = match class {
                Class::Gossip => Input::Message(ConnId(conn), bytes),
                Class::Calls => Input::Call(Box::new(CallInput::Frame(ConnId(conn), bytes))),
            };
            self.give(to, input);
        } else if self.hosts[to.host].is_up() && self.network.passes(to.host, from.host) {
            self.reset(conn, from);
            self.go_astray(class, from, to.host, bytes);
        }
    }

    /// QUIC would drop what comes for a connection that has ended. What lies below a call must not be trusted with
    /// that either: a call may come out of the next connection, even at the next process.
    fn go_astray(&mut self, class: Class, from: Process, host: usize, bytes: Vec<u8>) {
        let now_there = self.hosts[host].process();
        if class == Class::Calls
            && is_call(&bytes)
            && let Some((conn, _)) = self.network.newest(class, from, now_there)
        {
            self.give(now_there, Input::Call(Box::new(CallInput::Frame(ConnId(conn), bytes))));
        }
    }

    /// The other end does not know the connection: this one gives it up.
    fn reset(&mut self, conn: u64, process: Process) {
        let open = |held: &&Conn| held.end_of(process).is_some_and(|end| held.ends[end].open);
        let Some(class) = self.network.conns.get(&conn).filter(open).map(|held| held.class) else {
            return;
        };
        self.network.close_end(conn, process);
        self.schedule(self.now, Happening::Input(process, closed(class, conn)));
    }

    /// A process closes a connection; the other end hears of it if a packet passes.
    pub(crate) fn close(&mut self, conn: u64, process: Process) {
        let Some(held) = self.network.conns.get(&conn) else {
            return;
        };
        let other = held.ends.iter().find(|end| end.process != process).map(|end| end.process);
        self.network.close_end(conn, process);
        if let Some(other) = other
            && !self.network.fate(process.host, other.host).arrivals.is_empty()
        {
            self.reset(conn, other);
        }
    }

    fn idle(&self) -> Duration {
        IDLE + IDLE_PER_NODE * self.hosts.len() as u32
    }

    pub(super) fn on_idle(&mut self, conn: u64, process: Process) {
        let Some(held) = self.network.conns.get(&conn) else {
            return;
        };
        let Some(end) = held.end_of(process).filter(|end| held.ends[*end].open) else {
            return;
        };
        let (class, other) = (held.class, held.ends[1 - end].process);
        let due = held.ends[end].heard + self.idle();
        if class == Class::Calls && self.is_heard(process, other) {
            // Connections of calls are kept alive, and so the loss of the other end is noticed.
            if !held.ends[1 - end].open || self.hosts[other.host].process() != other {
                return self.reset(conn, process);
            }
            if let Some(held) = self.network.conns.get_mut(&conn) {
                held.ends[end].heard = self.now;
            }
        } else if due <= self.now {
            let input = closed(class, conn);
            self.network.close_end(conn, process);
            return self.give(process, input);
        }
        self.watch_idle(conn, class, process, due);
    }

    fn watch_idle(&mut self, conn: u64, class: Class, process: Process, due: Instant) {
        let next = if class == Class::Calls { self.now + KEEP_ALIVE } else { due };
        self.schedule(next.max(self.now), Happening::Idle { conn, process });
    }

    /// Whether a packet now would be answered by the host of `other`.
    fn is_heard(&self, process: Process, other: Process) -> bool {
        let there = &self.hosts[other.host];
        let passes = |from, to| self.network.passes(from, to);
        there.is_up() && !there.paused && passes(process.host, other.host) && passes(other.host, process.host)
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
        let waits = self.dials.waits(dialler, class, address, expect).is_some_and(|until| self.now < until);
        self.check(dialler.host, Property::H2, !waits, || format!("dialled {address} again without the wait"));
        let count = self.dials.note(self.now, dialler, class, address);
        let alone = self.hosts[dialler.host].peers(class).is_none_or(|peers| peers.is_empty());
        let alone = self.dials.was_alone(self.now, dialler, alone);
        let most = if address == balancer() && !alone { DIALS_OF_A_BALANCER } else { DIALS_A_MINUTE };
        self.check(dialler.host, Property::H1, count <= most, || {
            format!("dialled {address} for {class:?} {count} times within a minute")
        });
        let under_way = self.dials.begin(dialler, class, dial);
        self.check(dialler.host, Property::B3, under_way <= peers_config(class).dials_max, || {
            format!("{under_way} dials under way")
        });
        let asked = self.hosts[dialler.host].local(self.now);
        if let Some(there) = self.host_at(class, address) {
            self.send_handshake(Handshake { dialler, dial, there, class, asked, stage: 0, tries: 0, conn: None });
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
        match class {
            Class::Gossip => machine.control.as_ref().map_or(gone, |control| control.judge(hello, certified)),
            Class::Calls => machine.app.as_ref().map_or(gone, |app| app.peers.judge(hello, certified, &[7; 16])),
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
        match self.network.fate(from, to).arrivals.first() {
            Some(after) => {
                let at = self.now + *after;
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
            None => {}
        }
    }

    pub(super) fn on_handshake(&mut self, mut handshake: Handshake) {
        let (here, there) = (handshake.dialler, handshake.there);
        if handshake.tries > 0 {
            return self.send_handshake(handshake);
        }
        let answering = matches!(handshake.stage, 1 | 3);
        let alive = if answering {
            self.hosts[there].is_up() && !self.hosts[there].paused
        } else {
            self.hosts[here.host].process() == here
        };
        if !alive {
            return;
        }
        match handshake.stage {
            2 => {
                handshake.asked = self.hosts[here.host].local(self.now);
                self.send_handshake(handshake);
            }
            3 => self.on_hello(there, handshake),
            4 => {
                let (Some(hello), Some(conn)) = (self.hello(there, handshake.class), handshake.conn) else {
                    return;
                };
                let judged = self.judge(here.host, handshake.class, &hello, self.hosts[there].id);
                if judged.is_err() {
                    self.close(conn, here);
                }
                self.dialled(&handshake, judged.map(|()| (ConnId(conn), hello)));
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
        let acceptor = self.hosts[there].process();
        let id = self.hosts[here.host].id;
        if let Err(refusal) = self.judge(there, class, &hello, id) {
            return self.dialled(&handshake, Err(refusal));
        }
        let open = here != acceptor && !self.hosts[there].closed;
        self.check(there, Property::P2, open, || {
            format!("let {} in: itself, or although it goes away", hello.peer.address)
        });
        let conn = self.network.connect(Conn::new(class, here, acceptor, self.now));
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
