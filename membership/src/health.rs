//! How this node itself does: whether silence may be its own fault (Lifeguard §IV-A), and whether it is cut off.

use crate::Instant;
use crate::membership::Membership;

/// How many times the longest time to object a node waits before it concludes anything while nobody answers it.
const ISOLATION: u32 = 4;

impl Membership {
    /// Worse after silence that may be this node's own fault; by how much it became so.
    pub(crate) fn worsen(&mut self, by: u32) -> u32 {
        let before = self.health;
        self.health = (before + by).min(self.config.health_max);
        self.health - before
    }

    /// Better after an answer. Once it is good nothing is left to be given back.
    pub(crate) fn improve(&mut self) {
        match self.health {
            0 | 1 => self.recover(),
            _ => self.health -= 1,
        }
    }

    /// As good as it can be, at once.
    pub(crate) fn recover(&mut self) {
        self.health = 0;
        self.suspicions.values_mut().for_each(|suspicion| suspicion.cost = 0);
    }

    /// Of the last eight rounds one was answered at most: that so many others are dead is less likely than that this node
    /// is cut off, or slower than they wait. With one or two others it is not, and after a while it has to do.
    pub(crate) fn is_isolated(&self, now: Instant) -> bool {
        let members = self.roster.present_count();
        let longest = self.config.suspicion(members).max * ISOLATION;
        members > 3 && self.prober.isolated_since.is_some_and(|since| now < since + longest)
    }
}
