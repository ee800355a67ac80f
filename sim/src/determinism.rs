//! The same plan twice is the same run, in another process and from another build; and what differs is seen.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use serde::Serialize;

use crate::sweep::{Extent, Source};
use crate::trace::Flip;
use crate::world::World;

/// Of how many seeds one is run again with something flipped: the first of them at least.
const FLIPPED: usize = 10;

/// Why nothing can be compared.
#[derive(Debug, thiserror::Error)]
pub enum DeterminismError {
    /// A file cannot be read or written.
    #[error("{}: {}", .0.display(), .1)]
    File(PathBuf, std::io::Error),
    /// A line is not a seed and a hash.
    #[error("{}: line {} is not a seed and a hash", .0.display(), .1)]
    Line(PathBuf, usize),
    /// The other process did not do its part.
    #[error("the other process failed: {0}")]
    Other(String),
}

#[derive(Serialize)]
struct Answer {
    seeds: usize,
    mismatches: usize,
    mismatched: Vec<u64>,
    /// Runs with a flipped bit or a draw more, and those of them whose hash did not show it.
    flips: usize,
    unseen_flips: usize,
    unseen: Vec<u64>,
}

type Hashes = BTreeMap<u64, String>;

/// Runs every seed here and takes the hashes of another run from `expect`, or from another process; prints which
/// differ. `expect` may be of another build: [`write()`] makes it.
///
/// # Errors
/// If there is nothing to compare with.
pub fn compare(extent: &Extent, expect: Option<&Path>, json: bool) -> Result<ExitCode, DeterminismError> {
    let here = hashes(extent);
    let there = match expect {
        Some(path) => read(path)?,
        None => of_another_process(extent)?,
    };
    let mismatched: Vec<u64> =
        here.iter().filter(|(seed, hash)| there.get(seed) != Some(hash)).map(|(seed, _)| *seed).collect();
    let (flips, unseen) = flipped(extent, &here);
    let answer = Answer {
        seeds: here.len(),
        mismatches: mismatched.len(),
        mismatched,
        flips,
        unseen_flips: unseen.len(),
        unseen,
    };
    if json {
        crate::say!("{}", serde_json::to_string(&answer).expect("an answer has only text keys"));
    } else {
        crate::say!("{} seeds, {} mismatches {:?}", answer.seeds, answer.mismatches, answer.mismatched);
        crate::say!(
            "{} runs with a flipped bit or a draw more, {} with the same hash {:?}",
            answer.flips,
            answer.unseen_flips,
            answer.unseen
        );
    }
    let same = answer.mismatches == 0 && answer.unseen_flips == 0;
    Ok(if same { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Writes the hash of every seed to a file, or for `-` to standard output, for another build to be compared with.
///
/// # Errors
/// If the file cannot be written.
pub fn write(extent: &Extent, path: &Path) -> Result<ExitCode, DeterminismError> {
    let lines: String = hashes(extent).iter().map(|(seed, hash)| format!("{seed} {hash}\n")).collect();
    if path == Path::new("-") {
        crate::say!("{}", lines.trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    std::fs::write(path, lines).map_err(|error| DeterminismError::File(path.into(), error))?;
    Ok(ExitCode::SUCCESS)
}

fn hashes(extent: &Extent) -> Hashes {
    let seeds: Vec<u64> = extent.seeds.clone().collect();
    let mut hashes = Hashes::new();
    crate::parallel::each(
        &seeds,
        extent.jobs,
        |seed| run(&extent.source, seed, None).0,
        |seed, hash| hashes.insert(seed, hash).is_none(),
    );
    hashes
}

/// The hash of a seed's run, and how many messages it had.
fn run(source: &Source, seed: u64, flip: Option<Flip>) -> (String, u64) {
    let mut world = World::new(source.plan(seed), seed);
    world.flip = flip;
    world.run(None);
    (world.trace.hash(), world.trace.messages)
}

/// Runs some of the seeds again, with a bit or a draw changed halfway; how many, and which of them did not show it.
fn flipped(extent: &Extent, hashes: &Hashes) -> (usize, Vec<u64>) {
    let seeds: Vec<u64> = hashes.keys().copied().step_by(FLIPPED).collect();
    let (mut flips, mut unseen) = (0, Vec::new());
    let both = |seed| {
        let half = run(&extent.source, seed, None).1 / 2;
        [Flip::Bit { message: half }, Flip::Draw { message: half }].map(|flip| run(&extent.source, seed, Some(flip)).0)
    };
    crate::parallel::each(&seeds, extent.jobs, both, |seed, others| {
        flips += others.len();
        unseen.extend(others.iter().filter(|hash| **hash == hashes[&seed]).map(|_| seed));
        true
    });
    (flips, unseen)
}

fn of_another_process(extent: &Extent) -> Result<Hashes, DeterminismError> {
    let other = |problem: std::io::Error| DeterminismError::Other(problem.to_string());
    let output = Command::new(std::env::current_exe().map_err(other)?)
        .args(["determinism", &extent.source.argument(), "--jobs", &extent.jobs.to_string()])
        .args(["--seeds", &format!("{}..{}", extent.seeds.start, extent.seeds.end)])
        .args(["--write", "-"])
        .stderr(Stdio::inherit())
        .output()
        .map_err(other)?;
    if !output.status.success() {
        return Err(DeterminismError::Other(output.status.to_string()));
    }
    parse(Path::new("the other process"), &String::from_utf8_lossy(&output.stdout))
}

fn read(path: &Path) -> Result<Hashes, DeterminismError> {
    let text = std::fs::read_to_string(path).map_err(|error| DeterminismError::File(path.into(), error))?;
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<Hashes, DeterminismError> {
    let lines = text.lines().enumerate().map(|(index, line)| {
        let pair = line.split_once(' ').and_then(|(seed, hash)| Some((seed.parse().ok()?, hash.to_owned())));
        pair.ok_or_else(|| DeterminismError::Line(path.into(), index + 1))
    });
    lines.collect()
}
