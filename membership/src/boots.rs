//! Boots: how far and how often a process climbs above what others claim of its name.
//!
//! A name whose boots have run out is dead for ever, so nobody may use them up by lying: a process answers a few claims at
//! once and then one a second, and climbs a little each time; so they last for twelve days of lies. Whoever is young climbs
//! farther, up to a thousandth of all boots: what it hears then is what others remember of earlier lives, which lies may
//! have driven up for as long as they were told.

use core::time::Duration;

use crate::Instant;
use crate::news::BOOT_LEAP_MAX;

/// To which boot a young process climbs in one step: above the lies of a quarter of an hour.
const YOUNG_BOOT_MAX: u32 = BOOT_LEAP_MAX << 10;
/// For how long after it has joined a process is young.
const YOUNG: Duration = Duration::from_secs(10);
/// How many claims a process answers at once: those who knew earlier lives of it tell so at about the same time.
pub(crate) const ANSWERS_AT_ONCE: u32 = 16;
/// How often it answers another one after that.
const ANSWER_EVERY: Duration = Duration::from_secs(1);

/// What a process may still answer.
#[derive(Debug)]
pub(crate) struct Boots {
    /// How many claims at once, as of a moment.
    answers: (u32, Instant),
    joined: Option<Instant>,
    /// The highest boot of the claims that were not answered: the next answer is to them, too, or a stream of small ones
    /// would keep a process from climbing above a true one.
    owed: u32,
}

impl Boots {
    pub(crate) fn new() -> Self {
        Self { answers: (ANSWERS_AT_ONCE, Instant::ORIGIN), joined: None, owed: 0 }
    }

    pub(crate) fn join(&mut self, now: Instant) {
        self.joined = self.joined.or(Some(now));
    }

    /// The boot that a process takes which is at `own` and has heard of `claimed`: the next one above both, or as far
    /// towards it as one answer climbs. None if it has answered too many claims lately.
    pub(crate) fn climb(&mut self, now: Instant, own: u32, claimed: u32) -> Option<u32> {
        let claimed = self.owed.max(claimed).max(own);
        let (left, since) = self.answers;
        let earned = u32::try_from(now.since(since).as_secs() / ANSWER_EVERY.as_secs()).unwrap_or(u32::MAX);
        let left = left.saturating_add(earned).min(ANSWERS_AT_ONCE);
        self.answers = (left, if earned > 0 { now } else { since });
        if left == 0 || own == u32::MAX {
            self.owed = claimed;
            return None;
        }
        // No farther than third parties believe without asking.
        let step = own.saturating_add(BOOT_LEAP_MAX);
        let is_young = self.joined.is_none_or(|joined| now.since(joined) < YOUNG);
        let farthest = if is_young { step.max(YOUNG_BOOT_MAX) } else { step };
        self.answers.0 -= 1;
        self.owed = 0;
        Some(claimed.saturating_add(1).min(farthest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::ORIGIN + Duration::from_secs(seconds)
    }

    fn old() -> Boots {
        let mut boots = Boots::new();
        boots.join(at(0));
        boots
    }

    #[test]
    fn a_young_process_climbs_above_long_lies_in_one_step() {
        let mut boots = Boots::new();
        assert_eq!(boots.climb(at(100), 1, 86_038), Some(86_039));
        boots.join(at(100));
        assert_eq!(boots.climb(at(109), 86_039, 200_000), Some(200_001));
    }

    #[test]
    fn an_older_process_climbs_no_farther_at_a_time_than_third_parties_believe() {
        let mut boots = old();
        assert_eq!(boots.climb(at(10), 1, 86_038), Some(1 + BOOT_LEAP_MAX));
        assert_eq!(boots.climb(at(10), 7, 9), Some(10), "as far as it has to");
    }

    #[test]
    fn claims_are_answered_a_few_at_once_and_then_one_a_second_however_little_they_claim() {
        let mut boots = old();
        for _ in 0..ANSWERS_AT_ONCE {
            assert!(boots.climb(at(60), 5, 5).is_some());
        }
        assert_eq!(boots.climb(at(60), 5, 5), None);
        assert_eq!(boots.climb(at(61), 5, 5), Some(6));
        assert_eq!(boots.climb(at(61), 6, 6), None);
    }

    #[test]
    fn small_claims_do_not_keep_a_process_from_climbing_above_a_high_one() {
        let mut boots = Boots::new();
        while boots.climb(at(0), 5, 5).is_some() {}
        assert_eq!(boots.climb(at(0), 5, 9_000), None);
        assert_eq!(boots.climb(at(1), 5, 5), Some(9_001));
        assert_eq!(boots.climb(at(2), 9_001, 9_001), Some(9_002), "and that one is settled");
    }

    #[test]
    fn however_often_it_starts_anew_it_climbs_far_but_once() {
        let first = Boots::new().climb(at(0), 1, u32::MAX).expect("an answer");
        assert_eq!(first, YOUNG_BOOT_MAX);
        assert_eq!(Boots::new().climb(at(0), first + 1, u32::MAX), Some(first + 1 + BOOT_LEAP_MAX));
    }

    #[test]
    fn the_last_boot_is_the_last() {
        assert_eq!(old().climb(at(60), u32::MAX - 1, u32::MAX), Some(u32::MAX));
        assert_eq!(old().climb(at(60), u32::MAX, u32::MAX), None);
    }
}
