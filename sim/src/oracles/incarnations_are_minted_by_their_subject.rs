//! M3: nobody believes an incarnation that its subject has not minted.

use std::collections::BTreeMap;

use swimring::core::control::ControlEvent;
use swimring_membership::wire::Header;
use swimring_membership::{Event, Incarnation, NodeId};

use super::{Facts, Findings, Oracle, Property};

#[derive(Default)]
pub(super) struct Watch {
    /// The highest count that a name has minted, by boot.
    minted: BTreeMap<(NodeId, u32), u32>,
}

impl Watch {
    fn learn(&mut self, facts: &Facts<'_>, host: usize) {
        let machine = &facts.hosts[host];
        if let Some(control) = &machine.control {
            self.note(machine.id, control.membership().record().incarnation());
        }
    }

    fn note(&mut self, id: NodeId, minted: Incarnation) {
        let count = self.minted.entry((id, minted.boot)).or_insert(minted.count);
        *count = (*count).max(minted.count);
    }
}

impl Oracle for Watch {
    fn on_start(&mut self, facts: &Facts<'_>, host: usize, _out: &mut Findings) {
        self.learn(facts, host);
    }

    fn after_message(&mut self, facts: &Facts<'_>, host: usize, _header: Option<&Header>, _out: &mut Findings) {
        self.learn(facts, host);
    }

    fn on_event(&mut self, facts: &Facts<'_>, host: usize, event: &ControlEvent, out: &mut Findings) {
        self.learn(facts, host);
        let ControlEvent::Membership(Event::Changed { id, incarnation, .. }) = event else {
            return;
        };
        let own = facts.hosts[host].control.as_ref().map(|control| control.membership().record().incarnation());
        if *id == facts.hosts[host].id && own.is_some_and(|own| *incarnation <= own) {
            // What it says of itself, several things within one step perhaps.
            self.note(*id, *incarnation);
        }
        let minted = self.minted.get(&(*id, incarnation.boot)).is_some_and(|count| incarnation.count <= *count);
        out.check(facts, Property::M3, &[host], minted, || {
            format!("believes {incarnation} of {id:?}, which never said so")
        });
    }
}
