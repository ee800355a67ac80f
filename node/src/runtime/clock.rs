//! The one clock of a process: monotonic, and counting the time that the machine was suspended.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use swimring_membership::Instant;

/// Reads the system's clock. Copies agree.
#[derive(Copy, Clone, Debug, Default)]
pub(crate) struct Clock;

impl Clock {
    /// Now, since the machine was started.
    pub(crate) fn now(self) -> Instant {
        #[cfg(target_os = "linux")]
        let clock = ClockId::Boottime;
        #[cfg(not(target_os = "linux"))]
        let clock = ClockId::Monotonic;
        let time = clock_gettime(clock);
        Instant::from_nanos(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    }

    /// Waits until `at`.
    pub(crate) async fn wait_until(self, at: Instant) {
        tokio::time::sleep(at.since(self.now())).await;
    }

    /// Waits until `at`, or for ever.
    pub(crate) async fn wait_for(self, at: Option<Instant>) {
        match at {
            // A timer of tokio rounds up to milliseconds; what is due at once need not go through it.
            Some(at) if at <= self.now() => tokio::task::yield_now().await,
            Some(at) => self.wait_until(at).await,
            None => std::future::pending().await,
        }
    }
}

/// How long a system call may take to come back before something is wrong with the machine.
pub(crate) const CLOSE_GRACE: Duration = Duration::from_secs(1);
