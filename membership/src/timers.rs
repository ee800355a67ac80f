//! One table of named deadlines for a state machine: at most one deadline a key.

use alloc::collections::{BTreeMap, BTreeSet};

use crate::Instant;

/// Deadlines by key. The earliest one is what the driver has to wait for.
#[derive(Clone, Debug)]
pub struct Timers<K> {
    deadlines: BTreeMap<K, Instant>,
    order: BTreeSet<(Instant, K)>,
}

impl<K: Ord + Copy> Default for Timers<K> {
    fn default() -> Self {
        Self { deadlines: BTreeMap::new(), order: BTreeSet::new() }
    }
}

impl<K: Ord + Copy> Timers<K> {
    /// Sets the deadline of `key`, replacing an earlier one.
    pub fn set(&mut self, key: K, at: Instant) {
        if let Some(old) = self.deadlines.insert(key, at) {
            self.order.remove(&(old, key));
        }
        self.order.insert((at, key));
    }

    /// Sets the deadline of `key` unless one stands that is as early.
    pub fn set_earlier(&mut self, key: K, at: Instant) {
        if self.deadlines.get(&key).is_none_or(|&stands| at < stands) {
            self.set(key, at);
        }
    }

    /// Removes the deadline of `key`, if there is one.
    pub fn cancel(&mut self, key: K) {
        if let Some(old) = self.deadlines.remove(&key) {
            self.order.remove(&(old, key));
        }
    }

    /// The deadline of `key`.
    pub fn deadline(&self, key: K) -> Option<Instant> {
        self.deadlines.get(&key).copied()
    }

    /// The earliest deadline.
    pub fn next(&self) -> Option<Instant> {
        self.order.first().map(|&(at, _)| at)
    }

    /// Removes and returns one key whose deadline is not after `now`, earliest first.
    pub fn pop_due(&mut self, now: Instant) -> Option<(Instant, K)> {
        let &(at, key) = self.order.first()?;
        if at > now {
            return None;
        }
        self.order.pop_first();
        self.deadlines.remove(&key);
        Some((at, key))
    }

    /// How many deadlines stand.
    pub fn len(&self) -> usize {
        self.deadlines.len()
    }

    /// Whether no deadline stands.
    pub fn is_empty(&self) -> bool {
        self.deadlines.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_deadline_and_the_earliest_comes_first() {
        let mut timers = Timers::default();
        timers.set("late", Instant::from_millis(30));
        timers.set("moved", Instant::from_millis(10));
        timers.set("moved", Instant::from_millis(20));
        timers.set_earlier("late", Instant::from_millis(40));
        assert_eq!(timers.next(), Some(Instant::from_millis(20)));
        assert_eq!(timers.pop_due(Instant::from_millis(19)), None);
        let now = Instant::from_millis(50);
        assert_eq!(timers.pop_due(now).map(|(_, key)| key), Some("moved"));
        assert_eq!(timers.pop_due(now).map(|(_, key)| key), Some("late"));
        assert!(timers.is_empty());
    }
}
