//! News on its way: what to tell next, within a byte budget, and when it has been told often enough.
//!
//! Infection-style dissemination (SWIM §4.1): least told first, among equals the most severe. Confirmations
//! of a suspicion by different nodes are different rumours, so none overwrites another.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::wire::{Update, update_bytes};
use crate::{Incarnation, Instant, NodeId};

/// Most rumours kept; beyond it the most told, mildest one is dropped and counted.
const RUMOURS_MAX: usize = 4_096;

/// Which rumour: about whom, how severe, and (for suspicions) by whom.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Key {
    subject: NodeId,
    severity: u8,
    by: NodeId,
}

#[derive(Clone, Debug)]
struct Rumour {
    update: Update,
    incarnation: Incarnation,
    bytes: usize,
    sends: u32,
}

/// The queue of rumours.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rumours {
    rumours: BTreeMap<Key, Rumour>,
    /// (sends, severity, key): the first is told next.
    order: BTreeSet<(u32, u8, Key)>,
    /// Told in the transmission that the driver has in hand.
    last: Vec<Key>,
    scratch: Vec<u8>,
    /// When a round of them went out last.
    pub(crate) last_round: Instant,
    /// How many were dropped because the queue was full.
    pub(crate) dropped: u64,
}

const SEVERE: u8 = 0;
const SUSPECT: u8 = 1;
const MILD: u8 = 2;
/// How many rumours are looked at to fill one message: what does not fit is as long as others behind it.
const LOOKED_AT_MAX: usize = 64;
/// No update is shorter.
const SMALLEST_UPDATE_BYTES: usize = 18;

impl Rumours {
    /// Spreads `update` about `subject`, which is newer than what was spread about it before.
    pub(crate) fn push(&mut self, subject: NodeId, incarnation: Incarnation, update: Update) {
        let key = key_of(subject, &update);
        self.forget_older(key, incarnation);
        let bytes = update_bytes(&update, &mut self.scratch);
        if self.rumours.len() >= RUMOURS_MAX
            && let Some(&(_, _, last)) = self.order.last()
        {
            self.remove(last);
            self.dropped += 1;
        }
        self.order.insert((0, key.severity, key));
        self.rumours.insert(key, Rumour { update, incarnation, bytes, sends: 0 });
    }

    /// Drops what the newer statement `key` makes pointless: everything older about its subject, and the
    /// same statement itself; but a suspicion leaves the suspicions of others alone.
    fn forget_older(&mut self, newer: Key, incarnation: Incarnation) {
        let low = Key { subject: newer.subject, severity: 0, by: NodeId::MIN };
        let high = Key { subject: newer.subject, severity: u8::MAX, by: NodeId::MAX };
        let older = |key: &Key, rumour: &Rumour| {
            *key == newer
                || rumour.incarnation < incarnation
                || (newer.severity != SUSPECT && rumour.incarnation == incarnation)
        };
        let stale = self.rumours.range(low..=high).filter(|(key, rumour)| older(key, rumour)).map(|(key, _)| *key);
        let stale: Vec<Key> = stale.collect();
        stale.into_iter().for_each(|key| self.remove(key));
    }

    fn remove(&mut self, key: Key) {
        if let Some(rumour) = self.rumours.remove(&key) {
            self.order.remove(&(rumour.sends, key.severity, key));
        }
    }

    /// Takes the next rumours that fit `budget` bytes, at most `most`, and counts them as told. A rumour
    /// that has been told `limit` times is not told again.
    pub(crate) fn fill(&mut self, budget: usize, most: usize, limit: u32) -> Vec<Update> {
        self.forget_told(limit);
        self.last.clear();
        let mut updates = Vec::new();
        let mut left = budget;
        for &(_, _, key) in self.order.iter().take(most + LOOKED_AT_MAX) {
            let rumour = &self.rumours[&key];
            if rumour.bytes <= left {
                left -= rumour.bytes;
                updates.push(rumour.update.clone());
                self.last.push(key);
            }
            if left < SMALLEST_UPDATE_BYTES || updates.len() == most {
                break;
            }
        }
        for index in 0..self.last.len() {
            self.count(self.last[index], |sends| sends + 1);
        }
        updates
    }

    /// Removes what was told often enough. Done before a fill and not after it, so that a refund still
    /// finds its rumour.
    fn forget_told(&mut self, limit: u32) {
        let first = (limit, 0, Key { subject: NodeId::MIN, severity: 0, by: NodeId::MIN });
        let told: Vec<Key> = self.order.range(first..).map(|&(_, _, key)| key).collect();
        told.into_iter().for_each(|key| self.remove(key));
    }

    /// What was filled before is sent: it can no longer be refunded.
    pub(crate) fn settle(&mut self) {
        self.last.clear();
    }

    /// The last [`fill`](Self::fill) was not sent: nothing of it counts as told.
    pub(crate) fn refund(&mut self) {
        for key in core::mem::take(&mut self.last) {
            self.count(key, |sends| sends.saturating_sub(1));
        }
    }

    fn count(&mut self, key: Key, change: impl Fn(u32) -> u32) {
        if let Some(rumour) = self.rumours.get_mut(&key) {
            self.order.remove(&(rumour.sends, key.severity, key));
            rumour.sends = change(rumour.sends);
            self.order.insert((rumour.sends, key.severity, key));
        }
    }

    /// Whether there is nothing to tell.
    pub(crate) fn is_empty(&self) -> bool {
        self.rumours.is_empty()
    }

    /// Whether a rumour is left that was told less than `limit` times.
    pub(crate) fn has_news(&self, limit: u32) -> bool {
        self.order.first().is_some_and(|&(sends, _, _)| sends < limit)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.rumours.len()
    }
}

fn key_of(subject: NodeId, update: &Update) -> Key {
    let (severity, by) = match update {
        Update::Alive(_) | Update::Notice(..) => (MILD, NodeId::MIN),
        Update::Suspect(_, _, by) => (SUSPECT, *by),
        Update::Down(..) | Update::Left(..) => (SEVERE, NodeId::MIN),
    };
    Key { subject, severity, by }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u128) -> NodeId {
        NodeId::from_u128(number)
    }

    fn suspect(subject: u128, count: u32, by: u128) -> (NodeId, Incarnation, Update) {
        let incarnation = Incarnation::new(1, count);
        (node(subject), incarnation, Update::Suspect(node(subject), incarnation, node(by)))
    }

    fn down(subject: u128, count: u32) -> (NodeId, Incarnation, Update) {
        let incarnation = Incarnation::new(1, count);
        (node(subject), incarnation, Update::Down(node(subject), incarnation, Vec::new()))
    }

    fn queue(news: &[(NodeId, Incarnation, Update)]) -> Rumours {
        let mut rumours = Rumours::default();
        news.iter().cloned().for_each(|(id, incarnation, update)| rumours.push(id, incarnation, update));
        rumours
    }

    #[test]
    fn a_second_suspector_does_not_overwrite_the_first() {
        let mut rumours = queue(&[suspect(1, 0, 7), suspect(1, 0, 8)]);
        assert_eq!(rumours.fill(1_000, 10, 3).len(), 2);
        let mut newer = queue(&[suspect(1, 0, 7), suspect(1, 0, 8), suspect(1, 1, 9)]);
        assert_eq!(newer.fill(1_000, 10, 3).len(), 1, "but one of a newer incarnation replaces both");
    }

    #[test]
    fn a_verdict_replaces_the_suspicions() {
        let mut rumours = queue(&[suspect(1, 0, 7), suspect(1, 0, 8), down(1, 0)]);
        assert_eq!(rumours.fill(1_000, 10, 3), [down(1, 0).2]);
    }

    #[test]
    fn the_least_told_come_first_and_the_severe_before_the_mild() {
        let mut rumours = queue(&[suspect(1, 0, 7), down(2, 0)]);
        assert_eq!(rumours.fill(1_000, 1, 3), [down(2, 0).2]);
        assert_eq!(rumours.fill(1_000, 1, 3), [suspect(1, 0, 7).2]);
    }

    #[test]
    fn a_rumour_is_told_as_often_as_the_limit_says_and_unsent_ones_do_not_count() {
        let mut rumours = queue(&[down(1, 0)]);
        for _ in 0..5 {
            assert_eq!(rumours.fill(1_000, 10, 2).len(), 1);
            rumours.refund();
        }
        assert_eq!(rumours.fill(1_000, 10, 2).len(), 1);
        assert_eq!(rumours.fill(1_000, 10, 2).len(), 1);
        assert!(!rumours.has_news(2));
        assert_eq!(rumours.fill(1_000, 10, 2).len(), 0);
    }

    #[test]
    fn a_budget_is_kept() {
        let news: Vec<_> = (0..100).map(|subject| down(subject, 0)).collect();
        let mut rumours = queue(&news);
        let told = rumours.fill(200, 128, 3);
        let mut bytes = Vec::new();
        told.iter().for_each(|update| crate::codec::encode(update, &mut bytes));
        assert!(bytes.len() <= 200 && bytes.len() > 160, "{}", bytes.len());
    }

    #[test]
    fn the_queue_is_bounded_and_what_it_drops_is_counted() {
        let news: Vec<_> = (0..RUMOURS_MAX as u128 + 10).map(|subject| down(subject, 0)).collect();
        let rumours = queue(&news);
        assert_eq!((rumours.len(), rumours.dropped), (RUMOURS_MAX, 10));
    }
}
