//! Faults of who is who: addresses, names and releases that change hands.

use std::time::Duration;

use swimring::core::hello::{Class, Hello, Refusal};
use swimring_membership::{Instant, Name, wire};

use crate::host::Home;
use crate::oracles::Property;
use crate::plan::{Memory, Select};
use crate::world::World;

/// What a later release may append to its hello, and say besides.
const LATER: &[u8] = b"of a later release";
/// How long ago a rival may have answered, that somebody gives way to.
const ANSWERED: Duration = Duration::from_secs(10);
/// A process that has been well and reached for so long is known to everybody.
const KNOWN_TO_ALL: Duration = Duration::from_secs(60);
/// Loss above this excuses a question that came to nothing, in millionths.
const LOSS_MAX: u32 = 20_000;
/// A kind of message, and of frame, that this release does not know.
const LATER_KIND: u8 = 200;

impl World {
    /// Others take the addresses of machines that end; a seed's address stays a seed's.
    pub(crate) fn replace(&mut self, who: &Select) -> usize {
        let mut hosts = self.select(who);
        hosts.retain(|host| *host >= self.plan.world.seeds);
        for host in &hosts {
            let next = self.take_address(*host);
            self.start(next, Memory::Kept);
        }
        hosts.len()
    }

    /// Nodes of another cluster take the addresses of machines that end, and find what was stored there.
    pub(crate) fn foreign(&mut self, who: &Select) -> usize {
        let mut hosts = self.select(who);
        hosts.retain(|host| *host > 0);
        for host in &hosts {
            let next = self.take_address(*host);
            let (name, disk) = (self.hosts[*host].name.clone(), self.hosts[*host].disk.clone());
            self.hosts[next].is_called(name, Home::Foreign);
            self.hosts[next].disk = disk;
            self.start(next, Memory::Kept);
        }
        hosts.len()
    }

    /// A machine ends, and a new one takes its address.
    fn take_address(&mut self, host: usize) -> usize {
        self.kill(host);
        self.hosts[host].retired = true;
        let address = self.hosts[host].address;
        let next = self.add_host();
        self.by_address.remove(&self.hosts[next].address);
        self.hosts[next].address = address;
        self.by_address.insert(address, next);
        next
    }

    /// Processes with names that others have start elsewhere.
    pub(crate) fn twin(&mut self, who: &Select, memory: Memory) -> usize {
        let hosts = self.select(who);
        for host in &hosts {
            let next = self.add_host();
            let (name, home) = (self.hosts[*host].name.clone(), self.hosts[*host].home);
            self.hosts[next].is_called(name, home);
            self.hosts[next].disk = self.hosts[*host].copied_disk(memory);
            self.start(next, Memory::Kept);
        }
        hosts.len()
    }

    /// Processes end, and those of a later release take their places.
    pub(crate) fn upgrade(&mut self, who: &Select) -> usize {
        let hosts = self.select(who);
        for host in &hosts {
            self.kill(*host);
            self.hosts[*host].upgraded = true;
            self.start(*host, Memory::Kept);
        }
        hosts.len()
    }

    /// A process gives its name up to another one, and ends: nobody starts it again.
    pub(crate) fn give_way(&mut self, index: usize) {
        (self.hosts[index].retired, self.hosts[index].gave_way) = (true, true);
        let others = || self.namesakes(index).map(|other| &self.hosts[other]);
        let has_it = others().any(|other| other.is_up() && !other.retired);
        // A rival that answered a moment ago may have crashed since, but not in the quiet phase.
        let lately = |at: Instant| self.now.since(at) <= ANSWERED;
        let crashed = others().any(|other| !other.gave_way && other.ended.is_some_and(lately)) && self.core.is_none();
        self.check(index, Property::M8, has_it || crashed, || "gave its name up, and nobody else has it".into());
        let robbed = self.is_robbed(index);
        self.check(index, Property::M8, !robbed, || {
            "lost its name to a process that asked for it while it was well and could be reached".into()
        });
        if let Some(core) = &mut self.core {
            core.retain(|host| *host != index);
        }
    }

    /// Whether all who want the name of this machine's process asked for it when that one had been well for long, and
    /// everybody had reached it.
    fn is_robbed(&self, index: usize) -> bool {
        let machine = &self.hosts[index];
        let joined = machine.control.as_ref().is_some_and(|control| control.membership().is_joined());
        let reached = |other: usize| match self.network.reachable_since(other, index) {
            Some(since) => since,
            None => self.now,
        };
        let troubled = machine.troubled.unwrap_or(Instant::ORIGIN);
        let well_since =
            (0..self.hosts.len()).filter(|other| *other != index).map(reached).fold(troubled, Instant::max);
        // A seed that has just started knows nobody, and lets in whoever comes.
        let seeds = self.hosts.iter().take(self.plan.world.seeds).map(|seed| seed.started);
        let well_since = seeds.fold(well_since.max(machine.started), Instant::max);
        let is_late = |other: usize| self.hosts[other].started.since(well_since) > KNOWN_TO_ALL;
        let well = joined && !machine.leaving && !machine.stands_still() && machine.slow == 1;
        let mut rivals = self.namesakes(index).filter(|other| self.hosts[*other].is_up()).peekable();
        well && self.network.worst_loss() <= LOSS_MAX && rivals.peek().is_some() && rivals.all(is_late)
    }

    /// The other machines with the name of this one.
    pub(crate) fn namesakes(&self, index: usize) -> impl Iterator<Item = usize> {
        let id = self.hosts[index].id;
        (0..self.hosts.len()).filter(move |other| *other != index && self.hosts[*other].id == id)
    }

    /// What a hello is read as at the other end, which may be of another release.
    pub(crate) fn read_hello(&self, from: usize, hello: &Hello) -> Result<Hello, Refusal> {
        if !self.hosts[from].upgraded {
            return Ok(*hello);
        }
        let mut bytes = Vec::new();
        hello.encode(&mut bytes);
        // Behind the length and the magic: the oldest and the newest version.
        bytes[7] += 1;
        bytes.extend_from_slice(LATER);
        Hello::decode(&bytes[2..])
    }

    /// What a process of a later release says beside what this one understands.
    pub(crate) fn later_words(&self, host: usize, class: Class) -> Option<Vec<u8>> {
        let length = LATER.len() as u8;
        let head = match class {
            Class::Gossip => vec![LATER_KIND, wire::VERSION, length, 0],
            Class::Calls => {
                let version = swimring::forwarder::wire::VERSION;
                vec![length + 4, 0, 0, 0, LATER_KIND, version, length, 0]
            }
        };
        self.hosts[host].upgraded.then(|| [head.as_slice(), LATER].concat())
    }
}

/// The name of a cluster that has nothing to do with the world's.
pub(crate) fn elsewhere() -> Name {
    Name::new("elsewhere").expect("the name follows the rule")
}
