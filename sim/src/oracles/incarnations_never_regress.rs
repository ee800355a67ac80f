//! M1: a process never restates itself at a lower incarnation, and once it has joined with its state kept its
//! boot is above every one that its name had before.

use std::collections::BTreeMap;

use swimring::core::control::ControlEvent;
use swimring_membership::{Event, Incarnation, NodeId};

use super::{Facts, Findings, Oracle};

#[derive(Default)]
pub(super) struct Watch {
    /// The highest incarnation of each name, by life.
    highest: BTreeMap<NodeId, (u32, Incarnation)>,
    /// The highest of the lives before the running one.
    before: BTreeMap<NodeId, Incarnation>,
}

impl Oracle for Watch {
    fn on_event(
        &mut self,
        facts: &Facts<'_>,
        host: usize,
        event: &ControlEvent,
        out: &mut Findings,
    ) {
        let ControlEvent::Membership(event) = event else {
            return;
        };
        let machine = &facts.hosts[host];
        let Some(control) = &machine.control else {
            return;
        };
        let own = control.membership().record().incarnation();
        let (life, highest) = self
            .highest
            .entry(machine.id)
            .or_insert((machine.life, own));
        if *life != machine.life {
            self.before
                .entry(machine.id)
                .and_modify(|before| *before = (*before).max(*highest))
                .or_insert(*highest);
            (*life, *highest) = (machine.life, own);
        }
        if matches!(event, Event::Changed { id, .. } if *id == machine.id) {
            let held = *highest;
            out.check(facts, "M1", &[host], own >= held, || {
                format!("went from {held} to {own}")
            });
            *highest = own.max(held);
        }
        // Without state, and with the seeds cut off from those who remember, nobody can know better.
        if *event == Event::Joined
            && machine.disk.boot > 1
            && facts.network.worst_loss() == 0
            && let Some(before) = self.before.get(&machine.id)
        {
            out.check(facts, "M1", &[host], own.boot > before.boot, || {
                format!("joined at {own}, but its name had lived up to {before}")
            });
        }
    }
}
