//! A ring from another one: what a join or a leave costs is what it moves.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::race::{self, Racer, VACANT};
use crate::ring::{Owners, Ring, RingMember};

/// With more than this share of the owners new or gone, a new race is cheaper.
const SHARE_MAX: usize = 4;

impl Ring {
    /// The ring of another member set, equal to [`build`](Self::build) of it. Cheap when few members differ.
    ///
    /// # Panics
    /// If there are more than 65,535 members: a limit that configuration keeps.
    #[must_use]
    pub fn change(&self, members: impl IntoIterator<Item = RingMember>) -> Self {
        let placement = self.placement();
        let new = Owners::of(placement, members, Some(&self.owners));
        let kept: Vec<u16> = (0..self.owners.len()).map(|old| self.owners.index_in(old, &new)).collect();
        let gone = kept.iter().filter(|index| **index == VACANT).count();
        let come = new.len() - (kept.len() - gone);
        if (gone + come) * SHARE_MAX > kept.len() {
            return Self::race(placement, new);
        }
        let mut table: Vec<u16> = self.table.iter().map(|owner| kept[usize::from(*owner)]).collect();
        let mut latest = self.latest;
        let stayed: Vec<(u16, &Arc<Racer>)> = kept
            .iter()
            .zip(self.owners.racers())
            .filter(|(index, _)| **index != VACANT)
            .map(|(i, r)| (*i, r))
            .collect();
        if gone > 0 {
            latest = latest.max(race::fill(&stayed, &mut table));
        }
        let mut is_new: Vec<bool> = alloc::vec![true; new.len()];
        stayed.iter().for_each(|(index, _)| is_new[usize::from(*index)] = false);
        for index in (0..new.len()).filter(|index| is_new[*index]) {
            race::enter(new.racers(), index as u16, latest, &mut table);
        }
        Self::assembled(placement, new, table, latest)
    }
}
