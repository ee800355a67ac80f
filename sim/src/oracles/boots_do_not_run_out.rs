//! M17: however high others say that a process has lived, it climbs slowly: its boots do not run out.

use std::collections::BTreeMap;

use swimring::core::control::ControlEvent;
use swimring_membership::{Event, Instant};

use super::{BOOT_LEAP_MAX, Facts, Findings, Oracle, Property};

/// How many claims a process may answer at once; after that one a second.
const AT_ONCE: u64 = 18;

#[derive(Default)]
pub(super) struct Watch {
    /// The boot at which the process of a host started, and when.
    started: BTreeMap<usize, (u32, Instant)>,
}

impl Oracle for Watch {
    fn on_start(&mut self, facts: &Facts<'_>, host: usize, _out: &mut Findings) {
        self.started.insert(host, (facts.hosts[host].disk.boot, facts.now));
    }

    fn on_event(&mut self, facts: &Facts<'_>, host: usize, event: &ControlEvent, out: &mut Findings) {
        let ControlEvent::Membership(Event::Rebooted { boot }) = event else {
            return;
        };
        let (first, since) = self.started[&host];
        let most = u64::from(first) + (u64::from(BOOT_LEAP_MAX) + 1) * (AT_ONCE + facts.now.since(since).as_secs());
        out.check(facts, Property::M17, &[host], u64::from(*boot) <= most, || {
            format!("went from boot {first} to {boot} within {:?}", facts.now.since(since))
        });
    }
}
