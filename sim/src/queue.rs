//! What happens when: a timing wheel, first in first out among equal moments.
//!
//! A moment lies in the slot of the highest digit in which it differs from the present, so that whatever is
//! pushed for one moment keeps its order on the way down to it. A test holds the wheel against a plain heap.

use swimring_membership::Instant;

/// Bits of a digit: with as many, what is a second away is moved twice before its moment comes.
const BITS: u32 = 10;
/// Slots of a level: one for every value of a digit.
const SLOTS: usize = 1 << BITS;
/// Levels: as many as a 64-bit moment has digits.
const LEVELS: usize = u64::BITS.div_ceil(BITS) as usize;
/// Words of a level's bits.
const WORDS: usize = SLOTS / u64::BITS as usize;
/// No entry.
const NONE: u32 = u32::MAX;

/// Entries by moment. Pushing and popping cost a few steps, however many there are.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    /// No entry is before it.
    now: u64,
    /// The places of entries, apart from what they hold: only they are looked at on the way down.
    places: Vec<Place>,
    values: Vec<Option<T>>,
    free: u32,
    levels: Box<[Level; LEVELS]>,
}

#[derive(Copy, Clone, Debug)]
struct Place {
    at: u64,
    next: u32,
}

#[derive(Clone, Debug)]
struct Level {
    /// Which words are not zero.
    words: u64,
    /// Which slots hold something.
    occupied: [u64; WORDS],
    slots: [Slot; SLOTS],
}

/// A list of entries.
#[derive(Copy, Clone, Debug)]
struct Slot {
    first: u32,
    last: u32,
}

const EMPTY: Slot = Slot { first: NONE, last: NONE };

impl Level {
    fn first_occupied(&self) -> Option<usize> {
        let word = (self.words != 0).then(|| self.words.trailing_zeros() as usize)?;
        Some(word * u64::BITS as usize + self.occupied[word].trailing_zeros() as usize)
    }

    fn append(&mut self, slot: usize, index: u32) -> Option<u32> {
        let list = &mut self.slots[slot];
        let before = (list.first != NONE).then_some(list.last);
        if before.is_none() {
            list.first = index;
            self.occupied[slot / u64::BITS as usize] |= 1 << (slot % u64::BITS as usize);
            self.words |= 1 << (slot / u64::BITS as usize);
        }
        list.last = index;
        before
    }

    fn empty(&mut self, slot: usize) -> Slot {
        let word = slot / u64::BITS as usize;
        self.occupied[word] &= !(1 << (slot % u64::BITS as usize));
        if self.occupied[word] == 0 {
            self.words &= !(1 << word);
        }
        std::mem::replace(&mut self.slots[slot], EMPTY)
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        let level = Level { words: 0, occupied: [0; WORDS], slots: [EMPTY; SLOTS] };
        let levels = vec![level; LEVELS].into_boxed_slice().try_into().expect("the lengths are the same");
        Self { now: 0, places: Vec::new(), values: Vec::new(), free: NONE, levels }
    }
}

impl<T> Queue<T> {
    /// Adds an entry; for a moment that is over, at once.
    pub(crate) fn push(&mut self, at: Instant, value: T) {
        let place = Place { at: at.as_nanos().max(self.now), next: NONE };
        let index = if self.free == NONE {
            self.places.push(place);
            self.values.push(Some(value));
            u32::try_from(self.places.len() - 1).expect("memory ends before the numbers do")
        } else {
            let index = self.free;
            self.free = self.places[index as usize].next;
            self.places[index as usize] = place;
            self.values[index as usize] = Some(value);
            index
        };
        self.append(index);
    }

    /// Takes the earliest entry, if it is not after `end`.
    pub(crate) fn pop(&mut self, end: Instant) -> Option<(Instant, T)> {
        loop {
            let (level, slot) =
                self.levels.iter().enumerate().find_map(|(level, held)| Some((level, held.first_occupied()?)))?;
            let first = self.levels[level].slots[slot].first;
            let at = self.places[first as usize].at;
            if level == 0 {
                return (at <= end.as_nanos()).then(|| self.take(slot));
            }
            // All of the slot has the same digits down to this level's: the present moves to where they begin.
            let below = BITS * level as u32;
            let begin = at >> below << below;
            if begin > end.as_nanos() {
                return None;
            }
            self.now = begin;
            let mut index = self.levels[level].empty(slot).first;
            while index != NONE {
                let next = std::mem::replace(&mut self.places[index as usize].next, NONE);
                self.append(index);
                index = next;
            }
        }
    }

    /// How many entries there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.values.iter().filter(|value| value.is_some()).count()
    }

    fn take(&mut self, slot: usize) -> (Instant, T) {
        let level = &mut self.levels[0];
        let index = level.slots[slot].first;
        let Place { at, next } = self.places[index as usize];
        if next == NONE {
            level.empty(slot);
        } else {
            level.slots[slot].first = next;
        }
        self.places[index as usize].next = self.free;
        self.free = index;
        self.now = at;
        (Instant::from_nanos(at), self.values[index as usize].take().expect("an entry in a list holds its value"))
    }

    fn append(&mut self, index: u32) {
        let at = self.places[index as usize].at;
        let level = (u64::BITS - (at ^ self.now).leading_zeros()).saturating_sub(1) / BITS;
        let slot = (at >> (level * BITS)) as usize % SLOTS;
        if let Some(last) = self.levels[level as usize].append(slot, index) {
            self.places[last as usize].next = index;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    use proptest::prelude::*;

    use super::*;

    /// The same, as plain as can be.
    #[derive(Default)]
    struct Heap {
        heap: BinaryHeap<Reverse<(u64, u64)>>,
        pushed: u64,
        now: u64,
    }

    impl Heap {
        fn push(&mut self, at: u64) -> u64 {
            self.heap.push(Reverse((at.max(self.now), self.pushed)));
            self.pushed += 1;
            self.pushed - 1
        }

        fn pop(&mut self, end: u64) -> Option<(u64, u64)> {
            let due = self.heap.peek().is_some_and(|Reverse((at, _))| *at <= end);
            let popped = due.then(|| self.heap.pop()).flatten().map(|Reverse(entry)| entry);
            self.now = popped.map_or(self.now, |(at, _)| at);
            popped
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// So long after the present.
        Push(u64),
        Pop,
        /// Nothing later than so long after the present.
        PopBy(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        // Every magnitude, and many equal moments.
        let span = (0..50u32, any::<u64>()).prop_map(|(bits, span)| span & ((1 << bits) - 1));
        prop_oneof![4 => span.clone().prop_map(Step::Push), 1 => Just(Step::Push(1 << 20)), 4 => Just(Step::Pop),
            1 => span.prop_map(Step::PopBy)]
    }

    proptest! {
        #[test]
        fn the_wheel_does_what_a_heap_does(steps in proptest::collection::vec(step(), 0..400)) {
            let (mut wheel, mut heap) = (Queue::default(), Heap::default());
            for step in steps {
                let (pushed, end) = match step {
                    Step::Push(span) => (Some(heap.now + span), None),
                    Step::Pop => (None, Some(u64::MAX)),
                    Step::PopBy(span) => (None, Some(heap.now + span)),
                };
                if let Some(at) = pushed {
                    let number = heap.push(at);
                    wheel.push(Instant::from_nanos(at), number);
                }
                if let Some(end) = end {
                    let popped = wheel.pop(Instant::from_nanos(end)).map(|(at, number)| (at.as_nanos(), number));
                    prop_assert_eq!(popped, heap.pop(end));
                    if popped.is_none() {
                        // Whoever asked for nothing later than a moment has got there.
                        heap.now = heap.now.max(if end == u64::MAX { 0 } else { end });
                    }
                }
                prop_assert_eq!(wheel.len(), heap.heap.len());
            }
            while let Some((at, number)) = heap.pop(u64::MAX) {
                prop_assert_eq!(wheel.pop(Instant::from_nanos(u64::MAX)), Some((Instant::from_nanos(at), number)));
            }
        }
    }

    #[test]
    fn a_place_that_became_free_is_used_again() {
        let mut queue = Queue::default();
        for round in 0..1_000u64 {
            queue.push(Instant::from_nanos(round * 1_000), round);
            assert_eq!(queue.pop(Instant::from_nanos(u64::MAX)).map(|(_, round)| round), Some(round));
        }
        assert_eq!(queue.places.len(), 1);
    }
}
