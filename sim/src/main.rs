//! `swimring-sim`: runs plans and sweeps.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use swimring_sim::experiment::{self, Experiment};
use swimring_sim::mutants::{Mutant, Trial};
use swimring_sim::plan::Plan;
use swimring_sim::profile::{self, Profile};
use swimring_sim::recording::Recording;
use swimring_sim::sweep::{Extent, Source};
use swimring_sim::world::{Verdict, World};
use swimring_sim::{determinism, report, say};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs whole Swimring clusters in virtual time, deterministically.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    /// One JSON object on standard output.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs one plan.
    Run {
        /// The plan's file, or `-` for standard input.
        plan: PathBuf,
        /// The seed of everything random.
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// A file for what happens, one JSON object a line: `report` reads it.
        #[arg(long)]
        trace: Option<PathBuf>,
        /// A file for the same as a page to look at.
        #[arg(long)]
        report: Option<PathBuf>,
    },
    /// Runs one plan again up to a moment, and prints every event.
    Replay {
        /// The plan's file, or `-` for standard input.
        plan: PathBuf,
        /// The seed of everything random.
        #[arg(long)]
        seed: u64,
        /// Up to which second of world time.
        #[arg(long)]
        until: Option<f64>,
    },
    /// Runs the plan of every seed of a range.
    Sweep {
        #[command(flatten)]
        plans: Plans,
        /// Begins no further plan once one has failed.
        #[arg(long)]
        until_failure: bool,
        /// A file to keep what is done in: a sweep that is begun again with it goes on, and adds up.
        #[arg(long)]
        progress: Option<PathBuf>,
    },
    /// Runs every seed here and in another process, or compares with a file of another build; and sees whether a flipped
    /// bit or one draw more shows.
    Determinism {
        #[command(flatten)]
        plans: Plans,
        /// What another build has written with `--write`.
        #[arg(long)]
        expect: Option<PathBuf>,
        /// Only writes the hashes: to a file, or `-` for standard output.
        #[arg(long, conflicts_with = "expect")]
        write: Option<PathBuf>,
    },
    /// Puts known bugs back into a copy of the sources, and sweeps each until an oracle catches it. Run in the
    /// repository.
    Mutants {
        /// Only those whose name begins so.
        #[arg(long)]
        only: Option<String>,
        /// Another bug than those of the repository: a unified diff.
        #[arg(long, conflicts_with = "only")]
        patch: Option<PathBuf>,
        /// How many seeds each may survive.
        #[arg(long, default_value_t = 2_000)]
        seeds: u64,
        /// Which family of plans, for those that name none in their second line.
        #[arg(long, value_enum, default_value = "pr")]
        profile: Profile,
    },
    /// Makes a plan that fails small: the same property is broken by as few faults, nodes, calls and seconds as are found.
    Shrink {
        /// The plan's file, or `-` for standard input.
        plan: PathBuf,
        /// The seed under which it fails.
        #[arg(long)]
        seed: u64,
        /// How long to try, as in `60s`.
        #[arg(long, default_value = "60s", value_parser = span)]
        budget: Duration,
        /// Where the small plan goes; standard output without it.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Makes a page of what a run with `--trace` has written.
    Report {
        /// What was written.
        trace: PathBuf,
        /// The page.
        #[arg(long)]
        out: PathBuf,
    },
    /// Runs an experiment of the literature: what was published beside what is measured.
    Experiment {
        /// Which.
        #[arg(value_enum)]
        experiment: Experiment,
        /// How often every cell of its grid.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
        repetitions: u64,
        /// Only the row of this name.
        #[arg(long)]
        only: Option<String>,
        /// How many runs at once.
        #[arg(long, default_value_t = 2)]
        jobs: usize,
        /// A file to keep what is done in: an experiment that is begun again with it goes on, and adds up.
        #[arg(long)]
        progress: Option<PathBuf>,
    },
    /// Measures how fast worlds run and what memory they take, one size after another on one core.
    Bench {
        /// How many nodes.
        #[arg(long, value_delimiter = ',', default_value = "100,1000", value_parser = clap::value_parser!(u64).range(1..=65_536))]
        nodes: Vec<u64>,
    },
    /// Prints the plan of a seed.
    Plan {
        /// Which family of plans.
        #[arg(long, value_enum)]
        profile: Profile,
        /// The seed.
        #[arg(long)]
        seed: u64,
    },
}

/// The plans of many seeds.
#[derive(Args)]
struct Plans {
    /// Which family of plans.
    #[arg(long, value_enum, default_value = "pr", conflicts_with = "plan")]
    profile: Profile,
    /// Always this plan, from a file.
    #[arg(long)]
    plan: Option<PathBuf>,
    /// The seeds, half-open: A..B.
    #[arg(long, value_parser = seeds)]
    seeds: std::ops::Range<u64>,
    /// How many at once.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
}

impl Plans {
    fn extent(&self) -> Result<Extent, String> {
        let source = match &self.plan {
            Some(path) => Source::File(path.clone(), Box::new(read(path)?)),
            None => Source::Profile(self.profile),
        };
        Ok(Extent { source, seeds: self.seeds.clone(), jobs: self.jobs })
    }
}

fn seeds(text: &str) -> Result<std::ops::Range<u64>, String> {
    let parsed = text.split_once("..").and_then(|(a, b)| Some(a.parse().ok()?..b.parse().ok()?));
    parsed
        .filter(|range: &std::ops::Range<u64>| !range.is_empty())
        .ok_or_else(|| "seeds are written A..B, with A below B".into())
}

fn span(text: &str) -> Result<Duration, String> {
    swimring_sim::plan::duration(text)
}

const USAGE: u8 = 2;
const ITSELF: u8 = 4;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(code) => code,
        Err(problem) => {
            eprintln!("swimring-sim: {problem}");
            ExitCode::from(USAGE)
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode, String> {
    match &cli.command {
        Command::Run { plan, seed, trace, report } => {
            let mut world = World::new(read(plan)?, *seed);
            if trace.is_some() || report.is_some() {
                world.record();
            }
            let verdict = world.run(None);
            // Whatever becomes of the files, what was found is told.
            let code = tell(cli.json, &world, &verdict);
            if let Some(recording) = world.recording() {
                trace.iter().try_for_each(|path| recording.write(path)).map_err(|problem| problem.to_string())?;
                report.iter().try_for_each(|path| write_page(&recording, path))?;
            }
            Ok(code)
        }
        Command::Report { trace, out } => {
            let recording = Recording::read(trace).map_err(|problem| problem.to_string())?;
            write_page(&recording, out)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Replay { plan, seed, until } => {
            let mut world = World::new(read(plan)?, *seed);
            world.keep_log();
            let verdict = world.run(until.map(Duration::from_secs_f64));
            if !cli.json {
                world.log().iter().for_each(|line| say!("{line}"));
            }
            Ok(tell(cli.json, &world, &verdict))
        }
        Command::Shrink { plan, seed, budget, out } => shrink(&read(plan)?, *seed, *budget, out.as_deref(), cli.json),
        Command::Plan { profile, seed } => {
            say!("{}", profile::plan(*profile, *seed).to_string().trim_end());
            Ok(ExitCode::SUCCESS)
        }
        Command::Sweep { plans, until_failure, progress } => {
            swimring_sim::sweep::run(&plans.extent()?, *until_failure, progress.as_deref(), cli.json)
                .map_err(|problem| problem.to_string())
        }
        Command::Determinism { plans, expect, write } => {
            let compared = match write {
                Some(path) => determinism::write(&plans.extent()?, path),
                None => determinism::compare(&plans.extent()?, expect.as_deref(), cli.json),
            };
            compared.map_err(|problem| problem.to_string())
        }
        Command::Experiment { experiment, repetitions, only, jobs, progress } => {
            let extent = experiment::Extent {
                repetitions: *repetitions,
                only: only.as_deref(),
                jobs: *jobs,
                kept_in: progress.as_deref(),
            };
            experiment::run(*experiment, &extent, cli.json).map_err(|problem| problem.to_string())
        }
        Command::Bench { nodes } => {
            let sizes: Vec<usize> = nodes.iter().map(|nodes| *nodes as usize).collect();
            Ok(swimring_sim::bench::run(&sizes, cli.json))
        }
        Command::Mutants { only, patch, seeds, profile } => {
            let trial = Trial { sources: ".".into(), profile: profile.to_string(), seeds: *seeds };
            try_mutants(&trial, only.as_deref(), patch.as_deref(), cli.json)
        }
    }
}

fn try_mutants(trial: &Trial, only: Option<&str>, patch: Option<&Path>, json: bool) -> Result<ExitCode, String> {
    let mutants = match patch {
        Some(patch) => Mutant::read(patch).map(|mutant| vec![mutant]),
        None => Mutant::all(&trial.sources),
    };
    let mut mutants = mutants.map_err(|error| format!("{error} (run it in the repository)"))?;
    mutants.retain(|mutant| only.is_none_or(|only| mutant.name.starts_with(only)));
    if mutants.is_empty() {
        return Err(format!("no mutant is called {}", only.unwrap_or_default()));
    }
    swimring_sim::mutants::run(trial, &mutants, json).or_else(|problem| {
        eprintln!("swimring-sim: {problem}");
        Ok(ExitCode::from(ITSELF))
    })
}

fn read(path: &PathBuf) -> Result<Plan, String> {
    let text =
        if path.as_os_str() == "-" { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(path) };
    let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
    Plan::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
}

#[expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "the budget is wall time; no world sees it")]
fn shrink(plan: &Plan, seed: u64, budget: Duration, out: Option<&Path>, json: bool) -> Result<ExitCode, String> {
    let until = std::time::Instant::now() + budget;
    let is_time_up = || std::time::Instant::now() >= until;
    let Some(shrunk) = swimring_sim::shrink::shrink(plan, seed, &is_time_up) else {
        return Err(format!("the plan does not fail with seed {seed}: there is nothing to shrink"));
    };
    let small = shrunk.plan.to_string();
    if let Some(path) = out {
        std::fs::write(path, &small).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    if json {
        let answer = serde_json::json!({
            "faults_before": plan.steps.len(),
            "faults_after": shrunk.plan.steps.len(),
            "nodes_before": plan.world.nodes,
            "nodes_after": shrunk.plan.world.nodes,
            "oracle": shrunk.failure.to_string(),
            "runs": shrunk.runs,
            "minimal": shrunk.is_minimal,
            "plan": small,
        });
        say!("{answer}");
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!(
        "{}: {} faults became {}, {} nodes became {}, in {} runs{}",
        shrunk.failure,
        plan.steps.len(),
        shrunk.plan.steps.len(),
        plan.world.nodes,
        shrunk.plan.world.nodes,
        shrunk.runs,
        if shrunk.is_minimal { "" } else { "; time was up" }
    );
    match out {
        Some(path) => eprintln!("replay: swimring-sim run {} --seed {seed}", path.display()),
        None => say!("{}", small.trim_end()),
    }
    Ok(ExitCode::SUCCESS)
}

fn write_page(recording: &Recording, path: &Path) -> Result<(), String> {
    std::fs::write(path, report::page(recording)).map_err(|e| format!("{}: {e}", path.display()))
}

fn tell(json: bool, world: &World, verdict: &Verdict) -> ExitCode {
    let name = verdict.name();
    let converged = world.converged_after.map(|after| after.as_millis() as u64);
    if json {
        let answer = serde_json::json!({
            "hash": world.trace.hash(),
            "verdict": name,
            "violations": world.findings.violations,
            "node_seconds": world.node_seconds(),
            "events": world.trace.events,
            "converged_ms": converged,
            "faults": world.faults,
            "oracles": world.findings.checks,
            "measured": world.measured,
        });
        say!("{answer}");
    } else {
        say!(
            "{name}: {} events, {:.0} node-seconds, hash {}",
            world.trace.events,
            world.node_seconds(),
            world.trace.hash()
        );
        if let Some(converged) = converged {
            say!("the core agreed {converged} ms after chaos ended");
        } else if let Some(why) = world.core().and_then(|core| world.disagreement(core)) {
            say!("the core does not agree: {why}");
        }
        world.measured.iter().for_each(|measured| say!("{measured}"));
        for v in &world.findings.violations {
            say!("{v}");
        }
    }
    ExitCode::from(verdict.exit_code())
}
