//! Experiments of the literature, run again: what was published beside what is measured here.

use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use crate::progress::ProgressError;

mod lifeguard;
mod swim;

/// Which.
#[derive(Copy, Clone, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Experiment {
    /// False positives and latency of detection while members are slow (Dadgar, Phillips, Currey: Lifeguard, §V).
    Lifeguard,
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
/// If what was done before cannot be read, or what is done cannot be kept.
pub fn run(experiment: Experiment, extent: &Extent<'_>, json: bool) -> Result<ExitCode, ProgressError> {
    match experiment {
        Experiment::Lifeguard => lifeguard::run(extent, json),
        Experiment::Swim => Ok(swim::run(extent, json)),
    }
}
