//! Whether a process that is called answers at all: a circuit breaker.
//!
//! Handlers take the time that they take, so that an answer which does not come says nothing. What the other's clock
//! shows is told at once by whatever runs there: a process that says nothing is asked that, and one that does not answer
//! is handed nothing more. It is asked on (half open), and the first thing that is heard closes the breaker.

use std::time::Duration;

use swimring_membership::Instant;

/// Whoever is called, and says nothing for so long, is asked.
pub const ASKED_AFTER: Duration = Duration::from_millis(500);
/// Whoever does not answer for so long is handed nothing more: the time-outs of membership are not much longer.
const OPEN_AFTER: Duration = Duration::from_millis(1_500);
/// How often it is asked from then on.
const PROBED_EVERY: Duration = Duration::from_millis(500);
/// Whoever looks so much later than it had to has stood still itself: the answer may lie unread.
const LATE: Duration = Duration::from_millis(250);

/// The breaker before one process.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    asked: Option<Instant>,
    open: bool,
}

impl Breaker {
    /// Something has come in.
    pub(crate) fn heard(&mut self) {
        *self = Self::default();
    }

    /// Whether nothing more is handed over.
    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    /// Whether an answer is waited for.
    pub(crate) fn has_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// When [`look`](Self::look) is to be called. `silent_since`: since when something was waited for and nothing heard.
    pub(crate) fn due(&self, silent_since: Option<Instant>) -> Option<Instant> {
        match self.asked {
            Some(asked) if self.open => Some(asked + PROBED_EVERY),
            Some(asked) => Some(asked + OPEN_AFTER),
            None => silent_since.map(|since| since + ASKED_AFTER),
        }
    }

    /// Time has passed: whether to ask now.
    pub(crate) fn look(&mut self, now: Instant, silent_since: Option<Instant>) -> bool {
        let Some(due) = self.due(silent_since).filter(|due| *due <= now) else { return false };
        self.open = self.open || (self.asked.is_some() && now.since(due) <= LATE);
        self.asked = Some(now);
        true
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
        assert!(!breaker.look(at(1_499), since));
        assert!(breaker.look(at(1_500), since) && !breaker.is_open());
        assert_eq!(breaker.due(None), Some(at(3_000)), "also when nobody waits any more");
        assert!(breaker.look(at(3_000), since) && breaker.is_open());
        assert_eq!(breaker.due(None), Some(at(3_500)));
        assert!(breaker.look(at(3_500), None));
        breaker.heard();
        assert!(!breaker.is_open());
        assert_eq!(breaker.due(None), None);
    }

    #[test]
    fn whoever_stood_still_itself_asks_again_first() {
        let mut breaker = Breaker::default();
        let since = Some(at(0));
        assert!(breaker.look(at(500), since));
        assert!(breaker.look(at(20_000), since) && !breaker.is_open());
        assert!(breaker.look(at(21_500), since) && breaker.is_open());
    }
}
