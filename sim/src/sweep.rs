//! The plans of many seeds.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::profile::{self, Profile};
use crate::world::World;

mod progress;
mod summary;

pub use progress::ProgressError;
use progress::{Line, Progress};
use summary::Summary;

/// The simulator itself failed.
const ITSELF: u8 = 4;

/// How much to try.
#[derive(Clone, Debug)]
pub struct Extent {
    /// Which seeds.
    pub seeds: Range<u64>,
    /// How many at once.
    pub jobs: usize,
    /// Begin no further plan once one has failed, and end that one at once.
    pub until_failure: bool,
    /// Where to keep what is done: seeds that it holds are not run again, and what came of them counts.
    pub progress: Option<PathBuf>,
}

/// Runs the plans of some seeds and prints what came of them.
///
/// # Errors
/// If what was done before cannot be read.
#[expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "a sweep reports its own wall time")]
pub fn run(profile: Profile, extent: &Extent, json: bool) -> Result<ExitCode, ProgressError> {
    let started = std::time::Instant::now();
    let name = profile.to_string();
    let mut progress = match &extent.progress {
        Some(path) => Progress::read(path, name)?,
        None => Progress::new(name),
    };
    let seeds: Vec<u64> = extent.seeds.clone().filter(|seed| !progress.is_done(*seed)).collect();
    let (mut line, mut done, before) = (Line::new(), 0, progress.summary.wall_s);
    let mut kept = Ok(());
    let one = |seed| one(profile, seed, extent.until_failure);
    crate::parallel::each(&seeds, extent.jobs, one, |seed, world| {
        let failure = progress.summary.add(seed, world.as_ref());
        progress.finish(seed);
        done += 1;
        if let Some(failure) = failure.filter(|_| !json) {
            line.clear();
            say!("{failure}");
        }
        let now = started.elapsed().as_secs_f64();
        progress.summary.wall_s = before + now;
        if line.is_due(now) {
            line.draw(now, done, seeds.len(), progress.summary.failed());
            kept = extent.progress.as_ref().map_or(Ok(()), |path| progress.write(path));
        }
        kept.is_ok() && (!extent.until_failure || progress.summary.is_clean())
    });
    line.clear();
    progress.summary.wall_s = before + started.elapsed().as_secs_f64();
    let kept = kept.and_then(|()| extent.progress.as_ref().map_or(Ok(()), |path| progress.write(path)));
    progress.summary.print(json);
    if let Err(problem) = kept {
        // What was run counts, and was printed; it could not be kept.
        eprintln!("swimring-sim: stopped, for what is done cannot be kept: {problem}");
        return Ok(ExitCode::from(ITSELF));
    }
    Ok(exit_code(&progress.summary))
}

fn exit_code(summary: &Summary) -> ExitCode {
    match (summary.crashes, summary.violations, summary.nonconverged) {
        (0, 0, 0) => ExitCode::SUCCESS,
        (0, 0, _) => ExitCode::from(3),
        (0, ..) => ExitCode::from(1),
        _ => ExitCode::from(ITSELF),
    }
}

/// The world of a seed after its run, unless it panicked.
fn one(profile: Profile, seed: u64, hasty: bool) -> Option<World> {
    let run = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(profile::plan(profile, seed), seed);
        world.hasty = hasty;
        world.run(None);
        world
    }));
    run.ok()
}
