//! How long a suspect may object.
//!
//! The time begins at a maximum and shrinks with every independent confirmation to a minimum (Lifeguard §IV-B).
//! Integer tables only: every platform waits equally long.

use alloc::vec::Vec;
use core::time::Duration;

use crate::{Incarnation, Instant, NodeId};

/// A suspicion of one member at one incarnation.
#[derive(Clone, Debug)]
pub(crate) struct Suspicion {
    pub(crate) incarnation: Incarnation,
    started: Instant,
    window: Window,
    suspectors: Vec<NodeId>,
    /// The suspect is being asked a last time.
    pub(crate) last_word: bool,
    /// Enough of its observers found it silent: when it is removed, unless it objects.
    pub(crate) removed_at: Option<Instant>,
    /// It has answered this node's own last question since: what others found does not count here.
    pub(crate) answered: bool,
    /// How much worse this node's own health became by it, until somebody else has found the same.
    pub(crate) cost: u32,
}

/// The shortest and the longest time to object, and how many confirmations lead from one to the other.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) min: Duration,
    pub(crate) max: Duration,
    pub(crate) confirmations: u32,
}

impl Suspicion {
    pub(crate) fn new(now: Instant, incarnation: Incarnation, window: Window, by: NodeId) -> Self {
        let mut suspectors = Vec::with_capacity(2);
        suspectors.push(by);
        Self {
            incarnation,
            started: now,
            window,
            suspectors,
            last_word: false,
            removed_at: None,
            answered: false,
            cost: 0,
        }
    }

    /// Counts `by` as one more suspector; false when it was counted or none is needed any more.
    pub(crate) fn confirm(&mut self, by: NodeId) -> bool {
        if self.suspectors.contains(&by) || self.is_settled() {
            return false;
        }
        self.suspectors.push(by);
        true
    }

    /// Whether somebody else than `me` suspects it, and it has not answered `me` since.
    pub(crate) fn is_shared(&self, me: NodeId) -> bool {
        !self.answered && self.suspectors.iter().any(|by| *by != me)
    }

    /// Whether enough suspect it: more make its time no shorter.
    pub(crate) fn is_settled(&self) -> bool {
        self.suspectors.len() as u32 > self.window.confirmations
    }

    /// The same, where there are enough others to confirm anything.
    pub(crate) fn is_agreed(&self) -> bool {
        self.window.confirmations > 0 && self.is_settled()
    }

    /// When the time to object ends.
    pub(crate) fn deadline(&self) -> Instant {
        let confirmed = self.suspectors.len() as u32 - 1;
        self.started + self.window.after(confirmed)
    }
}

impl Window {
    /// `max - (max - min) * ln(c + 1) / ln(k + 1)`, never below `min`.
    pub(crate) fn after(self, confirmed: u32) -> Duration {
        if confirmed >= self.confirmations {
            return self.min;
        }
        let shrink = u64::from(log2_milli(confirmed + 1)) * 1_000 / u64::from(log2_milli(self.confirmations + 1));
        let span = self.max.saturating_sub(self.min).as_nanos() as u64;
        self.max - Duration::from_nanos(span / 1_000 * shrink)
    }
}

/// `1000 * log2(value)`, rounded down; 0 for 0 and 1. By repeated squaring, in integers.
pub(crate) fn log2_milli(value: u32) -> u32 {
    let Some(whole) = value.checked_ilog2() else {
        return 0;
    };
    // The mantissa in [1, 2) with 31 fractional bits; each squaring yields one more bit of the logarithm.
    let mut mantissa = u64::from(value) << (31 - whole);
    let mut fraction = 0u64;
    for _ in 0..20 {
        mantissa = (mantissa * mantissa) >> 31;
        fraction <<= 1;
        if mantissa >= 1 << 32 {
            mantissa >>= 1;
            fraction |= 1;
        }
    }
    whole * 1_000 + ((fraction * 1_000) >> 20) as u32
}

/// `1000 * log10(value)`, rounded down.
pub(crate) fn log10_milli(value: u32) -> u32 {
    (u64::from(log2_milli(value)) * 30_103 / 100_000) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn logarithms_agree_with_the_table() {
        for (value, expected) in [(1, 0), (2, 1_000), (3, 1_584), (4, 2_000), (10, 3_321), (1_000, 9_965)] {
            assert_eq!(log2_milli(value), expected, "{value}");
        }
        for (value, expected) in [(10u32, 1_000u32), (50, 1_698), (100, 2_000), (1_000, 3_000)] {
            assert!(log10_milli(value).abs_diff(expected) <= 2, "{value}");
        }
    }

    #[test]
    fn confirmations_shorten_the_time_as_lifeguard_says() {
        // hashicorp/memberlist's vectors: min 2 s, max 30 s, k 3 -> 30, 16, 7.81 (4.81 left at 3 s), 2 s.
        let window = Window { min: secs(2), max: secs(30), confirmations: 3 };
        for (confirmed, expected_ms) in [(0, 30_000), (1, 16_000), (2, 7_810), (3, 2_000), (9, 2_000)] {
            let after = window.after(confirmed).as_millis() as u64;
            assert!(after.abs_diff(expected_ms) <= 30, "{confirmed}: {after}");
        }
    }

    #[test]
    fn a_suspector_counts_once_and_enough_are_enough() {
        let node = |n| NodeId::from_u128(n);
        let window = Window { min: secs(2), max: secs(30), confirmations: 2 };
        let mut suspicion = Suspicion::new(Instant::ORIGIN, Incarnation::new(1, 0), window, node(1));
        assert!(!suspicion.confirm(node(1)));
        assert!(suspicion.confirm(node(2)));
        assert!(suspicion.confirm(node(3)));
        assert!(!suspicion.confirm(node(4)));
        assert_eq!(suspicion.deadline(), Instant::ORIGIN + secs(2));
    }
}
