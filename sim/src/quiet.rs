//! How a plan ends: a core heals, agrees, and serves.

use std::time::Duration;

use swimring::core::hello::Class;
use swimring_membership::Settings;

use crate::host::Home;
use crate::oracles::Property;
use crate::plan::Memory;
use crate::recording::Event;
use crate::world::{Happening, World};

/// How often the core is looked at in the quiet phase.
const LOOK: Duration = Duration::from_millis(100);
/// How long the core must agree before it counts.
const SETTLED: u32 = 5;
/// How long the core serves after that: longer than a connection that lost to another one lingers.
pub(crate) const SERVED: Duration = Duration::from_secs(35);
/// How long after the agreement calls may still fail: rings are agreed on a moment after views, and what is under
/// way on connections to the dead ends with them.
const GRACE: Duration = Duration::from_secs(3);
/// How much later than that a row may go: nobody looks all the time.
const REAPED: Duration = Duration::from_secs(15);
/// How long news take to get around, at most, when nobody has trouble.
const NEWS: Duration = Duration::from_secs(3);
/// Nor in fewer rounds of probes than this: without news, nothing else is said.
const ROUNDS: u32 = 5;
/// How many gaps the numbers of all callers have at most when nothing has failed for a while.
const GAPS: usize = 3;

impl World {
    /// Chaos is over: a random core is healed and started, the rest is gone for good.
    pub(crate) fn quiet(&mut self) {
        let share = self.plan.quiet.map_or(100, |quiet| quiet.core);
        let hosts = (0..self.hosts.len()).filter(|host| self.hosts[*host].life > 0 && self.is_of_world(*host));
        let has_seed = hosts.clone().any(|host| host < self.plan.world.seeds);
        // A seed whose name went to a machine elsewhere is gone for good, and nobody else lets newcomers in.
        let (mut hosts, mut lost): (Vec<usize>, Vec<usize>) =
            hosts.partition(|host| has_seed || self.hosts[*host].finds_others());
        if hosts.is_empty() {
            std::mem::swap(&mut hosts, &mut lost);
        }
        self.rng.shuffle(&mut hosts);
        let least = (hosts.len() * share as usize).div_ceil(100).max(1);
        let size = least + self.rng.index(hosts.len() - least + 1);
        // Joining is owed only while a seed can be reached: the core has one.
        if let Some(seed) = hosts.iter().position(|host| *host < self.plan.world.seeds) {
            hosts.swap(0, seed);
        }
        let gone = hosts.split_off(size).into_iter().chain(lost);
        hosts.sort_unstable();
        self.say(|| format!("quiet: the core is {:?}", hosts.iter().map(|host| host + 1).collect::<Vec<_>>()));
        self.note(|| Event::Quiet { core: hosts.clone() });
        self.network.lift_all(self.now);
        gone.for_each(|host| self.kill(host));
        self.core = Some(hosts.clone());
        self.quiet_at = self.now;
        for host in hosts {
            self.hosts[host].slow = 1;
            self.undrain(host);
            self.unblock(self.hosts[host].process());
            if self.hosts[host].paused {
                self.resume(self.hosts[host].process());
            }
            if !self.hosts[host].is_up() || self.has_left(host) {
                self.kill(host);
                self.start(host, Memory::Kept);
            }
        }
        self.agreed = 0;
        self.schedule(self.now + LOOK, Happening::Look);
    }

    /// Whether the machine is one of the world's cluster that still has its place in it.
    fn is_of_world(&self, host: usize) -> bool {
        !self.hosts[host].retired && self.hosts[host].home == Home::Here
    }

    fn has_left(&self, host: usize) -> bool {
        let control = self.hosts[host].control.as_ref();
        self.hosts[host].leaving
            || control.is_some_and(|control| {
                let membership = control.membership();
                membership.roster().present(membership.id()).is_none()
            })
    }

    /// The core agrees when everybody in it sees everybody in it and nobody else.
    pub(crate) fn look(&mut self) {
        let Some(core) = &self.core else { return };
        let agreed = self.disagreement(core).is_none();
        self.check_open_calls();
        self.agreed = if agreed { self.agreed + 1 } else { 0 };
        if self.agreed == SETTLED {
            self.converged_after = Some(self.now.since(self.quiet_at) - LOOK * (SETTLED - 1));
            self.schedule(self.now + SERVED, Happening::Over);
        } else {
            self.schedule(self.now + LOOK, Happening::Look);
        }
    }

    /// Whether a call that begins now is owed its answer.
    pub(crate) fn is_owed(&self) -> bool {
        self.plan.expect.served && self.is_settled()
    }

    /// Whether the core agreed a while ago.
    pub(crate) fn is_settled(&self) -> bool {
        let since = self.converged_after.map(|after| self.quiet_at + after + GRACE);
        since.is_some_and(|since| self.now > since)
    }

    /// The core has agreed and served for a while: nothing is left over of the chaos.
    pub(crate) fn over(&mut self) {
        let core = self.core.clone().unwrap_or_default();
        let changed = self.disagreement(&core);
        let apart = if changed.is_none() { self.fences_apart(&core) } else { None };
        if (changed.is_some() || apart.is_some()) && !self.doubted {
            // Somebody may just have objected to a suspicion: that takes a moment to get around, and so does a fence.
            self.doubted = true;
            let rounds = Settings::preset(self.plan.world.preset).probe_period * ROUNDS;
            return self.schedule(self.now + NEWS.max(rounds), Happening::Over);
        }
        self.over = true;
        self.check(core[0], Property::L7, changed.is_none(), || {
            format!("the core agreed, and then did not: {}", changed.unwrap_or_default())
        });
        let lower = apart.as_ref().map_or(core[0], |(host, _)| *host);
        self.check(lower, Property::R9, apart.is_none(), || apart.map(|(_, held)| held).unwrap_or_default());
        self.check_remembered();
        self.check_reaped(&core);
        self.check_rings(&core);
        self.check_asked(&core);
        core.iter().for_each(|host| self.check_shared_address(*host));
        // One, and for a moment the one that it replaces; behind a shared address, one that each of the two replaces.
        // Those of calls may linger longer than the world lasts.
        let most = if self.plan.world.balanced { 3 } else { 2 };
        for ((one, other), count) in self.network.conns.between(Class::Gossip) {
            self.check(one.host, Property::P1, count <= most, || {
                format!("{count} connections to n{} are left", other.host + 1)
            });
        }
    }

    /// What callers have given up is forgotten: what is left are numbers without many gaps.
    fn check_remembered(&mut self) {
        for host in self.core.clone().unwrap_or_default() {
            let Some(remembered) = self.hosts[host].remembered() else { continue };
            self.check(host, Property::B4, remembered.runs <= remembered.callers + GAPS, || {
                format!("remembers {remembered:?} long after chaos")
            });
        }
    }

    /// Nobody is listed much longer than it takes to reap who is gone.
    fn check_reaped(&mut self, core: &[usize]) {
        let listed = Settings::preset(self.plan.world.preset).reap_after + REAPED;
        for index in core {
            let host = &self.hosts[*index];
            let Some(control) = &host.control else { continue };
            let now = host.local(self.now);
            let rows = control.membership().roster().iter();
            let old = rows.filter(|(_, row)| !row.state.is_present() && now.since(row.since) > listed);
            let old = old.map(|(_, row)| row.record.profile().name.to_string()).next();
            self.check(*index, Property::B5, old.is_none(), || {
                format!("still lists {}, which is gone", old.unwrap_or_default())
            });
        }
    }

    /// Why the core does not agree yet.
    pub fn disagreement(&self, core: &[usize]) -> Option<String> {
        let mut digest = None;
        for host in core {
            let machine = &self.hosts[*host];
            let Some(control) = &machine.control else {
                return Some(format!("{} is not running", machine.name));
            };
            if self.namesakes(*host).any(|other| self.hosts[other].is_up()) {
                return Some(format!("{} runs twice", machine.name));
            }
            let membership = control.membership();
            if !membership.is_joined() || !membership.is_confirmed() {
                return Some(format!("{} is not joined or not confirmed", machine.name));
            }
            for other in core {
                if membership.roster().present(self.hosts[*other].id).is_none() {
                    return Some(format!("{} does not see {}", machine.name, self.hosts[*other].name));
                }
            }
            if membership.roster().present_count() != core.len() {
                let others = membership.roster().iter().filter(|(_, row)| row.state.is_present());
                let gone = others.filter(|(id, _)| core.iter().all(|other| self.hosts[*other].id != *id));
                let gone =
                    gone.map(|(_, row)| format!("{} ({:?})", row.record.profile().name, row.state)).collect::<Vec<_>>();
                return Some(format!("{} sees {}, who is gone", machine.name, gone.join(", ")));
            }
            if *digest.get_or_insert(membership.roster().digest()) != membership.roster().digest() {
                return Some(format!("{} has another digest", machine.name));
            }
        }
        None
    }

    /// The core of the quiet phase, once it has begun.
    pub fn core(&self) -> Option<&[usize]> {
        self.core.as_deref()
    }
}
