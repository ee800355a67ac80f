//! Whether rings are what the members make them: everywhere, at every change.

use std::collections::{BTreeMap, BTreeSet};

use swimring::core::view::{View, ring_member};
use swimring::ring::Ring;
use swimring_membership::{NodeId, Phase};

use crate::oracles::Property;
use crate::world::World;

/// Of how many rings one is built anew.
const BUILT_EVERY: usize = 4;
/// Of how many views one is looked at.
const LOOKED_AT_EVERY: u64 = 8;
/// For how many keys the views of the core are compared.
const KEYS: u32 = 512;

/// What was seen of rings.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Digests of rings by which calls went.
    used: BTreeSet<u128>,
    /// The owners' digest of every view that was looked at.
    of_views: BTreeMap<u128, u128>,
    views: u64,
}

impl World {
    /// A node publishes a view: owners are those in it who can own, and whoever has the same view has the same ones.
    pub(crate) fn check_owners(&mut self, host: usize, view: &View) {
        self.rings_seen.views += 1;
        if !self.rings_seen.views.is_multiple_of(LOOKED_AT_EVERY) {
            return;
        }
        let can = view.members().filter(|member| {
            let own = &member.record;
            member.state.is_present() && own.phase() == Phase::Ready && own.profile().weight > 0
        });
        let same = can.map(ring_member).eq(view.ring_members().iter().cloned());
        self.check(host, Property::R6, same, || "has others on its ring than those in its view who own keys".into());
        let digest = Ring::digest_of(view.placement(), view.ring_members().iter().cloned());
        let held = *self.rings_seen.of_views.entry(view.digest()).or_insert(digest);
        self.check(host, Property::R2, held == digest, || "has another ring than somebody with the same view".into());
    }

    /// A ring by which a call goes for the first time is the one that its members make: one of a few is built anew.
    pub(crate) fn check_ring(&mut self, host: usize, view: &View) {
        let ring = view.ring();
        if self.rings_seen.used.insert(ring.digest()) && self.rings_seen.used.len().is_multiple_of(BUILT_EVERY) {
            let anew = Ring::build(ring.placement(), view.ring_members().iter().cloned());
            let arcs = 0..ring.arcs();
            let same = arcs.map(swimring::ring::Arc).all(|arc| anew.owner_of_arc(arc) == ring.owner_of_arc(arc));
            self.check(host, Property::R1, same && anew.digest() == ring.digest(), || {
                "sends a call by another ring than its members make".into()
            });
        }
    }

    /// Every view of the core names the same owner for every key, who takes keys.
    pub(crate) fn check_rings(&mut self, core: &[usize]) {
        let keys: Vec<_> = (0..KEYS).map(|key: u32| self.hasher.hash(&key.to_le_bytes())).collect();
        let owners = |ring: &Ring| keys.iter().map(|key| ring.owner(*key).ok()).collect::<Vec<_>>();
        let mut first = None;
        for host in core {
            let view = self.view(*host);
            let named = owners(view.ring());
            let ready = |id: &Option<NodeId>| id.and_then(|id| view.member(id)).is_some_and(|member| member.owns());
            let one = named.iter().all(ready) && *first.get_or_insert_with(|| named.clone()) == named;
            self.check(*host, Property::O3, one, || "names another owner for a key, or one who takes none".into());
        }
    }
}
