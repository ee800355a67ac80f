//! M10: no process leaves a message handler believing itself suspect or down, or with an accusation of it that it has
//! not refuted.

use swimring_membership::wire::{Header, Update};
use swimring_membership::{Incarnation, NodeId, State};

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
        let me = membership.id();
        let own = membership.record().incarnation();
        let believed = membership.member(me).map(|member| (member.state, member.incarnation));
        out.check(facts, Property::M10, &[host], believed == Some((State::Alive, own)), || {
            format!("believes {believed:?} of itself")
        });
        // Of a boot above its own it is not the subject: that is another life. What is above its own count takes a boot to
        // object to, and so does anything before it has joined; for that it must wait once lies have made it take many.
        let takes_a_boot = |accused: Incarnation| accused > own || !membership.is_joined();
        let waits = |accused: Incarnation| takes_a_boot(accused) && accused.boot >= BOOT_LEAP_MAX;
        let own_life = |accused: &Incarnation| accused.boot <= own.boot && !waits(*accused);
        let accused = header.and_then(|header| accusation(header, me));
        if let Some(accused) = accused.filter(own_life) {
            out.check(facts, Property::M10, &[host], own > accused, || {
                format!("is accused at {accused}, and still says {own}")
            });
        }
    }
}

/// The highest incarnation at which a message holds its receiver suspect or down.
fn accusation(header: &Header, me: NodeId) -> Option<Incarnation> {
    let belief = header.belief.filter(|(state, _)| matches!(state, State::Suspect | State::Down));
    let updates = header.updates.iter().filter_map(|update| match update {
        Update::Suspect(id, at, _) | Update::Down(id, at, _) if *id == me => Some(*at),
        _ => None,
    });
    updates.chain(belief.map(|(_, at)| at)).max()
}
