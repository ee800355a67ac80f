//! A recording as one HTML file that needs nothing else.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::oracles::Property;
use crate::recording::{ARCS, Believed, Event, Recording};

const PAGE: &str = include_str!("report.html");
/// Where the data goes.
const PLACE: &str = "/*DATA*/null";

/// The page of a recording.
pub fn page(recording: &Recording) -> String {
    let data = data(recording).to_string();
    // Nothing in the data may end the element that holds it.
    PAGE.replacen(PLACE, &data.replace("</", "<\\/"), 1)
}

fn data(recording: &Recording) -> Value {
    let tail = &recording.tail;
    let (mut lanes, mut faults, mut views, mut calls, mut violations) = (vec![], vec![], vec![], vec![], vec![]);
    let (mut owner_times, mut owners) = (Vec::new(), Vec::new());
    let mut beliefs = Vec::new();
    let mut quiet = Value::Null;
    for (at, event) in &recording.events {
        match event {
            Event::Up { node } => {
                lanes.push(json!([at, node, 1]));
                push_belief(&mut beliefs, *at, *node, EVERYBODY, Believed::Unknown);
            }
            Event::Down { node } => lanes.push(json!([at, node, 0])),
            Event::Fault { kind, text, until_ms, nodes } => faults.push(json!([at, until_ms, kind, text, nodes])),
            Event::Belief { by, of, state } => push_belief(&mut beliefs, *at, *by, *of, *state),
            Event::Views { count } => push_step(&mut views, *at, *count),
            Event::Owners { claims } => {
                owner_times.push(*at);
                claims.iter().for_each(|claims| push_claims(&mut owners, claims));
            }
            Event::Call { call, key, node } => calls.push(json!([call, "call", at, node, key])),
            Event::Run { call, node } => calls.push(json!([call, "run", at, node, ""])),
            Event::Refused { call, node, why } => calls.push(json!([call, "refused", at, node, why])),
            Event::Outcome { call, outcome, hops } => calls.push(json!([call, "end", at, hops, outcome])),
            Event::Quiet { core } => quiet = json!([at, core]),
            Event::Violation { violation, past } => violations.push(json!([violation, past])),
        }
    }
    let properties: Vec<Value> =
        tail.checks.iter().map(|(property, count)| json!([property.name(), count, property.statement()])).collect();
    let unchecked: Vec<&str> =
        Property::ALL.iter().filter(|one| tail.checks.of(**one) == 0).map(|one| one.name()).collect();
    json!({
        "plan": recording.head.plan,
        "seed": recording.head.seed,
        "tail": tail,
        "lanes": lanes,
        "faults": faults,
        "views": views,
        "beliefs": BASE64_STANDARD.encode(beliefs),
        "arcs": ARCS,
        "owner_times": owner_times,
        "owners": BASE64_STANDARD.encode(owners),
        "calls": calls,
        "quiet": quiet,
        "violations": violations,
        "properties": properties,
        "unchecked": unchecked,
    })
}

/// Of everybody: a process that begins knows nobody.
const EVERYBODY: usize = u16::MAX as usize;

/// Nine bytes: the time in milliseconds, who, of whom, what.
fn push_belief(bytes: &mut Vec<u8>, at: f64, by: usize, of: usize, state: Believed) {
    bytes.extend_from_slice(&(at as u32).to_le_bytes());
    bytes.extend_from_slice(&(by as u16).to_le_bytes());
    bytes.extend_from_slice(&(of as u16).to_le_bytes());
    bytes.push(state as u8);
}

/// Three bytes: the first who claims it (nobody: all ones), and how many do.
fn push_claims(bytes: &mut Vec<u8>, claims: &[usize]) {
    let first = claims.first().map_or(u16::MAX, |first| *first as u16);
    bytes.extend_from_slice(&first.to_le_bytes());
    bytes.push(claims.len().min(255) as u8);
}

/// What was last within a millisecond counts.
fn push_step(steps: &mut Vec<Value>, at: f64, count: usize) {
    let at = at.floor();
    if steps.last().is_some_and(|last| last[0] == at) {
        steps.pop();
    }
    steps.push(json!([at, count]));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;
    use crate::world::World;

    const PLAN: &str = "plan 1\nworld nodes=4 arcs=2^8\nload rate=5\nat 20s cut half for 20s\nquiet at 50s core=70%\n";

    #[test]
    fn the_page_is_whole_and_needs_nothing_else() {
        let mut world = World::new(Plan::parse(PLAN).expect("the plan is right"), 5);
        world.record();
        world.run(None);
        let hash = world.trace.hash();
        let page = page(&world.recording().expect("it was recorded"));
        assert!(page.contains(&hash) && !page.contains(PLACE));
        for outside in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn recording_changes_nothing_and_reads_back_the_same() {
        let run = |record: bool| {
            let mut world = World::new(Plan::parse(PLAN).expect("the plan is right"), 5);
            if record {
                world.record();
            }
            world.run(None);
            (world.trace.hash(), world.recording())
        };
        let (hash, recording) = run(true);
        assert_eq!(hash, run(false).0);
        let recording = recording.expect("it was recorded");
        let path = std::env::temp_dir().join(format!("swimring-recording-{}", std::process::id()));
        recording.write(&path).expect("the directory takes files");
        let read = Recording::read(&path).expect("it was written a line ago");
        std::fs::remove_file(&path).expect("it was written two lines ago");
        assert_eq!(data(&read), data(&recording));
    }
}
