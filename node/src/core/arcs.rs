//! What rings mean for one node that holds state: the arcs that it has lost and won, and those that it expects to.

use std::sync::Arc;

use swimring_membership::NodeId;
use swimring_ring::{ArcMove, Ring};

use super::view::View;

/// What becomes of a node's arcs, in the order in which it does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ArcEvent {
    /// These are others' now, or were for a time: what is held of them is not the last word any more.
    Lost {
        /// Which, and who has them.
        arcs: Vec<ArcMove>,
        /// The fence under which the node holds what it has left.
        fence: u64,
    },
    /// These are the node's now: what it held of them before may be old.
    Won {
        /// Which, and who had them.
        arcs: Vec<ArcMove>,
        /// The fence under which it holds them: higher than any that it has heard of.
        fence: u64,
    },
    /// Once everybody who is joining is ready, and everybody who is suspected is gone, the node will have lost and won
    /// these. Takes the place of what was expected before; both are empty once nothing is.
    Expected {
        /// What it owns, and others will.
        lose: Vec<ArcMove>,
        /// What others own, and it will.
        win: Vec<ArcMove>,
    },
}

/// The arcs of one node, from one ring to the next.
#[derive(Debug)]
pub struct Arcs {
    me: NodeId,
    ring: Arc<Ring>,
    /// The rings that were last compared for what is expected.
    compared: Option<(Arc<Ring>, Arc<Ring>)>,
    expected: (Vec<ArcMove>, Vec<ArcMove>),
}

impl Arcs {
    /// The node `me` owns nothing yet.
    pub fn new(me: NodeId, first: &Ring) -> Self {
        let nobody = Ring::build(first.placement(), []);
        Self { me, ring: Arc::new(nobody), compared: None, expected: (Vec::new(), Vec::new()) }
    }

    /// Another ring decides. With `retaken`, everything was others' for a time, whatever this node's rings said.
    pub fn next(&mut self, ring: &Arc<Ring>, retaken: bool, fence: u64) -> Vec<ArcEvent> {
        if !retaken && Arc::ptr_eq(&self.ring, ring) {
            return Vec::new();
        }
        let before = std::mem::replace(&mut self.ring, Arc::clone(ring));
        let (mut lost, mut won) = self.of_me(&before, ring);
        if retaken {
            let nobody = Ring::build(ring.placement(), []);
            lost = self.of_me(&before, &nobody).0;
            won = self.of_me(&nobody, ring).1;
        }
        let lost = (!lost.is_empty()).then_some(ArcEvent::Lost { arcs: lost, fence });
        let won = (!won.is_empty()).then_some(ArcEvent::Won { arcs: won, fence });
        lost.into_iter().chain(won).collect()
    }

    /// A view that came after every ring that was said so far: what it has that none of them had, and what is expected by
    /// it.
    pub fn look(&mut self, view: &View) -> Vec<ArcEvent> {
        let mut events = self.next(view.ring(), false, view.fence());
        events.extend(self.expect(&view.expected_ring()));
        events
    }

    /// The ring that is expected after the one that decides now.
    pub fn expect(&mut self, ring: &Arc<Ring>) -> Option<ArcEvent> {
        let same = |(now, then): &(Arc<Ring>, Arc<Ring>)| Arc::ptr_eq(now, &self.ring) && Arc::ptr_eq(then, ring);
        if self.compared.as_ref().is_some_and(same) {
            return None;
        }
        self.compared = Some((Arc::clone(&self.ring), Arc::clone(ring)));
        let expected = self.of_me(&self.ring, ring);
        if expected == self.expected {
            return None;
        }
        let (lose, win) = expected.clone();
        self.expected = expected;
        Some(ArcEvent::Expected { lose, win })
    }

    /// What the node loses from one ring to the other, and what it wins.
    fn of_me(&self, old: &Ring, new: &Ring) -> (Vec<ArcMove>, Vec<ArcMove>) {
        let moves =
            Ring::diff(old, new).into_iter().filter(|moved| moved.from == Some(self.me) || moved.to == Some(self.me));
        moves.partition(|moved| moved.from == Some(self.me))
    }
}

#[cfg(test)]
mod tests {
    use swimring_ring::{Placement, RingMember};

    use super::*;

    const ME: NodeId = NodeId::from_u128(1);

    fn ring(numbers: &[u128]) -> Arc<Ring> {
        let member = |number: &u128| RingMember { id: NodeId::from_u128(*number), weight: 1, zone: None };
        Ring::build(Placement { arcs_log2: 10 }, numbers.iter().map(member)).into()
    }

    fn count(arcs: &[ArcMove]) -> u32 {
        arcs.iter().map(|moved| moved.count).sum()
    }

    #[test]
    fn what_is_won_and_lost_adds_up_to_what_is_owned() {
        let mut arcs = Arcs::new(ME, &ring(&[]));
        let mut held = 0;
        for members in [&[1][..], &[1, 2], &[1, 2, 3], &[2, 3], &[1, 3], &[1, 3, 4, 5]] {
            let ring = ring(members);
            for event in arcs.next(&ring, false, 7) {
                match event {
                    ArcEvent::Won { arcs, fence: 7 } => held += count(&arcs),
                    ArcEvent::Lost { arcs, fence: 7 } => held -= count(&arcs),
                    other => panic!("nothing is expected: {other:?}"),
                }
            }
            assert_eq!(held, ring.owned_count(ME));
        }
    }

    #[test]
    fn whoever_was_removed_for_a_time_has_lost_everything_and_won_it_again() {
        let mut arcs = Arcs::new(ME, &ring(&[]));
        let ring = ring(&[1, 2]);
        arcs.next(&ring, false, 1);
        let [ArcEvent::Lost { arcs: lost, .. }, ArcEvent::Won { arcs: won, fence: 2 }] = &arcs.next(&ring, true, 2)[..]
        else {
            panic!("both")
        };
        assert_eq!((count(lost), count(won)), (ring.owned_count(ME), ring.owned_count(ME)));
    }

    #[test]
    fn what_is_expected_is_what_happens_then_and_is_called_off_otherwise() {
        let mut arcs = Arcs::new(ME, &ring(&[]));
        let two = ring(&[1, 2]);
        arcs.next(&two, false, 1);
        assert_eq!(arcs.expect(&two), None);
        let three = ring(&[1, 2, 3]);
        let Some(ArcEvent::Expected { lose, win }) = arcs.expect(&three) else { panic!("the third comes") };
        assert!(win.is_empty());
        assert_eq!(arcs.expect(&three), None, "it is said once");
        assert_eq!(arcs.next(&three, false, 2), [ArcEvent::Lost { arcs: lose, fence: 2 }]);
        let called_off = Some(ArcEvent::Expected { lose: Vec::new(), win: Vec::new() });
        assert_eq!(arcs.expect(&three), called_off, "it has come");
        assert!(
            matches!(arcs.expect(&ring(&[1, 3])), Some(ArcEvent::Expected { lose, win }) if lose.is_empty() && !win.is_empty())
        );
    }
}
