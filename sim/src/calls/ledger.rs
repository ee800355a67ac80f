//! Every call ever made, and whether its books are right.

use std::collections::BTreeMap;
use std::time::Duration;

use swimring::forwarder::Running as Held;
use swimring_membership::{Instant, Phase};

use super::Running;
use crate::oracles::Property;
use crate::world::World;

/// What the world knows of every call.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) made: Instant,
    pub(super) deadline: Instant,
    pub(super) idempotent: bool,
    /// More of its body waits until it has begun; and whether its caller has heard that it has.
    pub(super) duplex: bool,
    pub(super) begun: bool,
    pub(super) executed: u32,
    /// How long its handlers took, if it ran.
    pub(super) handled: Duration,
    /// Nothing was said when it came: there were too many callers, or nobody waited for it.
    pub(super) passed_over: bool,
    /// How often it was refused for good.
    pub(super) refused: u32,
    /// The cluster had agreed before it began: it must be answered.
    pub(super) owed: bool,
    /// Nodes only come and go in good order, and its caller stays: it must be answered.
    pub(super) orderly: bool,
    pub(super) outcome: Option<&'static str>,
}

/// Every call ever made: who made it, how often it ran, and what its caller was told.
#[derive(Debug, Default)]
pub struct Ledger {
    /// By number: the first call has number 1.
    entries: Vec<Entry>,
    /// Calls by outcome.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Most hops of any call.
    pub hops_max: u8,
}

impl Ledger {
    /// One more call; its number.
    pub(super) fn add(&mut self, entry: Entry) -> u64 {
        self.entries.push(entry);
        self.calls()
    }

    /// Calls made.
    pub fn calls(&self) -> u64 {
        self.entries.len() as u64
    }

    pub(super) fn get(&self, call: u64) -> Option<&Entry> {
        self.entries.get(place(call)?)
    }

    pub(super) fn get_mut(&mut self, call: u64) -> Option<&mut Entry> {
        self.entries.get_mut(place(call)?)
    }
}

/// Where the call with this number lies, if there is one: strangers make them up.
fn place(call: u64) -> Option<usize> {
    usize::try_from(call.checked_sub(1)?).ok()
}

impl World {
    /// Whether a call that begins now at a process is answered, whoever comes and goes meanwhile.
    pub(super) fn is_orderly_at(&self, index: usize, deadline: Instant) -> bool {
        let host = &self.hosts[index];
        let before_quiet = self.plan.quiet.is_none_or(|quiet| deadline < Instant::ORIGIN + quiet.at);
        let stays = !host.leaving
            && host.control.as_ref().is_some_and(|control| {
                let membership = control.membership();
                membership.is_joined() && membership.is_confirmed() && membership.record().phase() == Phase::Ready
            });
        self.is_orderly && self.core.is_none() && before_quiet && stays
    }

    /// What a process took on is what it has done and what it still does: of its own calls, and of those of others.
    pub(super) fn check_books(&mut self, index: usize) {
        let Some(app) = &self.hosts[index].app else { return };
        let (begun, over, open) = (app.fresh as usize, app.over as usize, app.active.len());
        self.check(index, Property::F10, begun == over + open, || {
            format!("began {begun} calls, of which {over} are over and {open} are not")
        });
        let Some(app) = &self.hosts[index].app else { return };
        let pending: usize = app.links.all().map(|(_, link)| link.pending_count()).sum();
        let is_pending = |(to, seq): (_, u64)| app.links.get(&to).is_some_and(|link| link.is_pending(seq));
        let waiting = app.active.values().filter_map(|active| active.sent).filter(|sent| is_pending(*sent)).count();
        self.check(index, Property::F10, pending == waiting, || {
            format!("waits for {pending} answers, and only {waiting} calls do")
        });
        let Some(app) = &self.hosts[index].app else { return };
        let of_others = app.running.values().filter_map(|running| match running {
            Running::Here { .. } => None,
            Running::There { body, .. } => Some(body.len()),
        });
        let run = of_others.fold(Held::default(), |run, bytes| Held { calls: run.calls + 1, bytes: run.bytes + bytes });
        let held = app.admission.running();
        self.check(index, Property::F10, held == run, || format!("holds places for {held:?}, and runs {run:?}"));
    }
}
