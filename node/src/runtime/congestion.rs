//! How many bytes a connection may have on its way.
//!
//! **Gossip**: always the same. What membership says is limited by itself, to a few hundred bytes a second. A window that
//! shrinks with every loss would fill up while a path is down and hold the next probes back until a timer that has doubled
//! all the while ends: a peer would stay silent for as long again as it was cut off.
//!
//! **Calls**: what Cubic allows, but no more than keeps a short path busy. Cubic grows until something is lost, and between
//! neighbours nothing is: one large body would keep a processor at each end busy all the time, and every other call of both
//! nodes wait for one.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory, CubicConfig};
use quinn_proto::RttEstimator;

use super::tls::CALLS_PACKET_BYTES_MAX;

/// Bytes in flight on one connection: two minutes of rumours to a peer that does not answer.
const WINDOW_BYTES: u64 = 64 << 10;

/// A window that neither grows nor shrinks.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Steady;

impl Controller for Steady {
    fn on_congestion_event(&mut self, _now: Instant, _sent: Instant, _is_persistent: bool, _lost_bytes: u64) {}

    fn on_mtu_update(&mut self, _new_mtu: u16) {}

    fn window(&self) -> u64 {
        WINDOW_BYTES
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(*self)
    }

    fn initial_window(&self) -> u64 {
        WINDOW_BYTES
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

impl ControllerFactory for Steady {
    fn build(self: Arc<Self>, _now: Instant, _current_mtu: u16) -> Box<dyn Controller> {
        Box::new(*self)
    }
}

/// So many packets may wait for an acknowledgement; one more brings it at once.
pub(crate) const PACKETS_UNACKNOWLEDGED: u32 = 10;
/// On the shortest path: a few packets more than bring an acknowledgement. With less in flight it would come after its
/// longest delay only; with more both ends would be at work all the time.
const LEAST_BYTES: u64 = CALLS_PACKET_BYTES_MAX as u64 * (PACKETS_UNACKNOWLEDGED as u64 + 5);
/// On longer paths: what this rate needs there, in bytes a second. It is less than a short path carries: what waits there
/// under load must not raise the clamp.
const BYTES_PER_S: f64 = 7e8;
/// For how long a round trip counts, at least; at most twice as long. Paths change, and a clock that was read early makes one
/// look shorter than it is.
const RECENT: Duration = Duration::from_secs(60);

/// The shortest round trip of the last minute or two.
#[derive(Copy, Clone, Debug)]
struct Shortest {
    since: Instant,
    now: Duration,
    before: Duration,
}

impl Shortest {
    fn new(since: Instant) -> Self {
        Self { since, now: Duration::MAX, before: Duration::MAX }
    }

    fn add(&mut self, now: Instant, round_trip: Duration) {
        if now.saturating_duration_since(self.since) > RECENT {
            (self.since, self.before, self.now) = (now, self.now, Duration::MAX);
        }
        self.now = self.now.min(round_trip);
    }

    /// Most bytes in flight on this path.
    fn clamp(&self) -> u64 {
        LEAST_BYTES.max((self.now.min(self.before).as_secs_f64() * BYTES_PER_S) as u64)
    }
}

/// Cubic with a clamp.
pub(crate) struct Clamped {
    cubic: Box<dyn Controller>,
    shortest: Shortest,
}

impl Controller for Clamped {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.shortest.add(now, now.saturating_duration_since(sent));
        // What is not used does not grow on and on. Up to this a single loss changes nothing, and a second one does.
        let is_unused = self.cubic.window() > self.shortest.clamp().saturating_mul(2);
        self.cubic.on_ack(now, sent, bytes, app_limited || is_unused, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.cubic.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent: bool, lost_bytes: u64) {
        self.cubic.on_congestion_event(now, sent, is_persistent, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.cubic.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.cubic.window().min(self.shortest.clamp())
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { cubic: self.cubic.clone_box(), shortest: self.shortest })
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// Makes [`Clamped`].
#[derive(Copy, Clone, Debug)]
pub(crate) struct Clamp;

impl ControllerFactory for Clamp {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let cubic = Arc::new(CubicConfig::default()).build(now, current_mtu);
        Box::new(Clamped { cubic, shortest: Shortest::new(now) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MTU: u16 = 1_452;

    const MS: Duration = Duration::from_millis(1);

    fn calls(now: Instant) -> Clamped {
        Clamped { cubic: Arc::new(CubicConfig::default()).build(now, MTU), shortest: Shortest::new(now) }
    }

    #[test]
    fn no_more_is_on_its_way_than_a_short_path_needs_and_no_less_than_is_acknowledged_at_once() {
        let now = Instant::now();
        let mut calls = calls(now);
        assert_eq!(calls.window(), calls.initial_window(), "nothing is known of the path yet");
        calls.shortest.add(now, MS / 20);
        let brings_one = u64::from(CALLS_PACKET_BYTES_MAX) * u64::from(PACKETS_UNACKNOWLEDGED + 1);
        assert!((brings_one + 1..2 * brings_one).contains(&calls.shortest.clamp()));
        assert_eq!(calls.window(), calls.initial_window(), "Cubic decides while it allows less");
        assert_eq!(calls.clone_box().window(), calls.window());
    }

    #[test]
    fn a_long_path_is_filled() {
        let mut shortest = Shortest::new(Instant::now());
        shortest.add(shortest.since, MS * 15);
        assert!(shortest.clamp() > 8 << 20, "as much as may wait for an acknowledgement");
    }

    #[test]
    fn a_path_that_became_longer_has_more_on_its_way_after_two_minutes() {
        let begun = Instant::now();
        let mut shortest = Shortest::new(begun);
        shortest.add(begun, MS / 20);
        let clamp_at = |shortest: &mut Shortest, after: Duration| {
            shortest.add(begun + after, MS);
            shortest.clamp()
        };
        assert_eq!(clamp_at(&mut shortest, RECENT / 2), LEAST_BYTES);
        assert_eq!(clamp_at(&mut shortest, RECENT + MS), LEAST_BYTES);
        assert_eq!(clamp_at(&mut shortest, RECENT * 2 + MS * 2), 700_000);
    }
}
