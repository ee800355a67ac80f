//! The member table and the one rule that admits news into it.
//!
//! Admission is a join: news may come in any order, any number of times, and the same set of news ends in
//! the same table. Knows no time-outs and sends nothing.

use alloc::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::members::Members;
use crate::wire::Belief;
use crate::{Incarnation, Instant, NodeId, Phase, Record};

/// What a node believes of another, from the mildest to the most final.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum State {
    /// It answers, or somebody says so.
    Alive,
    /// It did not answer somebody; it has time to object.
    Suspect,
    /// It did not object in time.
    Down,
    /// It said goodbye. Final for its boot.
    Left,
}

impl State {
    /// Alive or suspect: counts in the view's digest and may own keys.
    pub const fn is_present(self) -> bool {
        matches!(self, Self::Alive | Self::Suspect)
    }
}

/// One member as this node believes it.
#[derive(Clone, Debug)]
pub struct Member {
    /// The newest record admitted.
    pub record: Record,
    /// What is believed.
    pub state: State,
    /// The highest incarnation admitted; above the record's while the record is still on its way.
    pub incarnation: Incarnation,
    /// Since when the state is believed.
    pub since: Instant,
}

impl Member {
    /// Whether the member owns keys: present, ready, and with a weight.
    pub fn owns(&self) -> bool {
        self.state.is_present() && self.record.phase() == Phase::Ready && self.record.profile().weight > 0
    }

    /// Of an owner: its weight and zone.
    fn ownership(&self) -> Option<(u16, Option<&str>)> {
        let profile = self.record.profile();
        self.owns().then_some((profile.weight, profile.zone.as_deref()))
    }

    fn belief(&self) -> (State, Incarnation) {
        (self.state, self.incarnation)
    }
}

/// What is left of a reaped member: enough not to believe old news of it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// Down or left.
    pub state: State,
    /// The highest incarnation admitted.
    pub incarnation: Incarnation,
    /// When it was made.
    pub made: Instant,
}

/// How news changed the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// Older than, or equal to, what is known.
    Nothing,
    /// Known higher than before, but the state and the record stay.
    Evidence,
    /// The state or the record changed; this is what was believed before.
    Changed(Belief),
    /// About a node that has no row, and carries no record to make one from.
    Unknown,
}

/// Whether `(state, incarnation)` supersedes `held`: a higher incarnation does, at an equal one the more
/// final state; a boot that has left is over, whatever its count.
pub fn supersedes(new: (State, Incarnation), held: (State, Incarnation)) -> bool {
    rank(new) > rank(held)
}

/// The total order of news: leaving is the last word of a boot.
fn rank((state, incarnation): (State, Incarnation)) -> (u32, bool, u32, State) {
    (incarnation.boot, state == State::Left, incarnation.count, state)
}

/// All members that this node knows, itself included.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    members: Members,
    tombstones: BTreeMap<NodeId, Tombstone>,
    digest: u128,
    counts: [usize; 4],
    version: u64,
    owners_version: u64,
}

impl Roster {
    /// The row of `id`.
    pub fn get(&self, id: NodeId) -> Option<&Member> {
        self.members.get(id)
    }

    /// The row of `id`, if it is alive or suspect.
    pub fn present(&self, id: NodeId) -> Option<&Member> {
        self.get(id).filter(|member| member.state.is_present())
    }

    /// What is left of `id` after it was reaped.
    pub fn tombstone(&self, id: NodeId) -> Option<&Tombstone> {
        self.tombstones.get(&id)
    }

    /// What is believed of `id`, tombstones included.
    pub fn belief(&self, id: NodeId) -> Belief {
        self.get(id).map(Member::belief).or_else(|| self.tombstone(id).map(|t| (t.state, t.incarnation)))
    }

    /// All rows. A copy of them costs little.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// All rows in the order of ids.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (NodeId, &Member)> {
        self.members.iter()
    }

    /// The rows from `low` to `high`, both inclusive.
    pub fn range(&self, low: NodeId, high: NodeId) -> impl Iterator<Item = (NodeId, &Member)> {
        let bounds = (low <= high).then_some(low..=high);
        bounds.into_iter().flat_map(|bounds| self.members.range(*bounds.start(), *bounds.end()))
    }

    /// How many rows are in `state`.
    pub fn count(&self, state: State) -> usize {
        self.counts[state as usize]
    }

    /// How many rows are alive or suspect, this node included.
    pub fn present_count(&self) -> usize {
        self.count(State::Alive) + self.count(State::Suspect)
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The sum of the record hashes of the present members; a suspect counts as alive.
    pub fn digest(&self) -> u128 {
        self.digest
    }

    /// Rises with every change of a row.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Rises with every change of who owns keys, how heavy it is or where.
    pub fn owners_version(&self) -> u64 {
        self.owners_version
    }

    /// Admits a record: its subject is alive at its incarnation.
    pub fn admit_record(&mut self, now: Instant, record: &Record) -> Admitted {
        let id = record.id();
        let new = (State::Alive, record.incarnation());
        let before = self.belief(id);
        match self.members.get(id) {
            Some(member) if supersedes(new, member.belief()) => {
                let since = if member.state == State::Alive { member.since } else { now };
                let row = Member { record: record.clone(), state: State::Alive, incarnation: new.1, since };
                self.replace(id, row);
                Admitted::Changed(before)
            }
            Some(member) if newer_record(record, &member.record) => {
                // The record was behind the evidence, two processes minted one incarnation, or the boot is
                // over: the belief stays, and everybody keeps the same record.
                let row = Member { record: record.clone(), ..member.clone() };
                self.replace(id, row);
                Admitted::Changed(before)
            }
            Some(_) => Admitted::Nothing,
            None if before.is_none_or(|held| supersedes(new, held)) => {
                self.tombstones.remove(&id);
                let row = Member { record: record.clone(), state: State::Alive, incarnation: new.1, since: now };
                self.replace(id, row);
                Admitted::Changed(before)
            }
            None => Admitted::Nothing,
        }
    }

    /// Admits that `id` is suspect, down or left at `incarnation`.
    pub fn admit_state(&mut self, now: Instant, id: NodeId, state: State, incarnation: Incarnation) -> Admitted {
        debug_assert!(state != State::Alive, "alive comes with a record");
        let Some(member) = self.members.get(id) else {
            return match self.tombstones.get_mut(&id) {
                Some(tombstone) if supersedes((state, incarnation), (tombstone.state, tombstone.incarnation)) => {
                    if !state.is_present() {
                        tombstone.state = state;
                    }
                    tombstone.incarnation = tombstone.incarnation.max(incarnation);
                    Admitted::Evidence
                }
                Some(_) => Admitted::Nothing,
                None => Admitted::Unknown,
            };
        };
        if !supersedes((state, incarnation), member.belief()) {
            return Admitted::Nothing;
        }
        let before = Some(member.belief());
        let same = member.state == state;
        let since = if same { member.since } else { now };
        let row = Member { record: member.record.clone(), state, incarnation, since };
        self.replace(id, row);
        if same { Admitted::Evidence } else { Admitted::Changed(before) }
    }

    /// Turns the row of a down or left member into a tombstone; keeps at most `tombstones_max`, newest first.
    pub fn reap(&mut self, now: Instant, id: NodeId, tombstones_max: usize) -> Option<Member> {
        let member = self.members.get(id).filter(|member| !member.state.is_present())?.clone();
        self.members.remove(id);
        self.counts[member.state as usize] -= 1;
        self.version += 1;
        if self.tombstones.len() >= tombstones_max
            && let Some(oldest) = self.tombstones.iter().min_by_key(|(_, t)| t.made).map(|(id, _)| *id)
        {
            self.tombstones.remove(&oldest);
        }
        let tombstone = Tombstone { state: member.state, incarnation: member.incarnation, made: now };
        self.tombstones.insert(id, tombstone);
        Some(member)
    }

    fn replace(&mut self, id: NodeId, row: Member) {
        if self.members.get(id).and_then(Member::ownership) != row.ownership() {
            self.owners_version += 1;
        }
        if row.state.is_present() {
            self.digest = self.digest.wrapping_add(row.record.hash());
        }
        self.counts[row.state as usize] += 1;
        self.version += 1;
        if let Some(old) = self.members.insert(id, row) {
            if old.state.is_present() {
                self.digest = self.digest.wrapping_sub(old.record.hash());
            }
            self.counts[old.state as usize] -= 1;
        }
    }

    /// Recomputes what is kept incrementally, to check it.
    pub fn digest_from_scratch(&self) -> u128 {
        let present = self.members.iter().filter(|(_, member)| member.state.is_present());
        present.fold(0, |sum, (_, member)| sum.wrapping_add(member.record.hash()))
    }
}

/// Which of two records of one subject stands: the higher incarnation, then (two processes claimed one) the
/// higher hash, so that everybody picks the same.
fn newer_record(new: &Record, held: &Record) -> bool {
    (new.incarnation(), new.hash()) > (held.incarnation(), held.hash())
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::testing::{cluster, profile};

    #[derive(Clone, Debug)]
    enum News {
        Record(Record),
        State(State, Incarnation),
    }

    fn record(boot: u32, count: u32, life: u64) -> Record {
        Record::mint(&cluster(), &profile("a", 1), Incarnation::new(boot, count), Phase::Ready, life)
    }

    /// Every piece of news there can be about one subject, with two boots, two counts and two lives.
    fn all_news() -> Vec<News> {
        let mut all = Vec::new();
        for boot in 1..=2 {
            for count in 0..=1 {
                all.extend((1..=2).map(|life| News::Record(record(boot, count, life))));
                let states = [State::Suspect, State::Down, State::Left];
                all.extend(states.map(|state| News::State(state, Incarnation::new(boot, count))));
            }
        }
        all
    }

    fn admit(roster: &mut Roster, news: &News) {
        let now = Instant::ORIGIN;
        match news {
            News::Record(record) => roster.admit_record(now, record),
            News::State(state, incarnation) => roster.admit_state(now, record(1, 0, 1).id(), *state, *incarnation),
        };
    }

    fn end_of(order: &[&News]) -> (Belief, Option<u128>, u128) {
        let mut roster = Roster::default();
        // A row has to exist before a state can be admitted; the lowest record is below all news.
        roster.admit_record(Instant::ORIGIN, &record(1, 0, 1));
        order.iter().for_each(|news| admit(&mut roster, news));
        assert_eq!(roster.digest(), roster.digest_from_scratch());
        let id = record(1, 0, 1).id();
        (roster.belief(id), roster.get(id).map(|m| m.record.hash()), roster.digest())
    }

    #[test]
    fn any_three_pieces_of_news_end_alike_in_any_order() {
        let all = all_news();
        for a in &all {
            for b in &all {
                assert_eq!(end_of(&[a, b, a, b]), end_of(&[b, a]), "{a:?} {b:?}");
                for c in &all {
                    let end = end_of(&[a, b, c]);
                    assert_eq!(end, end_of(&[c, a, b]), "{a:?} {b:?} {c:?}");
                    assert_eq!(end, end_of(&[b, c, a]), "{a:?} {b:?} {c:?}");
                }
            }
        }
    }

    #[test]
    fn owners_change_with_what_decides_who_owns_keys_and_with_nothing_else() {
        let (mut roster, now) = (Roster::default(), Instant::ORIGIN);
        let says = |count, phase, change: fn(&mut crate::Profile)| {
            let mut profile = profile("a", 1);
            change(&mut profile);
            Record::mint(&cluster(), &profile, Incarnation::new(1, count), phase, 1)
        };
        let same = |_: &mut crate::Profile| ();
        let mut seen = roster.owners_version();
        let mut changes = |roster: &Roster| core::mem::replace(&mut seen, roster.owners_version()) != seen;
        roster.admit_record(now, &says(0, Phase::Joining, same));
        assert!(!changes(&roster), "it is not ready");
        roster.admit_record(now, &says(1, Phase::Ready, same));
        assert!(changes(&roster), "it is");
        let id = record(1, 0, 1).id();
        roster.admit_state(now, id, State::Suspect, Incarnation::new(1, 1));
        roster.admit_record(now, &says(2, Phase::Ready, |profile| profile.tags.push(("k".into(), "v".into()))));
        assert!(!changes(&roster), "a suspect owns its keys, and a tag decides nothing");
        roster.admit_record(now, &says(3, Phase::Ready, |profile| profile.weight = 9));
        assert!(changes(&roster), "it is heavier");
        roster.admit_record(
            now,
            &says(4, Phase::Ready, |profile| (profile.weight, profile.zone) = (9, Some("z".into()))),
        );
        assert!(changes(&roster), "it is elsewhere");
        roster.admit_state(now, id, State::Down, Incarnation::new(1, 4));
        assert!(changes(&roster), "it is gone");
        roster.reap(now, id, 1);
        assert!(!changes(&roster), "it owned nothing");
    }

    proptest! {
        #[test]
        fn any_amount_of_news_ends_alike_in_any_order(picks in proptest::collection::vec(0..20usize, 0..12), seed: u64) {
            let all = all_news();
            let news: Vec<&News> = picks.iter().map(|pick| &all[pick % all.len()]).collect();
            let mut other = news.clone();
            crate::Rng::new(seed).shuffle(&mut other);
            prop_assert_eq!(end_of(&news), end_of(&other));
        }
    }

    #[test]
    fn a_state_is_stored_even_when_it_changes_nothing_else() {
        let mut roster = Roster::default();
        let id = record(1, 0, 1).id();
        roster.admit_record(Instant::ORIGIN, &record(1, 0, 1));
        roster.admit_state(Instant::ORIGIN, id, State::Down, Incarnation::new(1, 1));
        roster.admit_state(Instant::ORIGIN, id, State::Down, Incarnation::new(1, 10));
        assert_eq!(
            roster.admit_record(Instant::ORIGIN, &record(1, 2, 1)),
            Admitted::Changed(Some((State::Down, Incarnation::new(1, 10))))
        );
        assert_eq!(roster.belief(id), Some((State::Down, Incarnation::new(1, 10))), "old news does not bring it back");
    }

    #[test]
    fn a_reaped_member_does_not_come_back_with_old_news() {
        let mut roster = Roster::default();
        let id = record(1, 0, 1).id();
        roster.admit_record(Instant::ORIGIN, &record(1, 3, 1));
        roster.admit_state(Instant::ORIGIN, id, State::Down, Incarnation::new(1, 3));
        roster.reap(Instant::ORIGIN, id, 10);
        assert_eq!(roster.admit_record(Instant::ORIGIN, &record(1, 3, 1)), Admitted::Nothing);
        assert!(matches!(roster.admit_record(Instant::ORIGIN, &record(1, 4, 1)), Admitted::Changed(_)));
    }

    #[test]
    fn tombstones_are_bounded_and_the_oldest_goes_first() {
        let mut roster = Roster::default();
        let mut ids = Vec::new();
        for index in 0..3u16 {
            let name = alloc::format!("n{index}");
            let record = Record::mint(&cluster(), &profile(&name, index), Incarnation::new(1, 0), Phase::Ready, 1);
            let now = Instant::from_millis(u64::from(index));
            roster.admit_record(now, &record);
            roster.admit_state(now, record.id(), State::Down, Incarnation::new(1, 0));
            roster.reap(now, record.id(), 2);
            ids.push(record.id());
        }
        assert!(roster.tombstone(ids[0]).is_none());
        assert!(roster.tombstone(ids[1]).is_some() && roster.tombstone(ids[2]).is_some());
    }
}
