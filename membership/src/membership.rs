//! The state machine: its verbs, and which rule each input goes to.
//!
//! No rule is decided here. `news` admits what is heard, `probe` asks who is alive, `join` and `merge`
//! compare views, `identity` defends this node's own name.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::net::SocketAddr;

use crate::codec::{Blob, Malformed};
use crate::contacts::Contacts;
use crate::event::{Event, Stats};
use crate::fence::Fences;
use crate::identity::Me;
use crate::join::Joiner;
use crate::merge::Reconciler;
use crate::overlay::Overlay;
use crate::probe::{Helper, Prober, Recent};
use crate::record::{Heard, InvalidProfile};
use crate::rumours::Rumours;
use crate::suspicion::Suspicion;
use crate::timers::Timers;
use crate::verdicts::Verdicts;
use crate::wire::{self, Belief, Header, Message, UPDATES_MAX, Update};
use crate::{Config, Instant, Member, Name, NodeId, Peer, Phase, Profile, Record, Rng, Roster, State};

/// Bytes of a datagram that a header and its message take besides the updates, generously.
const OVERHEAD_BYTES: usize = 112;
/// How many rows are tried for each random member that is wanted.
const PICKS: usize = 8;
/// Longest record that rides in a datagram; a longer one is announced and fetched.
pub(crate) const RECORD_DATAGRAM_BYTES_MAX: usize = 320;

/// Where a message goes.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Destination {
    /// To this node at this address.
    Peer(Peer),
    /// To whichever node of the cluster answers there, but not to oneself.
    Seed(SocketAddr),
}

/// How a message travels.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// May be lost, doubled or overtaken; never larger than [`datagram_bytes_max`](crate::Settings::datagram_bytes_max).
    Datagram,
    /// Arrives whole, or the connection ends.
    Stream,
}

/// A message to send.
#[must_use = "a message that is not handed to the transport must be reported with `handle_unsent`"]
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Transmit {
    /// To whom.
    pub to: Destination,
    /// How.
    pub delivery: Delivery,
    pub(crate) probe: Option<u32>,
}

/// What waits to be sent. Headers are written when it is polled, so that they are fresh.
#[derive(Clone, Debug)]
pub(crate) enum Outgoing {
    Ping { seq: u32, accusation: Belief, delivery: Delivery },
    Ack { seq: u32, introduce: bool },
    PingReq { seq: u32, target: Peer, budget_ms: u32 },
    Reached { seq: u32 },
    Nack { seq: u32 },
    Rumours { introduce: bool, delivery: Delivery },
    Whole(Message),
}

/// Which deadline.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Timer {
    ProbeRound,
    Probe(u32),
    Relay(u32),
    Suspicion(NodeId),
    Rumours,
    Join,
    Heal,
    Mesh,
    Reap(NodeId),
}

/// How a node starts.
#[derive(Clone, Debug)]
pub struct Start {
    /// The cluster, as the certificate says.
    pub cluster: Name,
    /// What the node says of itself.
    pub profile: Profile,
    /// The life of its name, above every earlier one that the state directory knows; at least 1.
    pub boot: u32,
    /// A random number that no other process has.
    pub life: u64,
    /// The seed of everything random in here.
    pub seed: u64,
}

/// One node's knowledge of its cluster. Owned by one task; no lock, no clock, no socket.
///
/// Feed it with [`handle_message`](Self::handle_message) and [`handle_timeout`](Self::handle_timeout); after
/// every input drain [`poll_transmit`](Self::poll_transmit) and [`poll_event`](Self::poll_event), then wait
/// for [`poll_timeout`](Self::poll_timeout). `now` must never go back.
#[derive(Debug)]
pub struct Membership {
    pub(crate) config: Config,
    pub(crate) me: Me,
    pub(crate) roster: Roster,
    pub(crate) rumours: Rumours,
    pub(crate) suspicions: BTreeMap<NodeId, Suspicion>,
    pub(crate) verdicts: Verdicts,
    pub(crate) overlay: Overlay,
    pub(crate) prober: Prober,
    pub(crate) recent: Recent,
    pub(crate) health: u32,
    pub(crate) joiner: Joiner,
    pub(crate) reconciler: Reconciler,
    pub(crate) contacts: Contacts,
    pub(crate) timers: Timers<Timer>,
    pub(crate) outbox: VecDeque<(Destination, Outgoing)>,
    pub(crate) events: VecDeque<Event>,
    pub(crate) fences: Fences,
    pub(crate) heard: Heard,
    pub(crate) stats: Stats,
    pub(crate) rng: Rng,
}

impl Membership {
    /// A node that knows only itself. It is a member of a cluster once [`join`](Self::join) has succeeded.
    ///
    /// # Errors
    /// If the profile breaks a limit; the caller's fault.
    pub fn new(now: Instant, config: Config, start: Start) -> Result<Self, InvalidProfile> {
        start.profile.validate()?;
        let rng = Rng::new(start.seed);
        let me = Me::new(start);
        let mut roster = Roster::default();
        roster.admit_record(now, &me.record);
        let mut membership = Self {
            prober: Prober::new(rng.fork(1)),
            joiner: Joiner::new(rng.fork(2)),
            contacts: Contacts::new(rng.fork(3)),
            rng: rng.fork(4),
            overlay: Overlay::new(me.id),
            verdicts: Verdicts::default(),
            me,
            roster,
            rumours: Rumours::default(),
            suspicions: BTreeMap::new(),
            recent: Recent::default(),
            health: 0,
            reconciler: Reconciler::default(),
            timers: Timers::default(),
            outbox: VecDeque::new(),
            events: VecDeque::new(),
            fences: Fences::default(),
            heard: Heard::default(),
            stats: Stats::default(),
            config,
        };
        membership.start_timers(now);
        Ok(membership)
    }

    fn start_timers(&mut self, now: Instant) {
        let period = self.config.period(1);
        let first = self.rng.span(period / 4, period);
        self.timers.set(Timer::ProbeRound, now + first);
        self.timers.set(Timer::Heal, now + self.rng.jitter(self.config.heal_period));
    }

    // Commands of the application.

    /// Looks for the cluster at `seeds`, for ever. Without seeds this node is a cluster of one, on purpose.
    /// Calling again replaces the seeds (discovery has a new answer).
    pub fn join(&mut self, now: Instant, seeds: &[SocketAddr]) {
        self.on_seeds(now, seeds);
    }

    /// States the phase: whether this node takes keys.
    pub fn set_phase(&mut self, now: Instant, phase: Phase) {
        if self.me.phase != phase && !self.me.gone {
            self.me.phase = phase;
            self.restate(now);
        }
    }

    /// States new tags, or a new zone or weight. Name and addresses stay.
    ///
    /// # Errors
    /// If a limit is broken; nothing changed.
    pub fn update_profile(&mut self, now: Instant, change: impl FnOnce(&mut Profile)) -> Result<(), InvalidProfile> {
        let mut profile = self.me.profile.clone();
        change(&mut profile);
        profile.validate()?;
        profile.name = self.me.profile.name.clone();
        (profile.gossip, profile.calls) = (self.me.profile.gossip, self.me.profile.calls);
        if profile != self.me.profile && !self.me.gone {
            self.me.profile = profile;
            self.restate(now);
        }
        Ok(())
    }

    /// Says goodbye. Final for this boot: nothing is answered afterwards.
    pub fn leave(&mut self, now: Instant) {
        self.on_leave(now);
    }

    /// Contacts of an earlier life, to be tried if nobody else is found.
    pub fn remember_contacts(&mut self, contacts: impl IntoIterator<Item = Peer>) {
        for peer in contacts {
            if peer.id != self.me.id && self.roster.present(peer.id).is_none() {
                self.contacts.lose(peer, self.config.contacts_max);
            }
        }
    }

    /// A record that a caller got in a not-owner answer: admitted like a rumour.
    ///
    /// # Errors
    /// If the record does not decode; nothing changed.
    pub fn merge_record(&mut self, now: Instant, from: NodeId, bytes: &[u8]) -> Result<(), Malformed> {
        self.observe(now);
        let record = Record::parse(&self.me.cluster, bytes.to_vec()).inspect_err(|_| self.stats.malformed += 1)?;
        self.on_record(now, from, record);
        Ok(())
    }

    // Input.

    /// Takes a message of an authenticated peer.
    ///
    /// # Errors
    /// If the bytes are no message; the peer's fault, and nothing changed.
    pub fn handle_message(&mut self, now: Instant, from: Peer, bytes: &[u8]) -> Result<(), Malformed> {
        self.observe(now);
        let message = Message::decode(bytes).inspect_err(|_| self.stats.malformed += 1)?;
        if self.me.gone || from.id == self.me.id && from.address == self.me.profile.gossip {
            return Ok(());
        }
        let Some(message) = message else {
            self.stats.unknown_kinds += 1;
            return Ok(());
        };
        self.recent.heard(now, from.id);
        match message {
            Message::Ping { seq, header } => self.on_ping(now, from, seq, header),
            Message::Ack { seq, header } => self.on_ack(now, from, seq, header),
            Message::PingReq { seq, target, budget_ms, header } => {
                let helper = Helper { requester: from, seq, target };
                self.on_ping_req(now, helper, budget_ms, header);
            }
            Message::Reached { seq, header } => self.on_reached(now, from, seq, header),
            Message::Nack { seq, header } => self.on_nack(now, from, seq, header),
            Message::Rumours { header } => {
                self.on_header(now, from, header);
            }
            Message::JoinRequest { record } => return self.on_join_request(now, from, record),
            Message::JoinReply { list, part, parts, settled, fence, rows } => {
                self.hear_seed_fence(from.id, fence);
                let taken = self.on_join_reply(now, from, (list, part, parts), settled, rows);
                self.hear_fence(from.id, fence);
                return taken;
            }
            Message::JoinHeld { incarnation } => self.on_join_held(now, from, incarnation),
            Message::JoinRefused { holder } => self.on_join_refused(holder),
            Message::Ranges { ranges } => self.on_ranges(from, &ranges),
            Message::Summaries { ranges, members } => self.on_summaries(from, &ranges, &members),
            Message::Rows { fence, rows } => {
                let taken = self.on_rows(now, from, rows);
                self.hear_fence(from.id, fence);
                return taken;
            }
            Message::Want { ids } => self.on_want(from, &ids),
        }
        Ok(())
    }

    /// Does what is due. Calling early or twice is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.observe(now);
        while let Some((due, timer)) = self.timers.pop_due(now) {
            match timer {
                Timer::ProbeRound => self.on_probe_round(now),
                Timer::Probe(seq) => self.on_probe_step(now, due, seq),
                Timer::Relay(seq) => self.on_relay_step(now, seq),
                Timer::Suspicion(id) => self.on_suspicion_due(now, id),
                Timer::Rumours => self.on_rumour_round(now),
                Timer::Join => self.on_join_due(now),
                Timer::Heal => self.on_heal_round(now),
                Timer::Mesh => self.on_mesh_again(),
                Timer::Reap(id) => self.on_reap_due(now, id),
            }
        }
    }

    /// The transport did not take what [`poll_transmit`](Self::poll_transmit) gave last: nothing of it counts
    /// as told, and a failed probe proves nothing.
    pub fn handle_unsent(&mut self, transmit: &Transmit) {
        self.stats.unsent += 1;
        self.handle_unreachable(transmit);
        if let Some(seq) = transmit.probe {
            self.prober.unsent(seq);
        }
    }

    /// What [`poll_transmit`](Self::poll_transmit) gave last went nowhere, for nobody can be reached there, or waits for a
    /// connection that may not come about: a probe has asked, and its silence is an answer; the rumours in it count as
    /// not told.
    pub fn handle_unreachable(&mut self, _transmit: &Transmit) {
        self.rumours.refund();
    }

    /// A connection to `peer` stands that did not before.
    pub fn handle_connected(&mut self, now: Instant, peer: Peer) {
        self.joiner.meet(now, peer);
        self.ask_again(peer);
    }

    // Output.

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called. Changes with every input.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Appends the next message to `out`. Changes with every input.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut Vec<u8>) -> Option<Transmit> {
        let (to, outgoing) = self.outbox.pop_front()?;
        self.rumours.settle();
        let peer = match to {
            Destination::Peer(peer) => Some(peer),
            Destination::Seed(_) => None,
        };
        let mut probe = None;
        let mut delivery = Delivery::Datagram;
        let message = match outgoing {
            Outgoing::Ping { seq, accusation, delivery: how } => {
                (probe, delivery) = (Some(seq), how);
                self.prober.sent(now, seq);
                let mut header = self.header(peer, false);
                header.belief = accusation.or(header.belief);
                Message::Ping { seq, header }
            }
            Outgoing::Ack { seq, introduce } => Message::Ack { seq, header: self.header(peer, introduce) },
            Outgoing::PingReq { seq, target, budget_ms } => {
                Message::PingReq { seq, target, budget_ms, header: self.header(peer, false) }
            }
            Outgoing::Reached { seq } => Message::Reached { seq, header: self.header(peer, false) },
            Outgoing::Nack { seq } => Message::Nack { seq, header: self.header(peer, false) },
            Outgoing::Rumours { introduce, delivery: how } => {
                delivery = how;
                Message::Rumours { header: self.header(peer, introduce) }
            }
            Outgoing::Whole(message) => {
                delivery = Delivery::Stream;
                message
            }
        };
        let start = out.len();
        message.encode(out);
        assert!(
            delivery == Delivery::Stream || out.len() - start <= self.config.datagram_bytes_max,
            "a datagram keeps its budget"
        );
        Some(Transmit { to, delivery, probe })
    }

    /// The next fact. Changes with every input.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    // Queries.

    /// This node.
    pub fn id(&self) -> NodeId {
        self.me.id
    }

    /// The cluster.
    pub fn cluster(&self) -> &Name {
        &self.me.cluster
    }

    /// This node's own record, as others see it.
    pub fn record(&self) -> &Record {
        &self.me.record
    }

    /// This node's table: every member, itself included.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// The row of `id`.
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        self.roster.get(id)
    }

    /// The present members that this node talks to: all of them, or in a larger cluster those beside it.
    pub fn neighbours(&self) -> impl Iterator<Item = Peer> + '_ {
        self.overlay.neighbours(&self.roster)
    }

    /// Whether this node talks to `id`, if it is present.
    pub fn is_neighbour(&self, id: NodeId) -> bool {
        self.overlay.is_neighbour(id)
    }

    /// Whether everybody talks to everybody, as in a small cluster.
    pub fn is_mesh(&self) -> bool {
        self.overlay.is_mesh()
    }

    /// Rises when other members become neighbours; in a small cluster everybody is, and it does not.
    pub fn neighbours_version(&self) -> u64 {
        self.overlay.version()
    }

    /// Whether this node is in a cluster (of one, if it was started so).
    pub fn is_joined(&self) -> bool {
        self.joiner.joined
    }

    /// Whether this process knows itself to be the one that others mean. False between a stall and the first
    /// answer after it, and for ever once it was superseded or has left.
    pub fn is_confirmed(&self) -> bool {
        self.me.confirmed && !self.me.gone
    }

    /// The local health score: 0 is well; each point makes this node more patient with others.
    pub fn health(&self) -> u32 {
        self.health
    }

    /// What went by.
    pub fn stats(&self) -> Stats {
        Stats { rumours_dropped: self.rumours.dropped, ..self.stats }
    }

    /// The peers whose addresses are worth keeping for the next life: present members, then lost ones.
    pub fn contacts(&self) -> impl Iterator<Item = Peer> {
        let others = self.roster.iter().filter(|(id, member)| *id != self.me.id && member.state.is_present());
        others.map(|(_, member)| member.record.peer()).chain(self.contacts.iter())
    }

    /// Whether news is left that has not been told often enough.
    pub fn has_news(&self) -> bool {
        self.rumours.has_news(self.config.rumour_sends(self.roster.present_count()))
    }

    // For the rules.

    pub(crate) fn send(&mut self, to: Peer, outgoing: Outgoing) {
        self.outbox.push_back((Destination::Peer(to), outgoing));
    }

    pub(crate) fn send_whole(&mut self, to: Peer, message: Message) {
        self.send(to, Outgoing::Whole(message));
    }

    /// What every message carries: the news that fit, and with `introduce` this node's own record first.
    fn header(&mut self, to: Option<Peer>, introduce: bool) -> Header {
        let mut budget = self.config.datagram_bytes_max - OVERHEAD_BYTES;
        let mut updates = Vec::new();
        if introduce {
            let own = record_update(&self.me.record);
            budget -= wire::update_bytes(&own, &mut Vec::new());
            updates.push(own);
        }
        if !self.rumours.is_empty() {
            let limit = self.config.rumour_sends(self.roster.present_count());
            updates.extend(self.rumours.fill(budget, UPDATES_MAX - 1, limit));
            // Who is suspected may well be gone, and where many are, most of what is sent are questions to those.
            if to.is_some_and(|peer| self.roster.get(peer.id).is_some_and(|member| member.state != State::Alive)) {
                self.rumours.refund();
            }
        }
        Header {
            belief: to.and_then(|peer| self.roster.belief(peer.id)),
            digest: self.roster.digest(),
            fence: self.fence_of_view(),
            fence_heard: self.fence_heard(),
            updates,
        }
    }

    /// Random neighbours that are alive, other than `except`, at most `count`.
    pub(crate) fn pick_neighbours(&mut self, count: usize, except: Option<NodeId>) -> Vec<Peer> {
        if self.overlay.is_mesh()
            && let Some(peers) = self.pick_members(count, except)
        {
            return peers;
        }
        let mut ids = self.overlay.neighbour_ids(&self.roster);
        let mut peers = Vec::with_capacity(count);
        for index in 0..ids.len() {
            if peers.len() == count {
                break;
            }
            let pick = index + self.rng.index(ids.len() - index);
            ids.swap(index, pick);
            let member = self.roster.get(ids[index]).filter(|member| member.state == State::Alive);
            peers.extend(member.map(|member| member.record.peer()).filter(|peer| Some(peer.id) != except));
        }
        peers
    }

    /// Exactly `count` random members that are alive, other than this node and `except`, by trying one row after another:
    /// most are alive, so that nobody has to look at all of them. None after too many in vain.
    fn pick_members(&mut self, count: usize, except: Option<NodeId>) -> Option<Vec<Peer>> {
        let mut peers: Vec<Peer> = Vec::with_capacity(count);
        for _ in 0..PICKS * count {
            if peers.len() == count {
                break;
            }
            let (id, member) = self.roster.members().nth(self.rng.index(self.roster.len()))?;
            let is_new = id != self.me.id && Some(id) != except && peers.iter().all(|peer| peer.id != id);
            if is_new && member.state == State::Alive {
                peers.push(member.record.peer());
            }
        }
        (peers.len() == count).then_some(peers)
    }
}

/// The news that a record is: itself, or where to get it when it is long.
pub(crate) fn record_update(record: &Record) -> Update {
    if record.bytes().len() <= RECORD_DATAGRAM_BYTES_MAX {
        Update::Alive(Blob(record.bytes().to_vec()))
    } else {
        Update::Notice(record.id(), record.incarnation())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Purpose;
    use crate::testing::{cluster, node, profile};
    use crate::{Incarnation, Phase};

    #[test]
    fn what_was_asked_may_have_gone_with_an_earlier_connection_and_is_asked_again_on_a_new_one() {
        let (mut one, now) = (node("a"), Instant::from_millis(1_000));
        let other = Record::mint(&cluster(), &profile("b", 2), Incarnation::new(1, 0), Phase::Ready, 1);
        one.admit_and_tell(now, other.clone());
        one.outbox.clear();
        one.start_probe(now, other.peer(), Purpose::Check);
        let asked = |one: &mut Membership| match one.outbox.drain(..).collect::<Vec<_>>()[..] {
            [(Destination::Peer(to), Outgoing::Ping { seq, .. })] if to == other.peer() => Some(seq),
            _ => None,
        };
        let first = asked(&mut one).expect("a question");
        one.handle_connected(now, other.peer());
        assert_eq!(asked(&mut one), Some(first));
        let header = one.header(None, false);
        one.on_ack(now, other.peer(), first, header);
        one.outbox.clear();
        one.handle_connected(now, other.peer());
        assert_eq!(asked(&mut one), None, "it was answered");
    }
}
