//! Whether this process runs, and is the one that others mean: said by the gossip thread again and again, and
//! asked by every call.
//!
//! A process that was stopped goes on with all its threads at once. The gossip thread finds out that time has
//! passed; until it has, its last word is too old to count.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use swimring_membership::Instant;

/// How often the gossip thread says so.
pub(crate) const BEAT_EVERY: Duration = Duration::from_millis(200);

/// The last word of the gossip thread.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    /// It holds until then; 0 if this process must not run the calls of others.
    until: AtomicU64,
}

impl Pulse {
    /// This process runs. If it is confirmed, that holds for the time after which others may have taken its keys.
    pub(crate) fn beat(&self, now: Instant, confirmed_for: Option<Duration>) {
        let until = confirmed_for.map_or(0, |holds| (now + holds).as_nanos());
        self.until.store(until, Ordering::Release);
    }

    /// Whether what was said last still holds.
    pub(crate) fn beats(&self, now: Instant) -> bool {
        now.as_nanos() < self.until.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_holds_for_a_while_and_can_be_taken_back() {
        let pulse = Pulse::default();
        let now = Instant::from_millis(1_000);
        assert!(!pulse.beats(now), "nothing was said");
        pulse.beat(now, Some(Duration::from_secs(2)));
        assert!(pulse.beats(now + Duration::from_secs(1)) && !pulse.beats(now + Duration::from_secs(2)));
        pulse.beat(now, None);
        assert!(!pulse.beats(now));
    }
}
