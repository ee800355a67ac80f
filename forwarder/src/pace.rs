//! How long a place is taken of late: what tells the refused when to come again.

use core::time::Duration;

use swimring_membership::Instant;

/// The shortest and the longest that anybody is told to stay away.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(5);
/// One of so many is what a place that becomes free counts.
const SHARE: u64 = 8;

/// For how long places were taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pace {
    /// A mean, in nanoseconds, in which older ones count ever less.
    taken: u64,
    /// When a place became free last, or was taken while none was.
    moved: Instant,
}

impl Pace {
    /// A place is taken, the first one.
    pub(crate) fn start(&mut self, now: Instant) {
        self.moved = now;
    }

    /// A place that was taken at `since` becomes free.
    pub(crate) fn free(&mut self, now: Instant, since: Instant) {
        let taken = now.since(since).as_nanos() as u64;
        self.taken = self.taken - self.taken / SHARE + taken / SHARE;
        self.moved = now;
    }

    /// How long a place is taken, or has nothing become free, if that is longer.
    pub(crate) fn retry_after(&self, now: Instant) -> Duration {
        Duration::from_nanos(self.taken).max(now.since(self.moved)).clamp(SHORTEST, LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    #[test]
    fn the_refused_are_told_how_long_a_place_is_taken_of_late() {
        let mut pace = Pace::default();
        (0..100).for_each(|turn| pace.free(at(turn * 20 + 20), at(turn * 20)));
        assert!((19..=20).contains(&pace.retry_after(at(2_000)).as_millis()));
        (0..100).for_each(|turn| pace.free(at(2_000 + turn * 200 + 200), at(2_000 + turn * 200)));
        assert!((190..=200).contains(&pace.retry_after(at(22_000)).as_millis()));
    }

    #[test]
    fn where_nothing_ends_nobody_is_called_back_soon_and_never_after_too_long() {
        let mut pace = Pace::default();
        pace.start(at(10_000));
        assert_eq!(pace.retry_after(at(10_000)), SHORTEST);
        assert_eq!(pace.retry_after(at(11_000)), Duration::from_secs(1));
        assert_eq!(pace.retry_after(at(60_000)), LONGEST);
    }
}
