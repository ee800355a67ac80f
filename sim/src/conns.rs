//! The connections of the world, and who has which.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use swimring::core::hello::Class;
use swimring_membership::Instant;

use crate::flow::Flow;
use crate::host::Input;

/// A process: which host, and which of its lives.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Process {
    /// Index of the host.
    pub host: usize,
    /// Counts its starts.
    pub life: u32,
}

/// One end of a connection.
#[derive(Clone, Debug)]
pub struct End {
    /// Whose.
    pub process: Process,
    /// Whether this end still believes in the connection.
    pub open: bool,
    /// When it last heard anything of the other end.
    pub heard: Instant,
    /// What came before the process knew of the connection: a dialler does once its hello is answered.
    pub(crate) early: Option<Vec<Arc<[u8]>>>,
}

impl End {
    fn new(process: Process, now: Instant) -> Self {
        Self { process, open: true, heard: now, early: None }
    }
}

/// A connection: the dialler's end first.
#[derive(Clone, Debug)]
pub struct Conn {
    /// What it carries.
    pub class: Class,
    /// Dialler, acceptor.
    pub ends: [End; 2],
    /// What goes from either end to the other.
    pub(crate) flows: [Flow; 2],
}

impl Conn {
    pub(crate) fn new(class: Class, dialler: Process, acceptor: Process, now: Instant) -> Self {
        let flows = [Flow::new(class, now), Flow::new(class, now)];
        let mut ends = [End::new(dialler, now), End::new(acceptor, now)];
        ends[0].early = Some(Vec::new());
        Self { class, ends, flows }
    }

    /// Whether `process` is one of the ends, and has not closed it.
    pub(crate) fn is_open_at(&self, process: Process) -> bool {
        self.ends.iter().any(|end| end.process == process && end.open)
    }

    /// When the end `end` last heard of the other one, by what came or by an acknowledgement.
    pub(crate) fn heard(&self, end: usize) -> Instant {
        self.ends[end].heard.max(self.flows[end].heard())
    }

    /// The end of `process`.
    pub fn end_of(&self, process: Process) -> Option<usize> {
        self.ends.iter().position(|end| end.process == process)
    }
}

/// Every connection that an end still believes in, by number.
#[derive(Debug, Default)]
pub struct Conns {
    /// By number; numbers are not used again.
    slots: Vec<Option<Box<Conn>>>,
    /// Those with an end at a host.
    of_host: Vec<BTreeSet<u64>>,
}

impl Conns {
    /// A number for a connection of which the world knows one end only.
    pub(crate) fn number(&mut self) -> u64 {
        self.slots.push(None);
        self.slots.len() as u64 - 1
    }

    /// A new connection.
    pub(crate) fn connect(&mut self, conn: Conn) -> u64 {
        let id = self.number();
        for end in &conn.ends {
            if self.of_host.len() <= end.process.host {
                self.of_host.resize_with(end.process.host + 1, BTreeSet::new);
            }
            self.of_host[end.process.host].insert(id);
        }
        self.slots[id as usize] = Some(Box::new(conn));
        id
    }

    /// The connection with this number.
    pub fn get(&self, id: u64) -> Option<&Conn> {
        self.slots.get(id as usize)?.as_deref()
    }

    /// Whether this comes from another node's control plane.
    pub(crate) fn is_gossip(&self, input: &Input) -> bool {
        match input {
            Input::Packet { conn, .. } => self.get(*conn).is_some_and(|held| held.class == Class::Gossip),
            input => matches!(input, Input::Message(..)),
        }
    }

    /// The same, to change it.
    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut Conn> {
        self.slots.get_mut(id as usize)?.as_deref_mut()
    }

    /// Those with an end at `host`, the oldest first.
    pub(crate) fn of_host(&self, host: usize) -> impl DoubleEndedIterator<Item = (u64, &Conn)> {
        self.of_host.get(host).into_iter().flatten().filter_map(|id| Some((*id, self.get(*id)?)))
    }

    /// One end gives a connection up. It is forgotten once both have.
    pub(crate) fn close_end(&mut self, id: u64, process: Process) {
        let Some(held) = self.get_mut(id) else { return };
        held.ends.iter_mut().filter(|end| end.process == process).for_each(|end| end.open = false);
        if held.ends.iter().all(|end| !end.open) {
            let hosts = held.ends.each_ref().map(|end| end.process.host);
            hosts.into_iter().for_each(|host| _ = self.of_host[host].remove(&id));
            self.slots[id as usize] = None;
        }
    }

    /// A process is gone: its ends are.
    pub(crate) fn close_process(&mut self, process: Process) {
        let ids: Vec<u64> = self.of_host(process.host).map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| self.close_end(id, process));
    }

    /// How many connections of a class there are between any two processes that both still have them.
    pub(crate) fn between(&self, class: Class) -> BTreeMap<(Process, Process), usize> {
        let mut counts = BTreeMap::new();
        let whole = |conn: &&Conn| conn.class == class && conn.ends.iter().all(|end| end.open);
        for conn in self.slots.iter().filter_map(Option::as_deref).filter(whole) {
            let [one, other] = [conn.ends[0].process, conn.ends[1].process];
            *counts.entry((one.min(other), one.max(other))).or_insert(0) += 1;
        }
        counts
    }

    /// The newest connection of a class between two processes that both still have it.
    pub(crate) fn newest(&self, class: Class, one: Process, other: Process) -> Option<u64> {
        let between = |conn: &Conn| {
            let whole = conn.class == class && conn.ends.iter().all(|end| end.open);
            whole && one != other && conn.end_of(one).is_some() && conn.end_of(other).is_some()
        };
        self.of_host(one.host).rev().find(|(_, conn)| between(conn)).map(|(id, _)| id)
    }
}
