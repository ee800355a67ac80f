//! How long a place is taken, as far as can be told by looking when somebody comes: what tells the refused when to come
//! again.

use core::time::Duration;

use swimring_membership::Instant;

/// What is older counts half as much.
const HALVED_AFTER: Duration = Duration::from_secs(1);
/// The shortest and the longest that anybody is told to stay away.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(5);

/// Places, and the time for which they were taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pace {
    /// The sum over all places of the time for which they were taken, in nanoseconds.
    taken: u64,
    /// How many became free in that time.
    freed: u64,
    looked: Instant,
    halved: Instant,
}

impl Pace {
    /// Somebody comes, and so many places are taken.
    pub(crate) fn look(&mut self, now: Instant, places: usize) {
        let since = now.since(self.looked).as_nanos() as u64;
        self.taken = self.taken.saturating_add(since.saturating_mul(places as u64));
        self.looked = now;
        if now.since(self.halved) > HALVED_AFTER {
            (self.taken, self.freed, self.halved) = (self.taken / 2, self.freed / 2, now);
        }
    }

    /// A place became free.
    pub(crate) fn free(&mut self) {
        self.freed += 1;
    }

    /// How long a place is taken, on average (Little's law).
    pub(crate) fn retry_after(&self) -> Duration {
        Duration::from_nanos(self.taken / self.freed.max(1)).clamp(SHORTEST, LONGEST)
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
        // Four places, of which each is taken for 20 ms; then for 200 ms.
        let mut run = |from: u64, until: u64, held: u64| {
            for ms in from..until {
                pace.look(at(ms), 4);
                (0..4).for_each(|place| {
                    if (ms + place) % held == 0 {
                        pace.free()
                    }
                });
            }
            pace.retry_after().as_millis()
        };
        assert!((18..=22).contains(&run(0, 3_000, 20)));
        let later = run(3_000, 13_000, 200);
        assert!((180..=220).contains(&later), "{later}");
    }

    #[test]
    fn where_nothing_ends_nobody_is_called_back_soon_and_never_after_too_long() {
        let mut pace = Pace::default();
        assert_eq!(pace.retry_after(), SHORTEST);
        (0..60_000).for_each(|ms| pace.look(at(ms), 64));
        assert_eq!(pace.retry_after(), LONGEST);
    }
}
