//! M2: what a node believes of another moves only up, until it is reaped.

use swimring::core::control::ControlEvent;
use swimring_membership::{Event, Incarnation, State};

use super::{Facts, Findings, Oracle, Property};

pub(super) struct Watch;

impl Oracle for Watch {
    fn on_event(&mut self, facts: &Facts<'_>, host: usize, event: &ControlEvent, out: &mut Findings) {
        let ControlEvent::Membership(Event::Changed { id, before: Some(before), state, incarnation, .. }) = event
        else {
            return;
        };
        let (before, after) = (*before, (*state, *incarnation));
        out.check(facts, Property::M2, &[host], before == after || is_above(after, before), || {
            format!("believed {before:?} of {id:?}, then {after:?}")
        });
    }
}

/// The order of news, said here once more on its own: a higher boot is above; within a boot, *left* is above all
/// else, then the higher count, then the more final state.
fn is_above((state, at): (State, Incarnation), (held, held_at): (State, Incarnation)) -> bool {
    if at.boot != held_at.boot {
        return at.boot > held_at.boot;
    }
    match (state, held) {
        (State::Left, State::Left) => at.count > held_at.count,
        (State::Left, _) => true,
        (_, State::Left) => false,
        _ if at.count != held_at.count => at.count > held_at.count,
        (State::Alive, _) => false,
        (State::Suspect, _) => held == State::Alive,
        (State::Down, _) => held != State::Down,
    }
}
