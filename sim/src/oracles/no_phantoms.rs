//! M6 and M7: the incremental digest equals the one computed from scratch, and everybody in a view exists.

use swimring::core::control::ControlEvent;
use swimring_membership::Event;

use super::{Facts, Findings, Oracle, Property};

pub(super) struct Watch;

/// A digest from scratch is linear in the members: larger views are sampled.
const ALWAYS_BELOW: usize = 64;

impl Oracle for Watch {
    fn on_event(&mut self, facts: &Facts<'_>, host: usize, event: &ControlEvent, out: &mut Findings) {
        let ControlEvent::Membership(Event::Changed { id, .. }) = event else {
            return;
        };
        let known = facts.with_id(*id).any(|subject| subject.life > 0);
        out.check(facts, Property::M7, &[host], known, || format!("{id:?} is in the view and never lived"));
        let Some(control) = &facts.hosts[host].control else {
            return;
        };
        let roster = control.membership().roster();
        if roster.len() < ALWAYS_BELOW || roster.version().is_multiple_of(32) {
            let holds = roster.digest() == roster.digest_from_scratch();
            out.check(facts, Property::M6, &[host], holds, || {
                "the incremental digest differs from the one from scratch".into()
            });
        }
    }
}
