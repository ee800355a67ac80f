//! Fences: numbers that order the holds of nodes on their keys.
//!
//! A ring that differs from the last one, or keys that others had for a time, put a node's fence above every one that it
//! has heard of. Nodes that see the same members share the highest of theirs: so whoever has won a key ends up above all
//! its earlier owners, also above a fence that was not heard of when the key was won.

use crate::NodeId;
use crate::membership::Membership;

/// However far above the highest heard of a fence is, hearing of it climbs so far only: a lie must leave fences above it.
const LEAP_MAX: u64 = 1 << 24;

/// No newcomer begins above this one, whatever its seed says.
const FIRST_MAX: u64 = 1 << 48;

#[derive(Clone, Debug, Default)]
pub(crate) struct Fences {
    /// Under which this node holds its keys.
    own: u64,
    /// The roster's version for which that holds.
    version: Option<u64>,
    /// The highest one heard of, this node's included.
    heard: u64,
}

impl Membership {
    /// An earlier life of this node minted no fence above this one.
    pub fn remember_fence(&mut self, fence: u64) {
        self.fences.heard = self.fences.heard.max(fence);
    }

    /// Somebody has minted this fence, says `from`: who is no member does not know.
    pub(crate) fn hear_fence(&mut self, from: NodeId, fence: u64) {
        if fence <= self.fences.heard || self.roster.present(from).is_none() {
            return;
        }
        let highest = self.fences.heard.saturating_add(LEAP_MAX);
        if fence > highest {
            self.stats.implausible += 1;
        }
        self.fences.heard = self.fences.heard.max(fence.min(highest));
    }

    /// A seed has heard of this fence. What it lists is how a newcomer begins, and so is this.
    pub(crate) fn hear_seed_fence(&mut self, from: NodeId, fence: u64) {
        if self.is_joined() {
            self.hear_fence(from, fence);
        } else {
            self.fences.heard = self.fences.heard.max(fence.min(FIRST_MAX));
        }
    }

    /// A node that sees the same members holds its keys under this fence; it was heard.
    pub(crate) fn share_fence(&mut self, fence: u64) {
        if self.fences.version == Some(self.roster.version()) {
            self.fences.own = self.fences.own.max(fence.min(self.fences.heard));
        }
    }

    /// From now on this node owns keys by its present view. `anew`: it may have won some since it did so last.
    /// Returns the fence under which it holds them.
    pub fn hold(&mut self, anew: bool) -> u64 {
        if anew {
            self.fences.heard = self.fences.heard.saturating_add(1);
            self.fences.own = self.fences.heard;
        }
        self.fences.version = Some(self.roster.version());
        self.fences.own
    }

    /// The fence under which this node holds its keys.
    pub fn fence(&self) -> u64 {
        self.fences.own
    }

    /// The fence that goes with the present view; 0 if this node does not own keys by it yet.
    pub(crate) fn fence_of_view(&self) -> u64 {
        if self.fences.version == Some(self.roster.version()) { self.fences.own } else { 0 }
    }

    /// The highest fence heard of, this node's own included.
    pub(crate) fn fence_heard(&self) -> u64 {
        self.fences.heard
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::testing::{cluster, node, profile};
    use crate::wire::Message;
    use crate::{Incarnation, Instant, Phase, Record};

    #[test]
    fn a_lie_climbs_only_so_far_and_a_newcomer_climbs_after_it() {
        let mut node = node("a");
        let member = node.id();
        node.hear_fence(member, u64::MAX);
        assert_eq!((node.fence_heard(), node.stats.implausible), (LEAP_MAX, 1));
        node.hear_fence(member, LEAP_MAX + 7);
        assert_eq!(node.fence_heard(), LEAP_MAX + 7);
        node.hear_fence(member, 3);
        assert_eq!(node.hold(true), LEAP_MAX + 8, "what is minted is above all that was heard");
    }

    #[test]
    fn who_is_no_member_raises_no_fence() {
        let mut node = node("a");
        node.hear_fence(NodeId::from_u128(7), 5);
        assert_eq!(node.fence_heard(), 0);
    }

    #[test]
    fn a_fence_is_shared_only_by_the_view_that_it_is_for() {
        let mut node = node("a");
        let own = node.hold(true);
        node.hear_fence(node.id(), own + 9);
        node.share_fence(own + 5);
        assert_eq!((node.fence(), node.fence_of_view()), (own + 5, own + 5));
        node.restate(Instant::ORIGIN);
        node.share_fence(own + 9);
        assert_eq!((node.fence(), node.fence_of_view()), (own + 5, 0), "the new view is not published yet");
        assert_eq!(node.hold(true), own + 10);
    }

    #[test]
    fn whoever_lists_members_says_which_fences_they_hold() {
        let (mut node, now) = (node("a"), Instant::from_millis(1_000));
        let seed = Record::mint(&cluster(), &profile("b", 2), Incarnation::new(1, 0), Phase::Ready, 1);
        node.on_seeds(now, &[seed.profile().gossip]);
        let hears = |node: &mut Membership, message: Message| {
            let mut bytes = Vec::new();
            message.encode(&mut bytes);
            node.handle_message(now, seed.peer(), &bytes).expect("it is whole");
            node.fence_heard()
        };
        let list = Message::JoinReply { list: 1, part: 0, parts: 1, settled: true, fence: 7, rows: Vec::new() };
        assert_eq!(hears(&mut node, list), 7);
        node.admit_and_tell(now, seed.clone());
        assert_eq!(hears(&mut node, Message::Rows { fence: 9, rows: Vec::new() }), 9);
    }
}
