//! M14: two views have the same digest if, and only if, they hold the same records.

use swimring::core::control::ControlEvent;
use swimring_membership::{Event, Roster};

use super::{Facts, Findings, Oracle, Property};

/// How many changes of a roster make one comparison.
const EVERY: u64 = 16;

#[derive(Default)]
pub(super) struct Watch {
    changes: u64,
}

impl Oracle for Watch {
    fn on_event(&mut self, facts: &Facts<'_>, host: usize, event: &ControlEvent, out: &mut Findings) {
        let ControlEvent::Membership(Event::Changed { .. }) = event else {
            return;
        };
        self.changes += 1;
        if !self.changes.is_multiple_of(EVERY) {
            return;
        }
        // Somebody else, another one each time.
        let other = (host + self.changes as usize) % facts.hosts.len();
        let roster = |host: usize| facts.hosts[host].control.as_ref().map(|control| control.membership().roster());
        if let (Some(one), Some(two)) = (roster(host), roster(other)) {
            let holds = (one.digest() == two.digest()) == are_equal(one, two);
            out.check(facts, Property::M14, &[host, other], holds, || {
                format!("their digests are {:x} and {:x}, but their views say otherwise", one.digest(), two.digest())
            });
        }
    }
}

/// Whether the same members are present in both, with the same records.
fn are_equal(one: &Roster, two: &Roster) -> bool {
    one.present_count() == two.present_count() && present_records(one).eq(present_records(two))
}

fn present_records(roster: &Roster) -> impl Iterator<Item = &[u8]> {
    roster.iter().filter(|(_, member)| member.state.is_present()).map(|(_, member)| member.record.bytes())
}
