//! How a large cluster comes about through one seed (Suresh et al.: Rapid, USENIX ATC 2018, §7): how long until everybody
//! sees everybody, and how many different sizes of the cluster are seen on the way.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use swimring_membership::{Preset, Settings};

use super::{ExperimentError, Extent, Line};
use crate::plan::Plan;
use crate::world::World;

/// How many nodes start, within a second.
const SIZES: [(&str, usize); 2] = [("1000", 1_000), ("2000", 2_000)];
/// Everybody is asked for the size that often, as in the paper.
const ASKED_EVERY: Duration = Duration::from_secs(1);
/// When it is given up.
const LONGEST: Duration = Duration::from_secs(180);

/// What the paper says of 2,000 nodes: its own system, and memberlist.
#[derive(Debug, Serialize)]
struct Published {
    #[serde(skip_serializing_if = "Option::is_none")]
    rapid_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memberlist_s: Option<[f64; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rapid_sizes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memberlist_sizes: Option<usize>,
}

#[derive(Debug, Serialize)]
struct Measured {
    /// Until everybody sees everybody, for each repetition; none if that took longer than it was waited for.
    converged_s: Vec<Option<f64>>,
    /// How many different sizes were seen.
    sizes: Vec<usize>,
    /// Handshakes that a node began on average.
    handshakes: Vec<f64>,
    /// Bytes that a node sent on average, in KB.
    sent_kb: Vec<f64>,
}

pub(super) fn run(extent: &Extent<'_>, json: bool) -> Result<ExitCode, ExperimentError> {
    if extent.kept_in.is_some() {
        return Err(ExperimentError::NoProgress);
    }
    if let Some(only) = extent.only.filter(|only| SIZES.iter().all(|(name, _)| name != only)) {
        return Err(ExperimentError::Row(only.into(), SIZES.map(|(name, _)| name).join(", ")));
    }
    let mut lines = Vec::new();
    for (name, nodes) in SIZES.into_iter().filter(|(name, _)| extent.only.is_none_or(|only| only == *name)) {
        let mut measured =
            Measured { converged_s: Vec::new(), sizes: Vec::new(), handshakes: Vec::new(), sent_kb: Vec::new() };
        let seeds: Vec<u64> = (0..extent.repetitions).collect();
        crate::parallel::each(
            &seeds,
            extent.jobs,
            |seed| start(nodes, seed),
            |_, run| {
                measured.converged_s.push(run.converged.map(|after| after.as_secs_f64()));
                measured.sizes.push(run.sizes);
                measured.handshakes.push(run.handshakes);
                measured.sent_kb.push(run.sent_kb);
                true
            },
        );
        let large = nodes == 2_000;
        let published = Published {
            rapid_s: large.then_some(54.0),
            memberlist_s: large.then_some([95.0, 98.0]),
            rapid_sizes: large.then_some(4),
            memberlist_sizes: large.then_some(1_858),
        };
        lines.push(Line { name, published, measured });
    }
    if json {
        let settings = format!("{:?}", Settings::preset(Preset::Lan));
        crate::say!("{}", serde_json::json!({ "rows": lines, "model": { "swimring": settings } }));
    } else {
        for Line { name, published, measured } in &lines {
            crate::say!("{name} nodes through one seed");
            crate::say!("  published: {published:?}");
            crate::say!("  measured: {measured:?}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

struct Run {
    converged: Option<Duration>,
    sizes: usize,
    handshakes: f64,
    sent_kb: f64,
}

fn start(nodes: usize, seed: u64) -> Run {
    let text = format!(
        "plan 1\nworld nodes={nodes} seeds=1 arcs=2^8 limits=shipped\nlink latency=uniform(0.2ms,1ms)\n\
         quiet at 1h core=100%\n"
    );
    let mut world = World::new(Plan::parse(&text).expect("the text follows the language"), seed);
    let mut seen: BTreeSet<usize> = BTreeSet::new();
    let (mut at, mut converged) = (Duration::ZERO, None);
    while converged.is_none() && at < LONGEST {
        at += ASKED_EVERY;
        world.run(Some(at));
        let sizes: Vec<usize> = world.sizes().collect();
        seen.extend(&sizes);
        converged = (sizes.len() == nodes && sizes.iter().all(|size| *size == nodes)).then_some(at);
    }
    let total = world.network.total();
    Run {
        converged,
        sizes: seen.len(),
        handshakes: total.handshakes as f64 / nodes as f64,
        sent_kb: total.sent.bytes as f64 / 1_000.0 / nodes as f64,
    }
}
