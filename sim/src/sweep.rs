//! The plans of many seeds, on a few threads; each world stays on one.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use serde::Serialize;

use crate::oracles::{Counts, Property};
use crate::profile::{self, Profile};
use crate::world::{Verdict, World};

/// Most failures listed.
const FAILURES_MAX: usize = 100;

#[derive(Serialize)]
struct Failure {
    seed: u64,
    oracle: String,
    replay: String,
    message: String,
}

#[derive(Default, Serialize)]
struct Summary {
    profile: String,
    plans: u64,
    violations: u64,
    nonconverged: u64,
    crashes: u64,
    failures: Vec<Failure>,
    faults: BTreeMap<&'static str, u64>,
    oracles: Counts,
    calls: u64,
    outcomes: BTreeMap<&'static str, u64>,
    hops_max: u8,
    node_seconds: f64,
    converged_ms_max: u64,
    wall_s: f64,
}

struct Outcome {
    seed: u64,
    world: Option<World>,
    verdict: Option<Verdict>,
}

/// How much to try.
#[derive(Clone, Debug)]
pub struct Extent {
    /// Which seeds.
    pub seeds: Range<u64>,
    /// How many at once.
    pub jobs: usize,
    /// Begin no further plan once one has failed, and end that one at once.
    pub until_failure: bool,
}

/// Runs the plans of some seeds and prints what came of them.
#[expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a sweep reports its own wall time and uses threads; no world sees either"
)]
pub fn run(profile: Profile, extent: &Extent, json: bool) -> ExitCode {
    let started = std::time::Instant::now();
    let next = AtomicU64::new(extent.seeds.start);
    let jobs = extent.jobs.max(1);
    let (send, receive) = mpsc::sync_channel(jobs);
    let name = profile.to_string();
    let mut summary = Summary { profile: name.clone(), ..Summary::default() };
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            let (next, end, send) = (&next, extent.seeds.end, send.clone());
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || send.send(one(profile, seed, extent.until_failure)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        for outcome in receive {
            summary.add(&name, outcome, json);
            if extent.until_failure && !summary.is_clean() {
                next.store(extent.seeds.end, Ordering::Relaxed);
            }
        }
    });
    summary.wall_s = started.elapsed().as_secs_f64();
    summary.failures.sort_by_key(|failure| failure.seed);
    summary.print(json);
    match (summary.crashes, summary.violations, summary.nonconverged) {
        (0, 0, 0) => ExitCode::SUCCESS,
        (0, 0, _) => ExitCode::from(3),
        (0, ..) => ExitCode::from(1),
        _ => ExitCode::from(4),
    }
}

fn one(profile: Profile, seed: u64, hasty: bool) -> Outcome {
    let run = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(profile::plan(profile, seed), seed);
        world.hasty = hasty;
        let verdict = world.run(None);
        (world, verdict)
    }));
    let (world, verdict) = run.map_or((None, None), |(world, verdict)| (Some(world), Some(verdict)));
    Outcome { seed, world, verdict }
}

impl Summary {
    fn is_clean(&self) -> bool {
        (self.crashes, self.violations, self.nonconverged) == (0, 0, 0)
    }

    fn add(&mut self, profile: &str, outcome: Outcome, json: bool) {
        self.plans += 1;
        let replay =
            format!("swimring-sim plan --profile {profile} --seed {0} | swimring-sim run - --seed {0}", outcome.seed);
        let mut fail = |oracle: &str, message: String| {
            if !json {
                say!("seed {}: {oracle}: {message}\n  {replay}", outcome.seed);
            }
            if self.failures.len() < FAILURES_MAX {
                self.failures.push(Failure {
                    seed: outcome.seed,
                    oracle: oracle.into(),
                    replay: replay.clone(),
                    message,
                });
            }
        };
        let Some(world) = &outcome.world else {
            fail("crash", "the world panicked".into());
            self.crashes += 1;
            return;
        };
        match outcome.verdict {
            Some(Verdict::Violation) => {
                let first = &world.findings.violations[0];
                fail(
                    first.oracle.name(),
                    format!("at {} ms, {}: {}", first.at_ms, first.nodes.join(" "), first.message),
                );
                self.violations += 1;
            }
            Some(Verdict::NotConverged) => {
                let why = world.core().and_then(|core| world.disagreement(core)).unwrap_or_default();
                fail(Property::L4.name(), why);
                self.nonconverged += 1;
            }
            _ => {}
        }
        for (kind, count) in &world.faults {
            *self.faults.entry(kind).or_insert(0) += count;
        }
        self.oracles.add(&world.findings.checks);
        self.calls += world.ledger.calls;
        self.hops_max = self.hops_max.max(world.ledger.hops_max);
        for (kind, count) in &world.ledger.outcomes {
            *self.outcomes.entry(kind).or_insert(0) += count;
        }
        self.node_seconds += world.node_seconds;
        let converged = world.converged_after.map_or(0, |after| after.as_millis() as u64);
        self.converged_ms_max = self.converged_ms_max.max(converged);
    }

    fn print(&self, json: bool) {
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
        let list = |counts: &BTreeMap<&str, u64>| {
            counts.iter().map(|(k, v)| format!("{k} {v}")).collect::<Vec<_>>().join(", ")
        };
        say!("faults: {}", list(&self.faults));
        let checks = self.oracles.iter().map(|(oracle, count)| format!("{oracle} {count}")).collect::<Vec<_>>();
        say!("checks: {}", checks.join(", "));
        say!("calls: {} ({}), at most {} hops", self.calls, list(&self.outcomes), self.hops_max);
        say!("slowest agreement: {} ms", self.converged_ms_max);
    }
}
