//! The plans of many seeds.

use std::ops::Range;
use std::path::Path;
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

/// Which plans to run.
#[derive(Clone, Debug)]
pub struct Extent {
    /// Which family of plans.
    pub profile: Profile,
    /// Which seeds.
    pub seeds: Range<u64>,
    /// How many at once.
    pub jobs: usize,
}

/// Runs the plans of some seeds and prints what came of them. With `until_failure` it begins no further plan once one
/// has failed, and ends that one at once. What is done is kept in `kept_in`: seeds that it holds are not run again, and
/// what came of them counts.
///
/// # Errors
/// If what was done before cannot be read.
#[expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "a sweep reports its own wall time")]
pub fn run(
    extent: &Extent,
    until_failure: bool,
    kept_in: Option<&Path>,
    json: bool,
) -> Result<ExitCode, ProgressError> {
    let started = std::time::Instant::now();
    let name = extent.profile.to_string();
    let mut progress = match kept_in {
        Some(path) => Progress::read(path, name)?,
        None => Progress::new(name),
    };
    let seeds: Vec<u64> = extent.seeds.clone().filter(|seed| !progress.is_done(*seed)).collect();
    let (mut line, mut done, before) = (Line::new(), 0, progress.summary.wall_s);
    let mut kept = Ok(());
    let one = |seed| one(extent.profile, seed, until_failure);
    crate::parallel::each(&seeds, extent.jobs, one, |seed, world| {
        let failure = progress.summary.add(seed, &world);
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
            kept = kept_in.map_or(Ok(()), |path| progress.write(path));
        }
        kept.is_ok() && (!until_failure || progress.summary.is_clean())
    });
    line.clear();
    progress.summary.wall_s = before + started.elapsed().as_secs_f64();
    let kept = kept.and_then(|()| kept_in.map_or(Ok(()), |path| progress.write(path)));
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

/// The world of a seed after its run.
fn one(profile: Profile, seed: u64, hasty: bool) -> World {
    let mut world = World::new(profile::plan(profile, seed), seed);
    world.hasty = hasty;
    world.run(None);
    world
}
