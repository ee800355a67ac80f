//! How many calls of this node are open, but for those that begin and end where they are made (`local.rs`): each of the
//! others counts twice, at its beginning and at its end, and no more.

use std::sync::atomic::{AtomicU64, Ordering};

/// Calls of this node so far, but for those.
#[derive(Debug, Default)]
pub(super) struct Counts {
    begun: AtomicU64,
    /// Those that their handlers answered.
    succeeded: AtomicU64,
    /// All others that have ended.
    ended: AtomicU64,
}

/// A call of this node that has no outcome yet.
pub(super) struct Open<'a>(&'a Counts);

impl Counts {
    pub(super) fn begin(&self) -> Open<'_> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Open(self)
    }

    pub(super) fn succeeded(&self) -> u64 {
        self.succeeded.load(Ordering::Relaxed)
    }

    /// Whether so many are open, or more.
    pub(super) fn reach(&self, most: u64) -> bool {
        // Whoever stands still while it counts counts too many: what begins meanwhile, and not what ends.
        self.open() >= most && self.open() >= most
    }

    /// How many have no outcome yet; never fewer than there are.
    pub(super) fn open(&self) -> u64 {
        // What ends meanwhile has begun, and counts as open.
        let ended = self.succeeded.load(Ordering::Acquire) + self.ended.load(Ordering::Acquire);
        self.begun.load(Ordering::Relaxed).saturating_sub(ended)
    }
}

impl Open<'_> {
    pub(super) fn succeeds(self) {
        self.0.succeeded.fetch_add(1, Ordering::Release);
        std::mem::forget(self);
    }
}

/// It has failed, or its caller has gone away.
impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_has_begun_is_open_until_it_ends_one_way_or_another() {
        let counts = Counts::default();
        let (answered, failed, _open) = (counts.begin(), counts.begin(), counts.begin());
        assert_eq!(counts.open(), 3);
        answered.succeeds();
        drop(failed);
        assert_eq!((counts.open(), counts.succeeded()), (1, 1));
    }
}
