//! M10: no process leaves a message handler believing itself suspect or down.

use swimring_membership::State;

use super::{Facts, Findings, Oracle};

pub(super) struct Watch;

impl Oracle for Watch {
    fn after_message(&mut self, facts: &Facts<'_>, host: usize, _bytes: &[u8], out: &mut Findings) {
        let Some(control) = &facts.hosts[host].control else {
            return;
        };
        let membership = control.membership();
        let own = membership.member(membership.id()).map(|member| (member.state, member.incarnation));
        let fine = own == Some((State::Alive, membership.record().incarnation())) || !membership.is_confirmed();
        out.check(facts, "M10", &[host], fine, || format!("believes {own:?} of itself"));
    }
}
