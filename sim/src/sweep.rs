//! The plans of many seeds.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::plan::Plan;
use crate::profile::{self, Profile};
use crate::progress::{Progress, ProgressError, Step};
use crate::world::World;

mod summary;

use summary::Summary;

/// The simulator itself failed.
const ITSELF: u8 = 4;

/// Where the plan of a seed comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// The seed draws it from a family.
    Profile(Profile),
    /// It is always this one, which stands in a file.
    File(PathBuf, Box<Plan>),
}

impl Source {
    /// The plan of `seed`.
    pub fn plan(&self, seed: u64) -> Plan {
        match self {
            Self::Profile(profile) => profile::plan(*profile, seed),
            Self::File(_, plan) => (**plan).clone(),
        }
    }

    /// As an argument of a command.
    pub fn argument(&self) -> String {
        match self {
            Self::Profile(profile) => format!("--profile={profile}"),
            Self::File(path, _) => format!("--plan={}", path.display()),
        }
    }

    /// What tells its plans from others: a file may say something else the next time.
    fn identity(&self) -> String {
        match self {
            Self::Profile(profile) => profile.to_string(),
            Self::File(path, plan) => {
                let hash = blake3::hash(plan.to_string().as_bytes()).to_hex();
                format!("{} ({})", path.display(), &hash[..8])
            }
        }
    }

    /// The command that runs `seed` again.
    pub(crate) fn replay(&self, seed: u64) -> String {
        match self {
            Self::Profile(profile) => {
                format!("swimring-sim plan --profile {profile} --seed {seed} | swimring-sim run - --seed {seed}")
            }
            Self::File(path, _) => format!("swimring-sim run {} --seed {seed}", path.display()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Profile(profile) => profile.fmt(f),
            Self::File(path, _) => path.display().fmt(f),
        }
    }
}

/// Which plans to run.
#[derive(Clone, Debug)]
pub struct Extent {
    /// Where they come from.
    pub source: Source,
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
pub fn run(
    extent: &Extent,
    until_failure: bool,
    kept_in: Option<&Path>,
    json: bool,
) -> Result<ExitCode, ProgressError> {
    let mut progress = Progress::<Summary>::read(kept_in, format!("a sweep of {}", extent.source.identity()))?;
    progress.sum.profile = extent.source.to_string();
    let before = progress.sum.wall_s;
    let one = |seed| one(&extent.source, seed, until_failure);
    let kept = progress.go_through(extent.seeds.clone(), extent.jobs, kept_in, one, |sum, seed, world, now| {
        let failure = sum.add(seed, extent.source.replay(seed), &world);
        sum.wall_s = before + now;
        Step {
            say: failure.filter(|_| !json).map(|failure| failure.to_string()),
            remark: format!("{} failed, ", sum.failed()),
            is_enough: until_failure && !sum.is_clean(),
        }
    });
    progress.sum.print(json);
    if let Err(problem) = kept {
        // What was run counts, and was printed; it could not be kept.
        eprintln!("swimring-sim: stopped, for what is done cannot be kept: {problem}");
        return Ok(ExitCode::from(ITSELF));
    }
    Ok(exit_code(&progress.sum))
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
fn one(source: &Source, seed: u64, hasty: bool) -> World {
    let mut world = World::new(source.plan(seed), seed);
    world.hasty = hasty;
    world.run(None);
    world
}
