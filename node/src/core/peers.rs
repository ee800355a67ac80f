//! The connections of one class as a value: whom to dial, which of two connections to keep, when to try
//! again, and what waits for a connection.
//!
//! The shell dials, accepts and closes as told, and reports what came of it. Knows no sockets and no
//! handshake.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use swimring_membership::{Instant, NodeId, Peer, Rng, Timers};

use super::hello::{Class, Hello, Refusal};

mod interface;

pub use interface::{Command, ConnId, DialId, Goodbye, PeersConfig, PeersEvent, Route, Target};

/// Most targets whose failures are remembered.
const FAILURES_MAX: usize = 4_096;

/// How long a peer that is connected, but as another process than the one wanted, is not dialled again.
const OTHER_PROCESS: Duration = Duration::from_secs(1);
/// How long a seed that was this process itself is not dialled again, while there is no connection at all.
const ONESELF: Duration = Duration::from_secs(1);
/// How long whoever answered at a seed's address is taken for the one who answers there, for every connection: should
/// it be an address behind which anybody may answer, all nodes together ask it about twice a second.
const SHARED_EACH: Duration = Duration::from_millis(500);
/// The least of that, and the most: lengthened by a quarter, still less than the minute after which a seed is tried.
const SHARED_MIN: Duration = Duration::from_secs(4);
const SHARED_MAX: Duration = Duration::from_secs(40);

#[derive(Clone, Debug)]
struct Conn {
    peer: Peer,
    life: u64,
    /// What was dialled, if this end did.
    dialled: Option<Target>,
    retired: bool,
    /// When something went over it last.
    used: Instant,
    since: Instant,
}

#[derive(Clone, Debug)]
struct Dial {
    target: Target,
}

#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Timer {
    Dial(DialId),
    Linger(ConnId),
    Age(ConnId),
    Expiry(ConnId),
}

/// What is not done again before a while is over.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Wait {
    Retry(Target),
    Oneself(SocketAddr),
    Shared(SocketAddr),
}

/// The connections of one class.
#[derive(Debug)]
pub struct Peers {
    class: Class,
    me: Peer,
    life: u64,
    config: PeersConfig,
    conns: BTreeMap<ConnId, Conn>,
    by_peer: BTreeMap<Peer, Vec<ConnId>>,
    dials: BTreeMap<DialId, Dial>,
    dialling: BTreeMap<Target, DialId>,
    failures: BTreeMap<Target, u32>,
    oneself: BTreeSet<SocketAddr>,
    /// Who answered at a seed's address a while ago.
    seeds: BTreeMap<SocketAddr, Peer>,
    /// Seeds that were asked for while they had to wait: dialled as soon as they need not.
    asked: BTreeSet<SocketAddr>,
    next_dial: u64,
    timers: Timers<Timer>,
    /// Apart from the others: their keys are large, and there are few of them.
    waits: Timers<Wait>,
    commands: VecDeque<Command>,
    events: VecDeque<PeersEvent>,
    closing: bool,
    rng: Rng,
}

impl Peers {
    /// The connections of `me`, whose process is `life`.
    pub fn new(class: Class, me: Peer, life: u64, config: PeersConfig, rng: Rng) -> Self {
        Self {
            class,
            me,
            life,
            config,
            conns: BTreeMap::new(),
            by_peer: BTreeMap::new(),
            dials: BTreeMap::new(),
            dialling: BTreeMap::new(),
            failures: BTreeMap::new(),
            oneself: BTreeSet::new(),
            seeds: BTreeMap::new(),
            asked: BTreeSet::new(),
            next_dial: 0,
            timers: Timers::default(),
            waits: Timers::default(),
            commands: VecDeque::new(),
            events: VecDeque::new(),
            closing: false,
            rng,
        }
    }

    /// The way to `target`; starts a dial if there is none.
    pub fn route(&mut self, now: Instant, target: Target) -> Route {
        if let Some(conn) = self.connection_to(target) {
            return Route::Connected(conn);
        }
        self.route_anew(now, target)
    }

    /// The way to one process of `peer`, at the class's own `address`. A connection to another process of it is dead
    /// or about to be forgotten: then a dial shows who is there now.
    pub fn route_to_process(&mut self, now: Instant, peer: Peer, address: SocketAddr, life: u64) -> Route {
        let held = self.connection(peer);
        if let Some(conn) = held.filter(|conn| self.conns[conn].life == life) {
            return Route::Connected(conn);
        }
        let target = Target::Peer(peer, address);
        let route = self.route_anew(now, target);
        if route == Route::Dialling && held.is_some() {
            // It may well reach the same process as before: whoever asks for this one has an old view, and does so often.
            self.waits.set(Wait::Retry(target), now + OTHER_PROCESS);
        }
        route
    }

    fn route_anew(&mut self, now: Instant, target: Target) -> Route {
        if self.dialling.contains_key(&target) {
            return Route::Dialling;
        }
        if self.waits.deadline(Wait::Retry(target)).is_some() {
            // Whoever asks for a seed does so seldom: its next turn may come when that has to wait again.
            let Target::Seed(address) = target else { return Route::Unreachable };
            self.asked.insert(address);
            return Route::Dialling;
        }
        // Another node had this address once: nobody but this process can answer there.
        if matches!(target, Target::Peer(peer, _) if peer != self.me && peer.address == self.me.address) {
            return Route::Unreachable;
        }
        if self.is_oneself(target) {
            if let Target::Seed(address) = target {
                self.say_oneself(now, address);
            }
            return Route::Refused;
        }
        if self.closing || self.dials.len() >= self.config.dials_max {
            return Route::Refused;
        }
        self.dial(now, target);
        Route::Dialling
    }

    fn connection_to(&self, target: Target) -> Option<ConnId> {
        match target {
            Target::Peer(peer, _) => self.connection(peer),
            Target::Seed(address) => self.seeds.get(&address).and_then(|peer| self.connection(*peer)),
        }
    }

    fn is_oneself(&self, target: Target) -> bool {
        match target {
            Target::Peer(peer, _) => peer == self.me,
            Target::Seed(address) => address == self.me.address || self.oneself.contains(&address),
        }
    }

    /// A seed that is this process is said once, and forgotten after a while: behind a shared address the next
    /// dial may reach another node.
    fn say_oneself(&mut self, now: Instant, address: SocketAddr) {
        if self.oneself.insert(address) {
            let wait = if self.conns.is_empty() { ONESELF } else { self.wait_for_shared() };
            self.waits.set(Wait::Oneself(address), now + wait);
            self.events.push_back(PeersEvent::Oneself { address });
        }
    }

    fn dial(&mut self, now: Instant, target: Target) {
        let dial = DialId(self.next_dial);
        self.next_dial += 1;
        let (address, expect) = match target {
            Target::Peer(peer, address) => (address, Some(peer.id)),
            Target::Seed(address) => (address, None),
        };
        self.dials.insert(dial, Dial { target });
        self.dialling.insert(target, dial);
        self.timers.set(Timer::Dial(dial), now + self.config.dial_timeout);
        self.commands.push_back(Command::Dial { dial, address, expect });
    }

    /// Something goes over a connection.
    pub fn note_use(&mut self, now: Instant, conn: ConnId) {
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.used = now;
        }
    }

    /// Closes connections to peers that are not `wanted`, over which nothing went for so long.
    pub fn close_unused(&mut self, now: Instant, unused: Duration, wanted: impl Fn(Peer) -> bool) {
        let idle = self.conns.iter().filter(|(_, conn)| now.since(conn.used) >= unused && !wanted(conn.peer));
        for conn in idle.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.commands.push_back(Command::Close { conn, why: Goodbye::Unused });
            self.handle_closed(conn);
        }
    }

    /// The connection to use for `peer`.
    pub fn connection(&self, peer: Peer) -> Option<ConnId> {
        self.by_peer.get(&peer).and_then(|conns| conns.first()).copied()
    }

    /// The other end of a connection.
    pub fn peer(&self, conn: ConnId) -> Option<Peer> {
        self.conns.get(&conn).map(|conn| conn.peer)
    }

    /// How many connections there are.
    pub fn len(&self) -> usize {
        self.conns.len()
    }

    /// Whether there is no connection.
    pub fn is_empty(&self) -> bool {
        self.conns.is_empty()
    }

    /// Every connection, the other end, and which process of it that is.
    pub fn connections(&self) -> impl Iterator<Item = (ConnId, Peer, u64)> {
        self.conns.iter().map(|(id, conn)| (*id, conn.peer, conn.life))
    }

    /// Checks a hello against what this process is. `certified` is the node that the certificate names.
    ///
    /// # Errors
    /// Why the connection is refused; whose fault it is stands with each [`Refusal`].
    pub fn judge(&self, now: Instant, hello: &Hello, certified: NodeId, fingerprint: &[u8; 16]) -> Result<(), Refusal> {
        if hello.class != self.class {
            return Err(Refusal::Class);
        }
        if hello.fingerprint != *fingerprint {
            return Err(Refusal::Cluster);
        }
        if hello.peer.id != certified {
            return Err(Refusal::Identity);
        }
        if hello.life == self.life {
            return Err(Refusal::Oneself);
        }
        if self.closing {
            return Err(Refusal::Leaving);
        }
        // One that takes the place of others is no more than there were.
        if self.is_full() && self.dead(now, hello).is_empty() { Err(Refusal::Full) } else { Ok(()) }
    }

    fn is_full(&self) -> bool {
        self.conns.len() >= self.config.connections_max
    }

    /// Whether a dial is made because there is no connection to its target: what its [`Hello::anew`] says.
    pub fn is_anew(&self, dial: DialId) -> bool {
        let target = self.dials.get(&dial).map(|dial| dial.target);
        matches!(target, Some(Target::Peer(peer, _)) if self.connection(peer).is_none())
    }

    /// A dial succeeded: the hello was answered, and the answer was judged.
    pub fn handle_dialled(&mut self, now: Instant, dial: DialId, conn: ConnId, hello: &Hello) {
        let Some(Dial { target }) = self.end_dial(dial) else {
            self.commands.push_back(Command::Close { conn, why: Goodbye::Late });
            return;
        };
        if self.is_full() {
            self.commands.push_back(Command::Close { conn, why: Goodbye::Full });
            return self.fail(now, target, Refusal::Full.to_string());
        }
        self.failures.remove(&target);
        if let Target::Seed(address) = target {
            // Behind the address the next dial may reach another node.
            let wait = self.wait_for_shared();
            self.seeds.insert(address, hello.peer);
            self.waits.set(Wait::Shared(address), now + wait);
        }
        self.add(now, conn, hello, Some(target));
    }

    /// The next message to a seed goes to whoever answers there then, not to who did a moment ago: for a node that looks
    /// for a cluster, and got no help.
    pub fn try_seeds_anew(&mut self) {
        self.seeds.retain(|address, peer| peer.address == *address);
        self.oneself.clear();
    }

    fn wait_for_shared(&mut self) -> Duration {
        self.rng.jitter((SHARED_EACH * self.conns.len() as u32).clamp(SHARED_MIN, SHARED_MAX))
    }

    /// A dial failed.
    pub fn handle_dial_failed(&mut self, now: Instant, dial: DialId, why: String) {
        if let Some(Dial { target }) = self.end_dial(dial) {
            self.fail(now, target, why);
        }
    }

    fn fail(&mut self, now: Instant, target: Target, why: String) {
        if self.failures.len() >= FAILURES_MAX {
            self.failures.pop_first();
        }
        let failures = self.failures.entry(target).or_insert(0);
        *failures += 1;
        let doubled = self.config.retry_min * (1 << (*failures - 1).min(10));
        let wait = self.rng.jitter(doubled.min(self.config.retry_max));
        self.waits.set(Wait::Retry(target), now + wait);
        self.events.push_back(PeersEvent::Failed { target, why, wait });
    }

    /// A dial reached this process itself.
    pub fn handle_oneself(&mut self, now: Instant, dial: DialId) {
        match self.end_dial(dial).map(|dial| dial.target) {
            Some(Target::Seed(address)) => self.say_oneself(now, address),
            Some(target) => self.fail(now, target, Refusal::Oneself.to_string()),
            None => {}
        }
    }

    fn end_dial(&mut self, dial: DialId) -> Option<Dial> {
        let ended = self.dials.remove(&dial)?;
        self.dialling.remove(&ended.target);
        self.timers.cancel(Timer::Dial(dial));
        Some(ended)
    }

    /// A connection was accepted, and its hello judged; what has changed since counts here.
    pub fn handle_accepted(&mut self, now: Instant, conn: ConnId, hello: &Hello) {
        for conn in self.dead(now, hello) {
            self.commands.push_back(Command::Close { conn, why: Goodbye::Gone });
            self.handle_closed(conn);
        }
        let why = if self.closing { Goodbye::Leaving } else { Goodbye::Full };
        if self.closing || self.is_full() {
            self.commands.push_back(Command::Close { conn, why });
        } else {
            self.add(now, conn, hello, None);
        }
    }

    /// If a process dials for it has no connection to this one: those that stand here have ended there, and the word of it
    /// was lost. One that is younger than two dials last may just have crossed this one, which was read late.
    fn dead(&self, now: Instant, hello: &Hello) -> Vec<ConnId> {
        let is_dead = |id: &ConnId| {
            let conn = &self.conns[id];
            conn.life == hello.life && now.since(conn.since) > self.config.dial_timeout * 2
        };
        let held = self.by_peer.get(&hello.peer).filter(|_| hello.anew);
        held.into_iter().flatten().copied().filter(is_dead).collect()
    }

    fn add(&mut self, now: Instant, id: ConnId, hello: &Hello, dialled: Option<Target>) {
        let peer = hello.peer;
        let conn = Conn { peer, life: hello.life, dialled, retired: false, used: now, since: now };
        let age = self.rng.jitter(self.config.age_max);
        if dialled.is_some() {
            self.timers.set(Timer::Age(id), now + age);
        }
        self.timers.set(Timer::Expiry(id), now + age * 2);
        self.make_room(peer.id);
        let held = self.by_peer.entry(peer).or_default();
        let first = held.is_empty();
        held.push(id);
        self.conns.insert(id, conn);
        self.retire_losers(now, peer, hello.life);
        let stands = self.connection(peer).is_some_and(|kept| kept == id);
        // Whoever dialled waits for its target, whichever connection is kept.
        let kept = self.connection(peer).unwrap_or(id);
        if first || stands || dialled.is_some() {
            self.events.push_back(PeersEvent::Up { peer, conn: kept, dialled });
        }
    }

    /// Too many connections of one node: the oldest goes.
    fn make_room(&mut self, id: NodeId) {
        let of_node = self.conns.iter().filter(|(_, conn)| conn.peer.id == id);
        let of_node: Vec<ConnId> = of_node.map(|(conn, _)| *conn).collect();
        if of_node.len() >= self.config.connections_of_node_max {
            self.commands.push_back(Command::Close { conn: of_node[0], why: Goodbye::Gone });
            self.handle_closed(of_node[0]);
        }
    }

    /// Of several connections to one process, both ends keep the one that the lower id dialled. One to an
    /// earlier process at the same address is dead.
    fn retire_losers(&mut self, now: Instant, peer: Peer, life: u64) {
        let mine_wins = self.me.id < peer.id;
        let ids = self.by_peer[&peer].clone();
        let (live, dead): (Vec<ConnId>, Vec<ConnId>) = ids.into_iter().partition(|id| self.conns[id].life == life);
        for conn in dead {
            self.drop_conn(conn);
            self.commands.push_back(Command::Close { conn, why: Goodbye::Gone });
        }
        // The newest of the winning direction is kept; with none, the newest. What has lost once has lost.
        let standing = |id: &&ConnId| !self.conns[id].retired;
        let wins = |id: &&ConnId| self.conns[id].dialled.is_some() == mine_wins;
        let newest = live.iter().filter(standing).filter(wins).max().or(live.iter().filter(standing).max());
        let kept = newest.or(live.iter().max()).copied();
        let Some(kept) = kept else { return };
        let held = self.by_peer.get_mut(&peer).expect("the connection was just added");
        held.retain(|id| *id != kept);
        held.insert(0, kept);
        for id in held.iter().skip(1) {
            let conn = self.conns.get_mut(id).expect("held connections are known");
            // The end that dialled a loser closes it, so that the two do not close different ones.
            if conn.dialled.is_some() && !conn.retired {
                conn.retired = true;
                self.timers.set(Timer::Linger(*id), now + self.config.linger);
            }
        }
    }

    /// A connection has ended, whoever ended it.
    pub fn handle_closed(&mut self, conn: ConnId) {
        if let Some(peer) = self.drop_conn(conn)
            && self.connection(peer).is_none()
        {
            self.by_peer.remove(&peer);
            self.events.push_back(PeersEvent::Down { peer });
        }
    }

    fn drop_conn(&mut self, id: ConnId) -> Option<Peer> {
        let conn = self.conns.remove(&id)?;
        self.timers.cancel(Timer::Linger(id));
        self.timers.cancel(Timer::Age(id));
        self.timers.cancel(Timer::Expiry(id));
        if let Some(held) = self.by_peer.get_mut(&conn.peer) {
            held.retain(|other| *other != id);
        }
        Some(conn.peer)
    }

    /// One process of the peer is gone: closes its connections, and no other's. Whoever is there next is dialled at once.
    pub fn forget(&mut self, peer: Peer, life: u64, why: Goodbye) {
        for conn in self.by_peer.get(&peer).cloned().unwrap_or_default() {
            if self.conns[&conn].life == life {
                self.commands.push_back(Command::Close { conn, why });
                self.handle_closed(conn);
            }
        }
        let stale: Vec<Target> = self.failures.keys().filter(|target| is_to(**target, peer)).copied().collect();
        for target in stale {
            self.failures.remove(&target);
            self.waits.cancel(Wait::Retry(target));
        }
    }

    /// Whether [`close`](Self::close) was asked for.
    pub fn is_closing(&self) -> bool {
        self.closing
    }

    /// Closes everything and refuses what comes.
    pub fn close(&mut self) {
        self.closing = true;
        for (conn, _) in core::mem::take(&mut self.conns) {
            self.commands.push_back(Command::Close { conn, why: Goodbye::Leaving });
        }
        for dial in core::mem::take(&mut self.dials).into_keys() {
            self.commands.push_back(Command::Abort { dial });
        }
        (self.by_peer, self.dialling) = (BTreeMap::new(), BTreeMap::new());
        (self.timers, self.waits) = (Timers::default(), Timers::default());
    }

    /// Closes a connection whose other end broke the protocol.
    pub fn expel(&mut self, conn: ConnId) {
        self.close_one(conn, Goodbye::Malformed);
    }

    /// Closes a connection on which nothing comes; whether it was known.
    pub fn give_up(&mut self, conn: ConnId) -> bool {
        let known = self.conns.contains_key(&conn);
        if known {
            self.close_one(conn, Goodbye::Silent);
        }
        known
    }

    fn close_one(&mut self, conn: ConnId, why: Goodbye) {
        self.commands.push_back(Command::Close { conn, why });
        self.handle_closed(conn);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((_, wait)) = self.waits.pop_due(now) {
            match wait {
                Wait::Retry(target) => self.on_waited(now, target),
                Wait::Oneself(address) => _ = self.oneself.remove(&address),
                Wait::Shared(address) => _ = self.seeds.remove(&address),
            }
        }
        while let Some((_, timer)) = self.timers.pop_due(now) {
            match timer {
                Timer::Dial(dial) => {
                    self.commands.push_back(Command::Abort { dial });
                    self.handle_dial_failed(now, dial, "no answer in time".into());
                }
                Timer::Age(conn) => self.renew(now, conn),
                Timer::Expiry(conn) => {
                    self.commands.push_back(Command::Close { conn, why: Goodbye::Gone });
                    self.handle_closed(conn);
                }
                Timer::Linger(conn) if self.is_kept(conn) => {
                    // The one that it had lost to has ended.
                    if let Some(kept) = self.conns.get_mut(&conn) {
                        kept.retired = false;
                    }
                }
                Timer::Linger(conn) => {
                    self.commands.push_back(Command::Close { conn, why: Goodbye::Duplicate });
                    self.handle_closed(conn);
                }
            }
        }
    }

    /// A target need not wait any more; if it was asked for meanwhile, somebody waits for it.
    fn on_waited(&mut self, now: Instant, target: Target) {
        if !matches!(target, Target::Seed(address) if self.asked.remove(&address)) {
            return;
        }
        match self.route(now, target) {
            Route::Connected(conn) => {
                let peer = self.conns[&conn].peer;
                self.failures.remove(&target);
                self.events.push_back(PeersEvent::Up { peer, conn, dialled: Some(target) });
            }
            Route::Dialling => {}
            Route::Unreachable | Route::Refused => self.fail(now, target, "too many dials are under way".into()),
        }
    }

    fn is_kept(&self, id: ConnId) -> bool {
        self.conns.get(&id).is_some_and(|conn| self.connection(conn.peer) == Some(id))
    }

    /// The connection is old: the one that is dialled now will be kept instead, if it is still the one that is kept. If not,
    /// it may be again: the other one may end first.
    fn renew(&mut self, now: Instant, id: ConnId) {
        let Some(&Conn { peer, dialled: Some(target), .. }) = self.conns.get(&id) else { return };
        if self.is_kept(id) {
            let own = matches!(target, Target::Peer(..)).then_some(target);
            self.route_anew(now, own.unwrap_or(Target::Peer(peer, peer.address)));
        }
        let again = self.rng.jitter(self.config.age_max / 16);
        self.timers.set(Timer::Age(id), now + again);
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next().into_iter().chain(self.waits.next()).min()
    }

    /// The next thing to do.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// The next change.
    pub fn poll_event(&mut self) -> Option<PeersEvent> {
        self.events.pop_front()
    }
}

fn is_to(target: Target, peer: Peer) -> bool {
    matches!(target, Target::Peer(other, _) if other == peer)
}

#[cfg(test)]
mod tests;
