//! When a node publishes what it knows, and under which fence it holds what it owns by that.

use std::sync::Arc;

use swimring_membership::{Event, Instant, Membership, NodeId, State};
use swimring_ring::{Placement, RingMember};

use super::control::Control;
use super::passing::Passing;
use super::view::{Owners, Rings, View};

/// What is published at once.
#[derive(Debug)]
pub struct Edition {
    /// What is known now.
    pub view: View,
    /// This node's keys were others' for a time, whatever its own views said.
    pub retaken: bool,
    /// Who owned keys for a moment since the edition before, and does in neither.
    pub passing: Vec<RingMember>,
}

/// Watches a membership, and says when there is something to publish.
#[derive(Debug)]
pub struct Publishing {
    placement: Placement,
    rings: Arc<Rings>,
    /// The roster's version of the last edition, whether the process was confirmed, and the fence.
    published: Option<(u64, bool, u64)>,
    /// Those of the last edition.
    owners: Option<Owners>,
    passing: Passing,
    retaken: bool,
}

impl Publishing {
    /// Nothing has been published for the node `me`.
    pub fn new(me: NodeId, placement: Placement, rings: Arc<Rings>) -> Self {
        let passing = Passing::new(me);
        Self { placement, rings, published: None, owners: None, passing, retaken: false }
    }

    /// Takes an event of the membership, which has it behind it.
    pub fn note(&mut self, membership: &Membership, event: &Event) {
        match event {
            Event::Changed { id, state, incarnation, phase, .. } => {
                if let Some(member) = membership.member(*id) {
                    self.passing.note(member, *state, *incarnation, *phase);
                }
            }
            // Of a stall: what is heard first may be an old suspicion, though it has ended in a removal since.
            Event::Refuted { against: State::Down | State::Left, .. }
            | Event::Removed { .. }
            | Event::Stalled { .. } => {
                self.retaken = true;
            }
            _ => {}
        }
    }

    /// What is to be published now, if anything is. Another ring, and the same one after others had this node's keys,
    /// comes under a new fence, before anybody can run a call by it.
    pub fn next(&mut self, now: Instant, control: &mut Control) -> Option<Edition> {
        let membership = control.membership();
        let state = (membership.roster().version(), membership.is_confirmed(), membership.fence());
        let mut retaken = std::mem::take(&mut self.retaken);
        if self.published == Some(state) && !retaken {
            return None;
        }
        let view = match &self.owners {
            Some(held) => View::after(held, membership, self.placement, &self.rings),
            None => View::of(membership, self.placement, &self.rings),
        };
        let passed = self.passing.next(Arc::clone(view.ring_members()));
        retaken |= passed.retaken;
        let same = self.owners.as_ref().is_some_and(|held| held.is_same(view.owners()));
        let anew = !same || retaken || !passed.owners.is_empty();
        self.owners = Some(view.owners().clone());
        let fence = control.command(now, |membership| membership.hold(anew));
        self.published = Some((state.0, state.1, fence));
        Some(Edition { view: view.with_fence(fence), retaken, passing: passed.owners })
    }
}
