//! The congestion window of gossip: always the same.
//!
//! What membership says is limited by itself, to a few hundred bytes a second. A window that shrinks with every loss
//! would fill up while a path is down and hold the next probes back until a timer that has doubled all the while ends:
//! a peer would stay silent for as long again as it was cut off.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory};

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
