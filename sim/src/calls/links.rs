//! The links of one process: which of them was touched, so that nobody has to look at all of them after every event.

use std::collections::BTreeMap;
use std::sync::Arc;

use swimring::core::link::{Link, LinkLimits};
use swimring_membership::{Instance, Instant};

use super::Token;

type Held = Link<Token, Arc<[u8]>>;

/// Every link, by the process at its other end.
#[derive(Debug, Default)]
pub(crate) struct Links {
    by_end: BTreeMap<Instance, Held>,
    /// What may have something to write, in order.
    touched: Vec<Instance>,
    /// What has changed since it was looked at whether it is stuck, in order.
    changed: Vec<Instance>,
}

/// Adds what is not there, in order. There are a few at most: a tree would cost more.
fn add(to: Instance, into: &mut Vec<Instance>) {
    if let Err(place) = into.binary_search(&to) {
        into.insert(place, to);
    }
}

impl Links {
    pub(crate) fn get(&self, to: &Instance) -> Option<&Held> {
        self.by_end.get(to)
    }

    pub(crate) fn get_mut(&mut self, to: &Instance) -> Option<&mut Held> {
        self.touch(*to);
        self.by_end.get_mut(to)
    }

    /// The link to `to`, made if there is none.
    pub(crate) fn to(&mut self, now: Instant, to: Instance) -> &mut Held {
        self.touch(to);
        self.by_end.entry(to).or_insert_with(|| Link::new(now, to, LinkLimits::default()))
    }

    fn touch(&mut self, to: Instance) {
        add(to, &mut self.touched);
        add(to, &mut self.changed);
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&Instance, &Held)> {
        self.by_end.iter()
    }

    /// All of them, to be changed.
    pub(crate) fn all_mut(&mut self) -> impl Iterator<Item = (&Instance, &mut Held)> {
        self.touched = self.ends().collect();
        self.changed.clone_from(&self.touched);
        self.by_end.iter_mut()
    }

    pub(crate) fn remove(&mut self, to: &Instance) {
        self.by_end.remove(to);
    }

    pub(crate) fn ends(&self) -> impl Iterator<Item = Instance> {
        self.by_end.keys().copied()
    }

    /// The first connected link that has something to write.
    pub(crate) fn next_ready(&mut self) -> Option<&mut Held> {
        let ready = |link: &Held| {
            link.is_connected()
                && (link.has_work() || link.has_large_work() || link.has_duplex_work() || link.returns_on().is_some())
        };
        while let Some(to) = self.touched.first().copied() {
            if self.by_end.get(&to).is_some_and(ready) {
                return self.by_end.get_mut(&to);
            }
            self.touched.remove(0);
        }
        None
    }

    /// The first of those that have changed since the last time of which that is so.
    pub(crate) fn find_changed(&mut self, is_so: impl Fn(&Self, &Instance) -> bool) -> Option<Instance> {
        let found = self.changed.iter().find(|to| is_so(self, to)).copied();
        self.changed.clear();
        found
    }
}
