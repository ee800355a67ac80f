//! Whom its observers found silent: what lets a node believe that a member is down which it does not ask itself.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::membership::{Membership, Timer};
use crate::overlay;
use crate::probe::ASKED_AFAR_MAX;
use crate::suspicion::Suspicion;
use crate::wire::{MARKS_MAX, Update};
use crate::{Incarnation, Instant, NodeId, Roster, State};

/// Who found which member silent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdicts(BTreeMap<NodeId, Verdict>);

#[derive(Clone, Debug, Default)]
struct Verdict {
    incarnation: Incarnation,
    /// Of whoever found it silent.
    marks: Vec<u16>,
    /// Who observed it when that was asked last: it is asked often, and the view is long.
    observers: Vec<NodeId>,
}

impl Verdicts {
    /// Those with these marks found `id` silent at `incarnation`; whether that is news.
    pub(crate) fn add(&mut self, id: NodeId, incarnation: Incarnation, marks: &[u16]) -> bool {
        let held = self.0.entry(id).or_default();
        if incarnation < held.incarnation {
            return false;
        }
        if incarnation > held.incarnation {
            *held = Verdict { incarnation, ..Verdict::default() };
        }
        let before = held.marks.len();
        for mark in marks {
            if held.marks.len() < MARKS_MAX && !held.marks.contains(mark) {
                held.marks.push(*mark);
            }
        }
        held.marks.len() > before
    }

    /// The marks of those who found `id` silent at `incarnation`.
    pub(crate) fn marks(&self, id: NodeId, incarnation: Incarnation) -> &[u16] {
        self.at(id, incarnation).map_or(&[], |held| &held.marks)
    }

    fn at(&self, id: NodeId, incarnation: Incarnation) -> Option<&Verdict> {
        self.0.get(&id).filter(|held| held.incarnation == incarnation)
    }

    /// Looks up who observes `id`, unless that was done for this incarnation.
    fn note_observers(&mut self, id: NodeId, roster: &Roster) {
        if self.0.get(&id).is_some_and(|held| held.observers.is_empty()) {
            self.observe_anew(id, roster);
        }
    }

    /// Looks up who observes `id`, if somebody found it silent.
    fn observe_anew(&mut self, id: NodeId, roster: &Roster) {
        if let Some(held) = self.0.get_mut(&id) {
            held.observers = overlay::observers(id, roster);
        }
    }

    /// The member is back, or not listed any more.
    pub(crate) fn forget(&mut self, id: NodeId) {
        self.0.remove(&id);
    }
}

impl Membership {
    /// Somebody says that `id` is down: those of its observers that have these marks found it silent.
    pub(crate) fn on_down(&mut self, now: Instant, from: NodeId, id: NodeId, incarnation: Incarnation, marks: &[u16]) {
        let listed = self.roster.get(id).is_some() && self.is_plausible(id, incarnation);
        let enough = !self.overlay.is_mesh() && self.is_found_silent(id, incarnation, false);
        let grew = listed && self.verdicts.add(id, incarnation, marks);
        self.on_accusation(now, id, State::Down, incarnation, from);
        if !grew || self.overlay.is_mesh() {
            return;
        }
        let belief = self.roster.belief(id);
        if belief == Some((State::Suspect, incarnation)) && !self.overlay.observes(id) {
            self.verdicts.note_observers(id, &self.roster);
            self.weigh(now, id);
        }
        // Whoever does not ask it believes a majority only: each verdict has to get around until there is one.
        let stands = matches!(belief, Some((State::Suspect | State::Down, held)) if held == incarnation);
        if stands && !enough {
            self.rumours.push(id, incarnation, self.down(id, incarnation));
            self.hasten_rumours(now);
        }
    }

    /// The news that `id` is down, and who found it silent.
    pub(crate) fn down(&self, id: NodeId, incarnation: Incarnation) -> Update {
        Update::Down(id, incarnation, self.verdicts.marks(id, incarnation).to_vec())
    }

    /// Whether most of those who observe `id` found it silent: of all of them, or of those that are not suspected
    /// themselves.
    fn is_found_silent(&self, id: NodeId, incarnation: Incarnation, of_unsuspected: bool) -> bool {
        let Some(verdict) = self.verdicts.at(id, incarnation) else { return false };
        let alive = |id: &&NodeId| self.roster.get(**id).is_some_and(|member| member.state == State::Alive);
        let observers = verdict.observers.iter().filter(|id| !of_unsuspected || alive(id));
        let (silent, all) = observers.fold((0, 0), |(silent, all), id| {
            (silent + usize::from(verdict.marks.contains(&overlay::mark(*id))), all + 1)
        });
        silent > all / 2
    }

    /// A verdict has come about a suspect that this node does not ask itself. When there are enough, the suspect still has
    /// the time that its objection takes to get here: it may have been cut off a moment ago, and not hear of it before.
    /// Whoever stood still meanwhile, or is answered by nobody, may have missed the objection, and gives it that time again.
    pub(crate) fn weigh(&mut self, now: Instant, id: NodeId) {
        let Some(suspicion) = self.suspicions.get(&id).filter(|suspicion| !suspicion.answered) else { return };
        let (incarnation, removed_at) = (suspicion.incarnation, suspicion.removed_at);
        if !self.is_found_silent(id, incarnation, now >= suspicion.deadline()) {
            return;
        }
        let members = self.roster.present_count();
        let late = |at: Instant| now.since(at) > self.config.period(members) / 4;
        match removed_at {
            Some(at) if now < at => {}
            Some(at) if !late(at) && !self.is_isolated(now) => self.conclude(now, id, State::Down, incarnation),
            _ => {
                let told_by = now + self.config.dissemination(members);
                self.timers.set(Timer::Suspicion(id), told_by);
                self.suspicions.entry(id).and_modify(|suspicion| suspicion.removed_at = Some(told_by));
            }
        }
    }

    /// The time of a suspect that others observe is over. Their verdicts decide; without them it is asked from here after
    /// all, one of a few at a time: rumours may have been missed.
    pub(crate) fn must_ask_itself(&mut self, now: Instant, id: NodeId) -> bool {
        let members = self.roster.present_count();
        let Some(suspicion) = self.suspicions.get(&id) else { return false };
        let told_by = suspicion.deadline() + self.config.dissemination(members) * 2;
        let next = suspicion.removed_at.unwrap_or(told_by);
        if now < next {
            self.timers.set(Timer::Suspicion(id), next);
            return false;
        }
        self.verdicts.observe_anew(id, &self.roster);
        self.weigh(now, id);
        let waits = |suspicion: &Suspicion| suspicion.removed_at.is_some_and(|at| now < at);
        if self.suspicions.get(&id).is_none_or(waits) {
            return false;
        }
        let busy = self.prober.last_words(|id| !self.overlay.observes(id)) >= ASKED_AFAR_MAX;
        if busy {
            self.timers.set(Timer::Suspicion(id), now + self.config.suspicion(members).min);
        }
        !busy
    }

    /// This node stood still: what it held of verdicts may be over.
    pub(crate) fn doubt_verdicts(&mut self) {
        for (id, suspicion) in &mut self.suspicions {
            suspicion.removed_at = None;
            self.verdicts.forget(*id);
        }
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;
    use crate::testing::{cluster, node, profile};
    use crate::{Phase, Record};

    const NOW: Instant = Instant::from_millis(10_000);
    const SOMEBODY: NodeId = NodeId::from_u128(1);

    fn record(number: u16) -> Record {
        let name = alloc::format!("n{number}");
        Record::mint(&cluster(), &profile(&name, number), Incarnation::new(1, 0), Phase::Ready, 1)
    }

    /// A node among many, a member that it does not observe, and the marks of those who do.
    fn one_of_many() -> (Membership, NodeId, Vec<u16>) {
        let mut node = node("a");
        node.handle_timeout(NOW);
        (2..400).for_each(|number| node.merge_record(NOW, SOMEBODY, record(number).bytes()).unwrap());
        assert!(!node.is_mesh());
        let afar = (2..400).map(|number| record(number).id()).find(|id| !node.overlay.is_neighbour(*id)).unwrap();
        let marks: Vec<u16> = overlay::observers(afar, &node.roster).into_iter().map(overlay::mark).collect();
        assert!(marks.len() >= 8);
        (node, afar, marks)
    }

    fn state(node: &Membership, id: NodeId) -> State {
        node.member(id).unwrap().state
    }

    #[test]
    fn a_majority_of_observers_is_believed_after_an_objection_could_have_come() {
        let (mut node, subject, marks) = one_of_many();
        let (few, enough) = (marks.len() / 2, marks.len() / 2 + 1);
        node.on_down(NOW, SOMEBODY, subject, Incarnation::new(1, 0), &marks[..few]);
        assert_eq!(node.suspicions[&subject].removed_at, None, "half of them are no majority");
        node.on_down(NOW, SOMEBODY, subject, Incarnation::new(1, 0), &marks[few..enough]);
        let at = node.suspicions[&subject].removed_at.expect("they add up");
        node.on_suspicion_due(at - Duration::from_millis(1), subject);
        assert_eq!(state(&node, subject), State::Suspect);
        node.on_suspicion_due(at, subject);
        assert_eq!(state(&node, subject), State::Down);
    }

    #[test]
    fn marks_of_those_who_do_not_observe_do_not_count() {
        let (mut node, subject, marks) = one_of_many();
        let others: Vec<u16> = (0..u16::MAX).filter(|mark| !marks.contains(mark)).take(MARKS_MAX).collect();
        node.on_down(NOW, SOMEBODY, subject, Incarnation::new(1, 0), &others);
        assert_eq!(node.suspicions[&subject].removed_at, None);
    }

    #[test]
    fn whoever_looks_late_gives_the_time_again() {
        let (mut node, subject, marks) = one_of_many();
        node.on_down(NOW, SOMEBODY, subject, Incarnation::new(1, 0), &marks);
        let at = node.suspicions[&subject].removed_at.expect("they are enough");
        let late = at + Duration::from_secs(1);
        node.on_suspicion_due(late, subject);
        assert_eq!(state(&node, subject), State::Suspect, "an objection may wait to be read");
        let again = node.suspicions[&subject].removed_at.expect("they are still enough");
        assert!(again > late);
        node.on_suspicion_due(again, subject);
        assert_eq!(state(&node, subject), State::Down);
    }

    #[test]
    fn an_answer_outweighs_what_others_found() {
        let (mut node, subject, marks) = one_of_many();
        node.on_down(NOW, SOMEBODY, subject, Incarnation::new(1, 0), &marks);
        let at = node.suspicions[&subject].removed_at.expect("they are enough");
        node.suspicions.entry(subject).and_modify(|suspicion| suspicion.answered = true);
        node.weigh(at, subject);
        assert_eq!(state(&node, subject), State::Suspect);
    }

    #[test]
    fn verdicts_add_up_within_an_incarnation_and_are_bounded() {
        let (id, mut verdicts) = (NodeId::from_u128(1), Verdicts::default());
        let at = |count| Incarnation::new(1, count);
        assert!(verdicts.add(id, at(1), &[7]) && !verdicts.add(id, at(1), &[7]) && verdicts.add(id, at(1), &[8]));
        assert!(!verdicts.add(id, at(0), &[9]), "old news");
        assert_eq!((verdicts.marks(id, at(1)), verdicts.marks(id, at(2))), (&[7, 8][..], &[][..]));
        assert!(verdicts.add(id, at(2), &[9]));
        assert_eq!(verdicts.marks(id, at(2)), [9]);
        let many: Vec<u16> = (0..100).collect();
        verdicts.add(id, at(2), &many);
        assert_eq!(verdicts.marks(id, at(2)).len(), MARKS_MAX);
    }
}
