//! What the SWIM paper (Das, Gupta, Motivala, DSN 2002, §5) measured with its prototype: how soon a crash is noticed by
//! anybody, what that costs, and who stays when a tenth of all packets is lost.

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use swimring_membership::{Config, Preset, Settings};

use super::{Extent, Line};
use crate::plan::Plan;
use crate::recording::{Believed, Event};
use crate::world::World;

/// Sizes of groups, as in the paper's figures 2 and 3.
const SIZES: [usize; 7] = [8, 13, 20, 28, 35, 43, 56];
/// Runs of each size and repetition.
const RUNS: u64 = 20;
/// When the group is settled, and when its member crashes.
const SETTLED: Duration = Duration::from_secs(20);
const CRASH: Duration = Duration::from_secs(60);
/// Members of the run with loss, and how long it lasts.
const LOSSY: usize = 17;
const LASTS: Duration = Duration::from_secs(175);

#[derive(Debug, Serialize)]
struct Published {
    #[serde(skip_serializing_if = "Option::is_none")]
    mean: Option<f64>,
    says: &'static str,
}

#[derive(Debug, Serialize)]
struct Measured {
    members: Vec<usize>,
    /// A mean for each size.
    means: Vec<f64>,
}

/// What one run of a size came to: periods until the crash is noticed and until everybody knows of the verdict, messages a
/// member and period.
struct Run {
    noticed: Option<f64>,
    told: Option<f64>,
    messages: f64,
}

pub(super) fn run(extent: &Extent<'_>, json: bool) -> ExitCode {
    let runs: Vec<u64> = (0..extent.repetitions * RUNS * SIZES.len() as u64).collect();
    let mut by_size: Vec<Vec<Run>> = SIZES.iter().map(|_| Vec::new()).collect();
    crate::parallel::each(
        &runs,
        extent.jobs,
        |number| crash(SIZES[number as usize % SIZES.len()], number),
        |number, run| {
            by_size[number as usize % SIZES.len()].push(run);
            true
        },
    );
    let means = |of: &dyn Fn(&Run) -> Option<f64>| Measured {
        members: SIZES.to_vec(),
        means: by_size.iter().map(|runs| mean(runs.iter().filter_map(of))).collect(),
    };
    let stay = (0..extent.repetitions).map(|seed| members_that_stay(seed) as f64);
    let lines = [
        Line {
            name: "first detection, periods",
            published: Published { mean: Some(1.58), says: "e/(e-1) expected; 1.1 to 3.25 measured" },
            measured: means(&|run| run.noticed),
        },
        Line {
            name: "messages a member and period",
            published: Published { mean: Some(2.0), says: "2 sent and 2 received, whatever the size" },
            measured: means(&|run| Some(run.messages)),
        },
        Line {
            name: "verdict known to all, periods",
            published: Published {
                mean: None,
                says: "detection, 9 to 15 periods of suspicion, and 1 to 3 of infection",
            },
            measured: means(&|run| run.told),
        },
        Line {
            name: "members that stay at 10 % loss",
            published: Published { mean: Some(12.0), says: "of 17 after 175 s: 12 with suspicion, 4 and 2 without" },
            measured: Measured { members: vec![LOSSY], means: vec![mean(stay)] },
        },
    ];
    if json {
        let settings = format!("{:?}", Settings::preset(Preset::Lan));
        crate::say!("{}", serde_json::json!({ "rows": lines, "model": { "swimring": settings } }));
    } else {
        for Line { name, published, measured } in &lines {
            crate::say!("{name}");
            crate::say!("  published: {}", published.says);
            crate::say!("  of {:?} members: {:.2?}", measured.members, measured.means);
        }
    }
    ExitCode::SUCCESS
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (count, sum) = values.fold((0.0_f64, 0.0), |(count, sum), value| (count + 1.0, sum + value));
    sum / count.max(1.0)
}

fn world(members: usize, steps: &str, seed: u64) -> World {
    let text = format!(
        "plan 1\nworld nodes={members} seeds=1 arcs=2^8 limits=shipped\nlink latency=uniform(0.2ms,1ms)\n{steps}\n\
         quiet at 1h core=100%\n"
    );
    World::new(Plan::parse(&text).expect("the text follows the language"), seed)
}

/// A member of a settled group crashes.
fn crash(members: usize, seed: u64) -> Run {
    let period = Config::preset(Preset::Lan).period(members);
    let mut world = world(members, &format!("at {}s crash n{members}", CRASH.as_secs()), seed);
    world.run(Some(SETTLED));
    let before = world.trace.messages;
    world.run(Some(CRASH));
    let messages = (world.trace.messages - before) as f64;
    let periods = (CRASH - SETTLED).as_secs_f64() / period.as_secs_f64();
    world.record();
    world.run(Some(CRASH + period * 60));
    let events = world.recording().map(|recording| recording.events).unwrap_or_default();
    let since = |at: f64| (at / 1_000.0 - CRASH.as_secs_f64()) / period.as_secs_f64();
    let of_it = |wanted: Believed| {
        events.iter().filter_map(move |(at, event)| match event {
            Event::Belief { of, state, .. } if *of == members - 1 && *state == wanted => Some(since(*at)),
            _ => None,
        })
    };
    Run {
        noticed: of_it(Believed::Suspect).next(),
        told: of_it(Believed::Down).nth(members - 2),
        messages: messages / members as f64 / periods,
    }
}

/// A tenth of all packets is lost all the time: whom everybody still holds present in the end.
fn members_that_stay(seed: u64) -> usize {
    let steps = format!("at 1s loss 10% for {}s", LASTS.as_secs());
    let mut world = world(LOSSY, &steps, seed);
    world.run(Some(LASTS));
    let holds = |host: &crate::host::Host, id| {
        host.control.as_ref().is_some_and(|control| control.membership().roster().present(id).is_some())
    };
    world.hosts.iter().filter(|member| world.hosts.iter().all(|host| holds(host, member.id))).count()
}
