//! The rows of a roster, in the order of ids. A copy shares all rows with its original, and a change of either copies a few
//! dozen: whoever publishes what it knows with every change does not copy thousands of rows each time.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::{Member, NodeId};

/// Most rows of a chunk; one more and it is split.
const CHUNK_MAX: usize = 32;
/// How far from a guess is looked step by step.
const STEPS_MAX: usize = 8;

/// Members by id.
#[derive(Clone, Debug, Default)]
pub struct Members {
    /// All ids of one are below those of the next.
    chunks: Vec<Chunk>,
    len: usize,
}

/// A few dozen rows, never none.
#[derive(Clone, Debug)]
struct Chunk {
    /// Here as well, so that looking for a row looks into one chunk only.
    last: NodeId,
    rows: Arc<Vec<(NodeId, Member)>>,
}

impl Chunk {
    fn new(rows: Vec<(NodeId, Member)>) -> Option<Self> {
        let (last, _) = *rows.last()?;
        Some(Self { last, rows: Arc::new(rows) })
    }
}

impl Members {
    /// The member `id`.
    pub fn get(&self, id: NodeId) -> Option<&Member> {
        let index = self.chunk_of(id);
        let chunk = self.chunks.get(index)?;
        let below = index.checked_sub(1).map_or(NodeId::MIN, |before| self.chunks[before].last);
        let guess = share(id, below, chunk.last, chunk.rows.len());
        let place = first_from(guess, chunk.rows.len(), |place| chunk.rows[place].0 < id);
        chunk.rows.get(place).filter(|(held, _)| *held == id).map(|(_, member)| member)
    }

    /// All of them, in the order of ids.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (NodeId, &Member)> {
        self.chunks.iter().flat_map(|chunk| chunk.rows.iter()).map(|(id, member)| (*id, member))
    }

    /// Those from `low` to `high`, both inclusive.
    pub fn range(&self, low: NodeId, high: NodeId) -> impl Iterator<Item = (NodeId, &Member)> {
        let rows = self.chunks[self.chunk_of(low)..].iter().flat_map(|chunk| chunk.rows.iter());
        let rows = rows.skip_while(move |(id, _)| *id < low).take_while(move |(id, _)| *id <= high);
        rows.map(|(id, member)| (*id, member))
    }

    /// The one that has `place` others before it.
    pub(crate) fn nth(&self, mut place: usize) -> Option<(NodeId, &Member)> {
        for chunk in &self.chunks {
            match chunk.rows.get(place) {
                Some((id, member)) => return Some((*id, member)),
                None => place -= chunk.rows.len(),
            }
        }
        None
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts `member` in the place of `id`; returns who was there.
    pub(crate) fn insert(&mut self, id: NodeId, member: Member) -> Option<Member> {
        // Whoever comes after all others goes into the last chunk.
        let index = self.chunk_of(id).min(self.chunks.len().saturating_sub(1));
        let Some(chunk) = self.chunks.get_mut(index) else {
            self.len = 1;
            self.chunks.extend(Chunk::new(alloc::vec![(id, member)]));
            return None;
        };
        let rows = Arc::make_mut(&mut chunk.rows);
        match rows.binary_search_by_key(&id, |(id, _)| *id) {
            Ok(place) => return Some(core::mem::replace(&mut rows[place].1, member)),
            Err(place) => rows.insert(place, (id, member)),
        }
        self.len += 1;
        let upper = if rows.len() > CHUNK_MAX { rows.split_off(CHUNK_MAX / 2) } else { Vec::new() };
        chunk.last = rows[rows.len() - 1].0;
        if let Some(upper) = Chunk::new(upper) {
            self.chunks.insert(index + 1, upper);
        }
        None
    }

    /// Takes `id` out.
    pub(crate) fn remove(&mut self, id: NodeId) -> Option<Member> {
        let index = self.chunk_of(id);
        let chunk = self.chunks.get_mut(index)?;
        let place = chunk.rows.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        let mut rows = chunk.rows.to_vec();
        let (_, member) = rows.remove(place);
        self.len -= 1;
        // Small neighbours become one.
        let next = self.chunks.get(index + 1).map_or(0, |next| next.rows.len());
        let joined =
            if rows.len() + next <= CHUNK_MAX / 2 { self.chunks.get(index + 1).map(|next| &next.rows) } else { None };
        rows.extend(joined.into_iter().flat_map(|rows| rows.iter().cloned()));
        let replaced = index..index + 1 + usize::from(joined.is_some());
        self.chunks.splice(replaced, Chunk::new(rows));
        Some(member)
    }

    /// Where `id` is, if anywhere: the first chunk that does not end below it.
    fn chunk_of(&self, id: NodeId) -> usize {
        let guess = share(id, NodeId::MIN, NodeId::MAX, self.chunks.len());
        first_from(guess, self.chunks.len(), |place| self.chunks[place].last < id)
    }
}

/// Where among `count` ids between two others `id` is about: ids are hashes, and lie evenly.
fn share(id: NodeId, low: NodeId, high: NodeId, count: usize) -> usize {
    let [id, low, high] = [id, low, high].map(|id| (id.to_u128() >> 64) as u64);
    let span = high.saturating_sub(low) / count.max(1) as u64;
    (id.saturating_sub(low) / span.max(1)).min(count.saturating_sub(1) as u64) as usize
}

/// The first place of `count` that is not below what is looked for, beginning at a guess. Places further than a few steps
/// from it are found by halving.
fn first_from(guess: usize, count: usize, is_below: impl Fn(usize) -> bool) -> usize {
    let mut place = guess;
    for _ in 0..STEPS_MAX {
        if place < count && is_below(place) {
            place += 1;
        } else if place > 0 && !is_below(place - 1) {
            place -= 1;
        } else {
            return place;
        }
    }
    let (mut low, mut high) = if place < count && is_below(place) { (place + 1, count) } else { (0, place) };
    while low < high {
        let middle = low.midpoint(high);
        (low, high) = if is_below(middle) { (middle + 1, high) } else { (low, middle) };
    }
    low
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::testing::{cluster, profile};
    use crate::{Incarnation, Instant, Phase, Record, State};

    fn member(count: u32) -> Member {
        let incarnation = Incarnation::new(1, count);
        let record = Record::mint(&cluster(), &profile("a", 1), incarnation, Phase::Ready, 1);
        Member { record, state: State::Alive, incarnation, since: Instant::ORIGIN }
    }

    fn rows(members: &Members) -> Vec<(NodeId, u32)> {
        members.iter().map(|(id, member)| (id, member.incarnation.count)).collect()
    }

    proptest! {
        #[test]
        fn they_are_what_a_tree_would_be_and_copies_stay_as_they_were(
            changes in prop::collection::vec((0u128..200, any::<bool>()), 1..600),
            ends in (0u128..200, 0u128..200),
            // Far apart as hashes are, close together, or both: most close together, and a few far above.
            spread in prop_oneof![Just([120, 120]), Just([0, 0]), Just([0, 120]), Just([64, 100])],
        ) {
            let id = |number: u128| NodeId::from_u128(number << spread[usize::from(number > 180)]);
            let (mut members, mut tree) = (Members::default(), BTreeMap::new());
            let mut copy = (members.clone(), tree.clone());
            for (count, (number, stays)) in (0u32..).zip(changes) {
                let id = id(number);
                let before = if stays { members.insert(id, member(count)) } else { members.remove(id) };
                let expected = if stays { tree.insert(id, count) } else { tree.remove(&id) };
                prop_assert_eq!(before.map(|member| member.incarnation.count), expected);
                let others = [number, number.saturating_sub(1), number + 1].map(NodeId::from_u128);
                for id in others.into_iter().chain([id, NodeId::MIN, NodeId::MAX]) {
                    prop_assert_eq!(members.get(id).map(|member| member.incarnation.count), tree.get(&id).copied());
                }
                prop_assert_eq!(members.len(), tree.len());
                if count % 100 == 50 {
                    copy = (members.clone(), tree.clone());
                }
            }
            let expected = |tree: BTreeMap<NodeId, u32>| tree.into_iter().collect::<Vec<_>>();
            let (low, high) = (id(ends.0.min(ends.1)), id(ends.0.max(ends.1)));
            let range: Vec<NodeId> = members.range(low, high).map(|(id, _)| id).collect();
            let by_place: Vec<NodeId> = (0..=members.len()).map_while(|place| members.nth(place)).map(|(id, _)| id).collect();
            prop_assert_eq!(by_place, tree.keys().copied().collect::<Vec<_>>());
            prop_assert_eq!(range, tree.range(low..=high).map(|(id, _)| *id).collect::<Vec<_>>());
            prop_assert!(members.chunks.iter().all(|chunk| (1..=CHUNK_MAX).contains(&chunk.rows.len())));
            prop_assert_eq!(rows(&members), expected(tree));
            prop_assert_eq!(rows(&copy.0), expected(copy.1));
        }
    }
}
