//! What another process's clock shows.

use std::time::Duration;

use swimring_membership::Instant;

/// By how much two clocks may drift apart, in millionths: what is added to an estimate as it ages.
const DRIFT_PPM: u64 = 500;

/// The other's clock: what to add to ours, and how wrong that was when it was measured.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Timebase {
    /// In nanoseconds.
    pub(crate) offset: i64,
    error: Duration,
    at: Instant,
}

impl Timebase {
    /// Asked at `sent`, answered with `clock`, heard at `now`.
    pub(crate) fn measured(sent: Instant, clock: Instant, now: Instant) -> Self {
        let half = now.since(sent) / 2;
        let middle = sent + half;
        Self { offset: (clock.as_nanos() as i64).wrapping_sub(middle.as_nanos() as i64), error: half, at: now }
    }

    /// How wrong it may be by now.
    pub(crate) fn error(&self, now: Instant) -> Duration {
        self.error + Duration::from_nanos(now.since(self.at).as_nanos() as u64 / 1_000_000 * DRIFT_PPM)
    }
}
