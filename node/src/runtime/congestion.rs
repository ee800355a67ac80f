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

/// Of so many packets each is acknowledged with the others.
pub(crate) const PACKETS_PER_ACK: u32 = 10;
/// On the shortest path: half as much again as has to come until there is an acknowledgement. With less in flight than that
/// one would only come after its longest delay; with more both ends would be at work all the time.
const LEAST_BYTES: u64 = CALLS_PACKET_BYTES_MAX as u64 * PACKETS_PER_ACK as u64 * 3 / 2;
/// On longer paths: what this rate needs there, in bytes a second. One connection hardly carries more.
const BYTES_PER_S: f64 = 1e9;

/// Most bytes in flight on a path of this round trip, in which nothing waited.
fn clamp(round_trip: Duration) -> u64 {
    LEAST_BYTES.max((round_trip.as_secs_f64() * BYTES_PER_S) as u64)
}

/// Cubic with a clamp, by the shortest round trip that was seen.
pub(crate) struct Clamped {
    cubic: Box<dyn Controller>,
    clamp: u64,
}

impl Controller for Clamped {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.clamp = clamp(rtt.min());
        // What is not used does not grow: after a loss it would still be far above what is.
        let is_unused = self.cubic.window() > self.clamp * 2;
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
        self.cubic.window().min(self.clamp)
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { cubic: self.cubic.clone_box(), clamp: self.clamp })
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
        Box::new(Clamped { cubic, clamp: u64::MAX })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MTU: u16 = 1_452;

    #[test]
    fn no_more_is_on_its_way_than_a_short_path_needs_and_no_less_than_is_acknowledged_at_once() {
        let now = Instant::now();
        let mut calls = Clamped { cubic: Arc::new(CubicConfig::default()).build(now, MTU), clamp: u64::MAX };
        assert_eq!(calls.window(), calls.initial_window(), "nothing is known of the path yet");
        calls.clamp = clamp(Duration::from_micros(50));
        let ack_bytes = u64::from(CALLS_PACKET_BYTES_MAX) * u64::from(PACKETS_PER_ACK);
        assert!((ack_bytes + 1..2 * ack_bytes).contains(&calls.clamp));
        assert_eq!(calls.window(), calls.initial_window(), "Cubic decides while it allows less");
        calls.clamp = calls.initial_window() / 2;
        assert_eq!(calls.window(), calls.clamp);
        assert_eq!(calls.clone_box().window(), calls.clamp);
    }

    #[test]
    fn a_long_path_is_filled() {
        assert_eq!(clamp(Duration::from_millis(1)), 1_000_000);
        assert!(clamp(Duration::from_millis(10)) > 8 << 20, "as much as may wait for an acknowledgement");
    }
}
