//! What others suffer from is not felt by two who are well: a call between them takes what its handler and the way take,
//! whoever else stands still, is slow, cut off or gone, and however large the bodies are that go the same way.

use swimring::forwarder::{Repeat, Unknown, Why};

use super::*;

/// For so long both ends and the link between them have been well when such a call begins. A connection that was cut off
/// takes a while to be given up, and a dial that failed to be made again.
const WELL: Duration = Duration::from_secs(20);
/// How many round trips it takes at most: with a new connection, and with a window that is small after losses.
const ROUND_TRIPS: u32 = 10;

impl World {
    /// A call was answered by whoever was asked first, or was not: in time, if both ends and what lies between them were well.
    pub(super) fn check_isolation(&mut self, index: usize, id: u64, active: &Active, outcome: &Outcome<Vec<u8>>) {
        let repeats = active.call.repeats(Repeat::Trouble) + active.call.repeats(Repeat::Moving);
        let is_small = active.payload.body.len() <= LANE_BODY_BYTES_MAX;
        if repeats > 0 || active.call.hops > 1 || !is_small {
            return;
        }
        let waited = match outcome {
            Outcome::Ok(_) | Outcome::Unknown(Unknown::Deadline) => true,
            Outcome::NotExecuted(no) => matches!(no.why(), Why::Unsent(Unsent::Silent | Unsent::Late)),
            Outcome::Executed(_) | Outcome::Unknown(Unknown::Lost) => false,
        };
        let Some(entry) = self.ledger.get(id).filter(|entry| waited && !entry.passed_over) else { return };
        let (made, took) = (entry.made, self.now.since(entry.made));
        let other = match active.sent {
            Some((to, _)) => self.hosts.iter().position(|host| host.app.as_ref().is_some_and(|app| app.me == to)),
            None => Some(index),
        };
        let Some((other, way)) = other.and_then(|other| Some((other, self.network.round_trip(index, other)?))) else {
            return;
        };
        let since = [self.well_since(index), self.well_since(other), self.network.undisturbed_since(index, other)];
        if since.into_iter().any(|since| since.is_none_or(|since| made < since + WELL)) {
            return;
        }
        let handler = self.plan.load.as_ref().map_or(Duration::ZERO, |load| load.handler.longest());
        self.check(index, Property::F14, took <= handler + way * ROUND_TRIPS, || {
            format!("call {id} took {took:?}, though n{} and n{} and their link are well", index + 1, other + 1)
        });
    }

    /// Since when a machine has run without trouble; `None` while it has some.
    fn well_since(&self, index: usize) -> Option<Instant> {
        let host = &self.hosts[index];
        let is_well = host.is_up() && !host.stands_still() && host.slow == 1;
        is_well.then(|| host.started.max(host.troubled.unwrap_or(Instant::ORIGIN)))
    }
}
