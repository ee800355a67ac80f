//! A failing plan made small: as few faults, nodes, calls and seconds as still break the same property.
//!
//! Delta debugging (Zeller's ddmin) over the plan, never over the randomness: streams are independent, so that what
//! is left does what it did before. Another failure than the first one's is not accepted.

use std::time::Duration;

use swimring_membership::Instant;

use crate::oracles::Property;
use crate::plan::{Action, Keys, Latency, Plan, Quiet};
use crate::world::{Verdict, World};

mod nodes;

/// Worlds of so many nodes are run in no time.
const SMALL: usize = 5;
/// How many moments such a world is tried at.
const MOMENTS: u64 = 16;

/// What shrinking came to.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The smallest plan found.
    pub plan: Plan,
    /// What it comes to, as the first one did.
    pub failure: Failure,
    /// How many plans were run.
    pub runs: u32,
    /// Whether nothing smaller was left to try when it ended; otherwise time was up.
    pub is_minimal: bool,
}

/// How a plan fails.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It breaks this property.
    Broken(Property),
    /// The code panics.
    Crash,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Broken(property) => property.fmt(f),
            Self::Crash => f.write_str("crash"),
        }
    }
}

/// How a plan fails first, under a seed, if it does, and when.
pub fn failure(plan: &Plan, seed: u64) -> Option<(Failure, Duration)> {
    let mut world = World::new(plan.clone(), seed);
    world.hasty = true;
    match world.run(None) {
        Verdict::Clean => None,
        Verdict::NotConverged => Some((Failure::Broken(Property::L4), plan.end())),
        Verdict::Crash => Some((Failure::Crash, world.now.since(Instant::ORIGIN))),
        Verdict::Violation => {
            let first = &world.findings.violations[0];
            Some((Failure::Broken(first.oracle), Duration::from_millis(first.at_ms)))
        }
    }
}

/// Makes a plan that fails under `seed` small, until `is_time_up` says so; `None` if it does not fail.
pub fn shrink(plan: &Plan, seed: u64, is_time_up: &dyn Fn() -> bool) -> Option<Shrunk> {
    // As it is said: a time below a microsecond is not.
    let plan = Plan::parse(&plan.to_string()).unwrap_or_else(|_| plan.clone());
    let (failure, at) = failure(&plan, seed)?;
    let mut search = Search { plan, at, seed, failure, runs: 1, is_time_up };
    // Each way of making it smaller may open others: until none does.
    while search.round() {}
    let is_minimal = !is_time_up();
    Some(Shrunk { plan: search.plan, failure, runs: search.runs, is_minimal })
}

struct Search<'a> {
    /// The smallest that fails so far, and when it does.
    plan: Plan,
    at: Duration,
    seed: u64,
    failure: Failure,
    runs: u32,
    is_time_up: &'a dyn Fn() -> bool,
}

impl Search<'_> {
    /// Tries every way once; whether one of them made the plan smaller.
    fn round(&mut self) -> bool {
        let before = self.plan.clone();
        self.end_early();
        // Small worlds are run in no time: the sooner the better.
        self.drop_nodes();
        self.drop_steps();
        self.simplify();
        self.calm();
        self.hurry();
        self.plan != before && !(self.is_time_up)()
    }

    /// Takes `plan` if it fails in the same way.
    fn take(&mut self, plan: Plan) -> bool {
        // What is made has to be sayable: it is read by whoever looks into the failure.
        if plan == self.plan || (self.is_time_up)() || Plan::parse(&plan.to_string()).as_ref() != Ok(&plan) {
            return false;
        }
        self.runs += 1;
        match failure(&plan, self.seed) {
            Some((failure, at)) if failure == self.failure => {
                (self.plan, self.at) = (plan, at);
                true
            }
            _ => false,
        }
    }

    /// Takes what a change makes of the plan, if it fails in the same way.
    fn change(&mut self, change: impl FnOnce(&mut Plan)) -> bool {
        let mut plan = self.plan.clone();
        change(&mut plan);
        self.take(plan)
    }

    /// Nothing that begins after the failure has to do with it; and a failure before the quiet phase needs none.
    fn end_early(&mut self) {
        let at = self.at;
        self.change(|plan| plan.steps.retain(|step| step.at <= at));
        let quiet = self.plan.quiet.map_or(Duration::MAX, |quiet| quiet.at);
        if at < quiet {
            let end = Duration::from_secs(at.as_secs() + 1);
            self.change(|plan| plan.quiet = Some(Quiet { at: end, core: 100 }));
        } else {
            let last = self.plan.steps.iter().map(|step| step.at + step.lasts).max().unwrap_or_default();
            for spare in [1, 5, 30] {
                let end = Duration::from_secs(last.as_secs() + spare);
                if end < quiet && self.change(|plan| set_quiet(plan, end)) {
                    break;
                }
            }
        }
        self.change(|plan| plan.quiet.iter_mut().for_each(|quiet| quiet.core = 100));
    }

    /// Leaves faults out: half of them, a quarter, down to one by one.
    fn drop_steps(&mut self) {
        let mut size = self.plan.steps.len().div_ceil(2);
        while size > 0 {
            let mut from = 0;
            while from < self.plan.steps.len() {
                let to = (from + size).min(self.plan.steps.len());
                let dropped = self.change(|plan| _ = plan.steps.drain(from..to));
                from = if dropped { from } else { to };
            }
            size = if size == 1 { 0 } else { size.div_ceil(2) };
        }
    }

    /// Fewer nodes, as few as will do. A smaller world draws other delays: what needs a coincidence may need another
    /// moment, so the faults are tried some seconds later, too.
    fn drop_nodes(&mut self) {
        let mut nodes = 1;
        while nodes < self.plan.world.nodes {
            let moments = if nodes <= SMALL { MOMENTS } else { 1 };
            for later in 0..moments {
                let fewer = self.change(|plan| {
                    nodes::keep(plan, nodes);
                    delay(plan, Duration::from_secs(later));
                });
                if fewer {
                    break;
                }
            }
            nodes += nodes.div_ceil(SMALL);
        }
        // Sizes were left out.
        while self.plan.world.nodes > 1 && self.change(|plan| nodes::keep(plan, plan.world.nodes - 1)) {}
    }

    /// One zone, one seed, plain links, no load, or a small one.
    fn simplify(&mut self) {
        self.change(|plan| plan.load = None);
        self.change(|plan| plan.world.balanced = false);
        self.change(|plan| plan.world.mesh = 256);
        self.change(|plan| plan.world.zones = 1);
        self.change(|plan| plan.world.seeds = 1);
        self.change(|plan| plan.links.clear());
        for index in 0..self.plan.links.len() {
            self.change(|plan| plan.links[index].loss = 0);
            self.change(|plan| plan.links[index].dup = 0);
            self.change(|plan| plan.links[index].corrupt = 0);
            self.change(|plan| plan.links[index].reorder = Duration::ZERO);
            self.change(|plan| plan.links[index].latency = Latency::Const(Duration::from_millis(1)));
        }
        if self.plan.load.is_some() {
            let load = |plan: &mut Plan, change: fn(&mut crate::plan::Load)| plan.load.iter_mut().for_each(change);
            self.change(|plan| load(plan, |load| load.body = 1));
            self.change(|plan| load(plan, |load| load.keys = Keys::Uniform(1)));
            self.change(|plan| load(plan, |load| load.idempotent = 0));
            self.change(|plan| load(plan, |load| load.handler = Latency::Const(Duration::from_millis(1))));
            while self.plan.load.as_ref().is_some_and(|load| load.rate > 1)
                && self.change(|plan| load(plan, |load| load.rate /= 2))
            {}
        }
    }

    /// Milder and shorter faults.
    fn calm(&mut self) {
        for index in 0..self.plan.steps.len() {
            while self.change(|plan| plan.steps[index].lasts = halved(plan.steps[index].lasts)) {}
            while self.change(|plan| weaken(&mut plan.steps[index].action)) {}
        }
    }

    /// Faults that follow each other at once.
    fn hurry(&mut self) {
        for index in 0..self.plan.steps.len() {
            let before = index.checked_sub(1).map_or(Duration::ZERO, |before| self.plan.steps[before].at);
            let at = self.plan.steps[index].at;
            let gap = at.saturating_sub(before);
            for share in [8, 2] {
                let pull = gap - halved_to_a_second(gap, share);
                if !pull.is_zero() && self.change(|plan| pull_forward(plan, index, pull)) {
                    break;
                }
            }
        }
    }
}

fn set_quiet(plan: &mut Plan, at: Duration) {
    let core = plan.quiet.map_or(100, |quiet| quiet.core);
    plan.quiet = Some(Quiet { at, core });
}

/// Everything begins so much later.
fn delay(plan: &mut Plan, by: Duration) {
    plan.steps.iter_mut().for_each(|step| step.at += by);
    plan.quiet.iter_mut().for_each(|quiet| quiet.at += by);
}

/// The step `index`, all after it and the quiet phase begin so much earlier.
fn pull_forward(plan: &mut Plan, index: usize, by: Duration) {
    plan.steps[index..].iter_mut().for_each(|step| step.at -= by);
    plan.quiet.iter_mut().for_each(|quiet| quiet.at = quiet.at.saturating_sub(by));
}

/// Half of it, in whole seconds; what is a second or less stays.
fn halved(span: Duration) -> Duration {
    if span <= Duration::from_secs(1) { span } else { Duration::from_secs(span.as_secs().div_ceil(2)) }
}

fn halved_to_a_second(span: Duration, share: u32) -> Duration {
    Duration::from_secs((span / share).as_secs().max(1)).min(span)
}

fn weaken(action: &mut Action) {
    nodes::halve(action);
    match action {
        Action::Strangers(count, _) => *count = count.div_ceil(2),
        Action::Slow(_, factor) => *factor = (*factor / 2).max(2),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Agreement within no time at all is never met: whatever is not needed for that goes.
    #[test]
    fn what_has_nothing_to_do_with_the_failure_goes() {
        let text = "plan 1\nworld nodes=9 zones=2 seeds=2 arcs=2^8\nload rate=5\nat 10s cut half for 20s\n\
                    at 20s pause n3 for 5s\nat 40s loss 20% for 5s\nquiet at 60s core=70%\nexpect converged<=0s\n";
        let plan = Plan::parse(text).expect("the plan is right");
        let shrunk = shrink(&plan, 1, &|| false).expect("it fails");
        assert_eq!((shrunk.failure, shrunk.is_minimal), (Failure::Broken(Property::L4), true));
        assert!(shrunk.plan.steps.is_empty() && shrunk.plan.load.is_none(), "{}", shrunk.plan);
        assert!(shrunk.plan.world.nodes <= 2, "{}", shrunk.plan);
        assert_eq!(failure(&shrunk.plan, 1).map(|(failure, _)| failure), Some(Failure::Broken(Property::L4)));
    }

    #[test]
    fn a_plan_that_does_not_fail_has_nothing_to_shrink() {
        let plan = Plan::parse("plan 1\nworld nodes=3\nquiet at 20s\nexpect converged<=10s\n").expect("it is right");
        assert!(shrink(&plan, 1, &|| false).is_none());
    }
}
