//! M2: what a node believes of another moves only up, until it is reaped.

use swimring::core::control::ControlEvent;
use swimring_membership::{Event, supersedes};

use super::{Facts, Findings, Oracle};

pub(super) struct Watch;

impl Oracle for Watch {
    fn on_event(&mut self, facts: &Facts<'_>, host: usize, event: &ControlEvent, out: &mut Findings) {
        let ControlEvent::Membership(Event::Changed { id, before: Some(before), state, incarnation, .. }) = event
        else {
            return;
        };
        let (before, after) = (*before, (*state, *incarnation));
        out.check(facts, "M2", &[host], before == after || supersedes(after, before), || {
            format!("believed {before:?} of {id:?}, then {after:?}")
        });
    }
}
