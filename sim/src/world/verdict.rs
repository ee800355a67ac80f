//! What a run came to.

use super::World;

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything held.
    Clean,
    /// Something did not.
    Violation,
    /// Nothing broke, but the core did not agree in time.
    NotConverged,
    /// The code panicked, of the cluster or of the simulator: the run ended there.
    Crash,
}

impl Verdict {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Violation => "violation",
            Self::NotConverged => "not-converged",
            Self::Crash => "crash",
        }
    }

    /// With which code a command ends that came to it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Clean => 0,
            Self::Violation => 1,
            Self::NotConverged => 3,
            Self::Crash => 4,
        }
    }
}

impl World {
    /// Seconds that processes were up, summed up.
    pub fn node_seconds(&self) -> f64 {
        self.node_nanos as f64 / 1e9
    }

    /// What the run came to so far.
    pub fn verdict(&self) -> Verdict {
        if self.crashed {
            Verdict::Crash
        } else if !self.findings.violations.is_empty() {
            Verdict::Violation
        } else if self.core.is_some() && self.converged_after.is_none_or(|after| after > self.plan.expect.converged) {
            Verdict::NotConverged
        } else {
            Verdict::Clean
        }
    }
}
