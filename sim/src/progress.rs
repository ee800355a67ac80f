//! How far a long command has come: on the terminal, and in a file from which it can go on.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// How often the file is written and the line drawn, in seconds.
const EVERY_S: f64 = 1.0;
/// Characters of the bar.
const WIDTH: usize = 24;

/// Why a command cannot go on from a file, or keep it.
#[derive(Debug, thiserror::Error)]
pub enum ProgressError {
    /// The file cannot be read or written.
    #[error("{}: {}", .0.display(), .1)]
    File(PathBuf, std::io::Error),
    /// The file holds something else.
    #[error("{} is not the progress of such a command: {}", .0.display(), .1)]
    Strange(PathBuf, serde_json::Error),
    /// The file is of another profile or experiment.
    #[error("{} is the progress of {}", .0.display(), .1)]
    Other(PathBuf, String),
}

/// What is done, and what came of it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Progress<T> {
    /// Of what: what is kept of something else does not add up with it.
    of: String,
    pub(crate) sum: T,
    /// Seeds, or other numbers, that were run: half-open ranges.
    done: Vec<(u64, u64)>,
}

impl<T: Default + Serialize + DeserializeOwned> Progress<T> {
    pub(crate) fn new(of: String) -> Self {
        Self { of, sum: T::default(), done: Vec::new() }
    }

    /// What `path` holds of an earlier run, if there is such a file.
    pub(crate) fn read(path: Option<&Path>, of: String) -> Result<Self, ProgressError> {
        let Some(path) = path else { return Ok(Self::new(of)) };
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::new(of)),
            Err(error) => return Err(ProgressError::File(path.into(), error)),
        };
        let held: Self = serde_json::from_slice(&text).map_err(|error| ProgressError::Strange(path.into(), error))?;
        if held.of != of {
            return Err(ProgressError::Other(path.into(), held.of));
        }
        Ok(held)
    }

    /// Writes all of it, or leaves the file as it was.
    pub(crate) fn write(&self, path: Option<&Path>) -> Result<(), ProgressError> {
        let Some(path) = path else { return Ok(()) };
        let failed = |error| ProgressError::File(path.into(), error);
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let text = serde_json::to_vec(self).expect("progress has only text keys");
        std::fs::write(&beside, text).map_err(failed)?;
        std::fs::rename(&beside, path).map_err(failed)
    }

    /// Runs `run` for each of the numbers that is not done, on `jobs` threads, and adds what comes of it; `add` is told
    /// the seconds since the beginning. What is done is written now and then, and at the end.
    ///
    /// # Errors
    /// If it cannot be written: then nothing further was begun.
    #[expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "long commands show their own wall time")]
    pub(crate) fn go_through<O: Send>(
        &mut self,
        numbers: impl Iterator<Item = u64>,
        jobs: usize,
        kept_in: Option<&Path>,
        run: impl Fn(u64) -> O + Sync,
        mut add: impl FnMut(&mut T, u64, O, f64) -> Step,
    ) -> Result<(), ProgressError> {
        let started = std::time::Instant::now();
        let numbers: Vec<u64> = numbers.filter(|number| !self.is_done(*number)).collect();
        let (mut line, mut done, mut kept) = (Line::new(), 0, Ok(()));
        crate::parallel::each(&numbers, jobs, run, |number, outcome| {
            let now = started.elapsed().as_secs_f64();
            let step = add(&mut self.sum, number, outcome, now);
            self.finish(number);
            done += 1;
            if let Some(text) = step.say {
                line.clear();
                crate::say!("{text}");
            }
            if line.is_due(now) {
                line.draw(now, done, numbers.len(), &step.remark);
                kept = self.write(kept_in);
            }
            kept.is_ok() && !step.is_enough
        });
        line.clear();
        kept.and_then(|()| self.write(kept_in))
    }

    pub(crate) fn is_done(&self, seed: u64) -> bool {
        self.done.iter().any(|(from, to)| (*from..*to).contains(&seed))
    }

    pub(crate) fn finish(&mut self, seed: u64) {
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

/// What follows from one more that is done.
#[derive(Default)]
pub(crate) struct Step {
    /// To be printed.
    pub(crate) say: Option<String>,
    /// For the line on the terminal.
    pub(crate) remark: String,
    /// Nothing further is begun.
    pub(crate) is_enough: bool,
}

/// The line on a terminal.
pub(crate) struct Line {
    drawn_at: f64,
    on: bool,
}

impl Line {
    pub(crate) fn new() -> Self {
        Self { drawn_at: f64::NEG_INFINITY, on: std::io::stderr().is_terminal() }
    }

    /// Whether it is time to draw again, `now` seconds after the beginning.
    pub(crate) fn is_due(&mut self, now: f64) -> bool {
        let due = now - self.drawn_at >= EVERY_S;
        if due {
            self.drawn_at = now;
        }
        due
    }

    /// `done` of `all` took `now` seconds.
    pub(crate) fn draw(&self, now: f64, done: usize, all: usize, remark: &str) {
        if self.on && all > 0 {
            let full = WIDTH * done / all;
            let left = now / done.max(1) as f64 * (all - done) as f64;
            let bar = format!("{}{}", "█".repeat(full), "░".repeat(WIDTH - full));
            let text = format!("{bar} {done}/{all}, {remark}{left:.0} s to go");
            _ = write!(std::io::stderr(), "\r\x1b[K{text}");
            _ = std::io::stderr().flush();
        }
    }

    /// Takes the line away, for other text to be written.
    pub(crate) fn clear(&self) {
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
        let mut progress = Progress::<()>::new("pr".into());
        [3, 1, 2, 9, 0].into_iter().for_each(|seed| progress.finish(seed));
        assert_eq!(progress.done, [(0, 4), (9, 10)]);
        assert!(progress.is_done(2) && progress.is_done(9) && !progress.is_done(4));
    }
}
