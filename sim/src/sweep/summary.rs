//! What came of many plans, added up.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::oracles::{Counts, Property};
use crate::world::{Verdict, World};

/// Most failures listed.
const FAILURES_MAX: usize = 100;

/// A seed whose plan failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Failure {
    pub(super) seed: u64,
    pub(super) oracle: String,
    pub(super) replay: String,
    message: String,
}

/// Everything that a sweep reports.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Summary {
    pub(super) profile: String,
    pub(super) plans: u64,
    pub(super) violations: u64,
    pub(super) nonconverged: u64,
    pub(super) crashes: u64,
    pub(super) failures: Vec<Failure>,
    faults: BTreeMap<String, u64>,
    oracles: Counts,
    /// In how many plans each property was checked.
    oracle_plans: Counts,
    calls: u64,
    outcomes: BTreeMap<String, u64>,
    hops_max: u8,
    node_seconds: f64,
    converged_ms_max: u64,
    /// Which plan that was.
    #[serde(default)]
    slowest_seed: u64,
    /// How many plans agreed after how many milliseconds.
    #[serde(default)]
    converged_ms: BTreeMap<u64, u64>,
    /// Of the stretches that plans measure.
    #[serde(default)]
    measured: Measured,
    pub(super) wall_s: f64,
}

/// What passed while plans measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Measured {
    stretches: u64,
    downs: u64,
    false_downs: u64,
    sent_bytes_per_node_s_max: f64,
    received_bytes_per_node_s_max: f64,
    handshakes_per_node_h_max: f64,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {}: {}\n  {}", self.seed, self.oracle, self.message, self.replay)
    }
}

impl Summary {
    pub(super) fn failed(&self) -> u64 {
        self.crashes + self.violations + self.nonconverged
    }

    pub(super) fn is_clean(&self) -> bool {
        self.failed() == 0
    }

    /// Adds what a plan came to; the failure, if it is one.
    pub(super) fn add(&mut self, seed: u64, replay: String, world: &World) -> Option<Failure> {
        self.plans += 1;
        let failure = |oracle: &str, message| Failure { seed, oracle: oracle.into(), replay, message };
        let failure = match world.verdict() {
            Verdict::Crash => {
                self.crashes += 1;
                Some(failure("crash", format!("the code panicked at {} ms", world.now.as_millis())))
            }
            Verdict::Violation => {
                self.violations += 1;
                let first = &world.findings.violations[0];
                let message = format!("at {} ms, {}: {}", first.at_ms, first.nodes.join(" "), first.message);
                Some(failure(first.oracle.name(), message))
            }
            Verdict::NotConverged => {
                self.nonconverged += 1;
                let why = world.core().and_then(|core| world.disagreement(core)).unwrap_or_default();
                Some(failure(Property::L4.name(), why))
            }
            Verdict::Clean => None,
        };
        self.add_counts(seed, world);
        if self.failures.len() < FAILURES_MAX {
            self.failures.extend(failure.clone());
            self.failures.sort_by_key(|failure| failure.seed);
        }
        failure
    }

    fn add_counts(&mut self, seed: u64, world: &World) {
        for (kind, count) in &world.faults {
            *self.faults.entry((*kind).into()).or_insert(0) += count;
        }
        self.oracles.add(&world.findings.checks);
        world.findings.checks.iter().for_each(|(property, _)| self.oracle_plans.count(property));
        self.calls += world.ledger.calls();
        self.hops_max = self.hops_max.max(world.ledger.hops_max);
        for (kind, count) in &world.ledger.outcomes {
            *self.outcomes.entry((*kind).into()).or_insert(0) += count;
        }
        self.node_seconds += world.node_seconds();
        let converged = world.converged_after.map_or(0, |after| after.as_millis() as u64);
        if world.converged_after.is_some() {
            *self.converged_ms.entry(converged).or_insert(0) += 1;
        }
        // Of several that are equal the lowest seed, in whatever order they end.
        if (converged, self.slowest_seed) > (self.converged_ms_max, seed) || self.plans == 1 {
            (self.converged_ms_max, self.slowest_seed) = (converged, seed);
        }
        for stretch in &world.measured {
            let sum = &mut self.measured;
            sum.stretches += 1;
            sum.downs += stretch.downs;
            sum.false_downs += stretch.false_downs;
            sum.sent_bytes_per_node_s_max = sum.sent_bytes_per_node_s_max.max(stretch.sent_bytes_per_node_s);
            sum.received_bytes_per_node_s_max =
                sum.received_bytes_per_node_s_max.max(stretch.received_bytes_per_node_s);
            sum.handshakes_per_node_h_max = sum.handshakes_per_node_h_max.max(stretch.handshakes_per_node_h);
        }
    }

    /// Within how many milliseconds this share of the plans agreed.
    fn converged_ms(&self, percent: u64) -> u64 {
        let wanted = (self.converged_ms.values().sum::<u64>() * percent).div_ceil(100);
        let mut agreed = 0;
        let within = self.converged_ms.iter().find(|(_, plans)| {
            agreed += *plans;
            agreed >= wanted
        });
        within.map_or(0, |(ms, _)| *ms)
    }

    pub(super) fn print(&self, json: bool) {
        if json {
            say!("{}", serde_json::to_string(self).expect("a summary has only text keys"));
            return;
        }
        say!(
            "{} plans: {} violations, {} not converged, {} crashes; {:.0} node-seconds in {:.1} s",
            self.plans,
            self.violations,
            self.nonconverged,
            self.crashes,
            self.node_seconds,
            self.wall_s
        );
        say!("faults that happened: {}", list(self.faults.iter()));
        say!("checks (share of the plans that made any):");
        for (property, count) in self.oracles.iter() {
            let share = self.oracle_plans.of(property) * 100 / self.plans.max(1);
            say!("  {:<4} {count:>12} {share:>3} %  {}", property.name(), property.statement());
        }
        say!("calls: {} ({}), at most {} hops", self.calls, list(self.outcomes.iter()), self.hops_max);
        say!(
            "slowest agreement: {} ms (seed {}); of {} plans the median {} ms, 99 % within {} ms",
            self.converged_ms_max,
            self.slowest_seed,
            self.converged_ms.values().sum::<u64>(),
            self.converged_ms(50),
            self.converged_ms(99)
        );
        let measured = &self.measured;
        if measured.stretches > 0 {
            say!(
                "measured {} times: declared down {} times, of them {} somebody who was up; a node sent {:.0} and got {:.0} bytes a \
                 second at most, and began {:.1} handshakes an hour",
                measured.stretches,
                measured.downs,
                measured.false_downs,
                measured.sent_bytes_per_node_s_max,
                measured.received_bytes_per_node_s_max,
                measured.handshakes_per_node_h_max
            );
        }
    }
}

fn list<'a>(counts: impl Iterator<Item = (&'a String, &'a u64)>) -> String {
    counts.map(|(kind, count)| format!("{kind} {count}")).collect::<Vec<_>>().join(", ")
}
