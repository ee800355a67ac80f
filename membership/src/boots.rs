//! Boots: how far and how often a process climbs above what others claim of its name.
//!
//! A name whose boots have run out is dead for ever, so nobody may use them up by lying: a process climbs a little at once
//! and then at a steady pace, at which they last for twelve days of lies. Whoever is young climbs far: what it hears then is
//! what others remember of earlier lives, which lies may have driven up for as long as they were told.

use core::time::Duration;

use crate::Instant;
use crate::news::BOOT_LEAP_MAX;

/// How far a young process climbs at once: above the lies of a quarter of an hour.
pub(crate) const YOUNG_CLIMB_MAX: u32 = BOOT_LEAP_MAX << 10;
/// How many claims an older process answers at once: those who knew earlier lives of it tell so at about the same time.
pub(crate) const ANSWERS_AT_ONCE: u32 = 16;
/// How often it answers another one after that.
pub(crate) const ANSWER_EVERY: Duration = Duration::from_secs(1);
/// For how long after it has joined a process is young.
const YOUNG: Duration = Duration::from_secs(10);

/// What is left to climb with.
#[derive(Debug)]
pub(crate) struct Boots {
    /// As of a moment.
    left: (u32, Instant),
    joined: Option<Instant>,
}

impl Boots {
    pub(crate) fn new() -> Self {
        Self { left: (YOUNG_CLIMB_MAX, Instant::ORIGIN), joined: None }
    }

    pub(crate) fn join(&mut self, now: Instant) {
        self.joined = self.joined.or(Some(now));
    }

    /// The boot that a process takes which is at `own` and has heard of `claimed`: the next one above both, or as far
    /// towards it as one answer climbs. None if it has climbed too much lately.
    pub(crate) fn climb(&mut self, now: Instant, own: u32, claimed: u32) -> Option<u32> {
        let is_young = self.joined.is_none_or(|joined| now.since(joined) < YOUNG);
        let (at_once, farthest) = if is_young {
            (YOUNG_CLIMB_MAX, YOUNG_CLIMB_MAX)
        } else {
            // No farther than third parties believe without asking.
            (BOOT_LEAP_MAX * ANSWERS_AT_ONCE, BOOT_LEAP_MAX)
        };
        let (left, since) = self.left;
        let answers = u32::try_from(now.since(since).as_secs() / ANSWER_EVERY.as_secs()).unwrap_or(u32::MAX);
        let left = left.saturating_add(answers.saturating_mul(BOOT_LEAP_MAX)).min(at_once);
        self.left = (left, if answers > 0 { now } else { since });
        let climb = claimed.max(own).saturating_add(1).saturating_sub(own).min(farthest).min(left);
        if climb == 0 || left < BOOT_LEAP_MAX {
            return None;
        }
        // A small step is an answer too.
        self.left.0 -= climb.max(BOOT_LEAP_MAX);
        Some(own + climb)
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
    fn a_young_process_does_not_climb_for_ever_either() {
        let mut boots = Boots::new();
        assert_eq!(boots.climb(at(0), 1, u32::MAX), Some(1 + YOUNG_CLIMB_MAX));
        assert_eq!(boots.climb(at(0), 1 + YOUNG_CLIMB_MAX, u32::MAX), None);
    }

    #[test]
    fn the_last_boot_is_the_last() {
        assert_eq!(old().climb(at(60), u32::MAX - 1, u32::MAX), Some(u32::MAX));
        assert_eq!(old().climb(at(60), u32::MAX, u32::MAX), None);
    }
}
