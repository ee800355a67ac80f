//! The control plane of one node: membership over its gossip connections.
//!
//! Composes [`Membership`] and [`Peers`] and decides only what lies between them: which connection a message
//! takes, what waits for a dial, and who is kept warm.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use swimring_membership::codec::Malformed;
use swimring_membership::{
    Config, Delivery, Destination, Event, Instant, InvalidProfile, Membership, NodeId, Peer, Rng, Start, State, Timers,
    Transmit,
};

use super::hello::{Class, Hello, Refusal};
use super::peers::{Command, ConnId, DialId, Goodbye, Peers, PeersConfig, PeersEvent, Route, Target};

/// Most messages that wait for one dial; the newest are refused, for old news is told again.
const WAITING_MAX: usize = 16;
/// How often connections that nobody wants are looked for, where not everybody is connected to everybody.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// For how long nothing went over one before it is closed.
const UNUSED: Duration = Duration::from_secs(20);
/// How much longer the higher id waits before it dials a new member itself: the lower id dials first.
const COURTESY: Duration = Duration::from_millis(400);

/// One node's control plane. Pump it like [`Membership`].
#[derive(Debug)]
pub struct Control {
    membership: Membership,
    peers: Peers,
    me: Peer,
    life: u64,
    fingerprint: [u8; 16],
    /// Members that should be connected and are not yet.
    wanted: Timers<Peer>,
    /// Of which neighbours `wanted` was made.
    neighbours: u64,
    /// When connections that nobody wants are looked for next.
    sweep: Option<Instant>,
    waiting: BTreeMap<Target, Vec<(Delivery, Vec<u8>)>>,
    ready: VecDeque<(ConnId, Delivery, Vec<u8>)>,
    events: VecDeque<ControlEvent>,
    rng: Rng,
}

/// A fact for the layer above.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ControlEvent {
    /// Of membership.
    Membership(Event),
    /// Of the gossip connections.
    Peers(PeersEvent),
}

/// A message to hand to the transport.
#[must_use = "a message that the transport does not take must be reported with `handle_unsent`"]
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Sending {
    /// On which connection.
    pub conn: ConnId,
    /// How.
    pub delivery: Delivery,
    transmit: Option<Transmit>,
}

impl Control {
    /// The control plane of a node that starts. `fingerprint` is of the cluster's secret and constants.
    ///
    /// # Errors
    /// If the profile breaks a limit.
    pub fn new(
        now: Instant,
        config: Config,
        peers: PeersConfig,
        start: Start,
        fingerprint: [u8; 16],
    ) -> Result<Self, InvalidProfile> {
        let rng = Rng::new(start.seed ^ 0x636f_6e74_726f_6c00);
        let life = start.life;
        let membership = Membership::new(now, config, start)?;
        let me = membership.record().peer();
        Ok(Self {
            peers: Peers::new(Class::Gossip, me, life, peers, rng.fork(1)),
            rng: rng.fork(2),
            membership,
            me,
            life,
            fingerprint,
            wanted: Timers::default(),
            neighbours: 0,
            sweep: None,
            waiting: BTreeMap::new(),
            ready: VecDeque::new(),
            events: VecDeque::new(),
        })
    }

    /// The membership, to look at.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Gives the membership a command of the application, and does what follows from it.
    pub fn command<R>(&mut self, now: Instant, give: impl FnOnce(&mut Membership) -> R) -> R {
        let result = give(&mut self.membership);
        self.settle(now);
        result
    }

    /// The gossip connections, to look at.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// How many messages wait for a connection to which target.
    pub fn waiting(&self) -> impl Iterator<Item = (Target, usize)> {
        self.waiting.iter().map(|(target, messages)| (*target, messages.len()))
    }

    /// What this process says first on a connection.
    pub fn hello(&self, now: Instant) -> Hello {
        Hello {
            class: Class::Gossip,
            peer: self.me,
            life: self.life,
            fingerprint: self.fingerprint,
            clock: now.as_nanos(),
            anew: false,
        }
    }

    /// Judges the hello of another process.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn judge(&self, now: Instant, hello: &Hello, certified: NodeId) -> Result<(), Refusal> {
        self.peers.judge(now, hello, certified, &self.fingerprint)
    }

    /// A message came in on a connection.
    ///
    /// # Errors
    /// If it is none; the connection is closed, for its bytes cannot be trusted any more.
    pub fn handle_message(&mut self, now: Instant, conn: ConnId, bytes: &[u8]) -> Result<(), Malformed> {
        let Some(peer) = self.peers.peer(conn) else {
            return Ok(());
        };
        self.peers.note_use(now, conn);
        let result = self.membership.handle_message(now, peer, bytes);
        if result.is_err() {
            self.peers.expel(conn);
        }
        self.settle(now);
        result
    }

    /// A dial's hello was answered and judged.
    pub fn handle_dialled(&mut self, now: Instant, dial: DialId, conn: ConnId, hello: &Hello) {
        self.peers.handle_dialled(now, dial, conn, hello);
        self.settle(now);
    }

    /// A dial failed.
    pub fn handle_dial_failed(&mut self, now: Instant, dial: DialId, why: String) {
        self.peers.handle_dial_failed(now, dial, why);
        self.settle(now);
    }

    /// A dial reached this process itself.
    pub fn handle_oneself(&mut self, now: Instant, dial: DialId) {
        self.peers.handle_oneself(now, dial);
        self.settle(now);
    }

    /// A connection was accepted, and its hello judged.
    pub fn handle_accepted(&mut self, now: Instant, conn: ConnId, hello: &Hello) {
        self.peers.handle_accepted(now, conn, hello);
        self.settle(now);
    }

    /// A connection has ended.
    pub fn handle_closed(&mut self, now: Instant, conn: ConnId) {
        self.peers.handle_closed(conn);
        self.settle(now);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.membership.handle_timeout(now);
        self.peers.handle_timeout(now);
        while let Some((_, peer)) = self.wanted.pop_due(now) {
            self.keep_warm(now, peer);
        }
        if self.sweep.is_some_and(|at| at <= now) {
            self.sweep = (!self.membership.is_mesh()).then(|| now + SWEEP_EVERY);
            let neighbours: BTreeSet<Peer> = self.membership.neighbours().collect();
            self.peers.close_unused(now, UNUSED, |peer| neighbours.contains(&peer));
        }
        self.settle(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.membership.poll_timeout(), self.peers.poll_timeout(), self.wanted.next(), self.sweep]
            .into_iter()
            .flatten()
            .min()
    }

    /// Appends the next message to `out` and says where it goes.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut Vec<u8>) -> Option<Sending> {
        if let Some((conn, delivery, bytes)) = self.ready.pop_front() {
            out.extend_from_slice(&bytes);
            return Some(Sending { conn, delivery, transmit: None });
        }
        loop {
            let start = out.len();
            let transmit = self.membership.poll_transmit(now, out)?;
            let target = target_of(transmit.to);
            match self.peers.route(now, target) {
                Route::Connected(conn) => {
                    self.peers.note_use(now, conn);
                    return Some(Sending { conn, delivery: transmit.delivery, transmit: Some(transmit) });
                }
                Route::Dialling => {
                    let waiting = self.waiting.entry(target).or_default();
                    if waiting.len() < WAITING_MAX {
                        let message = (transmit.delivery, out[start..].to_vec());
                        // Whoever asks the same again while nobody was there to answer asks once.
                        waiting.extend((!waiting.contains(&message)).then_some(message));
                        // The dial may fail: what is told to nobody must not count as told.
                        self.membership.handle_unreachable(&transmit);
                    } else {
                        self.membership.handle_unsent(&transmit);
                    }
                }
                // The failed dial was the question, and its silence the answer.
                Route::Unreachable => self.membership.handle_unreachable(&transmit),
                Route::Refused => self.membership.handle_unsent(&transmit),
            }
            out.truncate(start);
        }
    }

    /// The transport did not take what [`poll_transmit`](Self::poll_transmit) gave last.
    pub fn handle_unsent(&mut self, sending: &Sending) {
        if let Some(transmit) = &sending.transmit {
            self.membership.handle_unsent(transmit);
        }
    }

    /// The next thing to do with connections.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.peers.poll_command()
    }

    /// The next fact.
    pub fn poll_event(&mut self) -> Option<ControlEvent> {
        self.events.pop_front()
    }

    /// Ends: closes every connection. Say goodbye with [`Membership::leave`] before.
    pub fn close(&mut self) {
        self.peers.close();
    }

    /// What follows between the two machines from what one of them did.
    fn settle(&mut self, now: Instant) {
        while let Some(event) = self.membership.poll_event() {
            if let Event::Changed { id, before, state, .. } = event {
                let was_present = before.is_some_and(|(state, _)| state.is_present());
                self.on_changed(now, id, was_present, state);
            }
            if matches!(event, Event::Joined) {
                self.on_neighbours(now);
            }
            if matches!(event, Event::JoinRetrying { .. }) {
                self.peers.try_seeds_anew();
            }
            self.events.push_back(ControlEvent::Membership(event));
        }
        if self.neighbours != self.membership.neighbours_version() {
            self.on_neighbours(now);
        }
        while let Some(event) = self.peers.poll_event() {
            self.on_peers_event(now, &event);
            self.events.push_back(ControlEvent::Peers(event));
        }
    }

    fn on_changed(&mut self, now: Instant, id: NodeId, was_present: bool, state: State) {
        let Some((peer, life)) = self.membership.member(id).map(|member| (member.record.peer(), member.record.life()))
        else {
            return;
        };
        if peer.id == self.me.id {
            if state == State::Left {
                // It wants to be let in nowhere any more.
                self.waiting.retain(|target, _| !matches!(target, Target::Seed(_)));
            }
            return;
        }
        if state.is_present() {
            self.want(now, peer);
        } else if was_present && !state.is_present() {
            self.wanted.cancel(peer);
            self.peers.forget(peer, life, Goodbye::Gone);
        }
    }

    /// Others are neighbours now. Those that are none any more stay connected until nothing has gone there for a while, so
    /// that the new ones are warm before.
    fn on_neighbours(&mut self, now: Instant) {
        self.neighbours = self.membership.neighbours_version();
        if !self.membership.is_mesh() && self.sweep.is_none() {
            self.sweep = Some(now + SWEEP_EVERY);
        }
        let neighbours: Vec<Peer> = self.membership.neighbours().collect();
        neighbours.into_iter().for_each(|peer| self.want(now, peer));
    }

    fn want(&mut self, now: Instant, peer: Peer) {
        // A list that comes in parts makes others neighbours with each part.
        if self.membership.is_joined() && self.membership.is_neighbour(peer.id) && self.peers.connection(peer).is_none()
        {
            let courtesy = if self.me.id < peer.id { Duration::ZERO } else { self.rng.jitter(COURTESY) };
            self.wanted.set_earlier(peer, now + courtesy);
        }
    }

    /// Probes never dial: a neighbour is connected before its turn comes, and stays so.
    fn keep_warm(&mut self, now: Instant, peer: Peer) {
        let current = self.membership.roster().present(peer.id).is_some_and(|member| member.record.peer() == peer);
        if !current || !self.membership.is_neighbour(peer.id) {
            return;
        }
        if !matches!(self.peers.route(now, Target::Peer(peer, peer.address)), Route::Connected(_)) {
            let again = self.rng.jitter(COURTESY * 2);
            self.wanted.set(peer, now + again);
        }
    }

    fn on_peers_event(&mut self, now: Instant, event: &PeersEvent) {
        match event {
            PeersEvent::Up { peer, conn, dialled } => {
                self.wanted.cancel(*peer);
                self.membership.handle_connected(now, *peer);
                let own = Target::Peer(*peer, peer.address);
                for target in [Some(own), *dialled].into_iter().flatten() {
                    for (delivery, bytes) in self.waiting.remove(&target).unwrap_or_default() {
                        self.ready.push_back((*conn, delivery, bytes));
                    }
                }
            }
            PeersEvent::Down { peer } => self.wanted.set_earlier(*peer, now),
            PeersEvent::Failed { target, .. } => {
                self.waiting.remove(target);
            }
            PeersEvent::Oneself { address } => {
                self.waiting.remove(&Target::Seed(*address));
            }
        }
    }
}

fn target_of(destination: Destination) -> Target {
    match destination {
        Destination::Peer(peer) => Target::Peer(peer, peer.address),
        Destination::Seed(address) => Target::Seed(address),
    }
}
