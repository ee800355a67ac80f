//! This node's own name: stating itself, refuting, and giving way.
//!
//! Only here are incarnations minted, and only this node's own.

use core::time::Duration;

use crate::boots::Boots;
use crate::event::Event;
use crate::membership::{Delivery, Membership, Outgoing, Start, Timer, record_update};
use crate::probe::Purpose;
use crate::wire::{Belief, Message, Update};
use crate::{Incarnation, Instant, Name, NodeId, Peer, Phase, Profile, Record, State};

/// To how many members a goodbye goes by stream at once; the others get a datagram and the rumour.
const GOODBYE_STREAMS: usize = 16;
/// Most members that get a goodbye at once.
const GOODBYES_MAX: usize = 256;
/// How many members are asked after a stall.
const CONFIRMING: usize = 3;

/// This node as it states itself.
#[derive(Debug)]
pub(crate) struct Me {
    pub(crate) id: NodeId,
    pub(crate) cluster: Name,
    pub(crate) profile: Profile,
    pub(crate) incarnation: Incarnation,
    pub(crate) phase: Phase,
    pub(crate) life: u64,
    pub(crate) record: Record,
    /// Left, refused or superseded: nothing is said any more.
    pub(crate) gone: bool,
    /// Not doubting that it is the process that others mean.
    pub(crate) confirmed: bool,
    doubted_at: Instant,
    /// The last incarnation at which others were heard to hold this node down.
    removed_at: Option<Incarnation>,
    pub(crate) boots: Boots,
}

impl Me {
    pub(crate) fn new(start: Start) -> Self {
        let incarnation = Incarnation::new(start.boot.max(1), 0);
        let record = Record::mint(&start.cluster, &start.profile, incarnation, Phase::Joining, start.life);
        Self {
            id: record.id(),
            cluster: start.cluster,
            profile: start.profile,
            incarnation,
            phase: Phase::Joining,
            life: start.life,
            record,
            gone: false,
            confirmed: true,
            doubted_at: Instant::ORIGIN,
            removed_at: None,
            boots: Boots::new(),
        }
    }

    fn belief(&self) -> (State, Incarnation) {
        (State::Alive, self.incarnation)
    }
}

impl Membership {
    /// Mints the next incarnation with what this node now has to say, and tells it.
    pub(crate) fn restate(&mut self, now: Instant) {
        let at = self.me.incarnation;
        _ = self.outbid(now, at);
    }

    /// Restates this node above `at`, which somebody holds or claims of it. Not if it has taken too many boots lately:
    /// whoever still believes so will say it again.
    fn outbid(&mut self, now: Instant, at: Incarnation) -> bool {
        let own = self.me.incarnation;
        // Only this process mints its boot. Somebody who holds more of it has it from another life.
        let next = if at > own || own.count == u32::MAX {
            let Some(boot) = self.me.boots.climb(now, own.boot, at.boot) else {
                self.stats.implausible += 1;
                return false;
            };
            self.events.push_back(Event::Rebooted { boot });
            Incarnation::new(boot, 0)
        } else {
            Incarnation::new(own.boot, own.count + 1)
        };
        self.me.incarnation = next;
        self.me.record = Record::mint(&self.me.cluster, &self.me.profile, next, self.me.phase, self.me.life);
        let record = self.me.record.clone();
        self.admit_and_tell(now, record);
        true
    }

    /// Somebody has held this node down, though at an incarnation that it has left behind.
    pub(crate) fn note_removal(&mut self, state: State, incarnation: Incarnation) {
        let own = self.me.incarnation;
        let old = incarnation.boot == own.boot && incarnation < own && self.me.removed_at < Some(incarnation);
        if state == State::Down && old {
            self.me.removed_at = Some(incarnation);
            self.events.push_back(Event::Removed { incarnation });
        }
    }

    /// Somebody believes this of this node. Returns whether it should hear this node's own record.
    pub(crate) fn on_belief(&mut self, now: Instant, from: Peer, belief: Belief) -> bool {
        let Some((state, incarnation)) = belief else {
            return true;
        };
        let own = self.me.incarnation;
        if incarnation.boot > own.boot {
            // Another life of this name: which address does it have?
            self.send_whole(from, Message::Want { ids: alloc::vec![self.me.id] });
            return false;
        }
        if incarnation.boot < own.boot {
            return true;
        }
        if state != State::Alive {
            self.on_own_accusation(now, state, incarnation);
            return true;
        }
        self.note_removal(state, incarnation);
        if incarnation > own {
            self.refute(now, incarnation, state);
        }
        incarnation != own
    }

    /// Refutes that this node is `against` at `at`.
    pub(crate) fn refute(&mut self, now: Instant, at: Incarnation, against: State) {
        if self.me.gone {
            return;
        }
        let own = self.me.incarnation;
        if !self.outbid(now, at) {
            return;
        }
        if against == State::Down {
            self.me.removed_at = self.me.removed_at.max(Some(at.min(own)));
        }
        self.stats.refutations += 1;
        self.worsen(1);
        self.events.push_back(Event::Refuted { incarnation: self.me.incarnation, against });
    }

    /// A record of this node's own name came in. Echoes and old lives are passed over; a newer life is either
    /// a live rival, who is asked, or a memory, which is outbid.
    pub(crate) fn on_own_record(&mut self, now: Instant, record: &Record) {
        let theirs = (record.incarnation(), record.hash());
        if record.life() == self.me.life || theirs <= (self.me.incarnation, self.me.record.hash()) {
            return;
        }
        if record.profile().gossip == self.me.profile.gossip {
            // Nobody else can live at this address: it is an earlier life.
            self.refute(now, Incarnation::new(record.incarnation().boot, u32::MAX), State::Alive);
        } else {
            self.start_probe(now, record.peer(), Purpose::Rival { incarnation: record.incarnation() });
        }
    }

    /// Somebody holds a row of this node without a record: what is left of an earlier life.
    pub(crate) fn on_own_tombstone(&mut self, now: Instant, state: State, incarnation: Incarnation) {
        self.note_removal(state, incarnation);
        if !crate::supersedes((state, incarnation), self.me.belief()) {
            return;
        }
        let above = if state == State::Left { Incarnation::new(incarnation.boot, u32::MAX) } else { incarnation };
        self.refute(now, above, state);
    }

    /// The rival answered: it is the newer one, and this process gives way.
    pub(crate) fn on_rival_alive(&mut self, rival: Peer, incarnation: Incarnation) {
        if incarnation < self.me.incarnation {
            // This one has restated itself meanwhile and is the newer one now: one of two gives way, not both.
            return;
        }
        self.abandon_probes();
        self.me.gone = true;
        self.me.confirmed = false;
        self.outbox.clear();
        self.events.push_back(Event::Superseded { by: rival.address });
    }

    /// The rival did not answer: it was a memory.
    pub(crate) fn on_rival_silent(&mut self, now: Instant, incarnation: Incarnation) {
        if incarnation >= self.me.incarnation {
            self.refute(now, incarnation, State::Alive);
        }
    }

    /// Notices a stall: the earliest deadline is overdue by longer than others wait before they remove a
    /// member. Called with every input, before it is looked at.
    pub(crate) fn observe(&mut self, now: Instant) {
        let Some(next) = self.timers.next() else {
            return;
        };
        let late = now.since(next.max(self.me.doubted_at));
        if !late.is_zero() && late > self.stall_limit() && !self.me.gone {
            self.on_stall(now, late);
        }
    }

    /// After how long a stall others may have removed this node.
    pub fn stall_limit(&self) -> Duration {
        self.config.suspicion(self.roster.present_count()).min
    }

    fn on_stall(&mut self, now: Instant, stall: Duration) {
        self.events.push_back(Event::Stalled { stall });
        self.me.doubted_at = now;
        self.me.confirmed = self.roster.present_count() == 1;
        // What did not come while nobody was listening proves nothing.
        self.abandon_probes();
        self.doubt_verdicts();
        let period = self.config.period(self.roster.present_count());
        for id in self.suspicions.keys().copied().collect::<alloc::vec::Vec<_>>() {
            self.timers.set(Timer::Suspicion(id), now + period);
        }
        self.timers.set(Timer::ProbeRound, now + period);
        self.prober.along_from = now + period;
        for peer in self.pick_neighbours(CONFIRMING, None) {
            self.start_probe(now, peer, Purpose::Confirm);
        }
    }

    /// A peer answered a ping that was sent at `asked`, and believes `belief` of this node.
    pub(crate) fn on_confirmation(&mut self, asked: Instant, belief: Belief) {
        let same = belief
            .is_some_and(|(state, incarnation)| state == State::Alive && incarnation.boot == self.me.incarnation.boot);
        if !self.me.confirmed && same && asked >= self.me.doubted_at && !self.me.gone {
            self.confirm();
        }
    }

    /// With nobody else to ask, a node is itself.
    pub(crate) fn confirm_if_alone(&mut self) {
        if !self.me.confirmed && !self.me.gone && self.roster.present_count() == 1 {
            self.confirm();
        }
    }

    fn confirm(&mut self) {
        self.me.confirmed = true;
        self.events.push_back(Event::Confirmed);
    }

    pub(crate) fn on_leave(&mut self, now: Instant) {
        if self.me.gone {
            return;
        }
        let (id, incarnation) = (self.me.id, self.me.incarnation);
        self.roster.admit_state(now, id, State::Left, incarnation);
        self.rumours.push(id, incarnation, Update::Left(id, incarnation));
        self.events.push_back(Event::Changed {
            id,
            before: Some(self.me.belief()),
            state: State::Left,
            incarnation,
            phase: self.me.phase,
        });
        for (index, peer) in self.pick_neighbours(GOODBYES_MAX, None).into_iter().enumerate() {
            let delivery = if index < GOODBYE_STREAMS { Delivery::Stream } else { Delivery::Datagram };
            self.send(peer, Outgoing::Rumours { introduce: false, delivery });
        }
        self.abandon_probes();
        self.me.gone = true;
    }

    /// Admits a record and tells it to everybody.
    pub(crate) fn admit_and_tell(&mut self, now: Instant, record: Record) -> bool {
        let crate::roster::Admitted::Changed(before) = self.roster.admit_record(now, &record) else {
            return false;
        };
        self.rumours.push(record.id(), record.incarnation(), record_update(&record));
        self.on_changed(now, record.id(), before);
        true
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::boots::ANSWERS_AT_ONCE;
    use crate::news::BOOT_LEAP_MAX;
    use crate::testing::node;

    fn removals(membership: &mut Membership) -> Vec<Incarnation> {
        let events = core::iter::from_fn(|| membership.poll_event());
        events
            .filter_map(|event| if let Event::Removed { incarnation } = event { Some(incarnation) } else { None })
            .collect()
    }

    #[test]
    fn a_removal_that_was_outlived_unawares_is_told_once() {
        let mut membership = node("a");
        let first = membership.record().incarnation();
        membership.restate(Instant::ORIGIN);
        let peer = Peer { id: NodeId::from_u128(7), address: crate::testing::address(9) };
        for _ in 0..2 {
            assert!(membership.on_belief(Instant::ORIGIN, peer, Some((State::Down, first))), "it hears the record");
        }
        assert_eq!(removals(&mut membership), [first]);
    }

    #[test]
    fn whoever_makes_up_lives_of_a_node_uses_up_a_few_of_its_boots() {
        let mut membership = node("a");
        membership.join(Instant::ORIGIN, &[]);
        let now = Instant::ORIGIN + Duration::from_secs(60);
        for _ in 0..1_000 {
            membership.on_own_tombstone(now, State::Down, Incarnation::new(u32::MAX - 1, 0));
        }
        assert_eq!(membership.record().incarnation().boot, 1 + BOOT_LEAP_MAX * ANSWERS_AT_ONCE);
        assert!(membership.stats.implausible > 900, "what is passed over is counted");
    }

    #[test]
    fn whoever_is_in_no_cluster_yet_takes_an_accusation_for_one_of_an_earlier_life() {
        for joined in [false, true] {
            let mut node = node("a");
            if joined {
                node.join(Instant::ORIGIN, &[]);
            }
            let own = node.record().incarnation();
            node.on_accusation(Instant::ORIGIN, node.id(), State::Down, own, NodeId::from_u128(9));
            let after = node.record().incarnation();
            assert!(after > own);
            assert_eq!(after.boot > own.boot, !joined);
        }
    }

    #[test]
    fn a_removal_that_is_refuted_is_told_as_that() {
        let mut membership = node("a");
        let first = membership.record().incarnation();
        let peer = Peer { id: NodeId::from_u128(7), address: crate::testing::address(9) };
        membership.on_belief(Instant::ORIGIN, peer, Some((State::Down, first)));
        membership.on_belief(Instant::ORIGIN, peer, Some((State::Down, first)));
        assert_eq!(removals(&mut membership), []);
        membership.on_belief(Instant::ORIGIN, peer, Some((State::Alive, first)));
        assert_eq!(removals(&mut membership), []);
    }
}
