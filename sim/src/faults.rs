//! What the steps of a plan do to the world.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use swimring_membership::NodeId;

use crate::conns::Process;
use crate::host::{Home, Input};
use crate::network::Layer;
use crate::plan::{Action, Cut, Memory, Select, Side};
use crate::recording::Event;
use crate::world::{Happening, World};

/// How much longer than twice its limit a process has stood still that must have noticed it.
const STALL_MARGIN: Duration = Duration::from_secs(3);

/// What comes to an end, or begins later.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    /// A layer over the network.
    Layer(usize),
    /// A pause of this process.
    Pause(Process),
    /// A block of this process.
    Block(Process),
    /// A slow time of this process.
    Slow(Process),
    /// A process is started.
    Start(usize, Memory),
    /// A process ends by itself.
    Exit(Process),
    /// A new machine comes.
    Join,
    /// Something was measured for as long as it should be.
    Measure(usize),
}

impl World {
    pub(crate) fn begin(&mut self, index: usize) {
        let step = self.plan.steps[index].clone();
        let until = self.now + step.lasts;
        self.selected.clear();
        self.say(|| format!("fault {}", step.action.kind()));
        let hit = match &step.action {
            Action::Cut(cut) => self.cut(cut, until),
            Action::Crash(who, restart) => self.crash(who, *restart),
            Action::Pause(who) => self.pause(who, until),
            Action::Block(who) => self.block(who, until),
            Action::Slow(who, factor) => self.slow(who, *factor, until),
            Action::Drift(who, ppm) => self.each(who, |world, host| world.hosts[host].drift(world.now, *ppm)),
            Action::Leave(who) => self.each(who, Self::leave),
            Action::Roll(who) => self.each(who, Self::roll),
            Action::Quit(who) => self.each(who, Self::quit),
            Action::Drain(who) => self.each(who, Self::drain),
            Action::Replace(who) => self.replace(who),
            Action::Foreign(who) => self.foreign(who),
            Action::Twin(who, memory) => self.twin(who, *memory),
            Action::Upgrade(who) => self.upgrade(who),
            Action::Weigh(who, weight) => self.each(who, |world, host| world.weigh(host, *weight)),
            Action::Strangers(count, who) => {
                let hosts = self.select(who);
                self.strangers(&hosts, *count, until)
            }
            Action::Join(count, over) => {
                for _ in 0..*count {
                    let at = self.now + self.rng.span(Duration::ZERO, (*over).max(Duration::from_millis(1)));
                    self.schedule(at, Happening::End(Ending::Join));
                }
                *count
            }
            Action::Overload(factor) => {
                let factor = (*factor).max(1);
                self.overload *= factor;
                self.schedule(until, Happening::Call(crate::calls::CallHappening::Relax(factor)));
                1
            }
            Action::Measure => self.measure(until),
            path => {
                let layer = self.layer(path);
                self.lay(layer, until)
            }
        };
        let selected = std::mem::take(&mut self.selected);
        if step.action == Action::Measure {
            return;
        }
        self.note(|| Event::Fault {
            kind: step.action.kind().into(),
            text: step.action.to_string(),
            until_ms: until.as_millis(),
            nodes: selected,
        });
        *self.faults.entry(step.action.kind()).or_insert(0) += u64::from(hit > 0);
    }

    /// Does something to each of some processes; to how many.
    fn each(&mut self, who: &Select, mut act: impl FnMut(&mut Self, usize)) -> usize {
        let hosts = self.select(who);
        hosts.iter().for_each(|host| act(self, *host));
        hosts.len()
    }

    /// What an action that concerns paths lays over the network.
    fn layer(&mut self, action: &Action) -> Layer {
        let who = |world: &mut Self, who: &Option<Select>| {
            who.as_ref().map(|who| world.select(who).into_iter().collect::<BTreeSet<_>>())
        };
        match action {
            Action::Oneway(from, to) => Layer::Oneway(self.network.hosts(from), self.network.hosts(to)),
            Action::Bridge(a, through, b) => {
                let side = |side: &Side| {
                    let mut hosts = self.network.hosts(side);
                    hosts.remove(&(through - 1));
                    hosts
                };
                Layer::Bridge(side(a), side(b))
            }
            Action::Loss(rate, hosts) => Layer::Loss(*rate, who(self, hosts)),
            Action::Hole(bytes, hosts) => Layer::Hole(*bytes, who(self, hosts)),
            Action::Dup(rate) => Layer::Dup(*rate),
            Action::Reorder(span) => Layer::Reorder(*span),
            Action::Bursts(bursts) => Layer::Bursts(*bursts, self.rng.next_u64()),
            other => unreachable!("{} does not concern paths", other.kind()),
        }
    }

    pub(crate) fn end(&mut self, ending: Ending) {
        match ending {
            Ending::Layer(layer) => self.network.lift(self.now, layer),
            Ending::Pause(process) => self.resume(process),
            Ending::Block(process) => self.unblock(process),
            Ending::Slow(process) => {
                let now = self.now;
                let host = &mut self.hosts[process.host];
                if host.process() == process {
                    host.slow = 1;
                    host.troubled = Some(now);
                }
            }
            Ending::Start(host, memory) => {
                // After quiet, only the core is started again.
                if self.core.as_ref().is_none_or(|core| core.contains(&host)) {
                    self.start(host, memory);
                }
            }
            Ending::Exit(process) => {
                if self.hosts[process.host].process() == process {
                    self.kill(process.host);
                }
            }
            Ending::Measure(number) => self.end_measure(number),
            Ending::Join => {
                if self.core.is_none() {
                    let host = self.add_host();
                    self.start(host, Memory::Kept);
                }
            }
        }
    }

    fn lay(&mut self, layer: Layer, until: swimring_membership::Instant) -> usize {
        let number = self.network.lay(layer);
        self.schedule(until, Happening::End(Ending::Layer(number)));
        1
    }

    fn cut(&mut self, cut: &Cut, until: swimring_membership::Instant) -> usize {
        let count = self.hosts.len();
        if *cut == Cut::Ring {
            let mut places: Vec<usize> = (0..count).collect();
            self.rng.shuffle(&mut places);
            self.lay(Layer::Ring(places), until);
            return usize::from(count > 3);
        }
        let mut groups = vec![0; count];
        match cut {
            Cut::Ring => {}
            Cut::Half => {
                let mut order: Vec<usize> = (0..count).collect();
                self.rng.shuffle(&mut order);
                order.into_iter().take(count / 2).for_each(|host| groups[host] = 1);
            }
            Cut::Isolate(who) => self.select(who).into_iter().for_each(|host| groups[host] = host as u32 + 1),
            Cut::Zone(zone) => self.network.hosts(&Side::Zone(*zone)).into_iter().for_each(|host| groups[host] = 1),
            Cut::Groups(listed) => {
                for (number, hosts) in listed.iter().enumerate() {
                    hosts.iter().filter(|host| **host <= count).for_each(|host| groups[host - 1] = number as u32 + 1);
                }
            }
        }
        let apart = groups.iter().any(|group| *group != groups[0]);
        self.lay(Layer::Groups(groups), until);
        usize::from(apart)
    }

    /// The hosts that a step means, of those whose process runs.
    pub(crate) fn select(&mut self, who: &Select) -> Vec<usize> {
        let selected = self.chosen(who);
        self.selected.extend(&selected);
        selected
    }

    fn chosen(&mut self, who: &Select) -> Vec<usize> {
        let up: Vec<usize> = (0..self.hosts.len()).filter(|host| self.hosts[*host].is_up()).collect();
        match who {
            Select::Side(side) => {
                let hosts = self.network.hosts(side);
                up.into_iter().filter(|host| hosts.contains(host)).collect()
            }
            Select::Nodes(nodes) => up.into_iter().filter(|host| nodes.contains(&(host + 1))).collect(),
            Select::Random(count) => {
                let mut up = up;
                self.rng.shuffle(&mut up);
                up.truncate(*count);
                up
            }
            Select::Owner(key) => self.owner_in_most_views(key, &up).into_iter().collect(),
        }
    }

    /// The host, of those that are up, which owns a key in the views of most of them.
    fn owner_in_most_views(&mut self, key: &str, up: &[usize]) -> Option<usize> {
        let hash = self.hasher.hash(key.as_bytes());
        let mut votes = BTreeMap::<NodeId, usize>::new();
        for host in up.iter().filter(|host| self.hosts[**host].home == Home::Here).copied().collect::<Vec<_>>() {
            if let Ok(owner) = self.view(host).ring().owner(hash) {
                *votes.entry(owner).or_insert(0) += 1;
            }
        }
        let owner = votes.into_iter().max_by_key(|(_, votes)| *votes).map(|(owner, _)| owner)?;
        up.iter().copied().find(|host| self.hosts[*host].id == owner)
    }

    fn crash(&mut self, who: &Select, restart: Option<(Duration, Memory)>) -> usize {
        let hosts = self.select(who);
        for host in &hosts {
            self.kill(*host);
            if let Some((after, memory)) = restart {
                self.schedule(self.now + after, Happening::End(Ending::Start(*host, memory)));
            }
        }
        hosts.len()
    }

    fn pause(&mut self, who: &Select, until: swimring_membership::Instant) -> usize {
        let hosts = self.select(who);
        for host in &hosts {
            self.hosts[*host].paused = true;
            self.hosts[*host].still_since.get_or_insert(self.now);
            let process = self.hosts[*host].process();
            self.schedule(until, Happening::End(Ending::Pause(process)));
        }
        hosts.len()
    }

    pub(crate) fn resume(&mut self, process: Process) {
        let now = self.now;
        let host = &mut self.hosts[process.host];
        if host.process() != process || !host.paused {
            return;
        }
        host.paused = false;
        host.troubled = Some(now);
        let still = host.still_since.take().map_or(Duration::ZERO, |since| now.since(since));
        let limit = host.control.as_ref().map(|control| control.membership().stall_limit());
        host.is_unsure = limit.is_some_and(|limit| still > limit * 2 + STALL_MARGIN);
        // Whether the timer or the socket comes first is the system's choice.
        if self.rng.chance(500_000) {
            host.inbox.push_front(Input::Wake);
        } else {
            host.inbox.push_back(Input::Wake);
        }
        self.schedule(now, Happening::Next(process));
        self.wake_flows(process);
    }

    fn block(&mut self, who: &Select, until: swimring_membership::Instant) -> usize {
        let hosts = self.select(who);
        for host in &hosts {
            self.hosts[*host].blocked = true;
            let process = self.hosts[*host].process();
            self.schedule(until, Happening::End(Ending::Block(process)));
        }
        hosts.len()
    }

    pub(crate) fn unblock(&mut self, process: Process) {
        let now = self.now;
        let host = &mut self.hosts[process.host];
        if host.process() == process && host.blocked {
            (host.blocked, host.troubled) = (false, Some(now));
            self.wake_flows(process);
            self.schedule(now, Happening::Next(process));
        }
    }

    fn slow(&mut self, who: &Select, factor: u32, until: swimring_membership::Instant) -> usize {
        let hosts = self.select(who);
        for host in &hosts {
            let now = self.now;
            let machine = &mut self.hosts[*host];
            (machine.slow, machine.troubled) = (factor.max(1), Some(now));
            let process = machine.process();
            self.schedule(until, Happening::End(Ending::Slow(process)));
        }
        hosts.len()
    }
}
