//! Asking who is alive: one probe from its first ping to its verdict.
//!
//! Probes are pipelined: a round starts one whether or not earlier ones are answered. A probe pings, pings
//! again within the period, then asks helpers and pings once on a stream. Its verdict counts only when this
//! node has no reason to doubt itself (see `verdict`).

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

use crate::membership::{Delivery, Membership, Outgoing, Timer};
use crate::suspicion::Suspicion;
use crate::turns::Turns;
use crate::wire::{Belief, Header};
use crate::{Incarnation, Instant, NodeId, Peer, Rng, State};

/// Most members that are asked because others are suspected, before a period has passed for each.
const ALONG_MAX: u32 = 8;
/// Most pings under way for other nodes.
const RELAYS_MAX: usize = 256;
/// Most probes under way.
const PROBES_MAX: usize = 1_024;
/// Most questions under way to members that may have to be dialled for it, where few are neighbours.
pub(crate) const ASKED_AFAR_MAX: usize = 32;
/// What whoever has to dial first needs at least.
pub(crate) const DIAL: Duration = Duration::from_secs(1);
/// Longest that a requester of an indirect ping may wait.
const RELAY_BUDGET_MAX: Duration = Duration::from_secs(10);

/// Why a node is asked, and so what its silence means.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// Its turn in the round; silence is suspect.
    Round,
    /// Out of its turn, for somebody suspects it, or others; silence is suspect, and confirms.
    Check,
    /// Its time to object is over; silence is death, if it is still suspected at this incarnation.
    LastWord { incarnation: Incarnation },
    /// Somebody holds it down or suspect while it is alive here: it should outbid; silence is suspect.
    Challenge { accusation: (State, Incarnation), by: NodeId },
    /// A merge names it, but nobody here has met it (or it was lost): silence means nothing here, and something to
    /// whoever named it.
    Candidate { named_by: Option<(Peer, Incarnation)> },
    /// A lost contact; silence means nothing.
    Heal,
    /// After a stall: does it still know this node? Silence means nothing.
    Confirm,
    /// It may be a newer process with this node's name; silence means that it was a memory.
    Rival { incarnation: Incarnation },
    /// It holds a name that `claimant` wants; silence gives the name away.
    Claim { claimant: Peer },
}

impl Purpose {
    /// Whether everything is tried: helpers, a stream, and doubting oneself.
    fn is_thorough(self) -> bool {
        matches!(self, Self::Round | Self::Check | Self::LastWord { .. } | Self::Rival { .. } | Self::Claim { .. })
    }

    /// Whether one question answers both.
    fn is_as(self, other: Self) -> bool {
        self == other || matches!((self, other), (Self::Candidate { .. }, Self::Candidate { .. }))
    }

    fn accusation(self) -> Belief {
        match self {
            Self::Challenge { accusation, .. } => Some(accusation),
            _ => None,
        }
    }
}

/// One question under way.
#[derive(Clone, Debug)]
struct Probe {
    target: Peer,
    purpose: Purpose,
    started: Instant,
    verdict_at: Instant,
    step: u32,
    /// How many pings the transport took.
    sent: u32,
    /// Who was asked to ping, and has not said that it failed.
    helpers: Vec<NodeId>,
    nacks: u32,
    helpers_asked: bool,
    waited_again: bool,
    /// This node was isolated at the start, or when the verdict was due.
    isolated: bool,
}

/// A ping on behalf of another node.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Helper {
    pub(crate) requester: Peer,
    /// The requester's.
    pub(crate) seq: u32,
    pub(crate) target: Peer,
}

#[derive(Clone, Debug)]
struct Relay {
    helper: Helper,
    nack_at: Instant,
}

/// The last two different nodes that were heard, and when: enough to know whether anybody but one was.
#[derive(Copy, Clone, Debug, Default)]
pub(crate) struct Recent([Option<(NodeId, Instant)>; 2]);

impl Recent {
    pub(crate) fn heard(&mut self, now: Instant, id: NodeId) {
        if self.0[0].is_some_and(|(last, _)| last != id) {
            self.0[1] = self.0[0];
        }
        self.0[0] = Some((id, now));
    }

    fn any_since(&self, since: Instant) -> bool {
        self.0.iter().flatten().any(|&(_, at)| at >= since)
    }

    fn other_since(&self, id: NodeId, since: Instant) -> bool {
        self.0.iter().flatten().any(|&(heard, at)| heard != id && at >= since)
    }
}

/// Whom to ask next, and what is under way.
#[derive(Debug)]
pub(crate) struct Prober {
    turns: Turns,
    seq: u32,
    probes: BTreeMap<u32, Probe>,
    relays: BTreeMap<u32, Relay>,
    round_trips: BTreeMap<NodeId, Duration>,
    /// How many rounds were left out since the last one.
    skipped: u32,
    /// When there was, or could have been, the last one.
    ticked: Instant,
    /// How many may be asked because others are suspected; one more with every period.
    along: u32,
    /// None before: this node stood still, or has just come and knows nobody.
    pub(crate) along_from: Instant,
    /// What became of the last rounds, the newest in the lowest bit: whether somebody answered.
    rounds: u8,
    /// Since when they are hardly answered.
    pub(crate) isolated_since: Option<Instant>,
}

impl Prober {
    pub(crate) fn new(mut rng: Rng) -> Self {
        let seq = rng.next_u64() as u32;
        Self {
            turns: Turns::new(rng),
            seq,
            probes: BTreeMap::new(),
            relays: BTreeMap::new(),
            round_trips: BTreeMap::new(),
            skipped: 0,
            ticked: Instant::ORIGIN,
            along: ALONG_MAX,
            along_from: Instant::ORIGIN,
            rounds: u8::MAX,
            isolated_since: None,
        }
    }

    /// This node has come in: what became of earlier rounds says nothing, and others are asked along once it knows them.
    pub(crate) fn begin(&mut self, along_from: Instant) {
        (self.rounds, self.isolated_since, self.along_from) = (u8::MAX, None, along_from);
    }

    /// From now on it has its turn.
    pub(crate) fn add(&mut self, id: NodeId) {
        self.turns.add(id);
    }

    /// The member is reaped: nothing of it is kept.
    pub(crate) fn forget(&mut self, id: NodeId) {
        self.round_trips.remove(&id);
    }

    fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1);
        self.seq
    }

    pub(crate) fn sent(&mut self, _now: Instant, seq: u32) {
        if let Some(probe) = self.probes.get_mut(&seq) {
            probe.sent += 1;
        }
    }

    pub(crate) fn unsent(&mut self, seq: u32) {
        if let Some(probe) = self.probes.get_mut(&seq) {
            probe.sent -= 1;
        }
    }

    /// A smoothed round trip (an eighth of each new one, as TCP does).
    fn measure(&mut self, id: NodeId, sample: Duration) {
        let smooth = self.round_trips.entry(id).or_insert(sample);
        *smooth = (*smooth * 7 + sample) / 8;
    }

    fn note_round(&mut self, now: Instant, answered: bool) {
        self.rounds = self.rounds << 1 | u8::from(answered);
        self.isolated_since = if self.is_answered() { None } else { self.isolated_since.or(Some(now)) };
    }

    /// Whether more than one of the last eight rounds was answered.
    fn is_answered(&self) -> bool {
        self.rounds.count_ones() > 1
    }

    /// Whether most of the last eight rounds were answered.
    pub(crate) fn is_mostly_answered(&self) -> bool {
        self.rounds.count_ones() > u8::BITS / 2
    }

    /// How many last questions are under way to members for which `afar` holds.
    pub(crate) fn last_words(&self, afar: impl Fn(NodeId) -> bool) -> usize {
        let last = |probe: &&Probe| matches!(probe.purpose, Purpose::LastWord { .. }) && afar(probe.target.id);
        self.probes.values().filter(last).count()
    }

    fn is_probing(&self, target: Peer, same: impl Fn(Purpose) -> bool) -> bool {
        self.probes.values().any(|probe| probe.target == target && same(probe.purpose))
    }
}

impl Membership {
    pub(crate) fn on_probe_round(&mut self, now: Instant) {
        self.confirm_if_alone();
        // The timer keeps its pace, for by it this node notices that it stood still.
        let period = self.config.period(self.roster.present_count());
        self.timers.set(Timer::ProbeRound, now + period);
        self.prober.along = (self.prober.along + 1).min(ALONG_MAX);
        if self.prober.skipped < self.health {
            // Whoever has trouble of its own asks less often, and so accuses fewer (Lifeguard §IV-A).
            self.prober.skipped += 1;
            // As much as a round that nobody answers.
            if !self.recent.any_since(self.prober.ticked) {
                self.prober.note_round(now, false);
            }
            self.prober.ticked = now;
            return;
        }
        (self.prober.skipped, self.prober.ticked) = (0, now);
        self.ask_next(now, Purpose::Round);
    }

    /// Asks whose turn it is. Those that enough suspect have none while there is anybody else, and most do answer: they have
    /// a last word.
    fn ask_next(&mut self, now: Instant, purpose: Purpose) {
        let (roster, overlay, suspicions) = (&self.roster, &self.overlay, &self.suspicions);
        let is_observed = |id| overlay.observes(id) && roster.present(id).is_some();
        let leaves_out = self.prober.is_mostly_answered();
        let is_agreed = |id| suspicions.get(&id).is_some_and(Suspicion::is_agreed);
        let is_open = |id| is_observed(id) && !(leaves_out && is_agreed(id));
        let open = self.prober.turns.next(is_observed, is_open);
        let target = open.or_else(|| self.prober.turns.next(is_observed, is_observed));
        if let Some(peer) = target.and_then(|id| self.roster.get(id)).map(|member| member.record.peer())
            && !self.me.gone
        {
            self.start_probe(now, peer, purpose);
        }
    }

    /// Asks a suspect out of turn, so that confirmations do not wait for the round.
    pub(crate) fn check_soon(&mut self, now: Instant, id: NodeId) {
        if let Some(peer) = self.roster.get(id).map(|member| member.record.peer()) {
            self.start_probe(now, peer, Purpose::Check);
        }
    }

    /// Somebody is suspected, and whoever is gone seldom went alone: asks whose turn is next, unless this node has trouble
    /// itself.
    pub(crate) fn ask_along(&mut self, now: Instant) {
        if self.joiner.joined && self.health == 0 && self.prober.along > 0 && now >= self.prober.along_from {
            self.prober.along -= 1;
            self.ask_next(now, Purpose::Check);
        }
    }

    /// Starts asking `target`, unless it is being asked for the same reason.
    pub(crate) fn start_probe(&mut self, now: Instant, target: Peer, purpose: Purpose) {
        if self.me.gone || self.prober.is_probing(target, |under_way| under_way.is_as(purpose)) {
            return;
        }
        // Questions that merges raise must not keep those from being asked that decide, nor make everybody dial everybody.
        let full = if purpose.is_thorough() {
            self.prober.probes.len() >= PROBES_MAX
        } else if self.overlay.is_mesh() {
            self.prober.probes.len() >= PROBES_MAX / 2
        } else {
            self.prober.probes.values().filter(|probe| !probe.purpose.is_thorough()).count() >= ASKED_AFAR_MAX
        };
        if full {
            self.stats.shed += 1;
            if let Purpose::LastWord { .. } = purpose {
                self.on_last_word(now, target.id);
            }
            return;
        }
        let period = self.config.period(self.roster.present_count());
        let patience = match purpose {
            Purpose::Rival { .. } | Purpose::Claim { .. } => (period * (self.health + 1)).max(DIAL),
            _ if purpose.is_thorough() && self.overlay.observes(target.id) => period * (self.health + 1),
            // It has to be dialled, and so have those who help.
            _ if purpose.is_thorough() => (period * (self.health + 1)).max(DIAL * 2),
            _ => (period * 2).max(DIAL),
        };
        let probe = Probe {
            target,
            purpose,
            started: now,
            verdict_at: now + patience,
            step: 0,
            sent: 0,
            helpers: Vec::new(),
            nacks: 0,
            helpers_asked: false,
            waited_again: false,
            isolated: !self.prober.is_answered(),
        };
        self.stats.probes += 1;
        let seq = self.prober.next_seq();
        self.prober.probes.insert(seq, probe);
        self.on_probe_step(now, now, seq);
    }

    /// The next ping, the helpers, or the verdict: whatever is due.
    pub(crate) fn on_probe_step(&mut self, now: Instant, due: Instant, seq: u32) {
        let floor = self.config.probe_step_floor;
        let Some(probe) = self.prober.probes.get_mut(&seq) else {
            return;
        };
        if now >= probe.verdict_at {
            return self.on_verdict(now, due, seq);
        }
        let patience = probe.verdict_at.since(probe.started);
        let ask_helpers =
            probe.purpose.is_thorough() && !probe.helpers_asked && now >= probe.started + patience * 3 / 8;
        let (target, accusation) = (probe.target, probe.purpose.accusation());
        let step =
            self.prober.round_trips.get(&target.id).map_or(floor, |trip| (*trip * 3).max(floor)).min(patience / 8);
        let probe = self.prober.probes.get_mut(&seq).expect("it was there two lines ago");
        // Pings at 0, 1, 3, 7 steps; once the helpers are asked, every quarter of the patience.
        let wait = if probe.helpers_asked || ask_helpers { patience / 4 } else { step * (1 << probe.step.min(6)) };
        probe.step += 1;
        let helpers_at = probe.started + patience * 3 / 8;
        let mut next = (now + wait).min(probe.verdict_at);
        if probe.purpose.is_thorough() && !probe.helpers_asked && !ask_helpers {
            next = next.min(helpers_at);
        }
        self.send(target, Outgoing::Ping { seq, accusation, delivery: Delivery::Datagram });
        if ask_helpers {
            self.ask_helpers(now, seq, target);
        }
        self.timers.set(Timer::Probe(seq), next);
    }

    /// A connection to `peer` stands: whatever was asked of it may have gone with an earlier one, and is asked again.
    pub(crate) fn ask_again(&mut self, peer: Peer) {
        let asked = self.prober.probes.iter().filter(|(_, probe)| probe.target == peer);
        let asked: Vec<(u32, Belief)> = asked.map(|(seq, probe)| (*seq, probe.purpose.accusation())).collect();
        for (seq, accusation) in asked {
            self.send(peer, Outgoing::Ping { seq, accusation, delivery: Delivery::Datagram });
        }
    }

    fn ask_helpers(&mut self, now: Instant, seq: u32, target: Peer) {
        let helpers = self.pick_neighbours(self.config.helpers, Some(target.id));
        let probe = self.prober.probes.get_mut(&seq).expect("the step that asks helpers has its probe");
        probe.helpers_asked = true;
        probe.helpers = helpers.iter().map(|helper| helper.id).collect();
        let budget_ms = probe.verdict_at.since(now).as_millis() as u32;
        self.send(target, Outgoing::Ping { seq, accusation: None, delivery: Delivery::Stream });
        for helper in helpers {
            self.send(helper, Outgoing::PingReq { seq, target, budget_ms });
        }
    }

    /// Nobody answered. Silence is evidence only if the ping left, the verdict came on time, and somebody else
    /// was heard meanwhile; with nobody else to hear, the verdict waits once more and then stands, for
    /// isolation and death look alike. A last word waits for longer while this node is isolated.
    fn on_verdict(&mut self, now: Instant, due: Instant, seq: u32) {
        let Some(probe) = self.prober.probes.get(&seq) else {
            return;
        };
        let period = self.config.period(self.roster.present_count());
        let late = now.since(due) > period / 4;
        let unsound = late || probe.sent == 0;
        let unheard = self.roster.present_count() > 2 && !self.recent.other_since(probe.target.id, probe.started);
        let thorough = probe.purpose.is_thorough();
        let isolated = matches!(probe.purpose, Purpose::LastWord { .. }) && self.is_isolated(now);
        if isolated || thorough && (unsound || unheard) && !probe.waited_again {
            return self.wait_again(now, seq, if isolated { self.stall_limit() } else { period });
        }
        // What never left, or was judged late twice, stays no evidence, and what was asked while this node was isolated is
        // none once it is not; silence all around is.
        let doubtful = thorough && (unsound || probe.isolated && self.prober.is_answered());
        let Some(probe) = self.prober.probes.remove(&seq) else {
            return;
        };
        if doubtful {
            self.stats.probes_doubted += 1;
            self.worsen(u32::from(!probe.isolated));
            if matches!(probe.purpose, Purpose::LastWord { .. }) {
                self.on_last_word(now, probe.target.id);
            }
            return;
        }
        self.on_silence(now, probe);
    }

    fn wait_again(&mut self, now: Instant, seq: u32, wait: Duration) {
        let isolated = !self.prober.is_answered();
        let Some(probe) = self.prober.probes.get_mut(&seq) else { return };
        (probe.waited_again, probe.verdict_at) = (true, now + wait);
        probe.isolated |= isolated;
        self.timers.set(Timer::Probe(seq), now + wait / 4);
    }

    fn on_silence(&mut self, now: Instant, probe: Probe) {
        let id = probe.target.id;
        if probe.purpose == Purpose::Round {
            self.prober.note_round(now, false);
        }
        let mut cost = 0;
        if matches!(probe.purpose, Purpose::Round | Purpose::Check | Purpose::LastWord { .. }) {
            self.stats.probes_failed += 1;
            // What others noticed as well is no sign of trouble here, while most are heard: many may have died at once, the
            // helpers too.
            let shared = self.suspicions.get(&id).is_some_and(|suspicion| suspicion.is_shared(self.me.id));
            if !shared || !self.prober.is_mostly_answered() {
                // A helper that does not even say that it failed is one (Lifeguard §IV-A), if it is not gone as well.
                let is_alive = |id: &&NodeId| self.roster.get(**id).is_some_and(|member| member.state == State::Alive);
                let silent = probe.helpers.iter().filter(is_alive).count() as u32;
                cost = self.worsen(if probe.nacks == 0 { silent.max(1) } else { silent });
            }
        }
        match probe.purpose {
            Purpose::Round | Purpose::Check => {
                self.accuse(now, probe.target);
                self.suspicions.get_mut(&id).into_iter().for_each(|suspicion| suspicion.cost += cost);
            }
            Purpose::LastWord { incarnation } => self.on_no_last_word(now, id, incarnation),
            Purpose::Challenge { accusation: (_, incarnation), by } => self.suspect(now, id, incarnation, by),
            Purpose::Rival { incarnation } => self.on_rival_silent(now, incarnation),
            Purpose::Claim { claimant } => self.on_name_free(now, claimant, probe.target),
            Purpose::Candidate { named_by: Some((by, incarnation)) } => self.on_candidate_silent(by, id, incarnation),
            Purpose::Candidate { named_by: None } | Purpose::Heal | Purpose::Confirm => {}
        }
    }

    /// This node suspects `target` itself, if it is still where it was asked.
    fn accuse(&mut self, now: Instant, target: Peer) {
        let Some(member) = self.roster.present(target.id) else {
            return;
        };
        if member.record.peer() == target {
            let incarnation = member.incarnation;
            self.events.push_back(crate::Event::ProbeFailed { id: target.id });
            self.suspect(now, target.id, incarnation, self.me.id);
        }
    }

    /// Drops everything under way: this node was not listening.
    pub(crate) fn abandon_probes(&mut self) {
        for seq in core::mem::take(&mut self.prober.probes).into_keys() {
            self.timers.cancel(Timer::Probe(seq));
        }
        for suspicion in self.suspicions.values_mut() {
            suspicion.last_word = false;
        }
    }

    pub(crate) fn on_ping(&mut self, now: Instant, from: Peer, seq: u32, header: Header) {
        let digest = header.digest;
        let introduce = self.on_header(now, from, header);
        self.send(from, Outgoing::Ack { seq, introduce });
        self.on_digest_of_pinger(now, from, digest);
    }

    pub(crate) fn on_ack(&mut self, now: Instant, from: Peer, seq: u32, header: Header) {
        let (belief, digest) = (header.belief, header.digest);
        let introduce = self.on_header(now, from, header);
        if let Some(relay) = self.prober.relays.get(&seq).filter(|relay| relay.helper.target == from) {
            let Helper { requester, seq: theirs, .. } = relay.helper;
            self.prober.relays.remove(&seq);
            self.timers.cancel(Timer::Relay(seq));
            self.send(requester, Outgoing::Reached { seq: theirs });
        }
        if let Some(probe) = self.prober.probes.get(&seq).filter(|probe| probe.target == from).cloned() {
            if probe.step == 1 {
                self.prober.measure(from.id, now.since(probe.started));
            }
            self.on_confirmation(probe.started, belief);
            self.on_answer(now, seq, &probe);
        }
        if introduce {
            self.send(from, Outgoing::Rumours { introduce: true, delivery: Delivery::Datagram });
        }
        self.on_digest(now, from, digest);
    }

    /// The probe `seq` was answered, by its target or through a helper.
    fn on_answer(&mut self, now: Instant, seq: u32, probe: &Probe) {
        self.prober.probes.remove(&seq);
        self.timers.cancel(Timer::Probe(seq));
        if probe.purpose.is_thorough() {
            self.improve();
        }
        match probe.purpose {
            Purpose::Round => self.prober.note_round(now, true),
            Purpose::LastWord { .. } => {
                self.suspicions.entry(probe.target.id).and_modify(|suspicion| suspicion.answered = true);
                self.on_last_word(now, probe.target.id);
            }
            Purpose::Rival { incarnation } => self.on_rival_alive(probe.target, incarnation),
            Purpose::Claim { claimant } => self.on_name_held(claimant, probe.target),
            // It has introduced itself; what else it knows comes by the digests.
            Purpose::Candidate { .. } if self.roster.present(probe.target.id).is_some() => {}
            Purpose::Heal | Purpose::Candidate { .. } => self.reconcile(now, probe.target),
            Purpose::Check | Purpose::Challenge { .. } | Purpose::Confirm => {}
        }
    }

    pub(crate) fn on_ping_req(&mut self, now: Instant, helper: Helper, budget_ms: u32, header: Header) {
        self.on_header(now, helper.requester, header);
        if self.prober.relays.len() >= RELAYS_MAX || helper.target.id == self.me.id {
            self.stats.shed += 1;
            return;
        }
        // A nack after four fifths of the budget still arrives in time (Lifeguard §IV-A).
        let budget = Duration::from_millis(u64::from(budget_ms)).min(RELAY_BUDGET_MAX);
        let nack_at = now + budget * 4 / 5;
        let seq = self.prober.next_seq();
        self.prober.relays.insert(seq, Relay { helper, nack_at });
        self.send(helper.target, Outgoing::Ping { seq, accusation: None, delivery: Delivery::Datagram });
        self.timers.set(Timer::Relay(seq), now + budget * 2 / 5);
    }

    pub(crate) fn on_relay_step(&mut self, now: Instant, seq: u32) {
        let Some(relay) = self.prober.relays.get(&seq) else {
            return;
        };
        if now < relay.nack_at {
            let (target, nack_at) = (relay.helper.target, relay.nack_at);
            self.send(target, Outgoing::Ping { seq, accusation: None, delivery: Delivery::Datagram });
            self.timers.set(Timer::Relay(seq), nack_at);
        } else if let Some(Relay { helper, .. }) = self.prober.relays.remove(&seq) {
            self.send(helper.requester, Outgoing::Nack { seq: helper.seq });
        }
    }

    pub(crate) fn on_reached(&mut self, now: Instant, from: Peer, seq: u32, header: Header) {
        self.on_header(now, from, header);
        if let Some(probe) = self.prober.probes.get(&seq).filter(|probe| probe.helpers.contains(&from.id)).cloned() {
            if let Purpose::Rival { .. } = probe.purpose {
                // A helper's word keeps this process from outbidding, and no more: only the rival itself ends it.
                self.prober.probes.remove(&seq);
                self.timers.cancel(Timer::Probe(seq));
                return;
            }
            self.on_answer(now, seq, &probe);
        }
    }

    pub(crate) fn on_nack(&mut self, now: Instant, from: Peer, seq: u32, header: Header) {
        self.on_header(now, from, header);
        if let Some(probe) = self.prober.probes.get_mut(&seq)
            && let Some(place) = probe.helpers.iter().position(|helper| *helper == from.id)
        {
            probe.helpers.swap_remove(place);
            probe.nacks += 1;
        }
    }
}
