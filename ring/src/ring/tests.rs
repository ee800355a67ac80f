use alloc::collections::BTreeMap;
use alloc::format;

use proptest::prelude::*;
use swimring_membership::Rng;

use super::*;
use crate::{Hashing, KeyHasher};

const SMALL: Placement = Placement { arcs_log2: 12 };

fn id(number: u64) -> NodeId {
    NodeId::from_bytes(*blake3::hash(&number.to_le_bytes()).as_bytes().first_chunk().unwrap())
}

fn member(number: u64) -> RingMember {
    RingMember { id: id(number), weight: 1, zone: None }
}

fn ring(numbers: impl IntoIterator<Item = u64>) -> Ring {
    Ring::build(SMALL, numbers.into_iter().map(member))
}

#[test]
fn rings_are_pinned_across_releases() {
    let ring =
        Ring::build(Placement { arcs_log2: 14 }, (0..5).map(|n| RingMember { weight: 1 + n as u16, ..member(n) }));
    let mut hasher = blake3::Hasher::new();
    ring.table.iter().for_each(|owner| {
        hasher.update(&owner.to_le_bytes());
    });
    assert_eq!(&hasher.finalize().to_hex()[..32], "a21f25b750a37e689276fb91fe215b20");
    assert_eq!(format!("{:032x}", ring.digest()), "624752ef429aa74802466f76d6e0a5d4");
}

#[test]
fn an_empty_ring_says_so_and_a_single_node_owns_all() {
    let key = KeyHasher::new(Hashing::Keyed, &[0; 32]).hash(b"k");
    assert_eq!(ring([]).owner(key), Err(EmptyRing));
    assert!(ring([]).owners(key, 3).is_empty());
    let weightless = Ring::build(SMALL, [RingMember { weight: 0, ..member(1) }]);
    assert_eq!(weightless.owner(key), Err(EmptyRing));
    assert_eq!(ring([1]).owner(key), Ok(id(1)));
    assert_eq!(ring([1]).owned_count(id(1)), 1 << 12);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn the_order_of_arrival_does_not_matter(mut numbers in proptest::collection::vec(0u64..1_000, 1..30), seed: u64) {
        let one = ring(numbers.clone());
        Rng::new(seed).shuffle(&mut numbers);
        let two = ring(numbers);
        prop_assert_eq!(&one.table, &two.table);
        prop_assert_eq!(one.digest(), two.digest());
    }

    #[test]
    fn a_changed_ring_is_the_ring_that_is_built_anew(
        steps in proptest::collection::vec((0u64..12, 0u16..4, proptest::bool::ANY), 1..40),
        first in 0u64..12,
    ) {
        let mut members: BTreeMap<u64, u16> = (0..first).map(|number| (number, 1)).collect();
        let set = |members: &BTreeMap<u64, u16>| -> Vec<RingMember> {
            members.iter().map(|(number, weight)| RingMember { weight: *weight, ..member(*number) }).collect()
        };
        let mut changed = Ring::build(SMALL, set(&members));
        for (number, weight, leaves) in steps {
            if leaves { members.remove(&number); } else { members.insert(number, weight); }
            changed = changed.change(set(&members));
            let built = Ring::build(SMALL, set(&members));
            prop_assert_eq!(&changed.table, &built.table);
            prop_assert_eq!(changed.digest(), built.digest());
            prop_assert_eq!(changed.members(), built.members());
        }
    }

    #[test]
    fn a_join_moves_only_to_the_joiner_and_a_leave_only_from_the_leaver(
        numbers in proptest::collection::btree_set(0u64..1_000, 2..30), joiner in 1_000u64..2_000, weight in 1u16..9,
    ) {
        let before = ring(numbers.iter().copied());
        let joining = RingMember { weight, ..member(joiner) };
        let after = Ring::build(SMALL, numbers.iter().copied().map(member).chain([joining]));
        for moved in Ring::diff(&before, &after) {
            prop_assert_eq!(moved.to, Some(id(joiner)));
        }
        for moved in Ring::diff(&after, &before) {
            prop_assert_eq!(moved.from, Some(id(joiner)));
        }
        let moved: u32 = Ring::diff(&before, &after).iter().map(|run| run.count).sum();
        prop_assert_eq!(moved, after.owned_count(id(joiner)));
    }

    #[test]
    fn the_first_of_the_owners_is_the_owner_and_all_are_distinct(
        numbers in proptest::collection::btree_set(0u64..1_000, 1..20), key: u64, zones in 1u64..4,
    ) {
        let zoned = |n: u64| RingMember { zone: Some(format!("{}", n % zones)), ..member(n) };
        let ring = Ring::build(SMALL, numbers.iter().copied().map(zoned));
        let key = KeyHash(key);
        let owners = ring.owners(key, 20);
        prop_assert_eq!(Ok(owners[0].id), ring.owner(key));
        prop_assert_eq!(owners.len(), numbers.len().min(20));
        let distinct: BTreeSet<_> = owners.iter().map(|owner| owner.id).collect();
        prop_assert_eq!(distinct.len(), owners.len());
        let present: BTreeSet<_> = numbers.iter().map(|n| n % zones).collect();
        let first: BTreeSet<_> = owners.iter().take(present.len()).map(|owner| owner.zone).collect();
        prop_assert_eq!(first.len(), present.len(), "distinct zones come first");
        prop_assert_eq!(ring.explain(key)[0].id, owners[0].id);
    }
}

#[test]
fn shares_are_even() {
    let ring = Ring::build(Placement { arcs_log2: 18 }, (0..10).map(member));
    let most = *ring.owned_counts().iter().max().unwrap();
    assert!(f64::from(most) * 10.0 / f64::from(1 << 18) < 1.012, "{most}");
}

#[test]
fn shares_follow_weights() {
    let weights = [1, 2, 3, 7];
    let members = weights.iter().enumerate().map(|(n, weight)| RingMember { weight: *weight, ..member(n as u64) });
    let ring = Ring::build(Placement { arcs_log2: 18 }, members);
    let shares: BTreeMap<NodeId, u32> = ring.members().iter().map(|m| m.id).zip(ring.owned_counts()).collect();
    for (n, weight) in weights.iter().enumerate() {
        let ideal = f64::from(1 << 18) * f64::from(*weight) / 13.0;
        let seen = f64::from(shares[&id(n as u64)]);
        assert!((seen / ideal - 1.0).abs() < 0.02, "weight {weight}: {seen} of {ideal}");
    }
}

#[test]
fn owned_arcs_are_those_whose_owner_it_is() {
    let ring = ring(0..5);
    for n in 0..5 {
        let arcs: Vec<Arc> = ring.owned_arcs(id(n)).collect();
        assert_eq!(arcs.len() as u32, ring.owned_count(id(n)));
        assert!(arcs.iter().all(|arc| ring.owner_of_arc(*arc) == Some(id(n))));
    }
}

#[test]
fn a_digest_is_known_without_building_the_ring() {
    assert_eq!(Ring::digest_of(SMALL, &(0..9).map(member).collect::<Vec<_>>()), ring((0..9).rev()).digest());
    assert_ne!(ring(0..9).digest(), ring(0..8).digest());
}
