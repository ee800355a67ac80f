//! Whose turn it is to be asked: everybody once in a pass, in an order that is drawn anew for each (SWIM §4.3).

use alloc::vec::Vec;

use crate::{NodeId, Rng};

/// An endless round of members.
#[derive(Debug)]
pub(crate) struct Turns {
    order: Vec<NodeId>,
    next: usize,
    rng: Rng,
}

impl Turns {
    pub(crate) fn new(rng: Rng) -> Self {
        Self { order: Vec::new(), next: 0, rng }
    }

    /// A newcomer gets a random place in the round.
    pub(crate) fn add(&mut self, id: NodeId) {
        if !self.order.contains(&id) {
            let place = self.rng.index(self.order.len() + 1);
            self.order.insert(place, id);
            if place < self.next {
                self.next += 1;
            }
        }
    }

    /// The next member that is `asked`; a pass ends with a shuffle of those that are `kept`.
    pub(crate) fn next(&mut self, kept: impl Fn(NodeId) -> bool, asked: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        // What is left of this pass, and all of the next.
        for _ in 0..=2 * self.order.len() {
            if self.next >= self.order.len() {
                self.order.retain(|id| kept(*id));
                self.rng.shuffle(&mut self.order);
                self.next = 0;
            }
            let id = *self.order.get(self.next)?;
            self.next += 1;
            if asked(id) {
                return Some(id);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;

    use super::*;

    fn turns(count: u128) -> Turns {
        let mut turns = Turns::new(Rng::new(7));
        (0..count).for_each(|number| turns.add(NodeId::from_u128(number)));
        turns
    }

    #[test]
    fn everybody_is_asked_once_in_a_pass() {
        let mut turns = turns(20);
        let first: Vec<NodeId> = (0..20).filter_map(|_| turns.next(|_| true, |_| true)).collect();
        let second: Vec<NodeId> = (0..20).filter_map(|_| turns.next(|_| true, |_| true)).collect();
        assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 20);
        assert_eq!(second.iter().collect::<BTreeSet<_>>().len(), 20);
        assert_ne!(first, second, "in another order");
    }

    #[test]
    fn the_only_one_that_is_asked_is_found_wherever_the_pass_stands() {
        let (mut turns, only) = (turns(10), NodeId::from_u128(6));
        for _ in 0..100 {
            assert_eq!(turns.next(|_| true, |id| id == only), Some(only));
        }
    }

    #[test]
    fn who_has_no_turn_for_a_while_keeps_its_place_and_who_is_gone_does_not() {
        let (mut turns, [silent, gone]) = (turns(10), [3, 4].map(NodeId::from_u128));
        for _ in 0..40 {
            let asked = turns.next(|id| id != gone, |id| id != silent && id != gone);
            assert!(asked.is_some_and(|id| id != silent && id != gone));
        }
        let asked: BTreeSet<NodeId> = (0..18).filter_map(|_| turns.next(|_| true, |_| true)).collect();
        assert!(asked.contains(&silent) && !asked.contains(&gone));
        assert_eq!(turns.next(|_| true, |_| false), None, "nobody is asked");
    }
}
