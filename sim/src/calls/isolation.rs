//! What others suffer from is not felt by two who are well: a call between them takes what its handler and the way take,
//! whoever else stands still, is slow, cut off or gone, and however large the bodies are that go the same way.

use swimring::forwarder::{Repeat, Unknown, Why};

use super::*;

/// For so long both ends and the link between them have been well when such a call begins. A connection that was cut off
/// takes a while to be given up, and a dial that failed to be made again.
const WELL: Duration = Duration::from_secs(20);
/// And when a connection is given up: longer than the transport may wait before it tries again.
const WELL_FOR_LONG: Duration = Duration::from_secs(180);
/// How many round trips a call takes at most, with a new connection, and with a window that is small after losses.
const ROUND_TRIPS: u32 = 10;
/// What acknowledgements and busy processes take besides.
const BESIDES: Duration = Duration::from_millis(50);

impl World {
    /// A call was answered by whoever was asked first, or was not: in time, if both ends and what lies between them were well.
    pub(super) fn check_isolation(&mut self, index: usize, id: u64, active: &Active, outcome: &Outcome<Vec<u8>>) {
        let repeats = active.call.repeats(Repeat::Trouble) + active.call.repeats(Repeat::Moving);
        let is_small = active.payload.body.len() <= LANE_BODY_BYTES_MAX;
        let has_waited = match outcome {
            Outcome::Ok(_) | Outcome::Unknown(Unknown::Deadline) => true,
            Outcome::NotExecuted(no) => matches!(no.why(), Why::Deadline | Why::Unsent(Unsent::Silent)),
            Outcome::Executed(_) | Outcome::Unknown(Unknown::Lost) => false,
        };
        let Some(entry) = self.ledger.get(id).filter(|entry| !entry.passed_over) else { return };
        if repeats > 0 || active.call.hops > 1 || !is_small || !has_waited {
            return;
        }
        let (made, took, handled) = (entry.made, self.now.since(entry.made), entry.handled);
        let other = match (active.sent, outcome) {
            (Some((to, _)), _) => self.host_of(to),
            (None, Outcome::Ok(_)) => Some(index),
            (None, _) => None,
        };
        let Some(other) = other.filter(|other| self.are_well(index, *other, made, WELL)) else { return };
        let Some(way) = self.network.round_trip(index, other) else { return };
        self.check(index, Property::F14, took <= handled + way * ROUND_TRIPS + BESIDES, || {
            format!("call {id} took {took:?}, though n{} and n{} and their link are well", index + 1, other + 1)
        });
    }

    /// A connection is given up, for nothing comes on it: not if both ends and what lies between them have long been well.
    pub(super) fn check_given_up(&mut self, index: usize, to: Instance) {
        let other = self.host_of(to).filter(|other| self.network.round_trip(index, *other).is_some());
        let is_wrong = other.is_some_and(|other| self.are_well(index, other, self.now, WELL_FOR_LONG));
        self.check(index, Property::F16, !is_wrong, || format!("gives up a connection to {to:?}, which is well"));
    }

    /// Where a process runs, if it does.
    fn host_of(&self, process: Instance) -> Option<usize> {
        self.hosts.iter().position(|host| host.app.as_ref().is_some_and(|app| app.me == process))
    }

    /// Whether two machines, and the link between them, are well, and had been for so long at that moment.
    fn are_well(&self, one: usize, other: usize, at: Instant, long: Duration) -> bool {
        let since = [self.well_since(one), self.well_since(other), self.network.undisturbed_since(one, other)];
        since.into_iter().all(|since| since.is_some_and(|since| at > since + long))
    }

    /// Since when a machine has run without trouble; `None` while it has some.
    fn well_since(&self, index: usize) -> Option<Instant> {
        let host = &self.hosts[index];
        let is_well = host.is_up() && !host.stands_still() && host.slow == 1;
        is_well.then(|| host.started.max(host.troubled.unwrap_or(Instant::ORIGIN)))
    }
}
