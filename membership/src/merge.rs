//! Making two views one by exchanging only their differences, and without killing the healthy.
//!
//! Views that differ for longer than rumours take are compared range by range, then member by member. A
//! remote *down* about a member that is alive here is not admitted: the member is asked to outbid it. An
//! unknown or lost member that a merge names enters only after it has answered somebody here.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use crate::codec::{Blob, Malformed};
use crate::join::in_parts;
use crate::membership::Membership;
use crate::probe::Purpose;
use crate::wire::{Message, RANGES_MAX, ROWS_MAX, Range, RowBody, SUMMARIES_MAX, Summary};
use crate::{Incarnation, Instant, NodeId, Peer, Record, State};

/// A range with at most this many members on both sides together is compared member by member.
const LEAF_MEMBERS: u32 = 64;
/// Into how many parts a range is split.
const SPLIT: u128 = 16;

/// How many digests other than this node's own are remembered.
const DIGESTS_MAX: usize = 16;

/// Since when which peers' views differ, since when which other views are met at anybody, and which processes wait for a
/// name.
#[derive(Debug, Default)]
pub(crate) struct Reconciler {
    differing: BTreeMap<NodeId, Instant>,
    /// The digests of other views, the one met first in front.
    others: VecDeque<(u128, Instant)>,
    pub(crate) claims: BTreeMap<NodeId, Record>,
}

impl Reconciler {
    pub(crate) fn forget(&mut self, id: NodeId) {
        self.differing.remove(&id);
    }

    /// A peer has another view than this node: since when that is so, of the peer or of the view.
    fn differs(&mut self, now: Instant, peer: NodeId, digest: u128) -> Instant {
        let of_peer = *self.differing.entry(peer).or_insert(now);
        let met = self.others.iter().find(|(other, _)| *other == digest).map(|(_, since)| *since);
        let of_view = met.unwrap_or_else(|| {
            if self.others.len() >= DIGESTS_MAX {
                self.others.pop_front();
            }
            self.others.push_back((digest, now));
            now
        });
        of_peer.min(of_view)
    }

    /// A peer has the same view, or none to compare.
    fn agrees(&mut self, peer: NodeId, digest: u128) {
        self.differing.remove(&peer);
        self.others.retain(|(other, _)| *other != digest);
    }

    /// The two views are being compared: not with everybody else who has the same one at once.
    fn compares(&mut self, now: Instant, peer: NodeId) {
        self.differing.insert(peer, now);
        self.others.clear();
    }
}

impl Membership {
    /// The digest of a peer that this node has asked.
    pub(crate) fn on_digest(&mut self, now: Instant, from: Peer, digest: u128) {
        if digest == self.roster.digest() || !self.joiner.joined {
            self.reconciler.agrees(from.id, digest);
            return;
        }
        if self.roster.present(from.id).is_none() {
            return;
        }
        let since = self.reconciler.differs(now, from.id, digest);
        let patience = self.config.reconcile_after.max(self.config.dissemination(self.roster.present_count()));
        if now.since(since) >= patience {
            self.reconcile(now, from);
        }
    }

    /// The digest of a peer that asks this node: it will compare; only agreement is noted.
    pub(crate) fn on_digest_of_pinger(&mut self, _now: Instant, from: Peer, digest: u128) {
        if digest == self.roster.digest() {
            self.reconciler.agrees(from.id, digest);
        }
    }

    /// Compares this node's view with that of `peer`.
    pub(crate) fn reconcile(&mut self, now: Instant, peer: Peer) {
        self.reconciler.compares(now, peer.id);
        self.stats.reconciliations += 1;
        let ranges = self.sum_up_all();
        self.send_whole(peer, Message::Ranges { ranges });
    }

    /// This node's whole view, in a few ranges.
    pub(crate) fn sum_up_all(&self) -> Vec<Range> {
        split(NodeId::MIN, NodeId::MAX).into_iter().map(|(low, high)| self.sum_up(low, high)).collect()
    }

    fn sum_up(&self, low: NodeId, high: NodeId) -> Range {
        let present = self.roster.range(low, high).filter(|(_, member)| member.state.is_present());
        let (count, digest) =
            present.fold((0, 0u128), |(count, sum), (_, member)| (count + 1, sum.wrapping_add(member.record.hash())));
        Range { low, high, count, digest }
    }

    pub(crate) fn on_ranges(&mut self, from: Peer, theirs: &[Range]) {
        let mut finer = Vec::new();
        let mut leaves = Vec::new();
        let mut members = Vec::new();
        for range in in_order(theirs, |range| (range.low, range.high)) {
            let mine = self.sum_up(range.low, range.high);
            if mine == *range {
                continue;
            }
            let small = mine.count.saturating_add(range.count) <= LEAF_MEMBERS
                || range.high.to_u128() - range.low.to_u128() < SPLIT;
            if small && members.len() + mine.count as usize <= SUMMARIES_MAX {
                leaves.push((range.low, range.high));
                members.extend(self.summaries(range.low, range.high));
            } else if !small && finer.len() + SPLIT as usize <= RANGES_MAX {
                finer.extend(split(range.low, range.high).into_iter().map(|(low, high)| self.sum_up(low, high)));
            }
        }
        if !leaves.is_empty() {
            self.send_whole(from, Message::Summaries { ranges: leaves, members });
        }
        if !finer.is_empty() {
            self.send_whole(from, Message::Ranges { ranges: finer });
        }
    }

    fn summaries(&self, low: NodeId, high: NodeId) -> Vec<Summary> {
        let present = self.roster.range(low, high).filter(|(_, member)| member.state.is_present());
        present
            .map(|(id, member)| Summary {
                id,
                incarnation: member.record.incarnation(),
                hash: member.record.hash_prefix(),
            })
            .collect()
    }

    /// The peer's members in some ranges: send what it lacks, ask for what is lacking here.
    pub(crate) fn on_summaries(&mut self, from: Peer, ranges: &[(NodeId, NodeId)], theirs: &[Summary]) {
        let listed: BTreeMap<NodeId, &Summary> = theirs.iter().map(|summary| (summary.id, summary)).collect();
        let mut rows = Vec::new();
        let mut want = Vec::new();
        for summary in theirs {
            let Some((state, incarnation)) = self.roster.belief(summary.id) else {
                want.push(summary.id);
                continue;
            };
            let record = self.roster.get(summary.id).map(|member| &member.record);
            let same = record.is_some_and(|record| record.hash_prefix() == summary.hash);
            if state.is_present() && same {
                continue;
            }
            let behind =
                record.is_some_and(|r| (r.incarnation(), r.hash_prefix()) < (summary.incarnation, summary.hash));
            if summary.incarnation > incarnation || behind {
                want.push(summary.id);
            } else {
                rows.extend(self.row(summary.id));
                // It is present there and lost here: the record tells where to ask it.
                want.extend((!state.is_present()).then_some(summary.id));
            }
        }
        for &(low, high) in in_order(ranges, |range| *range) {
            if rows.len() >= SUMMARIES_MAX {
                break;
            }
            let missing =
                self.roster.range(low, high).filter(|(id, m)| m.state.is_present() && !listed.contains_key(id));
            let ids: Vec<NodeId> = missing.map(|(id, _)| id).collect();
            rows.extend(ids.into_iter().filter_map(|id| self.row(id)));
        }
        if !rows.is_empty() {
            rows.truncate(SUMMARIES_MAX);
            self.send_rows(from, rows);
        }
        for ids in want.chunks(ROWS_MAX).take(SUMMARIES_MAX / ROWS_MAX) {
            self.send_whole(from, Message::Want { ids: ids.to_vec() });
        }
    }

    /// What this node believes of `id`, as a message says it.
    fn row(&self, id: NodeId) -> Option<RowBody> {
        let (state, incarnation) = self.roster.belief(id)?;
        let record = self.roster.get(id).map(|member| Blob(member.record.bytes().to_vec()));
        Some(RowBody { id, state, incarnation, record })
    }

    fn send_rows(&mut self, to: Peer, rows: Vec<RowBody>) {
        for rows in in_parts(rows) {
            self.send_whole(to, Message::Rows { fence: self.fence_heard(), rows });
        }
    }

    pub(crate) fn on_want(&mut self, from: Peer, ids: &[NodeId]) {
        let rows: Vec<RowBody> = ids.iter().filter_map(|id| self.row(*id)).collect();
        if !rows.is_empty() {
            self.send_rows(from, rows);
        }
    }

    /// Rows of a peer's view.
    pub(crate) fn on_rows(&mut self, now: Instant, from: Peer, mut rows: Vec<RowBody>) -> Result<(), Malformed> {
        if !self.overlay.is_mesh() {
            // Not all of them can be asked at once, and everybody should not ask the same ones first.
            self.rng.shuffle(&mut rows);
        }
        let mut gone = Vec::new();
        for row in rows {
            let record = self.parse_row(&row)?;
            if row.id == self.me.id {
                match &record {
                    // Evidence of a later life than its record: what is left of one that this node must exceed.
                    Some(record) if row.incarnation.boot > record.incarnation().boot => {
                        self.on_own_tombstone(now, row.state, row.incarnation);
                    }
                    Some(record) => {
                        self.note_removal(row.state, row.incarnation);
                        self.on_own_record(now, record);
                    }
                    None => self.on_own_tombstone(now, row.state, row.incarnation),
                }
                continue;
            }
            match row.state {
                State::Suspect if record.is_none() => self.on_silent_row(now, from, &row),
                State::Alive | State::Suspect => {
                    self.on_present_row(now, from, record);
                    // Whoever lists it must hear that it is gone here, and ask it anew.
                    let behind = self.roster.belief(row.id).is_some_and(|(state, held)| {
                        !state.is_present() && held >= row.incarnation && row.id != from.id
                    });
                    gone.extend(self.row(row.id).filter(|_| behind));
                }
                State::Down | State::Left => self.on_absent_row(now, from, &row),
            }
        }
        if !gone.is_empty() {
            self.send_rows(from, gone);
        }
        Ok(())
    }

    fn on_present_row(&mut self, now: Instant, from: Peer, record: Option<Record>) {
        let Some(record) = record else { return };
        if self.roster.present(record.id()).is_some() || record.id() == from.id {
            self.on_record(now, from.id, record);
        } else if self.roster.belief(record.id()).is_some() || self.roster.len() < self.config.members_max {
            // The ping says what is believed here, so that a member that was held down outbids it.
            let named_by = Some((from, record.incarnation()));
            self.start_probe(now, record.peer(), Purpose::Candidate { named_by });
        } else {
            self.stats.members_refused += 1;
        }
    }

    /// Whom `by` lists has not answered here: it should ask. Perhaps nearly everybody is new, and nobody else does.
    pub(crate) fn on_candidate_silent(&mut self, by: Peer, id: NodeId, incarnation: Incarnation) {
        let listed = self.roster.present(id).is_some();
        if !listed && self.roster.present(by.id).is_some() {
            self.send_rows(by, alloc::vec![RowBody { id, state: State::Suspect, incarnation, record: None }]);
        }
    }

    /// Somebody who does not list it was told of it here, and got no answer.
    fn on_silent_row(&mut self, now: Instant, from: Peer, row: &RowBody) {
        let Some(member) = self.roster.present(row.id).filter(|member| member.incarnation == row.incarnation) else {
            return;
        };
        if self.is_suspected(row.id, row.incarnation) {
            self.suspect(now, row.id, row.incarnation, from.id);
        } else {
            let accusation = (State::Suspect, row.incarnation);
            self.start_probe(now, member.record.peer(), Purpose::Challenge { accusation, by: from.id });
        }
    }

    fn on_absent_row(&mut self, now: Instant, from: Peer, row: &RowBody) {
        let Some(member) = self.roster.present(row.id) else {
            // Not a row here, or not a present one: the more final news of two absences stands.
            if self.is_plausible(row.id, row.incarnation) {
                self.roster.admit_state(now, row.id, row.state, row.incarnation);
            }
            return;
        };
        if row.incarnation < member.incarnation || !self.is_plausible(row.id, row.incarnation) {
            return;
        }
        let accusation = (row.state, row.incarnation);
        self.start_probe(now, member.record.peer(), Purpose::Challenge { accusation, by: from.id });
    }
}

/// The ranges that begin behind the end of the one before: everybody sends them so, and others would cost more than
/// one look at each member.
fn in_order<T>(ranges: &[T], bounds: impl Fn(&T) -> (NodeId, NodeId)) -> impl Iterator<Item = &T> {
    let mut end = None;
    ranges.iter().filter(move |range| {
        let (low, high) = bounds(range);
        let follows = low <= high && end.is_none_or(|end| end < low);
        end = if follows { Some(high) } else { end };
        follows
    })
}

/// Cuts the range from `low` to `high` into at most [`SPLIT`] parts.
fn split(low: NodeId, high: NodeId) -> Vec<(NodeId, NodeId)> {
    let (low, high) = (low.to_u128(), high.to_u128());
    let step = ((high - low) / SPLIT).max(1);
    let mut parts = Vec::new();
    let mut start = low;
    while parts.len() as u128 + 1 < SPLIT && high - start > step {
        parts.push((NodeId::from_u128(start), NodeId::from_u128(start + step - 1)));
        start += step;
    }
    parts.push((NodeId::from_u128(start), NodeId::from_u128(high)));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Phase;
    use crate::membership::Destination;
    use crate::testing::{cluster, node, profile};

    /// A record of at most 256 bytes that somebody says of himself, for the second time if `again`.
    fn record(number: u16, again: bool) -> Record {
        let name = alloc::format!("node-{number}");
        let mut one = profile(&name, number);
        one.tags = ["one", "two"].map(|key| (key.into(), "x".repeat(80))).into();
        Record::mint(&cluster(), &one, Incarnation::new(1, u32::from(again)), Phase::Ready, u64::from(number))
    }

    /// Hands everything that each has for the other to it, until both are quiet; how many bytes that were.
    fn exchange(now: Instant, one: &mut Membership, other: &mut Membership) -> usize {
        let mut bytes = 0;
        for _ in 0..20 {
            for turn in 0..2 {
                let (from, to) = if turn == 0 { (&mut *one, &mut *other) } else { (&mut *other, &mut *one) };
                let (sender, receiver) = (from.record().peer(), Destination::Peer(to.record().peer()));
                let mut message = Vec::new();
                while let Some(transmit) = from.poll_transmit(now, &mut message) {
                    if transmit.to == receiver {
                        bytes += message.len();
                        to.handle_message(now, sender, &message).unwrap();
                    }
                    message.clear();
                }
            }
        }
        bytes
    }

    #[test]
    fn one_record_that_differs_among_a_thousand_is_mended_with_four_kilobytes() {
        let now = Instant::ORIGIN;
        let (mut one, mut other) = (node("a"), node("b"));
        one.join(now, &[]);
        other.join(now, &[]);
        let records = [one.record().clone(), other.record().clone()];
        let somebody = NodeId::from_u128(1);
        for node in [&mut one, &mut other] {
            for record in records.iter().cloned().chain((2..1_000).map(|number| record(number, false))) {
                node.merge_record(now, somebody, record.bytes()).unwrap();
            }
        }
        assert_eq!((one.roster().digest(), one.roster().len()), (other.roster().digest(), 1_000));
        let newer = record(500, true);
        assert!((200..=256).contains(&newer.bytes().len()));
        other.merge_record(now, somebody, newer.bytes()).unwrap();
        // What is told besides: rumours are not to mend it here.
        exchange(now, &mut one, &mut other);
        assert_ne!(one.roster().digest(), other.roster().digest());
        one.reconcile(now, other.record().peer());
        let bytes = exchange(now, &mut one, &mut other);
        assert_eq!(one.roster().digest(), other.roster().digest());
        assert!(bytes <= 4_096, "{bytes} bytes");
    }

    #[test]
    fn whoever_compares_hears_who_is_gone_elsewhere_and_asks_anew() {
        let now = Instant::ORIGIN;
        let (mut one, mut other, somebody) = (node("a"), node("b"), NodeId::from_u128(1));
        one.join(now, &[]);
        other.join(now, &[]);
        let (records, gone) = ([one.record().clone(), other.record().clone()], record(7, false));
        for node in [&mut one, &mut other] {
            records.iter().chain([&gone]).for_each(|record| node.merge_record(now, somebody, record.bytes()).unwrap());
        }
        other.conclude(now, gone.id(), State::Down, gone.incarnation());
        let asked = one.stats().probes;
        one.reconcile(now, records[1].peer());
        exchange(now, &mut one, &mut other);
        assert_eq!(one.stats().probes, asked + 1, "the one who lists it asks it whether that is right");
        assert!(one.roster().present(gone.id()).is_some(), "nobody is removed by hearsay");
    }

    #[test]
    fn whoever_lists_somebody_that_does_not_answer_a_newcomer_hears_of_it_and_asks() {
        let (mut one, mut newcomer) = (node("a"), node("b"));
        let somebody = NodeId::from_u128(5);
        let now = Instant::from_millis(1_000);
        one.join(now, &[]);
        newcomer.join(now, &[]);
        let (records, silent) = ([one.record().clone(), newcomer.record().clone()], record(7, false));
        for node in [&mut one, &mut newcomer] {
            records.iter().for_each(|record| node.merge_record(now, somebody, record.bytes()).unwrap());
        }
        one.merge_record(now, somebody, silent.bytes()).unwrap();
        let asked = one.stats().probes;
        newcomer.on_candidate_silent(records[0].peer(), silent.id(), silent.incarnation());
        exchange(now, &mut one, &mut newcomer);
        assert_eq!(one.stats().probes, asked + 1);
        newcomer.on_candidate_silent(records[0].peer(), silent.id(), Incarnation::new(9, 9));
        exchange(now, &mut one, &mut newcomer);
        assert_eq!(one.stats().probes, asked + 1, "of what it does not list it has nothing to ask");
    }

    #[test]
    fn a_split_covers_the_range_without_gaps() {
        for (low, high) in [(0, u128::MAX), (5, 6), (7, 7), (10, 300)] {
            let parts = split(NodeId::from_u128(low), NodeId::from_u128(high));
            assert_eq!((parts[0].0.to_u128(), parts[parts.len() - 1].1.to_u128()), (low, high));
            assert!(parts.len() as u128 <= SPLIT);
            assert!(parts.windows(2).all(|pair| pair[0].1.to_u128() + 1 == pair[1].0.to_u128()));
        }
    }
}
