//! What the world remembers of dials, to judge the next ones by.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use swimring::core::hello::Class;
use swimring::core::peers::{DialId, Target};
use swimring_membership::{Instant, NodeId, Peer};

use crate::conns::Process;

/// How long dials are remembered.
const LATELY: Duration = Duration::from_secs(120);

/// When which process dialled what lately; and which dials are under way.
#[derive(Debug, Default)]
pub(crate) struct Dials {
    of: BTreeMap<(Process, Class), Dialled>,
    /// When a process was last without any connection.
    alone: BTreeMap<Process, Instant>,
}

/// What one process did for one class of connections.
#[derive(Debug, Default)]
struct Dialled {
    times: BTreeMap<SocketAddr, VecDeque<Instant>>,
    reached: BTreeMap<SocketAddr, VecDeque<Instant>>,
    under_way: BTreeSet<DialId>,
    failures: BTreeMap<Target, u32>,
    /// When it has forgotten what failed to a node.
    forgotten: BTreeMap<Peer, Instant>,
    /// Since when, and before when, what is not dialled.
    waits: BTreeMap<(SocketAddr, Option<NodeId>), (Instant, Instant)>,
}

impl Dials {
    fn of(&mut self, process: Process, class: Class) -> &mut Dialled {
        self.of.entry((process, class)).or_default()
    }

    /// A process has ended: nothing more is asked of it.
    pub(crate) fn end_process(&mut self, process: Process) {
        self.alone.remove(&process);
        [Class::Gossip, Class::Calls].into_iter().for_each(|class| _ = self.of.remove(&(process, class)));
    }

    /// Notes a dial; how many of them there were within a minute.
    pub(crate) fn note(&mut self, now: Instant, process: Process, class: Class, address: SocketAddr) -> usize {
        let times = self.of(process, class).times.entry(address).or_default();
        times.push_back(now);
        while times.front().is_some_and(|at| now.since(*at) > LATELY) {
            times.pop_front();
        }
        times.iter().filter(|at| now.since(**at) <= Duration::from_secs(60)).count()
    }

    /// Notes that a dial has reached somebody; how often it has within a second.
    pub(crate) fn reach(&mut self, now: Instant, process: Process, class: Class, address: SocketAddr) -> usize {
        let times = self.of(process, class).reached.entry(address).or_default();
        times.push_back(now);
        while times.front().is_some_and(|at| now.since(*at) > Duration::from_secs(1)) {
            times.pop_front();
        }
        times.len()
    }

    /// Notes that a dial is under way; how many of them there are.
    pub(crate) fn begin(&mut self, process: Process, class: Class, dial: DialId) -> usize {
        let dials = &mut self.of(process, class).under_way;
        dials.insert(dial);
        dials.len()
    }

    /// How often in a row a target could not be reached, now that it was, or once more was not.
    pub(crate) fn failures(&mut self, process: Process, class: Class, target: Target, reached: bool) -> u32 {
        let failures = self.of(process, class).failures.entry(target).or_insert(0);
        *failures = if reached { 0 } else { *failures + 1 };
        *failures
    }

    /// The process has forgotten what failed to this node at this address.
    pub(crate) fn forget(&mut self, now: Instant, process: Process, class: Class, of: Peer) {
        let dialled = self.of(process, class);
        dialled.forgotten.insert(of, now);
        dialled.failures.retain(|target, _| !matches!(target, Target::Peer(peer, _) if *peer == of));
        dialled.waits.retain(|(address, who), _| *who != Some(of.id) || address.ip() != of.address.ip());
    }

    /// Whether a process is, or within a minute was, without any connection.
    pub(crate) fn was_alone(&mut self, now: Instant, process: Process, is_alone: bool) -> bool {
        if is_alone {
            self.alone.insert(process, now);
        }
        self.alone.get(&process).is_some_and(|at| now.since(*at) <= Duration::from_secs(60))
    }

    /// Whether that was at this very moment: of two things at once, either may have come first.
    pub(crate) fn forgets(&self, now: Instant, process: Process, class: Class, target: Target) -> bool {
        let forgotten = self.of.get(&(process, class)).map(|dialled| &dialled.forgotten);
        matches!(target, Target::Peer(peer, _) if forgotten.and_then(|held| held.get(&peer)) == Some(&now))
    }

    /// Whether a process has dialled an address lately.
    pub(crate) fn has_tried(&self, now: Instant, process: Process, class: Class, address: SocketAddr) -> bool {
        let times = self.of.get(&(process, class)).and_then(|dialled| dialled.times.get(&address));
        times.is_some_and(|times| times.iter().any(|at| now.since(*at) <= LATELY))
    }

    /// After a dial that failed, the target is left alone until then.
    pub(crate) fn wait(&mut self, now: Instant, process: Process, class: Class, target: Target, until: Instant) {
        let (address, who) = match target {
            Target::Peer(peer, address) => (address, Some(peer.id)),
            Target::Seed(address) => (address, None),
        };
        self.of(process, class).waits.insert((address, who), (now, until));
    }

    /// Whether the target of a dial is to be left alone, for it has failed before; not if it has at this very moment.
    pub(crate) fn waits(
        &self,
        now: Instant,
        process: Process,
        class: Class,
        address: SocketAddr,
        who: Option<NodeId>,
    ) -> bool {
        let waits = self.of.get(&(process, class)).and_then(|dialled| dialled.waits.get(&(address, who)));
        waits.is_some_and(|(since, until)| *since < now && now < *until)
    }

    /// Whether nothing is being dialled.
    pub(crate) fn are_over(&self, process: Process, class: Class) -> bool {
        self.of.get(&(process, class)).is_none_or(|dialled| dialled.under_way.is_empty())
    }

    /// Whether the target is a seed that will be dialled once it need not wait any more.
    pub(crate) fn seed_waits(&self, now: Instant, process: Process, target: Target) -> bool {
        let Target::Seed(address) = target else { return false };
        let dialled = self.of.get(&(process, Class::Gossip));
        let waits = dialled.and_then(|dialled| dialled.waits.get(&(address, None)));
        // They are noted a little shorter than they are.
        waits.is_some_and(|(_, until)| now < *until + Duration::from_millis(50))
    }

    /// A dial has come to an end.
    pub(crate) fn end(&mut self, process: Process, class: Class, dial: DialId) {
        self.of(process, class).under_way.remove(&dial);
    }
}
