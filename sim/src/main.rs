//! `swimring-sim`: runs plans and sweeps.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use swimring_sim::mutants::{Mutant, Trial};
use swimring_sim::plan::Plan;
use swimring_sim::profile::{self, Profile};
use swimring_sim::say;
use swimring_sim::sweep::Extent;
use swimring_sim::world::{Verdict, World};

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
        /// A file for a line an event.
        #[arg(long)]
        trace: Option<PathBuf>,
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
        /// Which family of plans.
        #[arg(long, value_enum)]
        profile: Profile,
        /// The seeds, half-open: A..B.
        #[arg(long, value_parser = seeds)]
        seeds: std::ops::Range<u64>,
        /// How many at once.
        #[arg(long, default_value_t = 2)]
        jobs: usize,
        /// Begins no further plan once one has failed.
        #[arg(long)]
        until_failure: bool,
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
        /// Which family of plans.
        #[arg(long, value_enum, default_value = "pr")]
        profile: Profile,
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

fn seeds(text: &str) -> Result<std::ops::Range<u64>, String> {
    let parsed = text.split_once("..").and_then(|(a, b)| Some(a.parse().ok()?..b.parse().ok()?));
    parsed
        .filter(|range: &std::ops::Range<u64>| !range.is_empty())
        .ok_or_else(|| "seeds are written A..B, with A below B".into())
}

const USAGE: u8 = 2;
const NOT_CONVERGED: u8 = 3;
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
        Command::Run { plan, seed, trace } => {
            let plan = read(plan)?;
            let mut world = World::new(plan, *seed);
            if trace.is_some() {
                world.keep_log();
            }
            let verdict = world.run(None);
            if let Some(path) = trace {
                std::fs::write(path, world.log().join("\n") + "\n").map_err(|e| format!("{}: {e}", path.display()))?;
            }
            Ok(report(cli.json, &world, &verdict))
        }
        Command::Replay { plan, seed, until } => {
            let mut world = World::new(read(plan)?, *seed);
            world.keep_log();
            let verdict = world.run(until.map(Duration::from_secs_f64));
            if !cli.json {
                world.log().iter().for_each(|line| say!("{line}"));
            }
            Ok(report(cli.json, &world, &verdict))
        }
        Command::Plan { profile, seed } => {
            say!("{}", profile::plan(*profile, *seed).to_string().trim_end());
            Ok(ExitCode::SUCCESS)
        }
        Command::Sweep { profile, seeds, jobs, until_failure } => {
            let extent = Extent { seeds: seeds.clone(), jobs: *jobs, until_failure: *until_failure };
            Ok(swimring_sim::sweep::run(*profile, &extent, cli.json))
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

fn report(json: bool, world: &World, verdict: &Verdict) -> ExitCode {
    let name = match verdict {
        Verdict::Clean => "clean",
        Verdict::Violation => "violation",
        Verdict::NotConverged => "not-converged",
    };
    let converged = world.converged_after.map(|after| after.as_millis() as u64);
    if json {
        let answer = serde_json::json!({
            "hash": world.trace.hash(),
            "verdict": name,
            "violations": world.findings.violations,
            "node_seconds": world.node_seconds,
            "events": world.trace.events,
            "converged_ms": converged,
            "faults": world.faults,
            "oracles": world.findings.checks,
        });
        say!("{answer}");
    } else {
        say!(
            "{name}: {} events, {:.0} node-seconds, hash {}",
            world.trace.events,
            world.node_seconds,
            world.trace.hash()
        );
        if let Some(converged) = converged {
            say!("the core agreed {converged} ms after chaos ended");
        } else if let Some(why) = world.core().and_then(|core| world.disagreement(core)) {
            say!("the core does not agree: {why}");
        }
        for v in &world.findings.violations {
            say!("{} at {} ms, {}: {}", v.oracle, v.at_ms, v.nodes.join(" "), v.message);
        }
    }
    match verdict {
        Verdict::Clean => ExitCode::SUCCESS,
        Verdict::Violation => ExitCode::from(1),
        Verdict::NotConverged => ExitCode::from(NOT_CONVERGED),
    }
}
