//! M13: nothing of one cluster gets into a view of another, whatever addresses and contacts they share.

use swimring::core::control::ControlEvent;
use swimring_membership::Event;

use super::{Facts, Findings, Oracle, Property};

pub(super) struct Watch;

impl Oracle for Watch {
    fn on_event(&mut self, facts: &Facts<'_>, host: usize, event: &ControlEvent, out: &mut Findings) {
        let ControlEvent::Membership(Event::Changed { id, .. }) = event else {
            return;
        };
        let home = facts.hosts[host].home;
        let foreign = facts.with_id(*id).find(|subject| subject.home != home);
        out.check(facts, Property::M13, &[host], foreign.is_none(), || {
            format!("holds {id:?}, which is of another cluster")
        });
    }
}
