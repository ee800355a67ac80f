//! Whom its observers found silent: what lets a node believe that a member is down which it does not ask itself.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::membership::{Membership, Timer};
use crate::overlay;
use crate::probe::ASKED_AFAR_MAX;
use crate::wire::{MARKS_MAX, Update};
use crate::{Incarnation, Instant, NodeId, State};

/// By whom a member was found silent, at which incarnation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdicts(BTreeMap<NodeId, (Incarnation, Vec<u16>)>);

impl Verdicts {
    /// Those with these marks found `id` silent at `incarnation`; whether that is news.
    pub(crate) fn add(&mut self, id: NodeId, incarnation: Incarnation, marks: &[u16]) -> bool {
        let (held, by) = self.0.entry(id).or_default();
        if incarnation < *held {
            return false;
        }
        if incarnation > *held {
            (*held, *by) = (incarnation, Vec::new());
        }
        let before = by.len();
        for mark in marks {
            if by.len() < MARKS_MAX && !by.contains(mark) {
                by.push(*mark);
            }
        }
        by.len() > before
    }

    /// The marks of those who found `id` silent at `incarnation`.
    pub(crate) fn marks(&self, id: NodeId, incarnation: Incarnation) -> &[u16] {
        match self.0.get(&id) {
            Some((held, by)) if *held == incarnation => by,
            _ => &[],
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
        let enough = listed && !self.overlay.is_mesh() && self.is_found_silent(id, incarnation, false);
        let grew = listed && self.verdicts.add(id, incarnation, marks);
        self.on_accusation(now, id, State::Down, incarnation, from);
        // Whoever does not ask it believes a majority only: each verdict has to get around until there is one.
        let stands =
            matches!(self.roster.belief(id), Some((State::Suspect | State::Down, held)) if held == incarnation);
        if grew && stands && !enough && !self.overlay.is_mesh() {
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
        let marks = self.verdicts.marks(id, incarnation);
        let mut observers = overlay::observers(id, &self.roster);
        if of_unsuspected {
            observers.retain(|id| self.roster.get(*id).is_some_and(|member| member.state == State::Alive));
        }
        let silent = observers.iter().filter(|id| marks.contains(&overlay::mark(**id))).count();
        !marks.is_empty() && silent > observers.len() / 2
    }

    /// A verdict has come about a suspect that this node does not ask itself. When there are enough, the suspect still has
    /// the time that its objection takes to get here: it may have been cut off a moment ago, and not hear of it before.
    pub(crate) fn weigh(&mut self, now: Instant, id: NodeId) {
        let Some(suspicion) = self.suspicions.get(&id) else { return };
        let (incarnation, overdue) = (suspicion.incarnation, now >= suspicion.deadline());
        if !self.is_found_silent(id, incarnation, overdue) {
            return;
        }
        let told_by = now + self.config.dissemination(self.roster.present_count());
        let Some(suspicion) = self.suspicions.get_mut(&id) else { return };
        match suspicion.removed_at {
            None => {
                suspicion.removed_at = Some(told_by);
                self.timers.set(Timer::Suspicion(id), told_by);
            }
            Some(at) if now >= at => self.conclude(now, id, State::Down, incarnation),
            Some(_) => {}
        }
    }

    /// The time of a suspect that others observe is over. Their verdicts decide; without them it is asked from here after
    /// all, one of a few at a time: rumours may have been missed.
    pub(crate) fn must_ask_itself(&mut self, now: Instant, id: NodeId) -> bool {
        self.weigh(now, id);
        let members = self.roster.present_count();
        let Some(suspicion) = self.suspicions.get(&id) else { return false };
        let told_by = suspicion.deadline() + self.config.dissemination(members) * 2;
        let next = suspicion.removed_at.unwrap_or(told_by);
        if now < next {
            self.timers.set(Timer::Suspicion(id), next);
            return false;
        }
        let busy = self.prober.last_words(|id| !self.overlay.observes(id)) >= ASKED_AFAR_MAX;
        if busy {
            self.timers.set(Timer::Suspicion(id), now + self.config.suspicion(members).min);
        }
        !busy
    }

    /// `id` is present, or is not any more: whom this node asks in its rounds follows.
    pub(crate) fn on_presence(&mut self, id: NodeId, present: bool) {
        let changed = if present { self.overlay.add(id) } else { self.overlay.remove(id, &self.roster) };
        let resized = self.overlay.resize(self.roster.present_count(), &self.config);
        if !self.overlay.is_mesh() {
            if changed || resized {
                self.overlay.observed().into_iter().for_each(|id| self.prober.add(id));
            }
        } else if resized {
            let neighbours: Vec<NodeId> = self.neighbours().map(|peer| peer.id).collect();
            neighbours.into_iter().for_each(|id| self.prober.add(id));
        } else if present {
            self.prober.add(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
