//! Who asked whom whether it is there: time-bounded completeness (SWIM §4.3), watched while nothing happens.

use std::collections::BTreeSet;
use std::time::Duration;

use swimring_membership::Config;
use swimring_membership::wire::Message;

use crate::oracles::Property;
use crate::quiet::SERVED;
use crate::world::World;

/// How many others ask a member at least, where only its neighbours do: by chance it may be the same one on all ten rings,
/// if there are few.
const ASKED_BY: usize = 3;
const FEW: usize = 12;

/// How long those who had trouble ask less often.
const RECOVERY: Duration = Duration::from_secs(15);

/// Every pair of who asked and who was asked since the core agreed.
#[derive(Debug, Default)]
pub(crate) struct Asked(BTreeSet<(usize, usize)>);

impl World {
    /// A host sends a message to another.
    pub(crate) fn note_asked(&mut self, from: usize, to: usize, bytes: &[u8]) {
        let agreed = self.converged_after.is_some() && !self.asked.0.contains(&(from, to));
        if agreed && let Ok(Some(Message::Ping { .. })) = Message::decode(bytes) {
            self.asked.0.insert((from, to));
        }
    }

    /// The core has agreed for a while: who can have been asked by everybody since, has been; and everybody was by some.
    pub(crate) fn check_asked(&mut self, core: &[usize]) {
        let config = Config::preset(self.plan.world.preset);
        // A pass, and another one, in which whoever came first comes last.
        let passes = config.period(core.len()) * 2 * core.len() as u32;
        // Whoever was one of too many asks its neighbours only, and for a while after.
        let by_all = passes + RECOVERY < SERVED && self.hosts.len() <= self.plan.world.mesh;
        let by_some = if core.len() < FEW { 1 } else { ASKED_BY };
        let least = if by_all { core.len() - 1 } else { by_some.min(core.len() - 1) };
        for host in core {
            let askers = core.iter().filter(|other| self.asked.0.contains(&(**other, *host))).count();
            self.check(*host, Property::M15, askers >= least, || {
                format!("was asked by {askers} of {} others for {SERVED:?}, not by {least}", core.len() - 1)
            });
        }
    }
}
