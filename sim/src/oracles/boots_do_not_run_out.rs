//! M17: however high others say that a process has lived, it climbs slowly: its boots do not run out.

use std::collections::BTreeMap;
use std::time::Duration;

use swimring::core::control::ControlEvent;
use swimring_membership::{Event, Instant};

use super::{BOOT_LEAP_MAX, Facts, Findings, Oracle, Property};

/// How many claims a process may answer at once; after that one a second.
const AT_ONCE: u64 = 18;
/// How many times as far as one claim may raise it a process climbs while it is young.
const YOUNG: u64 = 1_024;
/// For how long after it has joined it is young, by a clock that may drift.
const YOUNG_FOR: Duration = Duration::from_secs(11);

/// One process.
#[derive(Default)]
struct Climber {
    /// Its boot when it started, and when that was.
    born: (u32, Instant),
    /// And when it climbed last while it was young.
    grown: (u32, Instant),
    joined: Option<Instant>,
}

#[derive(Default)]
pub(super) struct Watch {
    climbers: BTreeMap<usize, Climber>,
}

impl Oracle for Watch {
    fn on_start(&mut self, facts: &Facts<'_>, host: usize, _out: &mut Findings) {
        let born = (facts.hosts[host].disk.boot, facts.now);
        self.climbers.insert(host, Climber { born, grown: born, joined: None });
    }

    fn on_event(&mut self, facts: &Facts<'_>, host: usize, event: &ControlEvent, out: &mut Findings) {
        let climber = self.climbers.entry(host).or_default();
        match event {
            ControlEvent::Membership(Event::Joined) => climber.joined = Some(facts.now),
            ControlEvent::Membership(Event::Rebooted { boot }) => {
                let is_young = climber.joined.is_none_or(|joined| facts.now.since(joined) < YOUNG_FOR);
                let ((first, since), extra) = if is_young { (climber.born, YOUNG) } else { (climber.grown, 0) };
                let answers = AT_ONCE + extra + facts.now.since(since).as_secs();
                let most = u64::from(first) + u64::from(BOOT_LEAP_MAX) * answers;
                out.check(facts, Property::M17, &[host], u64::from(*boot) <= most, || {
                    format!("went from boot {first} to {boot} within {:?}", facts.now.since(since))
                });
                if is_young {
                    climber.grown = (*boot, facts.now);
                }
            }
            _ => {}
        }
    }
}
