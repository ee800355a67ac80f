//! Whether a process that is called answers at all: a circuit breaker.
//!
//! Handlers take the time that they take, so that an answer which does not come says nothing. What the other's clock
//! shows is told at once by whatever runs there: a process that says nothing is asked that, and one that does not answer
//! is handed nothing more. It is asked on (half open), and the first thing that is heard closes the breaker.
//!
//! Whoever is silent for long is given up: the transport waits twice as long before each time that it sends something again,
//! so that a connection on which little came through for a minute may need another minute after the path is whole again. A
//! new connection does not.

use std::time::Duration;

use swimring_membership::Instant;

/// Whoever is called, and says nothing for so long, is asked.
pub const ASKED_AFTER: Duration = Duration::from_millis(500);
/// Whoever does not answer for so long is handed nothing more: the time-outs of membership are not much longer.
const OPEN_AFTER: Duration = Duration::from_millis(1_500);
/// How often it is asked from then on.
const PROBED_EVERY: Duration = Duration::from_millis(500);
/// After so much longer its connection is given up, if nothing is waited for on it: most calls have ended by then.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(8);
/// And after so much longer whatever is waited for: it may only have stood still, and answer yet.
const LOST_AFTER: Duration = Duration::from_secs(28);
/// Whoever looks so much later than it had to has stood still itself: the answer may lie unread.
const LATE: Duration = Duration::from_millis(250);

/// The breaker before one process.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    asked: Option<Instant>,
    /// Since when nothing more is handed over.
    open: Option<Instant>,
}

/// What is to be done with somebody who says nothing.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Look {
    /// Nothing yet.
    Wait,
    /// It is to be asked.
    Ask,
    /// The connection that it was asked on is to be closed.
    GiveUp,
}

impl Breaker {
    /// Something has come in.
    pub(crate) fn heard(&mut self) {
        *self = Self::default();
    }

    /// Whether nothing more is handed over.
    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// The connection that it was asked on has ended, and it is asked on another: that one is not given up for it.
    pub(crate) fn asked_on_another(&mut self, now: Instant) {
        self.open = self.open.map(|_| now);
    }

    /// Whether an answer is waited for.
    pub(crate) fn has_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// When [`look`](Self::look) is to be called. `silent_since`: since when something was waited for and nothing heard.
    pub(crate) fn due(&self, silent_since: Option<Instant>) -> Option<Instant> {
        match self.asked {
            Some(asked) if self.is_open() => Some(asked + PROBED_EVERY),
            Some(asked) => Some(asked + OPEN_AFTER),
            None => silent_since.map(|since| since + ASKED_AFTER),
        }
    }

    /// Time has passed: what to do now. `pending`: whether something was handed over that is still waited for.
    pub(crate) fn look(&mut self, now: Instant, silent_since: Option<Instant>, pending: bool) -> Look {
        let Some(due) = self.due(silent_since).filter(|due| *due <= now) else { return Look::Wait };
        let late = now.since(due) > LATE;
        let was_asked = self.asked.replace(now).is_some();
        let patience = if pending { LOST_AFTER } else { GIVEN_UP_AFTER };
        match self.open {
            Some(since) if !late && now.since(since) >= patience => return Look::GiveUp,
            Some(_) if late => self.open = Some(now),
            None if was_asked && !late => self.open = Some(now),
            _ => {}
        }
        Look::Ask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    #[test]
    fn whoever_says_nothing_is_asked_then_given_nothing_more_and_asked_on() {
        let mut breaker = Breaker::default();
        let since = Some(at(1_000));
        assert_eq!(breaker.due(since), Some(at(1_500)));
        assert_eq!(breaker.look(at(1_499), since, false), Look::Wait);
        assert_eq!((breaker.look(at(1_500), since, false), breaker.is_open()), (Look::Ask, false));
        assert_eq!(breaker.due(None), Some(at(3_000)), "also when nobody waits any more");
        assert_eq!((breaker.look(at(3_000), since, false), breaker.is_open()), (Look::Ask, true));
        assert_eq!(breaker.due(None), Some(at(3_500)));
        assert_eq!(breaker.look(at(3_500), None, false), Look::Ask);
        breaker.heard();
        assert!(!breaker.is_open());
        assert_eq!(breaker.due(None), None);
    }

    /// Looks whenever that is due, beginning with `from`, until something else than asking is to be done.
    fn look_on(breaker: &mut Breaker, from: Instant, pending: bool) -> (Instant, Look) {
        let looks = std::iter::successors(Some(from), |now| Some(*now + PROBED_EVERY));
        let mut looks = looks.map(|now| (now, breaker.look(now, None, pending)));
        looks.find(|(_, look)| *look != Look::Ask).expect("it does not ask for ever")
    }

    #[test]
    fn whoever_is_silent_for_long_is_given_up() {
        let mut breaker = Breaker::default();
        assert_eq!(breaker.look(at(500), Some(at(0)), false), Look::Ask);
        assert_eq!(look_on(&mut breaker, at(2_000), false), (at(10_000), Look::GiveUp));
        breaker.asked_on_another(at(10_000));
        assert_eq!(look_on(&mut breaker, at(10_500), true), (at(38_000), Look::GiveUp), "something is waited for");
    }

    #[test]
    fn whoever_stood_still_itself_asks_again_first() {
        let mut breaker = Breaker::default();
        let since = Some(at(0));
        assert_eq!(breaker.look(at(500), since, false), Look::Ask);
        assert_eq!((breaker.look(at(20_000), since, false), breaker.is_open()), (Look::Ask, false));
        assert_eq!((breaker.look(at(21_500), since, false), breaker.is_open()), (Look::Ask, true));
        assert_eq!(breaker.look(at(50_000), since, false), Look::Ask, "the answer may lie unread");
        assert_eq!(look_on(&mut breaker, at(50_500), false), (at(58_000), Look::GiveUp));
    }
}
