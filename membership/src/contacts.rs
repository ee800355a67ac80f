//! The address book: where lost members were last seen, tried for ever at a low rate.
//!
//! It outlives reaping, so that a cut of any length heals. Bounded; the contact lost first goes first.

use alloc::collections::VecDeque;
use core::net::SocketAddr;

use crate::membership::{Destination, Membership, Outgoing, Timer};
use crate::probe::Purpose;
use crate::wire::Message;
use crate::{Instant, NodeId, Peer, Rng};

/// In every how many rounds a node tries a seed at the least, however many others do.
const SEED_EVERY: usize = 30;

/// Lost contacts, in the order in which they are tried.
#[derive(Debug)]
pub(crate) struct Contacts {
    lost: VecDeque<Peer>,
    /// How many rounds there were since a seed was tried.
    rounds: usize,
    rng: Rng,
}

impl Contacts {
    pub(crate) fn new(rng: Rng) -> Self {
        Self { lost: VecDeque::new(), rounds: 0, rng }
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
        if self.rng.index(present.max(1)) < lost
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
        let present = self.roster.iter().any(|(_, m)| m.state.is_present() && m.record.profile().gossip == seed);
        (!present).then_some(seed)
    }
}
