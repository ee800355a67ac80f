//! The address book: where lost members were last seen, tried for ever at a low rate.
//!
//! It outlives reaping, so that a cut of any length heals. Bounded; the contact lost first goes first.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::net::SocketAddr;

use crate::membership::{Destination, Membership, Outgoing, Timer};
use crate::probe::Purpose;
use crate::wire::Message;
use crate::{Instant, Member, NodeId, Peer, Rng};

/// In every how many rounds a node tries a seed at the least, however many others do.
const SEED_EVERY: usize = 30;

/// Lost contacts, in the order in which they are tried.
#[derive(Debug)]
pub(crate) struct Contacts {
    lost: VecDeque<Peer>,
    /// How many rounds there were since a seed was tried.
    rounds: usize,
    /// Who was found at a seed's address: while that is true nobody else is looked for there.
    at_seeds: BTreeMap<SocketAddr, NodeId>,
    rng: Rng,
}

impl Contacts {
    pub(crate) fn new(rng: Rng) -> Self {
        Self { lost: VecDeque::new(), rounds: 0, at_seeds: BTreeMap::new(), rng }
    }

    /// Remembers where a member was. Whoever was lost last is tried next.
    pub(crate) fn lose(&mut self, peer: Peer, max: usize) {
        self.lost.retain(|held| held.id != peer.id && held.address != peer.address);
        if self.lost.len() >= max {
            self.lost.pop_back();
        }
        self.lost.push_front(peer);
    }

    /// The member is present again, wherever it is now.
    pub(crate) fn found(&mut self, id: NodeId) {
        self.lost.retain(|held| held.id != id);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Peer> {
        self.lost.iter().copied()
    }

    /// The next ones to try, each once.
    pub(crate) fn next_few(&mut self, count: usize) -> Vec<Peer> {
        let mut next: Vec<Peer> = (0..count).filter_map(|_| self.next()).collect();
        next.sort_unstable();
        next.dedup();
        next
    }

    /// The next contact to try: mostly in turn, sometimes any, so that nodes do not all try the same.
    fn next(&mut self) -> Option<Peer> {
        if self.lost.len() > 1 && self.rng.chance(500_000) {
            let pick = self.rng.index(self.lost.len());
            self.lost.swap(0, pick);
        }
        let next = self.lost.pop_front()?;
        self.lost.push_back(next);
        Some(next)
    }
}

impl Membership {
    /// Tries one lost contact and one seed that nobody present answers for; or leaves it to others. All together try each
    /// contact about once in a round, however many they are.
    pub(crate) fn on_heal_round(&mut self, now: Instant) {
        self.confirm_if_alone();
        if self.me.gone {
            return;
        }
        let (present, lost) = (self.roster.present_count(), self.contacts.lost.len());
        // Whoever is in no cluster yet asks to be let in, by contacts too: somebody else may have its name.
        if self.joiner.joined
            && self.rng.index(present.max(1)) < lost
            && let Some(contact) = self.contacts.next()
        {
            self.start_probe(now, contact, Purpose::Heal);
        }
        self.contacts.rounds += 1;
        if self.joiner.joined
            && self.contacts.rounds >= present.clamp(1, SEED_EVERY)
            && let Some(seed) = self.absent_seed()
        {
            self.contacts.rounds = 0;
            let ranges = self.sum_up_all();
            self.outbox.push_back((Destination::Seed(seed), Outgoing::Whole(Message::Ranges { ranges })));
        }
        let wait = self.rng.jitter(self.config.heal_period);
        self.timers.set(Timer::Heal, now + wait);
    }

    /// A seed at whose address no present member is; the seeds take turns.
    fn absent_seed(&mut self) -> Option<SocketAddr> {
        let seed = self.joiner.next_seed()?;
        let is_there = |member: &Member| member.state.is_present() && member.record.profile().gossip == seed;
        let known = self.contacts.at_seeds.get(&seed);
        if known.is_some_and(|id| self.roster.get(*id).is_some_and(is_there)) {
            return None;
        }
        let found = self.roster.iter().find(|(_, member)| is_there(member)).map(|(id, _)| id);
        // Seeds may change; no more are remembered than there are.
        self.contacts.at_seeds.retain(|held, _| *held != seed && self.joiner.seeds.contains(held));
        self.contacts.at_seeds.extend(found.map(|id| (seed, id)));
        found.is_none().then_some(seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, node, profile};
    use crate::{Incarnation, Phase, Record, State};

    #[test]
    fn a_seed_is_absent_while_nobody_present_is_at_its_address_whoever_was() {
        let (mut one, now) = (node("a"), Instant::from_millis(1_000));
        let record = |name| Record::mint(&cluster(), &profile(name, 2), Incarnation::new(1, 0), Phase::Ready, 1);
        let seed = record("b").profile().gossip;
        one.on_seeds(now, &[seed]);
        assert_eq!(one.absent_seed(), Some(seed));
        one.admit_and_tell(now, record("b"));
        assert_eq!((one.absent_seed(), one.absent_seed()), (None, None));
        one.conclude(now, record("b").id(), State::Down, Incarnation::new(1, 0));
        assert_eq!(one.absent_seed(), Some(seed));
        one.admit_and_tell(now, record("c"));
        assert_eq!(one.absent_seed(), None, "another one is there now");
    }

    #[test]
    fn whoever_is_in_no_cluster_asks_contacts_to_be_let_in_and_does_not_introduce_itself() {
        let (mut one, mut now) = (node("a"), Instant::from_millis(1_000));
        one.on_seeds(now, &[profile("b", 2).gossip]);
        let contacts = [3, 4, 5].map(|number| Peer { id: NodeId::from_u128(number), address: profile("c", 3).gossip });
        let contacts =
            contacts.map(|peer| Peer { address: SocketAddr::from(([10, 0, 0, peer.id.to_u128() as u8], 1)), ..peer });
        contacts.into_iter().for_each(|peer| one.contacts.lose(peer, 8));
        let mut asked = Vec::new();
        for _ in 0..40 {
            now = now + one.config.heal_period;
            one.on_heal_round(now);
            one.on_join_due(now);
            for (to, outgoing) in one.outbox.drain(..) {
                assert!(matches!(outgoing, Outgoing::Whole(Message::JoinRequest { .. })), "{outgoing:?}");
                asked.extend(matches!(to, Destination::Peer(_)).then_some(to));
            }
        }
        assert!(contacts.iter().all(|peer| asked.contains(&Destination::Peer(*peer))), "each in its turn");
    }
}
