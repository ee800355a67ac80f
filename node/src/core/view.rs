//! What a node knows, frozen: members, ring, and what follows for a key.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use swimring_forwarder::wire::Scope;
use swimring_forwarder::{Ownership, Resolution};
use swimring_membership::codec::Blob;
use swimring_membership::{Instance, Member, Members, Membership, NodeId, Phase, Roster, State};
use swimring_ring::{KeyHash, Placement, Ring, RingMember};

/// Rings by digest: equal views of one process share one ring, and so do the nodes of a simulation.
#[derive(Debug, Default)]
pub struct Rings(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    by_digest: BTreeMap<u128, Weak<Ring>>,
    /// The last few that were built, the newest last.
    latest: VecDeque<Weak<Ring>>,
}

/// How many rings are looked at for the one that a new one differs least from, besides the one before it.
const LATEST: usize = 8;

impl Rings {
    /// The ring of `members`, from the one `before` it or another one like it. Whoever builds one keeps nobody waiting.
    fn ring(&self, placement: Placement, members: &[RingMember], before: &Weak<Ring>) -> Arc<Ring> {
        let digest = Ring::digest_of(placement, members);
        let others = {
            let held = self.lock();
            if let Some(ring) = held.get(digest) {
                return ring;
            }
            held.latest.iter().chain([before]).filter_map(Weak::upgrade).collect::<Vec<_>>()
        };
        let others = others.iter().filter(|ring| ring.placement() == placement);
        let nearest = others.min_by_key(|ring| difference(ring.members(), members));
        let ring = Arc::new(match nearest {
            Some(ring) => ring.change(members.iter().cloned()),
            None => Ring::build(placement, members.iter().cloned()),
        });
        self.lock().share(digest, ring)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().expect("nothing panics while it holds the lock")
    }
}

impl Held {
    fn get(&self, digest: u128) -> Option<Arc<Ring>> {
        self.by_digest.get(&digest).and_then(Weak::upgrade)
    }

    /// `ring`, or the same one that somebody else built meanwhile.
    fn share(&mut self, digest: u128, ring: Arc<Ring>) -> Arc<Ring> {
        if let Some(other) = self.get(digest) {
            return other;
        }
        self.by_digest.retain(|_, ring| ring.strong_count() > 0);
        self.by_digest.insert(digest, Arc::downgrade(&ring));
        self.latest.push_back(Arc::downgrade(&ring));
        if self.latest.len() > LATEST {
            self.latest.pop_front();
        }
        ring
    }
}

/// How many members two lists, both in the order of ids, do not share.
fn difference(one: &[RingMember], other: &[RingMember]) -> usize {
    let (mut shared, mut rest) = (0, other.iter().peekable());
    for member in one {
        while rest.next_if(|other| other.id < member.id).is_some() {}
        shared += usize::from(rest.next_if(|other| *other == member).is_some());
    }
    one.len() + other.len() - 2 * shared
}

/// A member as a ring sees it.
pub fn ring_member(member: &Member) -> RingMember {
    let profile = member.record.profile();
    RingMember { id: member.record.id(), weight: profile.weight, zone: profile.zone.clone() }
}

/// Who owns keys, and the ring of them, which is built when it is first looked at. Views between which nobody began or
/// ceased to own keys share one.
#[derive(Clone, Debug)]
pub(crate) struct Owners {
    /// Of the roster.
    version: u64,
    /// In the order of ids.
    members: Arc<[RingMember]>,
    ring: Arc<OnceLock<Arc<Ring>>>,
    /// The ring of the owners before these that had been looked at.
    before: Weak<Ring>,
}

impl Owners {
    fn of(roster: &Roster, before: Weak<Ring>) -> Self {
        let members = roster.iter().map(|(_, member)| member).filter(|member| member.owns()).map(ring_member).collect();
        Self { version: roster.owners_version(), members, ring: Arc::default(), before }
    }

    /// Whether the ring of these is the ring of `other`.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.version == other.version || self.members == other.members
    }
}

/// An immutable snapshot of one node's knowledge. Share it.
#[derive(Debug)]
pub struct View {
    version: u64,
    digest: u128,
    me: Instance,
    confirmed: bool,
    fence: u64,
    members: Members,
    owners: Owners,
    placement: Placement,
    rings: Arc<Rings>,
}

impl View {
    /// What `membership` knows now.
    pub fn of(membership: &Membership, placement: Placement, rings: &Arc<Rings>) -> Self {
        Self::with(Owners::of(membership.roster(), Weak::new()), membership, placement, rings)
    }

    /// The same, some time after a view with these owners.
    pub(crate) fn after(held: &Owners, membership: &Membership, placement: Placement, rings: &Arc<Rings>) -> Self {
        let same = held.version == membership.roster().owners_version();
        let before = || held.ring.get().map_or_else(|| Weak::clone(&held.before), Arc::downgrade);
        let owners = if same { held.clone() } else { Owners::of(membership.roster(), before()) };
        Self::with(owners, membership, placement, rings)
    }

    fn with(owners: Owners, membership: &Membership, placement: Placement, rings: &Arc<Rings>) -> Self {
        Self {
            version: membership.roster().version(),
            digest: membership.roster().digest(),
            me: membership.record().instance(),
            confirmed: membership.is_confirmed(),
            fence: membership.fence(),
            members: membership.roster().members().clone(),
            owners,
            placement,
            rings: Arc::clone(rings),
        }
    }

    /// Rises with every change of this node's knowledge. Says nothing about other nodes; no fence.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The digest over all present members: nodes that agree have the same.
    pub fn digest(&self) -> u128 {
        self.digest
    }

    /// This process.
    pub fn me(&self) -> Instance {
        self.me
    }

    /// Whether this process knows that it is still the one that others mean.
    pub fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// Orders this node's hold on its keys against earlier and later owners': minted when its ring last changed.
    pub fn fence(&self) -> u64 {
        self.fence
    }

    /// The members that own keys, in the order of ids.
    pub fn ring_members(&self) -> &Arc<[RingMember]> {
        &self.owners.members
    }

    pub(crate) fn owners(&self) -> &Owners {
        &self.owners
    }

    /// The ring as it would be with these members besides, or instead of those with their ids.
    pub fn ring_with(&self, others: &[RingMember]) -> Arc<Ring> {
        let members = self.ring_members().iter().chain(others).cloned();
        let members: BTreeMap<NodeId, RingMember> = members.map(|member| (member.id, member)).collect();
        self.rings.ring(self.placement, &members.into_values().collect::<Vec<_>>(), &Arc::downgrade(self.ring()))
    }

    /// Who owns keys once everybody who is joining is ready, and everybody who is suspected is gone, in the order of ids.
    pub fn expected_members(&self) -> Vec<RingMember> {
        let will_own = |member: &&Member| {
            let (record, state) = (&member.record, member.state);
            state == State::Alive && record.phase() != Phase::Draining && record.profile().weight > 0
        };
        self.members().filter(will_own).map(ring_member).collect()
    }

    /// The ring of [`expected_members`](Self::expected_members).
    pub fn expected_ring(&self) -> Arc<Ring> {
        self.rings.ring(self.placement, &self.expected_members(), &Arc::downgrade(self.ring()))
    }

    /// The same knowledge under another fence.
    #[must_use]
    pub fn with_fence(mut self, fence: u64) -> Self {
        self.fence = fence;
        self
    }

    /// Every member, in the order of ids; this node included.
    pub fn members(&self) -> impl DoubleEndedIterator<Item = &Member> {
        self.members.iter().map(|(_, member)| member)
    }

    /// The member `id`.
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        self.members.get(id)
    }

    /// Whether this process may call again, or be called: it is here, or is only held down for now.
    pub fn may_return(&self, process: Instance) -> bool {
        let member = self.member(process.node).filter(|member| member.state != State::Left);
        member.is_some_and(|member| member.record.instance() == process)
    }

    /// Into how many arcs a ring is divided.
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// The ring of the members that own keys.
    pub fn ring(&self) -> &Arc<Ring> {
        self.owners.ring.get_or_init(|| self.rings.ring(self.placement, self.ring_members(), &self.owners.before))
    }

    /// Where a call for `key` goes.
    pub fn resolve(&self, key: KeyHash) -> Resolution {
        match self.ring().owner(key) {
            Ok(owner) => self.instance(owner),
            Err(_) => Resolution::Nobody,
        }
    }

    /// Where a call for `key` goes that is for the node `id`, as one of those in `scope`: nowhere, once it is none of them by
    /// this view.
    pub fn resolve_at(&self, id: NodeId, key: KeyHash, scope: Scope) -> Resolution {
        let drains = |member: &Member| member.record.phase() == Phase::Draining;
        let is_for = match scope {
            Scope::Owner => self.ring().owner(key) == Ok(id),
            Scope::Owners(count) => self.ring().place(key, id).is_some_and(|place| place < usize::from(count)),
            Scope::Members => !self.member(id).is_some_and(drains),
        };
        match self.instance(id) {
            Resolution::Nobody => Resolution::Gone,
            _ if !is_for => Resolution::Gone,
            found => found,
        }
    }

    /// Where a call for `key` goes that was sent on to the node `id`. Sent back to this one, it is run only if
    /// this node's own ring says so.
    pub fn named(&self, id: NodeId, key: KeyHash) -> Resolution {
        match self.instance(id) {
            Resolution::Here if self.ring().owner(key) != Ok(id) => Resolution::Nobody,
            found => found,
        }
    }

    /// The process of the node `id`. Whoever is down or has left is not asked, though another one may still name it.
    fn instance(&self, id: NodeId) -> Resolution {
        if id == self.me.node {
            return Resolution::Here;
        }
        let present = self.member(id).filter(|member| member.state.is_present());
        present.map_or(Resolution::Nobody, |member| Resolution::There(member.record.instance()))
    }

    /// Whether a call for `key` may run here. If it is for the owner, and this node is not the one: who is, and which
    /// record says so, its own when it does not take keys, the owner's otherwise.
    pub fn ownership(&self, key: KeyHash, scope: Scope) -> Ownership {
        let here = match scope {
            Scope::Owner => return self.ownership_of_owner(key),
            Scope::Owners(count) => {
                self.ring().place(key, self.me.node).is_some_and(|place| place < usize::from(count))
            }
            Scope::Members => true,
        };
        if here { Ownership::Mine } else { Ownership::Nobody }
    }

    fn ownership_of_owner(&self, key: KeyHash) -> Ownership {
        let Ok(owner) = self.ring().owner(key) else {
            return Ownership::Nobody;
        };
        if owner == self.me.node {
            return Ownership::Mine;
        }
        let ready =
            self.member(self.me.node).is_some_and(|own| own.record.phase() == Phase::Ready && own.state.is_present());
        let deciding = if ready { owner } else { self.me.node };
        let record = self.member(deciding).map(|member| member.record.bytes().to_vec());
        Ownership::Theirs(owner, Blob(record.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use swimring_membership::{Config, Instant, Name, Preset, Profile, Settings, Start};

    use super::*;

    const NOW: Instant = Instant::from_millis(1);

    fn node(text: &str, port: u16) -> Membership {
        let name = |text| Name::new(text).unwrap();
        let profile = Profile {
            name: name(text),
            gossip: ([127, 0, 0, 1], port).into(),
            calls: ([127, 0, 0, 1], port + 1).into(),
            zone: None,
            weight: 1,
            tags: Vec::new(),
        };
        let config = Config::new(Settings::preset(Preset::Local)).unwrap();
        let start = Start { cluster: name("test"), profile, boot: 1, life: u64::from(port), seed: 1 };
        Membership::new(NOW, config, start).unwrap()
    }

    #[test]
    fn whoever_is_held_down_may_return_and_another_process_or_a_stranger_is_nobody_we_know() {
        let (mut me, other) = (node("a", 10), node("b", 20));
        let process = other.record().instance();
        let view = |me: &Membership| View::of(me, Placement { arcs_log2: 8 }, &Arc::default());
        assert!(!view(&me).may_return(process), "it was never here");
        me.merge_record(NOW, process.node, other.record().bytes()).unwrap();
        assert!(view(&me).may_return(process));
        assert!(!view(&me).may_return(Instance { life: 99, ..process }));
        let believed = |state: State| {
            let mut roster = me.roster().clone();
            roster.admit_state(NOW, process.node, state, other.record().incarnation());
            let view = View { members: roster.members().clone(), ..view(&me) };
            view.may_return(process)
        };
        assert!(believed(State::Suspect) && believed(State::Down), "it may be a cut");
        assert!(!believed(State::Left), "it said goodbye");
    }
}
