//! What is heard of others: which news is admitted, who is suspected, who is down.

use crate::codec::Blob;
use crate::event::Event;
use crate::membership::{Delivery, Membership, Outgoing, Timer};
use crate::overlay;
use crate::probe::Purpose;
use crate::roster::Admitted;
use crate::suspicion::Suspicion;
use crate::wire::{Belief, Header, Message, Update};
use crate::{Incarnation, Instant, NodeId, Peer, Record, State};

/// A boot this far above the held one is not believed from a third party.
pub(crate) const BOOT_LEAP_MAX: u32 = 1 << 12;
/// How many members ask a suspect out of turn, on average: several times the confirmations that are wanted.
const CHECKERS: usize = 10;
/// A count this far above the held one is not believed from a third party.
const COUNT_LEAP_MAX: u32 = 1 << 20;

impl Membership {
    /// Takes in what a message carries about its sender and others. Returns whether the sender should hear
    /// this node's own record.
    pub(crate) fn on_header(&mut self, now: Instant, from: Peer, header: Header) -> bool {
        let fence = header.fence_heard.max(header.fence);
        // Whoever comes with this message is a member after it, and whoever goes was one before.
        self.hear_fence(from.id, fence);
        for update in header.updates {
            self.on_update(now, from, update);
        }
        self.hear_fence(from.id, fence);
        if header.digest == self.roster.digest() {
            self.share_fence(header.fence);
        }
        self.on_belief(now, from, header.belief)
    }

    fn on_update(&mut self, now: Instant, from: Peer, update: Update) {
        match update {
            Update::Alive(Blob(bytes)) => match self.heard.parse(&self.me.cluster, bytes) {
                Ok(record) => self.on_record(now, from.id, record),
                Err(_) => self.stats.malformed += 1,
            },
            Update::Notice(id, incarnation) => {
                let newer = self.roster.belief(id).is_none_or(|(_, held)| incarnation > held);
                if newer && id != self.me.id {
                    self.send_whole(from, Message::Want { ids: alloc::vec![id] });
                }
            }
            Update::Suspect(id, incarnation, by) => self.on_accusation(now, id, State::Suspect, incarnation, by),
            Update::Down(id, incarnation, marks) => self.on_down(now, from.id, id, incarnation, &marks),
            Update::Left(id, incarnation) => self.on_accusation(now, id, State::Left, incarnation, from.id),
        }
    }

    /// Somebody (perhaps the subject) relays a record.
    pub(crate) fn on_record(&mut self, now: Instant, from: NodeId, record: Record) {
        let id = record.id();
        if id == self.me.id {
            return self.on_own_record(now, &record);
        }
        if from != id && !self.is_plausible(id, record.incarnation()) {
            return self.ask_subject(now, record.peer());
        }
        if self.roster.belief(id).is_none() && self.roster.len() >= self.config.members_max {
            self.stats.members_refused += 1;
            return;
        }
        self.admit_and_tell(now, record);
    }

    /// Whether a third party may claim this incarnation: not too far above what is known.
    pub(crate) fn is_plausible(&self, id: NodeId, incarnation: Incarnation) -> bool {
        let held = self.roster.belief(id).map_or(Incarnation::default(), |(_, held)| held);
        let leap = incarnation.boot.saturating_sub(held.boot);
        let count = if leap == 0 { held.count } else { 0 };
        leap <= BOOT_LEAP_MAX && incarnation.count.saturating_sub(count) <= COUNT_LEAP_MAX
    }

    /// What a third party claims is beyond belief: only the subject itself can say it.
    fn ask_subject(&mut self, now: Instant, subject: Peer) {
        self.stats.implausible += 1;
        self.start_probe(now, subject, Purpose::Candidate { named_by: None });
    }

    pub(crate) fn on_accusation(
        &mut self,
        now: Instant,
        id: NodeId,
        state: State,
        incarnation: Incarnation,
        by: NodeId,
    ) {
        if id == self.me.id {
            return self.on_own_accusation(now, state, incarnation);
        }
        let held = self.roster.get(id).map(|member| (member.state, member.record.peer()));
        if !self.is_plausible(id, incarnation) {
            if let Some((_, peer)) = held {
                self.ask_subject(now, peer);
            }
            return;
        }
        match (state, held) {
            (State::Suspect, Some(_)) => self.suspect(now, id, incarnation, by),
            // Nobody is removed by hearsay: the member has its last word here too.
            (State::Down, Some((State::Alive | State::Suspect, _))) => {
                // Where few ask it, whoever tells it on is no other witness.
                if self.overlay.is_mesh() || !self.is_suspected(id, incarnation) {
                    self.suspect(now, id, incarnation, by);
                }
                // Old news of a member that is suspected anew does not shorten its time.
                if self.is_suspected(id, incarnation) && self.overlay.observes(id) {
                    self.on_suspicion_due(now, id);
                }
            }
            (_, Some(_)) => self.conclude(now, id, state, incarnation),
            (_, None) => {
                self.roster.admit_state(now, id, state, incarnation);
            }
        }
    }

    pub(crate) fn is_suspected(&self, id: NodeId, incarnation: Incarnation) -> bool {
        self.suspicions.get(&id).is_some_and(|suspicion| suspicion.incarnation == incarnation)
    }

    pub(crate) fn on_own_accusation(&mut self, now: Instant, state: State, incarnation: Incarnation) {
        self.note_removal(state, incarnation);
        let own = self.me.incarnation;
        if incarnation.boot != own.boot {
            // An earlier life, or a claim without a record, which the next belief brings up again.
            return;
        }
        if state == State::Left || !self.joiner.joined {
            // Whoever is in no cluster yet is hardly known to anybody: an earlier life is meant.
            self.refute(now, Incarnation::new(own.boot, u32::MAX), state);
        } else if incarnation >= own {
            self.refute(now, incarnation, state);
        }
    }

    /// `by` suspects `id` at `incarnation`: starts a suspicion, or confirms one.
    pub(crate) fn suspect(&mut self, now: Instant, id: NodeId, incarnation: Incarnation, by: NodeId) {
        let update = Update::Suspect(id, incarnation, by);
        // Of another one that has trouble, or while few answer here, it would prove nothing.
        let by_other = by != self.me.id && self.roster.get(by).is_some_and(|member| member.state == State::Alive);
        let is_sound = by_other && self.prober.is_mostly_answered();
        if let Some(suspicion) = self.suspicions.get_mut(&id)
            && suspicion.incarnation == incarnation
        {
            if suspicion.confirm(by) {
                if is_sound && !suspicion.answered {
                    // It was no trouble of this node's own.
                    self.health = self.health.saturating_sub(core::mem::take(&mut suspicion.cost));
                }
                self.rumours.push(id, incarnation, update);
                self.arm_suspicion(now, id);
                self.hasten_rumours(now);
            }
            return;
        }
        let before = match self.roster.admit_state(now, id, State::Suspect, incarnation) {
            Admitted::Nothing | Admitted::Unknown => return,
            Admitted::Evidence => self.roster.belief(id),
            Admitted::Changed(before) => before,
        };
        let window = self.config.suspicion(self.roster.present_count());
        self.suspicions.insert(id, Suspicion::new(now, incarnation, window, by));
        self.rumours.push(id, incarnation, update);
        self.on_changed(now, id, before);
        self.arm_suspicion(now, id);
        // A few can confirm as well as all: whoever is slow is suspected often, and all of them would ask all the time.
        let checks = if self.overlay.is_mesh() {
            self.rng.index(self.roster.present_count()) < CHECKERS
        } else {
            self.overlay.observes(id)
        };
        if by != self.me.id {
            if checks {
                self.check_soon(now, id);
            }
            self.ask_along(now);
        }
    }

    /// The suspect is asked a last time one period before its time ends, but not before `now`.
    pub(crate) fn arm_suspicion(&mut self, now: Instant, id: NodeId) {
        let period = self.config.period(self.roster.present_count());
        let Some(suspicion) = self.suspicions.get(&id) else {
            return;
        };
        if !suspicion.last_word {
            let at = suspicion.deadline() - period;
            let at = suspicion.removed_at.map_or(at, |removed_at| at.min(removed_at)).max(now);
            self.timers.set(Timer::Suspicion(id), at);
        }
    }

    pub(crate) fn on_suspicion_due(&mut self, now: Instant, id: NodeId) {
        if !self.overlay.observes(id) && !self.must_ask_itself(now, id) {
            return;
        }
        let Some(peer) = self.roster.get(id).map(|member| member.record.peer()) else {
            return;
        };
        if let Some(suspicion) = self.suspicions.get_mut(&id)
            && !suspicion.last_word
        {
            suspicion.last_word = true;
            let incarnation = suspicion.incarnation;
            self.timers.cancel(Timer::Suspicion(id));
            self.start_probe(now, peer, Purpose::LastWord { incarnation });
        }
    }

    /// The suspect answered its last question, yet its refutation is not here: it gets the time again.
    pub(crate) fn on_last_word(&mut self, now: Instant, id: NodeId) {
        let window = self.config.suspicion(self.roster.present_count());
        if let Some(suspicion) = self.suspicions.get_mut(&id) {
            (suspicion.last_word, suspicion.removed_at) = (false, None);
            self.timers.set(Timer::Suspicion(id), now + window.min);
        }
    }

    /// The suspect did not object in time.
    pub(crate) fn on_no_last_word(&mut self, now: Instant, id: NodeId, incarnation: Incarnation) {
        match self.suspicions.get(&id) {
            Some(suspicion) if suspicion.incarnation == incarnation => {
                if self.overlay.stands_before(id) {
                    self.verdicts.add(id, incarnation, &[overlay::mark(self.me.id)]);
                }
                self.conclude(now, id, State::Down, incarnation);
            }
            // It has refuted meanwhile, and is suspected anew: that suspicion has a timer of its own.
            _ => {}
        }
    }

    /// Admits that `id` is down or left, and tells it.
    pub(crate) fn conclude(&mut self, now: Instant, id: NodeId, state: State, incarnation: Incarnation) {
        let update = match state {
            State::Left => Update::Left(id, incarnation),
            State::Down => self.down(id, incarnation),
            State::Alive | State::Suspect => return,
        };
        if let Admitted::Changed(before) = self.roster.admit_state(now, id, state, incarnation) {
            self.rumours.push(id, incarnation, update);
            self.on_changed(now, id, before);
        }
    }

    /// A row changed: everything that follows from it.
    pub(crate) fn on_changed(&mut self, now: Instant, id: NodeId, before: Belief) {
        let Some(member) = self.roster.get(id) else {
            return;
        };
        let (state, incarnation, phase, peer) =
            (member.state, member.incarnation, member.record.phase(), member.record.peer());
        self.events.push_back(Event::Changed { id, before, state, incarnation, phase });
        if state != State::Suspect {
            self.suspicions.remove(&id);
            self.timers.cancel(Timer::Suspicion(id));
        }
        if state == State::Alive {
            self.verdicts.forget(id);
        }
        if id != self.me.id {
            let was_present = before.is_some_and(|(state, _)| state.is_present());
            match (was_present, state.is_present()) {
                (false, true) => {
                    self.on_presence(now, id, true);
                    self.contacts.found(id);
                    self.timers.cancel(Timer::Reap(id));
                }
                // A newcomer is told of members that it never had.
                (_, false) if was_present || before.is_none() => {
                    if was_present {
                        self.on_presence(now, id, false);
                    }
                    if state == State::Down {
                        self.contacts.lose(peer, self.config.contacts_max);
                    }
                    self.reconciler.forget(id);
                    self.timers.set(Timer::Reap(id), now + self.config.reap_after);
                }
                _ => {}
            }
        }
        self.hasten_rumours(now);
    }

    pub(crate) fn on_reap_due(&mut self, now: Instant, id: NodeId) {
        if let Some(member) = self.roster.reap(now, id, self.config.tombstones_max) {
            self.prober.forget(id);
            self.verdicts.forget(id);
            self.events.push_back(Event::Reaped { id, incarnation: member.incarnation });
        }
    }

    /// News should not wait for the next round; but a burst of it should share one, and a stream of it not make more
    /// than twice as many.
    pub(crate) fn hasten_rumours(&mut self, now: Instant) {
        let period = self.config.rumour_period;
        let due = (now + period / 10).max(self.rumours.last_round + period / 2);
        self.timers.set_earlier(Timer::Rumours, due);
    }

    pub(crate) fn on_rumour_round(&mut self, now: Instant) {
        if !self.has_news() {
            return;
        }
        self.rumours.last_round = now;
        for peer in self.pick_neighbours(self.config.rumour_fanout, None) {
            self.send(peer, Outgoing::Rumours { introduce: false, delivery: Delivery::Datagram });
        }
        self.timers.set_earlier(Timer::Rumours, now + self.rng.jitter(self.config.rumour_period));
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::testing::{cluster, node, profile};
    use crate::wire::Message;
    use crate::{Incarnation, Phase};

    #[test]
    fn what_goes_to_a_suspect_does_not_count_as_told() {
        let now = Instant::from_millis(1_000);
        let mut one = node("a");
        let records = [("b", 2), ("c", 3)].map(|(name, port)| {
            Record::mint(&cluster(), &profile(name, port), Incarnation::new(1, 0), Phase::Ready, 1)
        });
        let [suspect, other] = records.each_ref().map(Record::peer);
        records.iter().for_each(|record| _ = one.admit_and_tell(now, record.clone()));
        one.suspect(now, suspect.id, Incarnation::new(1, 0), other.id);
        let told = |one: &mut Membership, to| {
            let mut out = Vec::new();
            one.outbox.clear();
            one.send(to, Outgoing::Rumours { introduce: false, delivery: Delivery::Datagram });
            _ = one.poll_transmit(now, &mut out).expect("there is one");
            matches!(Message::decode(&out), Ok(Some(Message::Rumours { header })) if !header.updates.is_empty())
        };
        assert!((0..100).all(|_| told(&mut one, suspect)), "it may be alive, and is told all the same");
        assert!(one.has_news());
        assert!((0..100).filter(|_| told(&mut one, other)).count() < 10);
        assert!(!one.has_news());
    }
}
