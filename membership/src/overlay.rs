//! Who observes whom. In a small cluster everybody asks everybody. In a larger one each node has ten fixed observers, so
//! that it needs few connections: ten rings order the members, each by a hash of its own, and on each of them a node is
//! observed by the one before it (after Rapid, Suresh et al., USENIX ATC 2018).
//!
//! A function of the view: whoever sees the same members sees the same rings.

use alloc::vec::Vec;
use core::time::Duration;

use crate::membership::{Membership, Timer};
use crate::probe::DIAL;
use crate::{Instant, NodeId, Peer, Roster};

/// How many rings there are, and so how many observe a node, and whom a node observes.
pub(crate) const RINGS: usize = 10;

/// For how long a cluster is small enough before everybody asks everybody again: one that is as large as that now and
/// then must not make everybody dial each time, and equal views must end in the same.
const MESH_AGAIN: Duration = Duration::from_secs(120);

/// The next node on a ring, and how far away it is.
type Next = Option<(u64, NodeId)>;

/// The neighbours of one node.
#[derive(Debug)]
pub(crate) struct Overlay {
    me: NodeId,
    /// Everybody asks everybody.
    mesh: bool,
    /// Who observes this node, ring by ring.
    before: [Next; RINGS],
    /// Whom this node observes, ring by ring.
    behind: [Next; RINGS],
    /// Rises when other nodes become neighbours.
    version: u64,
}

impl Overlay {
    pub(crate) fn new(me: NodeId) -> Self {
        Self { me, mesh: true, before: [None; RINGS], behind: [None; RINGS], version: 0 }
    }

    /// Somebody is present now; whether that changed who the neighbours are.
    pub(crate) fn add(&mut self, id: NodeId) -> bool {
        let mut changed = false;
        for ring in 0..RINGS {
            let (mine, theirs) = (place(ring, self.me), place(ring, id));
            for (held, far) in [
                (&mut self.before[ring], mine.wrapping_sub(theirs)),
                (&mut self.behind[ring], theirs.wrapping_sub(mine)),
            ] {
                if held.is_none_or(|held| (far, id) < held) {
                    *held = Some((far, id));
                    changed = true;
                }
            }
        }
        self.version += u64::from(changed && !self.mesh);
        changed
    }

    /// Somebody is not present any more; the rings on which it stood beside this node are looked at again.
    pub(crate) fn remove(&mut self, id: NodeId, roster: &Roster) -> bool {
        let mut changed = false;
        for ring in 0..RINGS {
            let stood = |held: Next| held.is_some_and(|(_, held)| held == id);
            if stood(self.before[ring]) {
                self.before[ring] = before(ring, self.me, roster);
                changed = true;
            }
            if stood(self.behind[ring]) {
                let mine = place(ring, self.me);
                let far = |id| (place(ring, id).wrapping_sub(mine), id);
                self.behind[ring] = others(roster, self.me).map(far).min();
                changed = true;
            }
        }
        self.version += u64::from(changed && !self.mesh);
        changed
    }

    /// From now on everybody asks everybody, or does not.
    pub(crate) fn set_mesh(&mut self, mesh: bool) {
        self.mesh = mesh;
        self.version += 1;
    }

    /// Whether everybody asks everybody.
    pub(crate) fn is_mesh(&self) -> bool {
        self.mesh
    }

    /// Whether this node asks `id` in its rounds, and hears itself whether it is silent.
    pub(crate) fn observes(&self, id: NodeId) -> bool {
        self.mesh || contains(&self.behind, id)
    }

    /// Whether this node is one of those who observe `id` by the rings.
    pub(crate) fn stands_before(&self, id: NodeId) -> bool {
        contains(&self.behind, id)
    }

    /// Whom this node observes by the rings, each once.
    pub(crate) fn observed(&self) -> Vec<NodeId> {
        distinct(self.behind.iter())
    }

    /// Whether this node talks to `id`.
    pub(crate) fn is_neighbour(&self, id: NodeId) -> bool {
        self.observes(id) || contains(&self.before, id)
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The present nodes that this node talks to.
    pub(crate) fn neighbours<'a>(&'a self, roster: &'a Roster) -> impl Iterator<Item = Peer> + 'a {
        self.neighbour_ids(roster).into_iter().filter_map(|id| roster.present(id)).map(|member| member.record.peer())
    }

    /// The nodes that this node talks to; some may not be present any more.
    pub(crate) fn neighbour_ids(&self, roster: &Roster) -> Vec<NodeId> {
        if self.mesh { others(roster, self.me).collect() } else { distinct(self.before.iter().chain(&self.behind)) }
    }
}

impl Membership {
    /// `id` is present, or is not any more: whom this node asks in its rounds follows.
    pub(crate) fn on_presence(&mut self, now: Instant, id: NodeId, present: bool) {
        let before = self.overlay.observed();
        let changed = if present { self.overlay.add(id) } else { self.overlay.remove(id, &self.roster) };
        let is_large = self.roster.present_count() > self.config.mesh_max;
        if self.overlay.is_mesh() && is_large {
            self.overlay.set_mesh(false);
            self.ask_observed(now, &before);
        } else if self.overlay.is_mesh() {
            if present {
                self.prober.add(id);
            }
        } else {
            if changed {
                self.ask_observed(now, &before);
            }
            if is_large {
                self.timers.cancel(Timer::Mesh);
            } else if self.timers.deadline(Timer::Mesh).is_none() {
                self.timers.set(Timer::Mesh, now + MESH_AGAIN);
            }
        }
    }

    fn ask_observed(&mut self, now: Instant, before: &[NodeId]) {
        for id in self.overlay.observed() {
            self.prober.add(id);
            if !before.contains(&id) {
                // Whoever observed it until now may be gone as well. It is dialled first: silence must mean something.
                self.arm_suspicion(now + DIAL, id);
            }
        }
    }

    /// The cluster has been small enough for a while: everybody asks everybody again.
    pub(crate) fn on_mesh_again(&mut self) {
        self.overlay.set_mesh(true);
        let neighbours: Vec<NodeId> = self.neighbours().map(|peer| peer.id).collect();
        neighbours.into_iter().for_each(|id| self.prober.add(id));
    }
}

/// Who observes `subject` in this view, each once; whether it is present itself does not matter.
pub(crate) fn observers(subject: NodeId, roster: &Roster) -> Vec<NodeId> {
    let mine: [u64; RINGS] = core::array::from_fn(|ring| place(ring, subject));
    let mut rings: [Next; RINGS] = [None; RINGS];
    for other in others(roster, subject) {
        for ring in 0..RINGS {
            let far = (mine[ring].wrapping_sub(place(ring, other)), other);
            if rings[ring].is_none_or(|held| far < held) {
                rings[ring] = Some(far);
            }
        }
    }
    distinct(rings.iter())
}

fn before(ring: usize, id: NodeId, roster: &Roster) -> Next {
    let mine = place(ring, id);
    others(roster, id).map(|other| (mine.wrapping_sub(place(ring, other)), other)).min()
}

fn others(roster: &Roster, id: NodeId) -> impl Iterator<Item = NodeId> {
    roster.iter().filter(move |(other, member)| *other != id && member.state.is_present()).map(|(other, _)| other)
}

fn contains(rings: &[Next; RINGS], id: NodeId) -> bool {
    rings.iter().flatten().any(|(_, held)| *held == id)
}

fn distinct<'a>(rings: impl Iterator<Item = &'a Next>) -> Vec<NodeId> {
    let mut ids: Vec<NodeId> = rings.flatten().map(|(_, id)| *id).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Where a node stands on a ring: its id, which is a hash itself, mixed with the ring (splitmix64).
fn place(ring: usize, id: NodeId) -> u64 {
    let mut mixed = (id.to_u128() as u64).wrapping_add((ring as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Two bytes that tell the observers of a node apart.
pub(crate) fn mark(id: NodeId) -> u16 {
    (id.to_u128() >> 112) as u16
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;

    use super::*;
    use crate::testing::{cluster, profile};
    use crate::{Incarnation, Phase, Record, State};

    fn record(number: u16) -> Record {
        let name = alloc::format!("n{number}");
        Record::mint(&cluster(), &profile(&name, number), Incarnation::new(1, 0), Phase::Ready, 1)
    }

    fn roster(members: u16) -> Roster {
        let mut roster = Roster::default();
        (0..members).for_each(|number| _ = roster.admit_record(Instant::ORIGIN, &record(number)));
        roster
    }

    fn overlay(me: u16, roster: &Roster) -> Overlay {
        let mut overlay = Overlay::new(record(me).id());
        overlay.mesh = false;
        others(roster, overlay.me).for_each(|id| _ = overlay.add(id));
        overlay
    }

    #[test]
    fn whoever_observes_a_node_is_whom_the_node_says() {
        let roster = roster(40);
        let all: Vec<Overlay> = (0..40).map(|number| overlay(number, &roster)).collect();
        for one in &all {
            let observers = observers(one.me, &roster);
            assert!((6..=RINGS).contains(&observers.len()), "{}", observers.len());
            for other in &all {
                assert_eq!(observers.contains(&other.me), contains(&other.behind, one.me));
                assert_eq!(one.is_neighbour(other.me), other.is_neighbour(one.me));
            }
        }
    }

    #[test]
    fn coming_and_going_ends_in_the_rings_of_whoever_is_left() {
        let mut held = roster(60);
        let mut one = overlay(0, &held);
        for number in (1..60).filter(|number| number % 3 == 0) {
            let id = record(number).id();
            held.admit_state(Instant::ORIGIN, id, State::Down, Incarnation::new(1, 0));
            one.remove(id, &held);
        }
        let anew = overlay(0, &held);
        assert_eq!((one.before, one.behind), (anew.before, anew.behind));
    }

    #[test]
    fn a_cluster_that_shrinks_is_a_mesh_again_after_a_while() {
        let now = Instant::from_millis(1_000);
        let mut one = crate::testing::node("a");
        let most = one.config.mesh_max as u16;
        let come = |one: &mut Membership, number: u16| {
            one.roster.admit_record(now, &record(number));
            one.on_presence(now, record(number).id(), true);
        };
        (0..most - 1).for_each(|number| come(&mut one, number));
        assert!(one.is_mesh(), "this node and 255 others");
        come(&mut one, most);
        assert!(!one.is_mesh() && one.timers.deadline(Timer::Mesh).is_none());
        let go = |one: &mut Membership, number: u16| {
            one.roster.admit_state(now, record(number).id(), State::Left, Incarnation::new(1, 0));
            one.on_presence(now, record(number).id(), false);
        };
        go(&mut one, 0);
        assert!(!one.is_mesh(), "it may come back");
        come(&mut one, most + 1);
        assert!(one.timers.deadline(Timer::Mesh).is_none(), "another one has come");
        go(&mut one, 1);
        one.handle_timeout(now + MESH_AGAIN);
        assert!(one.is_mesh() && one.overlay.observes(record(200).id()));
    }

    #[test]
    fn whoever_observes_a_suspect_in_place_of_another_that_is_gone_asks_it_once_it_is_dialled() {
        let now = Instant::from_millis(10_000);
        let mut one = crate::testing::node("a");
        one.handle_timeout(now);
        let somebody = record(0).id();
        (2..400).for_each(|number| one.merge_record(now, somebody, record(number).bytes()).unwrap());
        let ids = || (2..400).map(|number| record(number).id());
        let suspect = ids().find(|id| !one.is_neighbour(*id)).unwrap();
        one.suspect(now, suspect, Incarnation::new(1, 0), somebody);
        let due = one.suspicions[&suspect].deadline();
        one.on_suspicion_due(due, suspect);
        assert!(one.timers.deadline(Timer::Suspicion(suspect)) > Some(due), "it waits for what others find");
        for id in ids().filter(|id| *id != suspect) {
            if one.overlay.observes(suspect) {
                break;
            }
            one.roster.admit_state(due, id, State::Left, Incarnation::new(1, 0));
            one.on_presence(due, id, false);
        }
        assert!(one.overlay.observes(suspect));
        assert_eq!(one.timers.deadline(Timer::Suspicion(suspect)), Some(due + DIAL));
        one.on_suspicion_due(due + DIAL, suspect);
        assert!(one.suspicions[&suspect].last_word);
    }

    #[test]
    fn rumours_along_the_rings_reach_everybody() {
        let roster = roster(500);
        let mut reached = BTreeSet::from([record(0).id()]);
        let mut last: Vec<NodeId> = reached.iter().copied().collect();
        let mut steps = 0;
        while !last.is_empty() {
            let next: BTreeSet<NodeId> =
                last.iter().flat_map(|id| observers(*id, &roster)).filter(|id| !reached.contains(id)).collect();
            reached.extend(&next);
            last = next.into_iter().collect();
            steps += 1;
        }
        assert_eq!(reached.len(), 500);
        assert!(steps <= 5, "in {steps} steps");
    }
}
