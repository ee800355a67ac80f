//! Getting in: asking seeds, and letting others in without giving one name to two live processes.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use crate::codec::{Blob, Malformed};
use crate::event::Event;
use crate::membership::{Destination, Membership, Outgoing, Timer};
use crate::probe::Purpose;
use crate::roster::Admitted;
use crate::wire::{Message, ROWS_MAX, RowBody};
use crate::{Config, Incarnation, Instant, NodeId, Peer, Record, Rng, State};

/// Bytes of rows in one message; a longer list takes several.
const ROWS_BYTES_MAX: usize = 48 * 1_024;
/// How many contacts, and how many members met meanwhile, are asked besides the seeds.
const OTHERS_ASKED: usize = 3;
/// Most seeds whose lists are put together at once.
const LISTS_MAX: usize = 16;
/// How many times a node has asked before another one that is still looking will do as its cluster.
const PATIENCE: u32 = 1;

/// Where this node looks for its cluster.
#[derive(Debug)]
pub(crate) struct Joiner {
    pub(crate) seeds: Vec<SocketAddr>,
    pub(crate) joined: bool,
    attempts: u32,
    turn: usize,
    /// Since when there is a connection to seeds that have not answered on it.
    met: BTreeMap<Peer, Instant>,
    /// The parts of their lists that seeds have sent so far.
    lists: BTreeMap<Peer, (u64, BTreeSet<u16>)>,
    rng: Rng,
}

/// Rows in as many batches as messages can carry; at least one.
pub(crate) fn in_parts(rows: Vec<RowBody>) -> Vec<Vec<RowBody>> {
    let size = |row: &RowBody| 48 + row.record.as_ref().map_or(0, |record| record.0.len());
    let mut batches = alloc::vec![Vec::new()];
    let mut bytes = 0;
    for row in rows {
        let last = batches.last_mut().expect("there is always one");
        if last.len() == ROWS_MAX || bytes + size(&row) > ROWS_BYTES_MAX {
            batches.push(Vec::new());
            bytes = 0;
        }
        bytes += size(&row);
        batches.last_mut().expect("there is always one").push(row);
    }
    batches
}

impl Joiner {
    pub(crate) fn new(rng: Rng) -> Self {
        Self {
            seeds: Vec::new(),
            joined: false,
            attempts: 0,
            turn: 0,
            met: BTreeMap::new(),
            lists: BTreeMap::new(),
            rng,
        }
    }

    /// Notes a part of a seed's list; whether the list is whole now.
    fn is_whole(&mut self, from: Peer, list: u64, part: u16, parts: u16) -> bool {
        if self.lists.len() >= LISTS_MAX && !self.lists.contains_key(&from) {
            self.lists.pop_first();
        }
        let (held, seen) = self.lists.entry(from).or_default();
        if *held != list {
            (*held, *seen) = (list, BTreeSet::new());
        }
        seen.insert(part);
        seen.len() == usize::from(parts)
    }

    /// Those who look for the cluster together are one, but not before those who are in it had time to answer.
    fn is_patient_enough(&self, now: Instant, config: &Config) -> bool {
        // A dial can take as long as the first attempts.
        self.attempts > PATIENCE && self.met.values().all(|met| now.since(*met) > config.join_retry)
    }

    /// A connection to `peer` stands: if it is a seed, it is asked on it.
    pub(crate) fn meet(&mut self, now: Instant, peer: Peer) {
        if !self.joined && self.seeds.contains(&peer.address) {
            self.met.insert(peer, now);
        }
    }

    pub(crate) fn next_seed(&mut self) -> Option<SocketAddr> {
        self.turn = self.turn.wrapping_add(1);
        self.seeds.get(self.turn % self.seeds.len().max(1)).copied()
    }
}

impl Membership {
    pub(crate) fn on_seeds(&mut self, now: Instant, seeds: &[SocketAddr]) {
        let before = core::mem::replace(&mut self.joiner.seeds, seeds.to_vec());
        self.joiner.rng.shuffle(&mut self.joiner.seeds);
        if self.joiner.joined {
            return;
        }
        if seeds.is_empty() {
            self.on_joined(now);
        } else if self.joiner.attempts == 0 {
            self.timers.set(Timer::Join, now);
        } else {
            // Seeds become known one after another: that is no reason to lose patience with those asked already.
            let new: Vec<SocketAddr> =
                self.joiner.seeds.iter().filter(|seed| !before.contains(seed)).copied().collect();
            new.into_iter().for_each(|seed| self.ask_seed(Destination::Seed(seed)));
        }
    }

    /// Asks every seed; one answer is enough.
    pub(crate) fn on_join_due(&mut self, now: Instant) {
        if self.joiner.joined || self.me.gone {
            return;
        }
        for seed in self.joiner.seeds.clone() {
            self.ask_seed(Destination::Seed(seed));
        }
        if self.joiner.is_patient_enough(now, &self.config) {
            // No seed is there: whoever was met before, or has been met meanwhile, will do.
            let met = self.pick_neighbours(OTHERS_ASKED, None);
            let before = self.contacts.next_few(OTHERS_ASKED);
            met.into_iter().chain(before).for_each(|peer| self.ask_seed(Destination::Peer(peer)));
        }
        let doubled = self.config.join_retry * (1 << self.joiner.attempts.min(8));
        let wait = self.joiner.rng.jitter(doubled.min(self.config.join_retry_max));
        if self.joiner.attempts > 0 {
            self.events.push_back(Event::JoinRetrying { attempts: self.joiner.attempts, wait });
        }
        self.joiner.attempts += 1;
        self.timers.set(Timer::Join, now + wait);
    }

    fn ask_seed(&mut self, to: Destination) {
        let record = Blob(self.me.record.bytes().to_vec());
        self.outbox.push_back((to, Outgoing::Whole(Message::JoinRequest { record })));
    }

    pub(crate) fn on_joined(&mut self, now: Instant) {
        if !self.joiner.joined {
            self.joiner.joined = true;
            self.me.boots.join(now);
            // That nobody answered before was no trouble of this node's own: there was nobody.
            self.recover();
            self.prober.begin(now + self.config.period(self.roster.present_count()));
            self.joiner.lists.clear();
            self.joiner.met.clear();
            self.timers.cancel(Timer::Join);
            self.events.push_back(Event::Joined);
        }
    }

    /// Somebody wants in. A name that lives elsewhere is asked first; a boot that has been is sent back.
    pub(crate) fn on_join_request(&mut self, now: Instant, from: Peer, record: Blob) -> Result<(), Malformed> {
        let record = Record::parse(&self.me.cluster, record.0).inspect_err(|_| self.stats.malformed += 1)?;
        if record.peer() != from {
            self.stats.malformed += 1;
            return Err(Malformed::OutOfRange("record of another node"));
        }
        if from.id == self.me.id {
            // Another process with this node's own name, and this one is alive.
            self.stats.names_refused += 1;
            let holder = self.me.record.peer();
            self.send_whole(from, Message::JoinRefused { holder });
            return Ok(());
        }
        // Whoever is held down here is asked, too: it may be a cut that has just ended.
        if let Some(member) = self.roster.get(from.id).filter(|member| member.state != State::Left)
            && member.record.life() != record.life()
            && member.record.peer() != from
        {
            let holder = member.record.peer();
            self.start_probe(now, holder, Purpose::Claim { claimant: from });
            self.joiner_waits(from, record);
            return Ok(());
        }
        self.let_in(now, from, record);
        Ok(())
    }

    fn joiner_waits(&mut self, from: Peer, record: Record) {
        // One claim a name: the newest process that wants it.
        self.reconciler.claims.insert(from.id, record);
        if self.reconciler.claims.len() > ROWS_MAX {
            self.reconciler.claims.pop_first();
            self.stats.shed += 1;
        }
    }

    /// The process that held the claimed name is silent: the claimant gets it.
    pub(crate) fn on_name_free(&mut self, now: Instant, claimant: Peer, holder: Peer) {
        let Some(record) = self.reconciler.claims.remove(&claimant.id) else { return };
        let held = self.roster.present(claimant.id).map(|member| member.record.peer());
        if record.peer() != claimant || held.is_some_and(|held| held != holder && held != claimant) {
            // Another process claims or holds the name by now: whoever still wants it asks again.
            return;
        }
        self.let_in(now, claimant, record);
    }

    /// The process that holds the claimed name has answered.
    pub(crate) fn on_name_held(&mut self, claimant: Peer, holder: Peer) {
        self.reconciler.claims.remove(&claimant.id);
        self.stats.names_refused += 1;
        self.send_whole(claimant, Message::JoinRefused { holder });
    }

    fn let_in(&mut self, now: Instant, from: Peer, record: Record) {
        let held_life = self.roster.get(from.id).map(|member| member.record.life());
        if let Some((state, held)) = self.roster.belief(from.id) {
            let same_process = held_life == Some(record.life()) && state != State::Left;
            if !same_process && record.incarnation().boot <= held.boot {
                return self.send_whole(from, Message::JoinHeld { incarnation: held });
            }
        } else if self.roster.len() >= self.config.members_max {
            self.stats.members_refused += 1;
            return;
        }
        self.admit_and_tell(now, record);
        let settled = self.joiner.joined;
        if self.joiner.is_patient_enough(now, &self.config) {
            self.on_joined(now);
        }
        let rows: Vec<RowBody> = self
            .roster
            .iter()
            .filter(|(id, _)| *id != from.id)
            .map(|(id, member)| RowBody {
                id,
                state: member.state,
                incarnation: member.incarnation,
                record: Some(Blob(member.record.bytes().to_vec())),
            })
            .collect();
        let list = self.roster.version();
        let batches = in_parts(rows);
        let parts = u16::try_from(batches.len()).expect("65,536 members take far fewer parts");
        for (part, rows) in (0..).zip(batches) {
            let fence = self.fence_heard();
            self.send_whole(from, Message::JoinReply { list, part, parts, settled, fence, rows });
        }
    }

    /// The seed holds this node's name at an incarnation that this process has to exceed.
    pub(crate) fn on_join_held(&mut self, now: Instant, from: Peer, incarnation: Incarnation) {
        if self.joiner.joined || incarnation.boot < self.me.incarnation.boot {
            return;
        }
        let own = self.me.incarnation.boot;
        self.refute(now, Incarnation::new(incarnation.boot, u32::MAX), State::Left);
        // It may take several steps; how many are taken at once is limited.
        if self.me.incarnation.boot > own {
            self.joiner.meet(now, from);
            self.ask_seed(Destination::Peer(from));
        }
    }

    pub(crate) fn on_join_refused(&mut self, holder: Peer) {
        if holder.id == self.me.id && holder.address != self.me.profile.gossip && !self.joiner.joined {
            self.me.gone = true;
            self.me.confirmed = false;
            self.outbox.clear();
            self.events.push_back(Event::NameTaken { holder });
        }
    }

    /// A seed let this node in. What it lists is believed as it is: the list of a live member is how a newcomer
    /// begins. To a node that is in already, it is only a merge. `settled`: whether the seed is in a cluster
    /// itself.
    pub(crate) fn on_join_reply(
        &mut self,
        now: Instant,
        from: Peer,
        (list, part, parts): (u64, u16, u16),
        settled: bool,
        rows: Vec<RowBody>,
    ) -> Result<(), Malformed> {
        if self.joiner.joined {
            return self.on_rows(now, from, rows);
        }
        for row in rows {
            self.on_listed(now, from.id, row)?;
        }
        let whole = self.joiner.is_whole(from, list, part, parts);
        if whole {
            self.joiner.met.remove(&from);
        }
        if whole && (settled || self.joiner.is_patient_enough(now, &self.config)) {
            self.on_joined(now);
        }
        Ok(())
    }

    fn on_listed(&mut self, now: Instant, from: NodeId, row: RowBody) -> Result<(), Malformed> {
        let Some(record) = self.parse_row(&row)? else {
            return Ok(());
        };
        if row.id == self.me.id {
            self.on_own_record(now, &record);
            return Ok(());
        }
        if self.roster.belief(row.id).is_none() && self.roster.len() >= self.config.members_max {
            self.stats.members_refused += 1;
            return Ok(());
        }
        let before = self.roster.belief(row.id);
        let mut changed = matches!(self.roster.admit_record(now, &record), Admitted::Changed(_));
        // Whoever is gone there was never here.
        if matches!(row.state, State::Down | State::Left) {
            let gone = self.roster.admit_state(now, row.id, row.state, row.incarnation);
            changed |= matches!(gone, Admitted::Changed(_));
        }
        if changed {
            self.on_changed(now, row.id, before);
        }
        if row.state == State::Suspect {
            self.suspect(now, row.id, row.incarnation, from);
        }
        Ok(())
    }

    /// The record of a row, which must be its subject's.
    pub(crate) fn parse_row(&mut self, row: &RowBody) -> Result<Option<Record>, Malformed> {
        let Some(Blob(bytes)) = &row.record else {
            return Ok(None);
        };
        let record = Record::parse(&self.me.cluster, bytes.clone()).inspect_err(|_| self.stats.malformed += 1)?;
        if record.id() != row.id {
            self.stats.malformed += 1;
            return Err(Malformed::OutOfRange("row with the record of another node"));
        }
        Ok(Some(record))
    }

    /// How long this node has waited for its cluster, as attempts.
    pub fn join_attempts(&self) -> u32 {
        self.joiner.attempts
    }

    /// The longest wait between two attempts to join.
    pub fn join_retry_max(&self) -> Duration {
        self.config.join_retry_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{address, node};

    #[test]
    fn seeds_that_become_known_later_are_asked_and_cost_no_patience() {
        let mut joiner = node("a");
        let now = Instant::ORIGIN;
        let asked = |joiner: &mut Membership, now| {
            joiner.handle_timeout(now);
            let mut to = Vec::new();
            while let Some(transmit) = joiner.poll_transmit(now, &mut Vec::new()) {
                to.push(transmit.to);
            }
            to
        };
        joiner.join(now, &[address(2)]);
        assert_eq!(asked(&mut joiner, now), [Destination::Seed(address(2))]);
        joiner.join(now, &[address(2), address(3)]);
        assert_eq!(asked(&mut joiner, now), [Destination::Seed(address(3))]);
        assert_eq!(joiner.join_attempts(), 1);
    }

    #[test]
    fn a_seed_that_was_reached_a_moment_ago_is_waited_for() {
        let (mut joiner, other) = (node("a"), node("b"));
        let seed = Peer { id: NodeId::from_u128(9), address: address(2) };
        joiner.join(Instant::ORIGIN, &[seed.address]);
        let now = Instant::ORIGIN + Duration::from_secs(1);
        joiner.handle_timeout(Instant::ORIGIN);
        joiner.handle_timeout(now);
        joiner.handle_connected(now, seed);
        let asks = |joiner: &mut Membership, at| {
            let record = Blob(other.record().bytes().to_vec());
            joiner.on_join_request(at, other.record().peer(), record).expect("it is whole");
            joiner.is_joined()
        };
        assert!(!asks(&mut joiner, now), "the seed may be in a cluster");
        let later = now + joiner.config.join_retry + Duration::from_millis(1);
        assert!(asks(&mut joiner, later), "it does not answer, and both look for one");
    }

    #[test]
    fn whoever_looked_for_a_cluster_for_long_begins_in_good_health() {
        let (mut joiner, other) = (node("a"), node("b"));
        let now = Instant::ORIGIN + Duration::from_secs(9);
        joiner.join(Instant::ORIGIN, &[address(2)]);
        joiner.worsen(7);
        let rows = alloc::vec![RowBody {
            id: other.id(),
            state: State::Alive,
            incarnation: other.record().incarnation(),
            record: Some(Blob(other.record().bytes().to_vec())),
        }];
        joiner.on_join_reply(now, other.record().peer(), (1, 0, 1), true, rows).expect("it is whole");
        assert!(joiner.is_joined());
        assert_eq!(joiner.health(), 0);
    }

    #[test]
    fn a_list_is_whole_when_all_its_parts_came_in_any_order() {
        let mut joiner = Joiner::new(Rng::new(1));
        let seed =
            |number: u16| Peer { id: NodeId::from_u128(u128::from(number)), address: ([127, 0, 0, 1], number).into() };
        assert!(
            !joiner.is_whole(seed(1), 7, 2, 3)
                && !joiner.is_whole(seed(1), 7, 0, 3)
                && !joiner.is_whole(seed(2), 7, 1, 3)
        );
        assert!(!joiner.is_whole(seed(1), 7, 2, 3), "twice is once");
        assert!(joiner.is_whole(seed(1), 7, 1, 3));
        assert!(!joiner.is_whole(seed(1), 8, 1, 3), "another list begins anew");
        assert!(joiner.is_whole(seed(3), 7, 0, 1));
        (10..100).for_each(|number| assert!(!joiner.is_whole(seed(number), 7, 0, 2)));
        assert!(joiner.lists.len() <= LISTS_MAX);
    }
}
