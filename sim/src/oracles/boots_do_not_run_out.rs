//! M17: however high others say that a process has lived, it climbs slowly: its boots do not run out.

use std::collections::BTreeMap;
use std::time::Duration;

use swimring::core::control::ControlEvent;
use swimring_membership::{Event, Instant};

use super::{BOOT_LEAP_MAX, Facts, Findings, Oracle, Property};

/// How many claims a process may answer at once; after that one a second.
const AT_ONCE: u64 = 18;
/// To which boot it climbs at once while it is young.
const YOUNG_BOOT_MAX: u32 = 1 << 22;
/// For how long after it has joined it is young, by a clock that may drift.
const YOUNG: Duration = Duration::from_secs(11);

/// One process.
#[derive(Default)]
struct Climber {
    /// Its boot when it started, or when it climbed far while it was young; and when that was.
    from: (u32, Instant),
    /// Its boot now.
    boot: u32,
    joined: Option<Instant>,
}

#[derive(Default)]
pub(super) struct Watch {
    climbers: BTreeMap<usize, Climber>,
}

impl Oracle for Watch {
    fn on_start(&mut self, facts: &Facts<'_>, host: usize, _out: &mut Findings) {
        let boot = facts.hosts[host].disk.boot;
        self.climbers.insert(host, Climber { from: (boot, facts.now), boot, joined: None });
    }

    fn on_event(&mut self, facts: &Facts<'_>, host: usize, event: &ControlEvent, out: &mut Findings) {
        let climber = self.climbers.entry(host).or_default();
        match event {
            ControlEvent::Membership(Event::Joined) => climber.joined = Some(facts.now),
            ControlEvent::Membership(Event::Rebooted { boot }) => {
                let before = std::mem::replace(&mut climber.boot, *boot);
                let is_young = climber.joined.is_none_or(|joined| facts.now.since(joined) < YOUNG);
                if is_young && *boot <= YOUNG_BOOT_MAX {
                    climber.from = (*boot, facts.now);
                }
                let (first, since) = climber.from;
                let answers = AT_ONCE + facts.now.since(since).as_secs();
                let most = u64::from(first) + u64::from(BOOT_LEAP_MAX) * answers;
                let is_far = boot.saturating_sub(before) > BOOT_LEAP_MAX && climber.from.0 != *boot;
                out.check(facts, Property::M17, &[host], u64::from(*boot) <= most && !is_far, || {
                    format!("went from boot {before} to {boot}, and was at {first} {:?} ago", facts.now.since(since))
                });
            }
            _ => {}
        }
    }
}
