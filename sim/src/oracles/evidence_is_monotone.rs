//! M5: whoever was told of a state at an incarnation holds at least that incarnation afterwards, even when
//! the state did not change (the hole of memberlist's *dead* at a higher incarnation).

use swimring_membership::State;
use swimring_membership::wire::{Header, Update};

use super::{BOOT_LEAP_MAX, Facts, Findings, Oracle, Property};

pub(super) struct Watch;

impl Oracle for Watch {
    fn after_message(&mut self, facts: &Facts<'_>, host: usize, header: Option<&Header>, out: &mut Findings) {
        let Some(control) = &facts.hosts[host].control else {
            return;
        };
        let membership = control.membership();
        if !membership.is_confirmed() {
            return;
        }
        for update in header.map(|header| header.updates.as_slice()).unwrap_or_default() {
            let (Update::Suspect(id, told, _) | Update::Down(id, told, _) | Update::Left(id, told)) = update else {
                continue;
            };
            if let Some((state, held)) = membership.roster().belief(*id)
                && *id != membership.id()
            {
                // Leaving was the last word of a boot; and nobody lives as long as some lies say.
                let over = state == State::Left && held.boot == told.boot;
                let over = over || told.boot.saturating_sub(held.boot) > BOOT_LEAP_MAX;
                out.check(facts, Property::M5, &[host], held >= *told || over, || {
                    format!("was told {update:?} and holds {held}")
                });
            }
        }
    }
}
