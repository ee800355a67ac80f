//! The table of arcs, and what can be asked of it.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use swimring_membership::NodeId;

use crate::hash::{Arc, KeyHash};
use crate::race::{self, Racer, Time, VACANT};

/// Fewest arcs: 2^8.
pub const ARCS_LOG2_MIN: u32 = 8;
/// Most arcs: 2^24.
pub const ARCS_LOG2_MAX: u32 = 24;

/// A member as the ring sees it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RingMember {
    /// The node.
    pub id: NodeId,
    /// Its share relative to others; 0 owns nothing.
    pub weight: u16,
    /// Its failure domain.
    pub zone: Option<String>,
}

/// Nobody owns keys: no member is ready, or none has a weight.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no member owns keys")]
pub struct EmptyRing;

/// What a cluster fixes for all its rings.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Placement {
    /// log2 of the number of arcs. More: more even shares, more memory (2 bytes an arc) and longer builds.
    /// 2^20 gives a largest share of 1.003 of the mean at 10 nodes, 1.025 at 100, 1.06 to 1.08 at 1,000.
    pub arcs_log2: u32,
}

impl Default for Placement {
    fn default() -> Self {
        Self { arcs_log2: 20 }
    }
}

/// Consecutive arcs that go from one owner to another.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct ArcMove {
    /// The first arc.
    pub first: Arc,
    /// How many.
    pub count: u32,
    /// Who had them.
    pub from: Option<NodeId>,
    /// Who has them.
    pub to: Option<NodeId>,
}

/// One of the nodes that a key would go to, and its zone.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct ZonedOwner<'a> {
    /// The node.
    pub id: NodeId,
    /// Its zone.
    pub zone: Option<&'a str>,
}

/// Why a node comes where it does in the order for an arc.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Explained {
    /// The node.
    pub id: NodeId,
    /// Its weight.
    pub weight: u16,
    /// When its dart arrives; the lowest owns the arc.
    pub arrival: u64,
}

/// Who owns which arc. Immutable; share it.
#[derive(Clone, Debug)]
pub struct Ring {
    placement: Placement,
    pub(crate) owners: Owners,
    /// By arc, an index of `owners`.
    pub(crate) table: Vec<u16>,
    /// No arc was won later than this.
    pub(crate) latest: Time,
    digest: u128,
}

/// The members of a ring, and those of them that race.
#[derive(Clone, Debug)]
pub(crate) struct Owners {
    /// Everybody, in the order of ids.
    members: Vec<RingMember>,
    /// Indices into `members` of those with a weight, in the order of ids.
    weighted: Vec<u16>,
    /// Theirs: what a lookup reads.
    ids: Vec<NodeId>,
    /// Theirs, each with the number of its zone; those without one share a number.
    zones: Vec<u16>,
    zone_count: usize,
    racers: Vec<alloc::sync::Arc<Racer>>,
}

impl Owners {
    /// Of `members`, whatever their order; racers that `before` has are shared with it.
    pub(crate) fn of(
        placement: Placement,
        members: impl IntoIterator<Item = RingMember>,
        before: Option<&Self>,
    ) -> Self {
        let members = sorted(members);
        assert!(members.len() <= usize::from(u16::MAX), "{} members", members.len());
        let weighted: Vec<u16> =
            members.iter().enumerate().filter(|(_, member)| member.weight > 0).map(|(index, _)| index as u16).collect();
        let logs = before.and_then(|before| before.racers.first()).map(|racer| racer.logs());
        let logs = logs.unwrap_or_else(|| race::logs(placement.arcs_log2));
        let racer = |index: &u16| {
            let member = &members[usize::from(*index)];
            let held = before.and_then(|before| before.racer(member.id, member.weight));
            held.unwrap_or_else(|| Racer::new(member.id, member.weight, placement.arcs_log2, &logs).into())
        };
        let racers = weighted.iter().map(racer).collect();
        let ids = weighted.iter().map(|index| members[usize::from(*index)].id).collect();
        let zone = |index: &u16| members[usize::from(*index)].zone.as_deref();
        let numbers: BTreeSet<Option<&str>> = weighted.iter().map(zone).collect();
        let numbers: BTreeMap<Option<&str>, u16> = numbers.into_iter().zip(0..).collect();
        let zones = weighted.iter().map(|index| numbers[&zone(index)]).collect();
        let zone_count = numbers.len();
        Self { members, weighted, ids, zones, zone_count, racers }
    }

    /// How many race.
    pub(crate) fn len(&self) -> usize {
        self.weighted.len()
    }

    pub(crate) fn racers(&self) -> &[alloc::sync::Arc<Racer>] {
        &self.racers
    }

    fn member(&self, owner: u16) -> &RingMember {
        &self.members[usize::from(self.weighted[usize::from(owner)])]
    }

    fn index_of(&self, id: NodeId) -> Option<u16> {
        self.ids.binary_search(&id).ok().map(|index| index as u16)
    }

    fn racer(&self, id: NodeId, weight: u16) -> Option<alloc::sync::Arc<Racer>> {
        let index = self.index_of(id).filter(|index| self.member(*index).weight == weight)?;
        Some(self.racers[usize::from(index)].clone())
    }

    /// Which one `other` knows as the same racer; [`VACANT`] if it knows none.
    pub(crate) fn index_in(&self, owner: usize, other: &Self) -> u16 {
        let member = self.member(owner as u16);
        other.index_of(member.id).filter(|index| other.member(*index).weight == member.weight).unwrap_or(VACANT)
    }
}

/// The first `count` of them, in their order.
fn smallest(mut all: Vec<(Time, u16)>, count: usize) -> Vec<(Time, u16)> {
    if (1..all.len()).contains(&count) {
        all.select_nth_unstable(count - 1);
    }
    all.truncate(count);
    all.sort_unstable();
    all
}

fn sorted(members: impl IntoIterator<Item = RingMember>) -> Vec<RingMember> {
    let mut members: Vec<RingMember> = members.into_iter().collect();
    members.sort();
    members.dedup_by_key(|member| member.id);
    members
}

impl Ring {
    /// The ring of a member set, in whatever order it comes.
    ///
    /// # Panics
    /// If `placement` is out of range, or there are more than 65,535 members: limits that configuration keeps.
    pub fn build(placement: Placement, members: impl IntoIterator<Item = RingMember>) -> Self {
        let log2 = placement.arcs_log2;
        assert!((ARCS_LOG2_MIN..=ARCS_LOG2_MAX).contains(&log2), "2^{log2} arcs");
        Self::race(placement, Owners::of(placement, members, None))
    }

    pub(crate) fn race(placement: Placement, owners: Owners) -> Self {
        let (table, latest) = match owners.len() {
            0 => (Vec::new(), 0),
            _ => race::run(&owners.racers, placement.arcs_log2),
        };
        Self::assembled(placement, owners, table, latest)
    }

    pub(crate) fn assembled(placement: Placement, owners: Owners, table: Vec<u16>, latest: Time) -> Self {
        let digest = digest(placement, &owners.members);
        Self { placement, owners, table, latest, digest }
    }

    /// The digest that the ring of these members has, without building it. Equal digests, equal rings.
    pub fn digest_of(placement: Placement, members: &[RingMember]) -> u128 {
        if members.is_sorted_by(|one, next| one.id < next.id) {
            return digest(placement, members);
        }
        digest(placement, &sorted(members.iter().cloned()))
    }

    /// What the cluster fixed.
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// The members, in the order of ids.
    pub fn members(&self) -> &[RingMember] {
        &self.owners.members
    }

    /// 128 bits over everything that decides who owns what.
    pub fn digest(&self) -> u128 {
        self.digest
    }

    /// How many arcs there are.
    pub fn arcs(&self) -> u32 {
        1 << self.placement.arcs_log2
    }

    /// The arc of a key.
    pub fn arc(&self, key: KeyHash) -> Arc {
        key.arc(self.placement.arcs_log2)
    }

    /// The owner of a key.
    ///
    /// # Errors
    /// [`EmptyRing`] if nobody owns keys.
    #[inline]
    pub fn owner(&self, key: KeyHash) -> Result<NodeId, EmptyRing> {
        self.owner_of_arc(self.arc(key)).ok_or(EmptyRing)
    }

    /// The owner of an arc.
    #[inline]
    pub fn owner_of_arc(&self, arc: Arc) -> Option<NodeId> {
        let index = *self.table.get(arc.0 as usize)?;
        Some(self.owners.ids[usize::from(index)])
    }

    fn member(&self, owner: u16) -> &RingMember {
        self.owners.member(owner)
    }

    /// The first `count` nodes for a key: the owner, then who would own the key without it, and so on, but
    /// nodes of zones not yet used come first. Fewer when there are fewer.
    pub fn owners(&self, key: KeyHash, count: usize) -> Vec<ZonedOwner<'_>> {
        let mut later = self.arrivals(self.arc(key));
        let firsts = self.firsts(&later);
        later.retain(|other| firsts[self.zone(other.1)] != Some(*other));
        let firsts: Vec<(Time, u16)> = firsts.into_iter().flatten().collect();
        let rest = count.saturating_sub(firsts.len());
        let chosen = smallest(firsts, count).into_iter().chain(smallest(later, rest));
        let chosen = chosen.map(|(_, owner)| self.member(owner));
        chosen.map(|member| ZonedOwner { id: member.id, zone: member.zone.as_deref() }).collect()
    }

    /// Which of the [`owners`](Self::owners) of a key the node is, from 0. None if it owns no keys.
    pub fn place(&self, key: KeyHash, id: NodeId) -> Option<usize> {
        let mine = self.owners.index_of(id)?;
        let all = self.arrivals(self.arc(key));
        let mine = all[usize::from(mine)];
        // Who is the first of its zone comes before all who are not.
        let firsts = self.firsts(&all);
        let firsts_before = firsts.iter().flatten().filter(|first| **first < mine).count();
        if firsts[self.zone(mine.1)] == Some(mine) {
            return Some(firsts_before);
        }
        let before = all.iter().filter(|other| **other < mine).count();
        Some(before + firsts.iter().flatten().count() - firsts_before)
    }

    /// By zone, who of its members arrives first.
    fn firsts(&self, arrivals: &[(Time, u16)]) -> Vec<Option<(Time, u16)>> {
        let mut firsts = alloc::vec![None; self.owners.zone_count];
        for &arrival in arrivals {
            let first: &mut Option<(Time, u16)> = &mut firsts[self.zone(arrival.1)];
            *first = Some(first.map_or(arrival, |held| held.min(arrival)));
        }
        firsts
    }

    fn zone(&self, owner: u16) -> usize {
        usize::from(self.owners.zones[usize::from(owner)])
    }

    /// Every owner in the order in which the arc prefers them, with the reason.
    pub fn explain(&self, key: KeyHash) -> Vec<Explained> {
        let order = smallest(self.arrivals(self.arc(key)), usize::MAX);
        let explained = |&(arrival, owner): &(Time, u16)| {
            let member = self.member(owner);
            Explained { id: member.id, weight: member.weight, arrival }
        };
        order.iter().map(explained).collect()
    }

    /// When everybody arrives at an arc, by owner.
    fn arrivals(&self, arc: Arc) -> Vec<(Time, u16)> {
        let racers = self.owners.racers.iter().enumerate();
        racers.map(|(index, racer)| (racer.arrival(arc.0), index as u16)).collect()
    }

    /// How many arcs a node owns.
    pub fn owned_count(&self, id: NodeId) -> u32 {
        let Some(index) = self.owners.index_of(id) else {
            return 0;
        };
        self.table.iter().filter(|owner| **owner == index).count() as u32
    }

    /// How many arcs each member owns, in the order of [`members`](Self::members).
    pub fn owned_counts(&self) -> Vec<u32> {
        let mut counts = alloc::vec![0; self.owners.members.len()];
        for owner in &self.table {
            counts[usize::from(self.owners.weighted[usize::from(*owner)])] += 1;
        }
        counts
    }

    /// The arcs a node owns, in order.
    pub fn owned_arcs(&self, id: NodeId) -> impl Iterator<Item = Arc> {
        let index = self.owners.index_of(id);
        let owned = self.table.iter().enumerate().filter(move |(_, owner)| Some(**owner) == index);
        owned.map(|(arc, _)| Arc(arc as u32))
    }

    /// What goes from whom to whom between two rings of one cluster, as runs of arcs.
    ///
    /// # Panics
    /// If the rings have different numbers of arcs: a cluster fixes it.
    pub fn diff(old: &Self, new: &Self) -> Vec<ArcMove> {
        assert_eq!(old.placement, new.placement, "rings of one cluster have the same arcs");
        let mut moves: Vec<ArcMove> = Vec::new();
        for arc in 0..old.arcs() {
            let (from, to) = (old.owner_of_arc(Arc(arc)), new.owner_of_arc(Arc(arc)));
            if from == to {
                continue;
            }
            match moves.last_mut() {
                Some(run) if run.first.0 + run.count == arc && run.from == from && run.to == to => run.count += 1,
                _ => moves.push(ArcMove { first: Arc(arc), count: 1, from, to }),
            }
        }
        moves
    }
}

fn digest(placement: Placement, members: &[RingMember]) -> u128 {
    let mut hasher = blake3::Hasher::new_derive_key("swimring 1 ring");
    hasher.update(&placement.arcs_log2.to_le_bytes());
    hasher.update(&(members.len() as u64).to_le_bytes());
    for member in members {
        hasher.update(member.id.as_bytes());
        hasher.update(&member.weight.to_le_bytes());
        let zone = member.zone.as_deref().unwrap_or_default();
        hasher.update(&(zone.len() as u64).to_le_bytes());
        hasher.update(zone.as_bytes());
    }
    let mut out = [0; 16];
    hasher.finalize_xof().fill(&mut out);
    u128::from_le_bytes(out)
}

#[cfg(test)]
mod tests;
