//! Members that are slow now and then: who is wrongly declared failed (the paper's Interval experiment), and how soon
//! the slow ones are noticed (its Threshold experiment).
//!
//! 128 members; some of them, the same ones all the time, are blocked together, just before they send and just after
//! they receive. A false positive is every declaration, by anybody, that one of the others has failed.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use swimring_membership::{Instant, Preset, Rng};

use super::{ExperimentError, Extent, Line};
use crate::memberlist::{Cluster, Failure, Model};
use crate::plan::{Action, Expect, Latency, Limits, LinkRule, Pairs, Plan, Quiet, Select, Step as PlanStep, WorldSpec};
use crate::progress::{Progress, Step};
use crate::world::World;

/// How many members are slow.
const SLOW: [usize; 9] = [1, 4, 8, 12, 16, 20, 24, 28, 32];
/// For how long, in milliseconds.
const ANOMALY_MS: [u64; 6] = [128, 512, 2_048, 8_192, 16_384, 32_768];
/// For how long they are well between that, in milliseconds.
const WELL_MS: [u64; 8] = [1, 4, 16, 64, 256, 1_024, 4_096, 16_384];
/// How long an experiment lasts, at least.
const LASTS: Duration = Duration::from_secs(120);
/// Cells of the grids: all of Interval, then all of Threshold.
const INTERVAL_CELLS: usize = SLOW.len() * ANOMALY_MS.len() * WELL_MS.len();
const CELLS: usize = INTERVAL_CELLS + SLOW.len() * ANOMALY_MS.len();
const MEMBERS: usize = 128;
/// Before anybody becomes slow; a cluster of Swimring's joins in that time.
const QUIESCE_MODEL: Duration = Duration::from_secs(15);
const QUIESCE_SWIMRING: Duration = Duration::from_secs(30);

/// Who is compared.
struct Contender {
    name: &'static str,
    /// The model; Swimring as it ships without.
    model: Option<Model>,
    published: Published,
}

/// What the paper says, of ten repetitions: tables IV and V, figures 2 and 3.
#[derive(Clone, Debug, Default, Serialize)]
struct Published {
    #[serde(skip_serializing_if = "Option::is_none")]
    false_positives: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    false_positives_at_healthy: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_median_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    full_median_s: Option<f64>,
    /// By the number of slow members.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    false_positives_by_slow: Vec<u64>,
}

fn contenders() -> Vec<Contender> {
    let swim = Model::swim();
    let lifeguard = Model { lha_probe: true, lha_suspicion: true, buddy: true, ..swim.clone() };
    let row = |name, model, [fp, at_healthy]: [u64; 2], [first, full]: [f64; 2], by_slow: &[u64]| Contender {
        name,
        model: Some(model),
        published: Published {
            false_positives: Some(fp),
            false_positives_at_healthy: Some(at_healthy),
            first_median_s: Some(first),
            full_median_s: Some(full),
            false_positives_by_slow: by_slow.to_vec(),
        },
    };
    vec![
        row(
            "swim",
            swim.clone(),
            [339_002, 1_326],
            [12.44, 12.90],
            &[900, 6_000, 11_000, 23_000, 34_000, 46_000, 58_000, 77_000, 81_000],
        ),
        row("lha-probe", Model { lha_probe: true, ..swim.clone() }, [229_574, 436], [12.42, 12.90], &[]),
        row("lha-suspicion", Model { lha_suspicion: true, ..swim.clone() }, [10_174, 89], [12.42, 12.89], &[]),
        row("buddy", Model { buddy: true, ..swim }, [318_935, 591], [12.45, 12.92], &[]),
        row(
            "lifeguard",
            lifeguard.clone(),
            [5_193, 25],
            [12.45, 12.91],
            &[18, 140, 110, 220, 560, 730, 830, 1_300, 1_200],
        ),
        row("lifeguard-2-2", Model { alpha: 2, beta: 2, ..lifeguard }, [333_476, 413], [6.61, 7.11], &[]),
        Contender { name: "swimring-lan", model: None, published: Published::default() },
    ]
}

/// When which members are slow.
struct Course {
    slow: Vec<usize>,
    /// From when to when, since the cluster is settled.
    spells: Vec<(Duration, Duration)>,
    end: Duration,
    /// Whether it ends once everybody sees everybody.
    until_healthy: bool,
}

impl Course {
    fn of(cell: usize, rng: &mut Rng) -> Self {
        let interval = cell < INTERVAL_CELLS;
        let index = if interval { cell } else { cell - INTERVAL_CELLS };
        let (slow, rest) = (SLOW[index % SLOW.len()], index / SLOW.len());
        let anomaly = Duration::from_millis(ANOMALY_MS[rest % ANOMALY_MS.len()]);
        let mut members: Vec<usize> = (0..MEMBERS).collect();
        rng.shuffle(&mut members);
        members.truncate(slow);
        let mut spells = vec![(Duration::ZERO, anomaly)];
        if interval {
            let well = Duration::from_millis(WELL_MS[rest / ANOMALY_MS.len()]);
            while let Some((_, end)) = spells.last().copied().filter(|(_, end)| *end < LASTS) {
                spells.push((end + well, end + well + anomaly));
            }
        }
        let end = if interval { spells[spells.len() - 1].1 } else { LASTS };
        Self { slow: members, spells, end, until_healthy: !interval }
    }
}

/// What came of one run.
struct Outcome {
    failures: Vec<Failure>,
    began: Instant,
    messages: u64,
    bytes: u64,
    course: Course,
}

/// What came of the runs of one contender.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Tally {
    runs: u64,
    false_positives: u64,
    false_positives_at_healthy: u64,
    by_slow: BTreeMap<usize, [u64; 2]>,
    messages: u64,
    bytes: u64,
    /// In milliseconds, of everybody who was slow for long enough to be noticed.
    first_ms: Vec<u32>,
    full_ms: Vec<u32>,
}

impl Tally {
    fn add(&mut self, outcome: &Outcome) {
        self.runs += 1;
        self.messages += outcome.messages;
        self.bytes += outcome.bytes;
        let slow = &outcome.course.slow;
        if outcome.course.until_healthy {
            return self.add_latencies(outcome);
        }
        let wrong = outcome.failures.iter().filter(|failure| !slow.contains(&failure.subject));
        for failure in wrong {
            let at_healthy = u64::from(!slow.contains(&failure.observer));
            self.false_positives += 1;
            self.false_positives_at_healthy += at_healthy;
            let [all, healthy] = self.by_slow.entry(slow.len()).or_default();
            (*all, *healthy) = (*all + 1, *healthy + at_healthy);
        }
    }

    fn add_latencies(&mut self, outcome: &Outcome) {
        let slow = &outcome.course.slow;
        for subject in slow {
            let noticed = outcome.failures.iter().filter(|failure| failure.subject == *subject);
            let mut seen = BTreeMap::new();
            for failure in noticed.filter(|failure| !slow.contains(&failure.observer)) {
                let after = failure.at.since(outcome.began).as_millis() as u32;
                seen.entry(failure.observer).or_insert(after);
            }
            self.first_ms.extend(seen.values().min());
            if seen.len() == MEMBERS - slow.len() {
                self.full_ms.extend(seen.values().max());
            }
        }
    }

    fn measured(&self) -> Measured {
        let by_slow = |which: usize| {
            let count = |slow: usize| self.by_slow.get(&slow).map_or(0, |both| both[which]);
            SLOW.iter().map(|slow| count(*slow)).collect::<Vec<_>>()
        };
        Measured {
            runs: self.runs,
            false_positives: self.false_positives,
            false_positives_at_healthy: self.false_positives_at_healthy,
            false_positives_by_slow: by_slow(0),
            false_positives_at_healthy_by_slow: by_slow(1),
            first_s: percentiles(&self.first_ms),
            full_s: percentiles(&self.full_ms),
            noticed: self.first_ms.len(),
            messages: self.messages,
            bytes: self.bytes,
        }
    }
}

#[derive(Debug, Serialize)]
struct Measured {
    runs: u64,
    false_positives: u64,
    false_positives_at_healthy: u64,
    false_positives_by_slow: Vec<u64>,
    false_positives_at_healthy_by_slow: Vec<u64>,
    /// Median, 99 and 99.9 percent.
    first_s: Option<[f64; 3]>,
    full_s: Option<[f64; 3]>,
    noticed: usize,
    messages: u64,
    bytes: u64,
}

fn percentiles(values: &[u32]) -> Option<[f64; 3]> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let at = |share: f64| f64::from(sorted[((sorted.len() - 1) as f64 * share).round() as usize]) / 1_000.0;
    (!sorted.is_empty()).then(|| [at(0.5), at(0.99), at(0.999)])
}

pub(super) fn run(extent: &Extent<'_>, json: bool) -> Result<ExitCode, ExperimentError> {
    let contenders = contenders();
    let names: Vec<&str> = contenders.iter().map(|contender| contender.name).collect();
    if let Some(only) = extent.only.filter(|only| !names.contains(only)) {
        return Err(ExperimentError::Row(only.into(), names.join(", ")));
    }
    let wanted = |row: usize| extent.only.is_none_or(|only| contenders[row].name == only);
    let number = |repetition: u64, row: usize, cell: usize| {
        (repetition * contenders.len() as u64 + row as u64) * CELLS as u64 + cell as u64
    };
    let rows = || (0..contenders.len()).filter(|row| wanted(*row));
    let numbers = (0..extent.repetitions)
        .flat_map(|repetition| rows().flat_map(move |row| (0..CELLS).map(move |cell| number(repetition, row, cell))));
    let mut progress = Progress::<BTreeMap<String, Tally>>::read(extent.kept_in, "experiment lifeguard".into())?;
    let one = |number: u64| {
        let (row, cell) = (number / CELLS as u64 % contenders.len() as u64, number % CELLS as u64);
        // Every contender has the same members slow.
        let repetition = number / (CELLS * contenders.len()) as u64;
        let mut rng = Rng::new(repetition).fork(cell);
        let course = Course::of(cell as usize, &mut rng);
        match &contenders[row as usize].model {
            Some(model) => run_model(model, course, rng.next_u64()),
            None => run_swimring(course, rng.next_u64()),
        }
    };
    progress.go_through(numbers, extent.jobs, extent.kept_in, one, |tallies, number, outcome, _| {
        let name = contenders[(number / CELLS as u64) as usize % contenders.len()].name;
        tallies.entry(name.into()).or_default().add(&outcome);
        Step { remark: format!("{name}, "), ..Step::default() }
    })?;
    print(&contenders, &progress.sum, json);
    Ok(ExitCode::SUCCESS)
}

fn run_model(model: &Model, course: Course, seed: u64) -> Outcome {
    let mut cluster = Cluster::new(model.clone(), seed);
    cluster.run_to(QUIESCE_MODEL);
    let before = (cluster.messages, cluster.bytes);
    for (from, to) in &course.spells {
        cluster.run_to(QUIESCE_MODEL + *from);
        cluster.block(&course.slow, true);
        cluster.run_to(QUIESCE_MODEL + *to);
        if *to < course.end {
            cluster.block(&course.slow, false);
        }
    }
    let mut at = course.spells[course.spells.len() - 1].1;
    while at < course.end && !(course.until_healthy && cluster.is_healthy()) {
        at = (at + Duration::from_secs(1)).min(course.end);
        cluster.run_to(QUIESCE_MODEL + at);
    }
    Outcome {
        failures: std::mem::take(&mut cluster.failures),
        began: Instant::ORIGIN + QUIESCE_MODEL,
        messages: cluster.messages - before.0,
        bytes: cluster.bytes - before.1,
        course,
    }
}

/// The plan in which a course is run with Swimring: the `lan` preset, as it ships.
fn plan(course: &Course) -> Plan {
    let slow = Select::Nodes(course.slow.iter().map(|member| member + 1).collect());
    let spell = |(from, to): &(Duration, Duration)| PlanStep {
        at: QUIESCE_SWIMRING + *from,
        action: Action::Block(slow.clone()),
        lasts: *to - *from,
    };
    let latency = Latency::Uniform(Duration::from_micros(50), Duration::from_micros(250));
    Plan {
        world: WorldSpec {
            nodes: MEMBERS,
            zones: 1,
            seeds: 3,
            preset: Preset::Lan,
            arcs: 8,
            balanced: false,
            limits: Limits::Shipped,
            mesh: 256,
        },
        links: vec![LinkRule { latency, loss: 0, dup: 0, corrupt: 0, reorder: Duration::ZERO, pairs: Pairs::All }],
        load: None,
        steps: course.spells.iter().map(spell).collect(),
        quiet: Some(Quiet { at: Duration::from_secs(3_600), core: 100 }),
        expect: Expect::default(),
    }
}

fn run_swimring(course: Course, seed: u64) -> Outcome {
    let mut world = World::new(plan(&course), seed);
    world.run(Some(QUIESCE_SWIMRING));
    world.keep_downs();
    let (messages, before) = (world.trace.messages, world.network.total().sent.bytes);
    let everybody: Vec<usize> = (0..MEMBERS).collect();
    let mut at = if course.until_healthy { course.spells[0].1 } else { course.end };
    world.run(Some(QUIESCE_SWIMRING + at));
    while at < course.end && world.disagreement(&everybody).is_some() {
        at = (at + Duration::from_secs(1)).min(course.end);
        world.run(Some(QUIESCE_SWIMRING + at));
    }
    Outcome {
        failures: world.downs().to_vec(),
        began: Instant::ORIGIN + QUIESCE_SWIMRING,
        messages: world.trace.messages - messages,
        bytes: world.network.total().sent.bytes - before,
        course,
    }
}

fn print(contenders: &[Contender], tallies: &BTreeMap<String, Tally>, json: bool) {
    let lines: Vec<_> = contenders
        .iter()
        .filter_map(|contender| {
            let measured = tallies.get(contender.name)?.measured();
            Some(Line { name: contender.name, published: contender.published.clone(), measured })
        })
        .collect();
    let model = contenders.iter().find_map(|contender| contender.model.as_ref());
    if json {
        crate::say!("{}", serde_json::json!({ "rows": lines, "model": model }));
        return;
    }
    crate::say!("false positives, and those at healthy members, of ten repetitions (scaled from those that were run)");
    crate::say!("{:<14} {:>6} {:>20} {:>20} {:>22}", "", "runs", "published", "measured", "first detection, s");
    for Line { name, published, measured } in &lines {
        // Cells differ: a repetition that is not whole cannot be scaled.
        let whole = measured.runs.is_multiple_of(CELLS as u64);
        let scaled = |count: u64| if whole { count * 10 * CELLS as u64 / measured.runs.max(1) } else { count };
        let told = published.false_positives.zip(published.false_positives_at_healthy);
        let told = told.map_or("-".into(), |(all, healthy)| format!("{all} / {healthy}"));
        let seen = format!("{} / {}", scaled(measured.false_positives), scaled(measured.false_positives_at_healthy));
        let seen = if whole { seen } else { format!("{seen} so far") };
        let latency = |told: Option<f64>, seen: Option<[f64; 3]>| {
            let told = told.map_or("-".into(), |told| format!("{told:.2}"));
            format!("{told} / {}", seen.map_or("-".into(), |[median, ..]| format!("{median:.2}")))
        };
        let first = latency(published.first_median_s, measured.first_s);
        crate::say!("{name:<14} {:>6} {told:>20} {seen:>20} {first:>22}", measured.runs);
    }
    crate::say!("by the number of slow members {SLOW:?}:");
    for Line { name, published, measured } in &lines {
        crate::say!("{name:<14} measured {:?}", measured.false_positives_by_slow);
        if !published.false_positives_by_slow.is_empty() {
            crate::say!("{:<14} published (ten repetitions) {:?}", "", published.false_positives_by_slow);
        }
    }
    crate::say!("the model: {}", serde_json::to_string(&model).expect("a model has only text keys"));
}
