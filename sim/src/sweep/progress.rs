//! How far a sweep has come: on the terminal, and in a file from which it can go on.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::summary::Summary;

/// How often the file is written and the line drawn, in seconds.
const EVERY_S: f64 = 1.0;
/// Characters of the bar.
const WIDTH: usize = 24;

/// Why a sweep cannot go on from a file, or keep it.
#[derive(Debug, thiserror::Error)]
pub enum ProgressError {
    /// The file cannot be read or written.
    #[error("{}: {}", .0.display(), .1)]
    File(PathBuf, std::io::Error),
    /// The file holds something else.
    #[error("{} is not the progress of a sweep: {}", .0.display(), .1)]
    Strange(PathBuf, serde_json::Error),
    /// The file is of another profile.
    #[error("{} is the progress of a sweep of {}", .0.display(), .1)]
    Profile(PathBuf, String),
}

/// What is done, and what came of it.
#[derive(Serialize, Deserialize)]
pub(super) struct Progress {
    pub(super) summary: Summary,
    /// Seeds that were run: half-open ranges.
    done: Vec<(u64, u64)>,
}

impl Progress {
    pub(super) fn new(profile: String) -> Self {
        Self { summary: Summary::new(profile), done: Vec::new() }
    }

    /// What `path` holds of an earlier sweep, if there is such a file.
    pub(super) fn read(path: &Path, profile: String) -> Result<Self, ProgressError> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::new(profile)),
            Err(error) => return Err(ProgressError::File(path.into(), error)),
        };
        let held: Self = serde_json::from_slice(&text).map_err(|error| ProgressError::Strange(path.into(), error))?;
        if held.summary.profile != profile {
            return Err(ProgressError::Profile(path.into(), held.summary.profile));
        }
        Ok(held)
    }

    /// Writes all of it, or leaves the file as it was.
    pub(super) fn write(&self, path: &Path) -> Result<(), ProgressError> {
        let failed = |error| ProgressError::File(path.into(), error);
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let text = serde_json::to_vec(self).expect("progress has only text keys");
        std::fs::write(&beside, text).map_err(failed)?;
        std::fs::rename(&beside, path).map_err(failed)
    }

    pub(super) fn is_done(&self, seed: u64) -> bool {
        self.done.iter().any(|(from, to)| (*from..*to).contains(&seed))
    }

    pub(super) fn finish(&mut self, seed: u64) {
        // Few ranges: the seeds are run nearly in order.
        let mut seeds: BTreeSet<(u64, u64)> = self.done.drain(..).collect();
        seeds.insert((seed, seed + 1));
        for (from, to) in seeds {
            match self.done.last_mut() {
                Some(last) if last.1 == from => last.1 = to,
                _ => self.done.push((from, to)),
            }
        }
    }
}

/// The line on a terminal.
pub(super) struct Line {
    drawn_at: f64,
    on: bool,
}

impl Line {
    pub(super) fn new() -> Self {
        Self { drawn_at: f64::NEG_INFINITY, on: std::io::stderr().is_terminal() }
    }

    /// Whether it is time to draw again, `now` seconds after the beginning.
    pub(super) fn is_due(&mut self, now: f64) -> bool {
        let due = now - self.drawn_at >= EVERY_S;
        if due {
            self.drawn_at = now;
        }
        due
    }

    /// `done` of `all` plans took `now` seconds, and `failed` of them failed.
    pub(super) fn draw(&self, now: f64, done: usize, all: usize, failed: u64) {
        if self.on && all > 0 {
            let full = WIDTH * done / all;
            let left = now / done.max(1) as f64 * (all - done) as f64;
            let bar = format!("{}{}", "█".repeat(full), "░".repeat(WIDTH - full));
            let text = format!("{bar} {done}/{all} plans, {failed} failed, {left:.0} s to go");
            _ = write!(std::io::stderr(), "\r\x1b[K{text}");
            _ = std::io::stderr().flush();
        }
    }

    /// Takes the line away, for other text to be written.
    pub(super) fn clear(&self) {
        if self.on {
            _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_is_kept_as_ranges() {
        let mut progress = Progress::new("pr".into());
        [3, 1, 2, 9, 0].into_iter().for_each(|seed| progress.finish(seed));
        assert_eq!(progress.done, [(0, 4), (9, 10)]);
        assert!(progress.is_done(2) && progress.is_done(9) && !progress.is_done(4));
    }
}
