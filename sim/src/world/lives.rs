//! How processes begin and end.

use super::*;
use crate::host::Home;

impl World {
    /// Starts a process and lets it have its first outputs.
    pub(crate) fn start(&mut self, index: usize, memory: Memory) {
        if self.hosts[index].is_up() || self.hosts[index].retired {
            return;
        }
        let seeds = self.seeds_for(index);
        let zone = self.network.zone(index);
        let rings = Arc::clone(&self.rings);
        self.hosts[index].start(self.now, &self.plan.world, zone, memory, &seeds, &rings);
        self.up += 1;
        self.start_keeping_house(self.hosts[index].process());
        self.say(|| format!("start n{}", index + 1));
        self.note(|| recording::Event::Up { node: index });
        self.with_oracles(|oracle, facts, out| oracle.on_start(facts, index, out));
        self.pump(index);
    }

    /// Every node knows the seeds, itself among them if it is one; the first node of a world that begins is a cluster of one, on purpose.
    fn seeds_for(&self, index: usize) -> Vec<SocketAddr> {
        let foreign = |host: &usize| self.hosts[*host].home == Home::Foreign;
        if foreign(&index) {
            // The first one is a cluster of its own; the others know it, and what they find there.
            let first = (0..index).find(foreign);
            let seeds = self.hosts.iter().take(self.plan.world.seeds).map(|seed| seed.address);
            return first.map(|first| seeds.chain([self.hosts[first].address]).collect()).unwrap_or_default();
        }
        let first = index == 0 && self.hosts[0].life == 0;
        let seeds = self.hosts.iter().take(self.plan.world.seeds);
        match (first, self.plan.world.balanced) {
            (true, _) => Vec::new(),
            (false, true) => vec![transport::balancer()],
            (false, false) => seeds.map(|seed| seed.address).collect(),
        }
    }

    /// From now on a node has another weight: its process tells it, and so does the next one.
    pub(crate) fn weigh(&mut self, index: usize, weight: u16) {
        let host = &mut self.hosts[index];
        let (now, still) = (host.local(self.now), host.stands_still());
        if let Some(control) = host.control.as_mut().filter(|_| !still) {
            host.weight = weight;
            let change = |profile: &mut Profile| profile.weight = weight;
            let told = control.command(now, |membership| membership.update_profile(now, change));
            told.expect("plans say no weight that is too high");
            self.pump(index);
        }
    }

    /// Ends a process without a word.
    pub(crate) fn kill(&mut self, index: usize) {
        let process = self.hosts[index].process();
        self.up -= usize::from(self.hosts[index].is_up());
        if self.hosts[index].is_up() {
            self.hosts[index].ended = Some(self.now);
        }
        self.hosts[index].kill();
        self.network.conns.close_process(process);
        self.dials.end_process(process);
        self.say(|| format!("end n{}", index + 1));
        self.note(|| recording::Event::Down { node: index });
        self.note_view(index);
    }
}
