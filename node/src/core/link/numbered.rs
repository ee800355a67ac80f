//! Values by number, for numbers that come in their order and go soon, both nearly always.

use std::collections::VecDeque;

/// So many gaps cost nothing worth closing them for.
const GAPS_MIN: usize = 64;
/// Places that are kept while nothing is there.
const SPARE: usize = 1_024;

/// Values in the order of their numbers.
#[derive(Debug)]
pub(super) struct Numbered<V> {
    /// What has gone leaves a gap, but not in front.
    slots: VecDeque<(u64, Option<V>)>,
    len: usize,
}

impl<V> Default for Numbered<V> {
    fn default() -> Self {
        Self { slots: VecDeque::new(), len: 0 }
    }
}

impl<V> Numbered<V> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn insert(&mut self, number: u64, value: V) {
        let replaced = match self.slots.back() {
            Some((last, _)) if *last >= number => match self.find(number) {
                Ok(index) => self.slots[index].1.replace(value),
                Err(index) => {
                    self.slots.insert(index, (number, Some(value)));
                    None
                }
            },
            _ => {
                self.slots.push_back((number, Some(value)));
                None
            }
        };
        self.len += usize::from(replaced.is_none());
    }

    pub(super) fn get(&self, number: u64) -> Option<&V> {
        self.find(number).ok().and_then(|index| self.slots[index].1.as_ref())
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<V> {
        let index = self.find(number).ok()?;
        let value = self.slots[index].1.take()?;
        self.len -= 1;
        while self.slots.front().is_some_and(|(_, value)| value.is_none()) {
            self.slots.pop_front();
        }
        if self.slots.len() > 2 * self.len + GAPS_MIN {
            self.slots.retain(|(_, value)| value.is_some());
        }
        if self.slots.is_empty() {
            self.slots.shrink_to(SPARE);
        }
        Some(value)
    }

    /// The lowest number.
    pub(super) fn first(&self) -> Option<u64> {
        self.slots.front().map(|(number, _)| *number)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &V)> {
        self.slots.iter().filter_map(|(number, value)| Some((*number, value.as_ref()?)))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// Where it is, or would be.
    fn find(&self, number: u64) -> Result<usize, usize> {
        let first = self.first().ok_or(0_usize)?;
        // Without a number left out it is right there.
        let guess = usize::try_from(number.wrapping_sub(first)).unwrap_or(usize::MAX);
        match self.slots.get(guess) {
            Some((found, _)) if *found == number => Ok(guess),
            _ => self.slots.binary_search_by_key(&number, |(number, _)| *number),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use swimring_membership::Rng;

    use super::*;

    #[test]
    fn it_holds_what_a_sorted_map_holds() {
        let (mut map, mut numbered) = (BTreeMap::new(), Numbered::default());
        let mut rng = Rng::new(1);
        for next in 0..20_000_u64 {
            // Most in their order, some late, some twice; gone in any order, some of them much later.
            let number = if rng.below(8) == 0 { next.saturating_sub(rng.below(100)) } else { next };
            map.insert(number, next);
            numbered.insert(number, next);
            for _ in 0..rng.below(3) {
                let number = next.saturating_sub(rng.below(if next % 64 == 0 { 5_000 } else { 20 }));
                assert_eq!(numbered.remove(number), map.remove(&number));
                assert_eq!(numbered.get(next), map.get(&next));
            }
            assert_eq!((numbered.len(), numbered.first()), (map.len(), map.keys().next().copied()));
        }
        assert!(numbered.iter().eq(map.iter().map(|(number, value)| (*number, value))));
    }

    #[test]
    fn one_that_stays_for_long_keeps_nothing_else() {
        let mut numbered = Numbered::default();
        numbered.insert(0, ());
        for number in 1..100_000 {
            numbered.insert(number, ());
            numbered.remove(number);
        }
        assert!(numbered.len() == 1 && numbered.slots.len() <= GAPS_MIN + 2);
    }
}
