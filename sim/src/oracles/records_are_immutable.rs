//! M9: what a process says of itself at one incarnation is the same for everybody, and stays so.

use std::collections::BTreeMap;

use swimring::core::control::ControlEvent;
use swimring_membership::{Event, Incarnation, NodeId};

use super::{Facts, Findings, Oracle, Property};

#[derive(Default)]
pub(super) struct Watch {
    /// The hash of every record that was believed, by who said it, when, and in which process.
    said: BTreeMap<(NodeId, Incarnation, u64), u128>,
}

impl Oracle for Watch {
    fn on_event(&mut self, facts: &Facts<'_>, host: usize, event: &ControlEvent, out: &mut Findings) {
        let ControlEvent::Membership(Event::Changed { id, .. }) = event else {
            return;
        };
        let member = facts.hosts[host].control.as_ref().and_then(|control| control.membership().member(*id));
        let Some(record) = member.map(|member| &member.record) else {
            return;
        };
        let said = self.said.entry((*id, record.incarnation(), record.life())).or_insert(record.hash());
        out.check(facts, Property::M9, &[host], *said == record.hash(), || {
            format!("believes another record of {id:?} at {} than others do", record.incarnation())
        });
    }
}
