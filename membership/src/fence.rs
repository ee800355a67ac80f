//! Fences: numbers that order the holds of nodes on their keys.
//!
//! A ring that differs from the last one, or keys that others had for a time, put a node's fence above every one that it
//! has heard of. Nodes that see the same members share the highest of theirs: so whoever has won a key ends up above all
//! its earlier owners, also above a fence that was not heard of when the key was won.

use crate::membership::Membership;

/// A fence this far above the highest heard of is not believed.
const LEAP_MAX: u64 = 1 << 40;

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
    /// Somebody has minted this fence; so may an earlier life of this node have.
    pub fn hear_fence(&mut self, fence: u64) {
        // A leap that no amount of ring changes explains is a lie, and would leave no room above it.
        if fence.saturating_sub(self.fences.heard) <= LEAP_MAX {
            self.fences.heard = self.fences.heard.max(fence);
        } else {
            self.stats.implausible += 1;
        }
    }

    /// A node that sees the same members holds its keys under this fence.
    pub(crate) fn share_fence(&mut self, fence: u64) {
        self.hear_fence(fence);
        if fence <= self.fences.heard && self.fences.version == Some(self.roster.version()) {
            self.fences.own = self.fences.own.max(fence);
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
