//! Who owned keys for a moment between two views, and does in neither: what a node lost to them it has won back, and
//! what it holds of that may be old.

use std::collections::BTreeMap;
use std::sync::Arc;

use swimring_membership::{Incarnation, Member, NodeId, Phase, State};
use swimring_ring::RingMember;

use super::view::ring_member;

/// Watches everything between two views.
#[derive(Debug)]
pub struct Passing {
    me: NodeId,
    /// The owners of the last view, in the order of ids.
    last: Arc<[RingMember]>,
    /// Who owned, or may have owned, since: each as heavy as it was seen.
    seen: BTreeMap<NodeId, RingMember>,
    /// What this node itself was since.
    own: Vec<Option<RingMember>>,
    /// Who was heard to be joining, at which incarnation, and of whom nothing was heard since.
    joining: BTreeMap<NodeId, Incarnation>,
}

/// What came and went between two views.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Passed {
    /// Who owned keys for a moment.
    pub owners: Vec<RingMember>,
    /// This node owned less, or nothing, for a moment: to whom its keys went is not known.
    pub retaken: bool,
}

impl Passing {
    /// Nothing has been seen, and this node owned nothing.
    pub fn new(me: NodeId) -> Self {
        Self { me, last: Arc::default(), seen: BTreeMap::new(), own: Vec::new(), joining: BTreeMap::new() }
    }

    /// A member was believed to be this; its row may be ahead by now.
    pub fn note(&mut self, member: &Member, state: State, incarnation: Incarnation, phase: Phase) {
        let id = member.record.id();
        if state.is_present() && phase == Phase::Joining {
            self.joining.entry(id).or_insert(incarnation);
        } else {
            let joined = self.joining.remove(&id);
            let is_owner = state.is_present() && phase == Phase::Ready;
            if is_owner || joined.is_some_and(|joined| may_have_owned(joined, incarnation, phase)) {
                self.note_owner(ring_member(member));
            }
        }
    }

    /// Somebody owned keys for a moment.
    pub fn note_owner(&mut self, owner: RingMember) {
        if owner.id == self.me {
            return self.own.push(Some(owner));
        }
        let held = self.seen.get(&owner.id).map_or(0, |held| held.weight);
        if owner.weight > held {
            self.seen.insert(owner.id, owner);
        }
    }

    /// A view with these owners is not the next one.
    pub fn note_view(&mut self, owners: &[RingMember]) {
        if find(owners, self.me).is_none() {
            self.own.push(None);
        }
        owners.iter().for_each(|owner| self.note_owner(owner.clone()));
    }

    /// The next view has these owners, in the order of ids: what passed between it and the last one?
    pub fn next(&mut self, owners: Arc<[RingMember]>) -> Passed {
        let (seen, own) = (std::mem::take(&mut self.seen), std::mem::take(&mut self.own));
        let last = std::mem::replace(&mut self.last, owners);
        let before = find(&last, self.me).cloned();
        if before.is_none() {
            // Who owned nothing has lost nothing.
            return Passed::default();
        }
        let after = find(&self.last, self.me).cloned();
        let passed = |owner: &RingMember| [&last, &self.last].iter().all(|held| held.binary_search(owner).is_err());
        Passed {
            owners: seen.into_values().filter(passed).collect(),
            retaken: own.iter().any(|held| *held != before && *held != after),
        }
    }
}

/// Whether a member that was joining, and is on its way out or gone as far as is heard next, may have owned keys between:
/// whoever gets ready says so in an incarnation of its own.
fn may_have_owned(joined: Incarnation, last: Incarnation, phase: Phase) -> bool {
    let least = if phase == Phase::Draining { 2 } else { 1 };
    last.boot > joined.boot || last.count.saturating_sub(joined.count) >= least
}

fn find(owners: &[RingMember], id: NodeId) -> Option<&RingMember> {
    owners.binary_search_by_key(&id, |owner| owner.id).ok().map(|index| &owners[index])
}

#[cfg(test)]
mod tests {
    use swimring_membership::{Config, Instant, Membership, Name, Preset, Profile, Settings, Start};

    use super::*;

    const ME: NodeId = NodeId::from_u128(1);

    fn owner(number: u128, weight: u16) -> RingMember {
        RingMember { id: NodeId::from_u128(number), weight, zone: None }
    }

    fn since_a_view_of(owners: &[RingMember]) -> Passing {
        let mut passing = Passing::new(ME);
        passing.next(owners.into());
        passing
    }

    #[test]
    fn whoever_came_and_went_has_passed() {
        let mut passing = since_a_view_of(&[owner(1, 1)]);
        passing.note_owner(owner(2, 1));
        assert_eq!(passing.next([owner(1, 1)].into()), Passed { owners: vec![owner(2, 1)], retaken: false });
        assert_eq!(passing.next([owner(1, 1)].into()), Passed::default(), "it is said once");
    }

    fn joiner() -> Membership {
        let name = |text| Name::new(text).unwrap();
        let profile = Profile {
            name: name("n"),
            gossip: ([127, 0, 0, 1], 1).into(),
            calls: ([127, 0, 0, 1], 2).into(),
            zone: None,
            weight: 1,
            tags: Vec::new(),
        };
        let start = Start { cluster: name("test"), profile, boot: 1, life: 1, seed: 1 };
        let config = Config::new(Settings::preset(Preset::Lan)).unwrap();
        Membership::new(Instant::ORIGIN, config, start).unwrap()
    }

    /// How many owners have passed when of a member that is joining this is noted: states, phases and counts.
    fn owners_after(heard: &[(State, Phase, u32)]) -> usize {
        let mut passing = since_a_view_of(&[owner(1, 1)]);
        let record = joiner().record().clone();
        for (state, phase, count) in [&[(State::Alive, Phase::Joining, 0)], heard].concat() {
            let incarnation = Incarnation::new(1, count);
            let member = Member { record: record.clone(), state, incarnation, since: Instant::ORIGIN };
            passing.note(&member, state, incarnation, phase);
        }
        passing.next([owner(1, 1)].into()).owners.len()
    }

    #[test]
    fn whoever_was_joining_and_is_gone_next_may_have_owned_keys_between() {
        use {Phase::*, State::*};
        assert_eq!(owners_after(&[(Left, Draining, 2)]), 1, "ready at 1, draining at 2");
        assert_eq!(owners_after(&[(Alive, Draining, 2), (Left, Draining, 2)]), 1);
        assert_eq!(owners_after(&[(Down, Joining, 1)]), 1, "others had heard of a later word");
        assert_eq!(owners_after(&[(Down, Joining, 0)]), 0, "it went before it was ready");
        assert_eq!(owners_after(&[(Left, Draining, 1)]), 0, "it left before it was ready");
    }

    #[test]
    fn whoever_stays_or_was_there_before_has_not() {
        let mut passing = since_a_view_of(&[owner(1, 1), owner(2, 1)]);
        passing.note_view(&[owner(1, 1), owner(2, 1), owner(3, 1)]);
        assert_eq!(passing.next([owner(1, 1), owner(3, 1)].into()), Passed::default());
    }

    #[test]
    fn of_several_weights_the_heaviest_has_passed() {
        let mut passing = since_a_view_of(&[owner(1, 1), owner(2, 1)]);
        [5, 10, 1, 0].into_iter().for_each(|weight| passing.note_owner(owner(2, weight)));
        assert_eq!(passing.next([owner(1, 1), owner(2, 1)].into()).owners, [owner(2, 10)]);
    }

    #[test]
    fn a_node_that_was_left_out_for_a_moment_has_lost_it_does_not_know_what() {
        let mut passing = since_a_view_of(&[owner(1, 1), owner(2, 1)]);
        passing.note_view(&[owner(2, 1)]);
        assert_eq!(passing.next([owner(1, 1), owner(2, 1)].into()), Passed { owners: Vec::new(), retaken: true });
    }

    #[test]
    fn whoever_owned_nothing_has_lost_nothing() {
        let mut passing = since_a_view_of(&[owner(2, 1)]);
        passing.note_owner(owner(3, 1));
        assert_eq!(passing.next([owner(1, 1), owner(2, 1)].into()), Passed::default());
    }
}
