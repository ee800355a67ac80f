//! Which attempts of one caller were seen: every number once.
//!
//! A caller numbers its attempts at one owner without gaps, and says below which number it waits for nothing.
//! What was seen is kept as runs; a run takes one entry however long it is.

use alloc::collections::BTreeMap;

/// Most runs kept; a caller that leaves more gaps is not served until it moves its floor.
const RUNS_MAX: usize = 4_096;

/// The numbers seen of one caller.
#[derive(Clone, Debug, Default)]
pub struct Window {
    floor: u64,
    /// First to last, both inclusive; neighbours never touch.
    runs: BTreeMap<u64, u64>,
}

impl Window {
    /// Notes `number`; false if it was seen before, lies below the floor, or cannot be remembered.
    pub fn admit(&mut self, number: u64, floor: u64) -> bool {
        self.raise(floor);
        // The next one, as nearly always.
        if let Some(mut last) = self.runs.last_entry()
            && last.get().checked_add(1) == Some(number)
            && number >= self.floor
        {
            *last.get_mut() = number;
            return true;
        }
        if number < self.floor || self.contains(number) {
            return false;
        }
        let before = self.runs.range(..number).next_back().map(|(first, last)| (*first, *last));
        let joins_before = before.filter(|(_, last)| last + 1 == number);
        let joins_after = number.checked_add(1).and_then(|next| self.runs.get(&next).map(|last| (next, *last)));
        if joins_before.is_none() && joins_after.is_none() && self.runs.len() >= RUNS_MAX {
            return false;
        }
        let last = joins_after.map_or(number, |(next, last)| {
            self.runs.remove(&next);
            last
        });
        self.runs.insert(joins_before.map_or(number, |(first, _)| first), last);
        true
    }

    /// How many runs are kept.
    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    fn contains(&self, number: u64) -> bool {
        self.runs.range(..=number).next_back().is_some_and(|(_, last)| number <= *last)
    }

    /// Nothing below `floor` will run any more.
    fn raise(&mut self, floor: u64) {
        if floor <= self.floor {
            return;
        }
        self.floor = floor;
        // A run across the floor stays as it is: what lies below is refused before anybody looks at runs.
        while let Some(run) = self.runs.first_entry().filter(|run| *run.get() < floor) {
            run.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_admitted_once_in_any_order() {
        let mut window = Window::default();
        let mut rng = swimring_membership::Rng::new(1);
        let mut numbers: alloc::vec::Vec<u64> = (0..1_000).chain(0..1_000).collect();
        rng.shuffle(&mut numbers);
        let admitted = numbers.iter().filter(|number| window.admit(**number, 0)).count();
        assert_eq!(admitted, 1_000);
        assert_eq!(window.runs.len(), 1, "what touches is one run");
    }

    #[test]
    fn nothing_below_the_floor_is_admitted() {
        let mut window = Window::default();
        assert!(window.admit(10, 5));
        assert!(!window.admit(4, 0));
        assert!(window.admit(12, 11));
        assert!(!window.admit(10, 0), "below the floor now");
        assert!(window.admit(11, 11));
        assert!(!window.admit(12, 11));
    }

    #[test]
    fn gaps_are_bounded() {
        let mut window = Window::default();
        let admitted = (0..10_000u64).filter(|number| window.admit(number * 2, 0)).count();
        assert_eq!(admitted, RUNS_MAX);
        assert!(window.admit(20_001, 20_000), "a moved floor makes room");
    }
}
