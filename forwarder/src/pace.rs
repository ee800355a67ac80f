//! How soon a place becomes free where none is: what tells the refused when to come again.

use core::time::Duration;

use swimring_membership::Instant;

/// The shortest and the longest that anybody is told to stay away.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(5);
/// One of so many is what a place that becomes free counts.
const SHARE: u64 = 8;

/// How long whoever was refused would have waited for a place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pace {
    /// A mean, in nanoseconds, in which older ones count ever less.
    waited: u64,
    /// Since when somebody has been refused, and no place become free.
    full_since: Option<Instant>,
}

impl Pace {
    /// A place becomes free.
    pub(crate) fn free(&mut self, now: Instant) {
        if let Some(since) = self.full_since.take() {
            let waited = now.since(since).as_nanos() as u64;
            self.waited = self.waited - self.waited / SHARE + waited / SHARE;
        }
    }

    /// Somebody finds no place: how long that lasts of late, or has lasted, if that is longer.
    pub(crate) fn refuse(&mut self, now: Instant) -> Duration {
        let lasts = now.since(*self.full_since.get_or_insert(now));
        Duration::from_nanos(self.waited).max(lasts).clamp(SHORTEST, LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    #[test]
    fn the_refused_are_told_how_soon_a_place_becomes_free_of_late() {
        let mut pace = Pace::default();
        assert_eq!(pace.refuse(at(0)), SHORTEST);
        let mut told = |from: u64, wait: u64| {
            (0..100).for_each(|turn| {
                pace.refuse(at(from + turn * wait));
                pace.free(at(from + (turn + 1) * wait));
            });
            pace.refuse(at(from + 100 * wait)).as_millis()
        };
        assert!((19..=20).contains(&told(1_000, 20)));
        assert!((190..=200).contains(&told(10_000, 200)));
    }

    #[test]
    fn where_nothing_ends_nobody_is_called_back_soon_and_never_after_too_long() {
        let mut pace = Pace::default();
        // However long a place was taken before: nobody wanted it.
        assert_eq!(pace.refuse(at(60_000)), SHORTEST);
        assert_eq!(pace.refuse(at(61_000)), Duration::from_secs(1));
        assert_eq!(pace.refuse(at(90_000)), LONGEST);
    }
}
