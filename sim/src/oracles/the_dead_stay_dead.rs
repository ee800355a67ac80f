//! M4: whoever was down or left at an incarnation is alive only at a higher one, even after it was reaped.

use std::collections::BTreeMap;

use swimring::core::control::ControlEvent;
use swimring_membership::{Event, Incarnation, NodeId, State};

use super::{Facts, Findings, Oracle, Property};

#[derive(Default)]
pub(super) struct Watch {
    /// What each process buried: by observer, its life, and subject.
    buried: BTreeMap<(usize, u32, NodeId), (State, Incarnation)>,
}

impl Oracle for Watch {
    fn on_event(&mut self, facts: &Facts<'_>, host: usize, event: &ControlEvent, out: &mut Findings) {
        let ControlEvent::Membership(Event::Changed { id, state, incarnation, .. }) = event else {
            return;
        };
        let key = (host, facts.hosts[host].life, *id);
        if state.is_present() {
            if let Some((was, buried)) = self.buried.get(&key) {
                let higher = if *was == State::Left { incarnation.boot > buried.boot } else { incarnation > buried };
                out.check(facts, Property::M4, &[host], higher, || {
                    format!("{id:?} was {was:?} at {buried}, and is {state:?} at {incarnation}")
                });
            }
        } else {
            self.buried.insert(key, (*state, *incarnation));
        }
    }
}
