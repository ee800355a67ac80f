//! Whether rings are what the members make them: everywhere, at every change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use swimring::core::view::{View, ring_member};
use swimring::ring::{ArcMove, Ring};
use swimring_membership::{NodeId, Phase};

use crate::conns::Process;
use crate::oracles::Property;
use crate::world::World;

/// Of how many rings one is built anew.
const BUILT_EVERY: usize = 4;
/// Of how many views one is looked at.
const LOOKED_AT_EVERY: u64 = 8;
/// For how many keys the views of the core are compared.
const KEYS: u32 = 512;

/// How many standard deviations a share may be away from what the weight says.
const DEVIATIONS: f64 = 6.0;

/// What was seen of rings.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Digests of rings by which calls went.
    used: BTreeSet<u128>,
    /// The owners' digest of every view that was looked at.
    of_views: BTreeMap<u128, u128>,
    views: u64,
    /// The view by which the last call of each process went.
    routed: BTreeMap<Process, Arc<View>>,
}

/// Somebody who has much more, or much less, of the arcs than its weight says.
fn unfair_share(ring: &Ring) -> Option<String> {
    let all: u32 = ring.members().iter().map(|member| u32::from(member.weight)).sum();
    let mut shares: BTreeMap<NodeId, u32> = BTreeMap::new();
    for arc in 0..ring.arcs() {
        *shares.entry(ring.owner_of_arc(swimring::ring::Arc(arc))?).or_default() += 1;
    }
    ring.members().iter().find_map(|member| {
        let (held, due) = (shares.get(&member.id).copied().unwrap_or(0), f64::from(member.weight) / f64::from(all));
        let mean = f64::from(ring.arcs()) * due;
        // Every arc is drawn on its own.
        let far = (f64::from(held) - mean).abs() > DEVIATIONS * (mean * (1.0 - due)).sqrt() + 1.0;
        far.then(|| format!("{} has {held} arcs, with a weight of {} in {all}", member.id, member.weight))
    })
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
        let digest = Ring::digest_of(view.placement(), view.ring_members());
        let held = *self.rings_seen.of_views.entry(view.digest()).or_insert(digest);
        self.check(host, Property::R2, held == digest, || "has another ring than somebody with the same view".into());
    }

    /// A call goes by a view: if that is another than the last time, what has changed since is what had to.
    pub(crate) fn check_routing(&mut self, host: usize, view: &Arc<View>) {
        let process = self.hosts[host].process();
        if self.rings_seen.routed.get(&process).is_some_and(|before| Arc::ptr_eq(before, view)) {
            return;
        }
        self.check_ring(host, view);
        let Some(before) = self.rings_seen.routed.insert(process, Arc::clone(view)) else { return };
        let later = view.version() >= before.version() && view.fence() >= before.fence();
        self.check(host, Property::R8, later, || {
            let [was, is] = [&before, view].map(|view| (view.version(), view.fence()));
            format!("goes by version and fence {is:?} after {was:?}")
        });
        let (old, new) = (before.ring(), view.ring());
        if old.digest() == new.digest() {
            return;
        }
        let weight =
            |ring: &Ring, id: NodeId| ring.members().iter().find(|member| member.id == id).map(|member| member.weight);
        let had_to = |moved: &ArcMove| {
            let lost = moved.from.is_none_or(|from| weight(new, from) < weight(old, from));
            let won = moved.to.is_none_or(|to| weight(new, to) > weight(old, to));
            lost || won
        };
        let needless = Ring::diff(old, new).into_iter().find(|moved| !had_to(moved));
        self.check(host, Property::R3, needless.is_none(), || format!("moved for nothing: {needless:?}"));
        let key = self.hasher.hash(&view.version().to_le_bytes());
        let [two, three] = [2, 3].map(|count| new.owners(key, count));
        let distinct: BTreeSet<NodeId> = three.iter().map(|owner| owner.id).collect();
        let first = new.owner(key).ok() == three.first().map(|owner| owner.id);
        let all = three.len() == new.members().len().min(3) && distinct.len() == three.len();
        let placed = three.iter().enumerate().all(|(place, owner)| new.place(key, owner.id) == Some(place));
        self.check(host, Property::R5, first && all && placed && three.starts_with(&two), || {
            format!("three owners of a key are {three:?}, two are {two:?}")
        });
    }

    /// A ring by which a call goes for the first time is the one that its members make: one of a few is built anew.
    fn check_ring(&mut self, host: usize, view: &View) {
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

    /// Fences under which nodes of the core hold their keys, if not all do under one.
    pub(crate) fn fences_apart(&mut self, core: &[usize]) -> Option<(usize, String)> {
        let fences: Vec<u64> = core.iter().map(|host| self.view(*host).fence()).collect();
        let highest = fences.iter().copied().max()?;
        let lower = fences.iter().position(|fence| *fence < highest)?;
        Some((core[lower], format!("holds its keys under {}, and another one under {highest}", fences[lower])))
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
            let weight = |other: usize| view.member(self.hosts[other].id).map(|member| member.record.profile().weight);
            let wrong = core.iter().find(|other| weight(**other) != Some(self.hosts[**other].weight));
            let wrong = wrong.map(|other| format!("n{} has the weight {:?}", other + 1, weight(*other)));
            self.check(*host, Property::R4, wrong.is_none(), || wrong.unwrap_or_default());
        }
        if let Some(host) = core.first() {
            let view = self.view(*host);
            let unfair = unfair_share(view.ring());
            self.check(*host, Property::R4, unfair.is_none(), || unfair.unwrap_or_default());
        }
    }
}
