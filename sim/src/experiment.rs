//! Experiments of the literature, run again: what was published beside what is measured here.

use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use crate::progress::ProgressError;

/// Why an experiment does not run.
#[derive(Debug, thiserror::Error)]
pub enum ExperimentError {
    /// What was done before cannot be read, or what is done cannot be kept.
    #[error(transparent)]
    Progress(#[from] ProgressError),
    /// There is no such row.
    #[error("there is no row {0}; there are {1}")]
    Row(String, String),
    /// It is over in seconds.
    #[error("this experiment has no rows to choose from, and keeps no progress")]
    Short,
    /// It is over in minutes.
    #[error("this experiment keeps no progress")]
    NoProgress,
}

mod bootstrap;
mod lifeguard;
mod swim;

/// Which.
#[derive(Copy, Clone, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Experiment {
    /// False positives and latency of detection while members are slow (Dadgar, Phillips, Currey: Lifeguard, §V).
    Lifeguard,
    /// A large cluster that starts through one seed (Suresh et al.: Rapid, §7).
    Bootstrap,
    /// Detection, load and loss (Das, Gupta, Motivala: SWIM, §5).
    Swim,
}

/// How much of it to run.
#[derive(Clone, Debug)]
pub struct Extent<'a> {
    /// How often every cell of its grid.
    pub repetitions: u64,
    /// Only the row of this name.
    pub only: Option<&'a str>,
    /// How many runs at once.
    pub jobs: usize,
    /// Where to keep what is done.
    pub kept_in: Option<&'a Path>,
}

/// One row of what came of it.
#[derive(Debug, Serialize)]
struct Line<P, M> {
    name: &'static str,
    published: P,
    measured: M,
}

/// Runs an experiment and prints what came of it.
///
/// # Errors
/// If something is asked for that it does not have, or what is done cannot be read or kept.
pub fn run(experiment: Experiment, extent: &Extent<'_>, json: bool) -> Result<ExitCode, ExperimentError> {
    match experiment {
        Experiment::Lifeguard => lifeguard::run(extent, json),
        Experiment::Bootstrap => bootstrap::run(extent, json),
        Experiment::Swim if extent.only.is_some() || extent.kept_in.is_some() => Err(ExperimentError::Short),
        Experiment::Swim => Ok(swim::run(extent, json)),
    }
}
