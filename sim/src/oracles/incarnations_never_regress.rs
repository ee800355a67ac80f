//! M1: a process never restates itself at a lower incarnation, and once it has joined with its state kept its
//! boot is above every one that its name had before.

use std::collections::BTreeMap;
use std::time::Duration;

use swimring::core::control::ControlEvent;
use swimring_membership::{Event, Incarnation, Instant, NodeId};

use crate::host::Host;

use super::{BOOT_LEAP_MAX, Facts, Findings, Oracle, Property};

#[derive(Default)]
pub(super) struct Watch {
    /// The highest incarnation of each machine's node, by life.
    highest: BTreeMap<usize, (u32, Minted)>,
    /// When the process of a host joined, by its life.
    joined: BTreeMap<usize, (u32, Instant)>,
    /// The highest of the lives before the running one.
    before: BTreeMap<NodeId, Minted>,
}

/// An incarnation, and when its process last said something that all seeds could hear of.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Minted {
    incarnation: Incarnation,
    seen: Instant,
}

impl Oracle for Watch {
    fn on_event(&mut self, facts: &Facts<'_>, host: usize, event: &ControlEvent, out: &mut Findings) {
        let ControlEvent::Membership(event) = event else {
            return;
        };
        let machine = &facts.hosts[host];
        let Some(control) = &machine.control else {
            return;
        };
        let own = control.membership().record().incarnation();
        let minted = Minted { incarnation: own, seen: machine.started };
        let (life, highest) = self.highest.entry(host).or_insert((machine.life, minted));
        if *life != machine.life {
            // Of a life that never joined, nobody has to know.
            let had_joined = self.joined.get(&host).is_some_and(|(joined, _)| joined == life);
            if had_joined {
                self.before
                    .entry(machine.id)
                    .and_modify(|before| *before = (*before).max(*highest))
                    .or_insert(*highest);
            }
            (*life, *highest) = (machine.life, minted);
        }
        let heard = |seed: &Host| facts.network.reachable_since(host, seed.index).is_some();
        if facts.seeds().filter(|seed| seed.index != host && seed.is_up()).all(heard) {
            highest.seen = facts.now;
        }
        if matches!(event, Event::Changed { id, .. } if *id == machine.id) {
            let held = highest.incarnation;
            out.check(facts, Property::M1, &[host], own >= held, || format!("went from {held} to {own}"));
            highest.incarnation = own.max(held);
        }
        if *event == Event::Joined {
            self.joined.insert(host, (machine.life, facts.now));
        }
        // With nobody in the cluster to ask, nobody can know better.
        if *event == Event::Joined
            && let Some(Minted { incarnation: before, seen }) = self.before.get(&machine.id)
            && self.somebody_knew(facts, host, *seen)
            // Only lies raise a boot so high, at a process that others may not hear.
            && before.boot < BOOT_LEAP_MAX
        {
            out.check(facts, Property::M1, &[host], own.boot > before.boot, || {
                format!("joined at {own}, but its name had lived up to {before}")
            });
        }
    }
}

/// Loss above this excuses whoever did not wait for a seed's answer, in millionths.
const LOSS_MAX: u32 = 50_000;

impl Watch {
    /// Whether somebody who was asked must have known of the earlier life: a seed that has been up, well and within reach
    /// for 10 s, while nobody answers in its stead who cannot know: a seed that joined after that life was `seen` last
    /// is told of those who are present only, and one that came within reach less than 10 s ago may not have caught up.
    fn somebody_knew(&self, facts: &Facts<'_>, host: usize, seen: Instant) -> bool {
        if facts.balanced && host < facts.seeds {
            // By luck it reaches only itself, and whoever comes at the same time reaches it.
            return false;
        }
        let settled = |since: Instant| facts.now.since(since) > Duration::from_secs(10);
        let met = |seed: &Host| {
            let joined = self.joined.get(&seed.index).filter(|(life, _)| *life == seed.life);
            joined.is_some_and(|(_, at)| *at < seen)
        };
        let knew = |seed: &Host| {
            let reached = facts.network.reachable_since(host, seed.index).is_some_and(settled);
            let well = seed.troubled.is_none_or(settled) && !seed.stands_still() && seed.slow == 1;
            reached && settled(seed.started) && well
        };
        // It has not caught up yet, and may be the one who answers.
        let is_late =
            |seed: &Host| facts.network.reachable_since(host, seed.index).is_some_and(|since| !settled(since));
        let joined = |seed: &&Host| seed.control.as_ref().is_some_and(|control| control.membership().is_joined());
        let home = facts.hosts[host].home;
        let others = facts.seeds().filter(|seed| seed.index != host && seed.is_up() && seed.home == home);
        let (joined, others): (Vec<&Host>, Vec<&Host>) = others.partition(joined);
        let knowing = joined.iter().filter(|seed| knew(seed)).count();
        // Behind a shared address it is luck who answers.
        let least = if facts.balanced { (joined.len() + others.len()).max(1) } else { 1 };
        let all_told = joined.iter().all(|seed| met(seed) && !is_late(seed));
        knowing >= least && all_told && facts.network.worst_loss() <= LOSS_MAX
    }
}
