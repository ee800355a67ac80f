//! How fast worlds run: node-seconds of world time a second of one core, and the memory that they take.

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use crate::oracles::Violation;
use crate::plan::Plan;
use crate::world::World;

/// A cluster starts, and is settled by then; what comes after that is measured.
const STARTED: Duration = Duration::from_secs(60);
/// How long the measured part lasts, quiet phase excluded.
const LASTS: u64 = 600;

/// One size.
#[derive(Debug, Serialize)]
struct Row {
    nodes: usize,
    /// Of the time after the start.
    node_seconds_per_s: f64,
    events_per_node_second: f64,
    /// The most memory that the process had while it ran this size.
    rss_mib: Option<u64>,
    /// For all of it, and for the start alone.
    wall_s: f64,
    start_wall_s: f64,
    calls: u64,
    verdict: &'static str,
    violations: Vec<Violation>,
    #[serde(skip)]
    exit_code: u8,
}

/// The plan: what ships, under calls, while one of a hundred crashes every minute and comes back.
fn plan(nodes: usize) -> Plan {
    let crashes = (1..LASTS / 60).map(|minute| {
        let at = STARTED.as_secs() + minute * 60;
        format!("at {at}s crash random({}) ; restart after=20s memory=kept\n", nodes.div_ceil(100))
    });
    let crashes: String = crashes.collect();
    let quiet = STARTED.as_secs() + LASTS;
    let text = format!(
        "plan 1\nworld nodes={nodes} seeds=3 arcs=2^12 limits=shipped\n\
         load rate=100 keys=uniform(100000) deadline=5s handler=const(1ms) body=128\n\
         {crashes}quiet at {quiet}s core=100%\nexpect converged<=60s"
    );
    Plan::parse(&text).expect("the text follows the language")
}

#[expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "wall time is what is measured; no world sees it"
)]
fn one(nodes: usize) -> Row {
    forget_peak();
    let mut world = World::new(plan(nodes), 1);
    let began = std::time::Instant::now();
    world.run(Some(STARTED));
    let started = began.elapsed();
    let (before, events) = (world.node_seconds(), world.trace.events);
    let verdict = world.run(None);
    let wall = began.elapsed();
    let node_seconds = world.node_seconds() - before;
    Row {
        nodes,
        node_seconds_per_s: node_seconds / (wall - started).as_secs_f64(),
        events_per_node_second: (world.trace.events - events) as f64 / node_seconds,
        rss_mib: peak_mib(),
        wall_s: wall.as_secs_f64(),
        start_wall_s: started.as_secs_f64(),
        calls: world.ledger.calls(),
        verdict: verdict.name(),
        violations: std::mem::take(&mut world.findings.violations),
        exit_code: verdict.exit_code(),
    }
}

/// From now on the peak is counted anew, where the system can do that.
fn forget_peak() {
    _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn peak_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib / 1_024)
}

/// Runs every size, one after another on one core, and prints what came of it.
pub fn run(sizes: &[usize], json: bool) -> ExitCode {
    if !json {
        sizes.first().iter().for_each(|nodes| crate::say!("{}", plan(**nodes).to_string().trim_end()));
    }
    let mut rows = Vec::new();
    for nodes in sizes {
        let row = one(*nodes);
        if !json {
            crate::say!(
                "{} nodes: {:.0} node-seconds a second, {:.2} events a node-second, {} calls, {} MiB, {:.1} s ({:.1} s of it to \
                 start): {}",
                row.nodes,
                row.node_seconds_per_s,
                row.events_per_node_second,
                row.calls,
                row.rss_mib.map_or("?".into(), |mib| mib.to_string()),
                row.wall_s,
                row.start_wall_s,
                row.verdict
            );
            row.violations.iter().for_each(|violation| crate::say!("{violation}"));
        }
        rows.push(row);
    }
    if json {
        crate::say!("{}", serde_json::json!({ "rows": rows }));
    }
    ExitCode::from(rows.iter().map(|row| row.exit_code).max().unwrap_or(0))
}
