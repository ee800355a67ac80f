//! What a round came to, and what the rounds of two contenders come to beside each other.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

/// What one contender did in one round.
pub(crate) struct Figures {
    pub(crate) per_second: f64,
    /// Of calls, in microseconds; `None` if nobody looked at single calls.
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    /// What a call took of both ends' processors, in microseconds; `None` if the ends are processes of their own.
    pub(crate) cpu_us: Option<f64>,
}

/// When a round began, on the wall and on the processors.
pub(crate) struct Begun {
    at: Instant,
    cpu: Duration,
}

impl Begun {
    pub(crate) fn now() -> Self {
        Self { at: Instant::now(), cpu: cpu() }
    }

    /// The round ends; `calls` were answered.
    pub(crate) fn counted(&self, calls: usize) -> Figures {
        let (took, cpu) = (self.at.elapsed(), cpu() - self.cpu);
        Figures {
            per_second: calls as f64 / took.as_secs_f64(),
            p50_us: None,
            p99_us: None,
            cpu_us: Some(cpu.as_secs_f64() * 1e6 / calls as f64),
        }
    }

    /// The round ends; each call took as long as `latencies` say.
    pub(crate) fn timed(&self, mut latencies: Vec<Duration>) -> Figures {
        let counted = self.counted(latencies.len());
        latencies.sort_unstable();
        let quantile = |of: usize| latencies.get(latencies.len() * of / 100).map(|l| l.as_secs_f64() * 1e6);
        Figures { p50_us: quantile(50), p99_us: quantile(99), ..counted }
    }
}

/// What this process has taken of its processors.
fn cpu() -> Duration {
    let taken = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(taken.tv_sec).unwrap_or(0), u32::try_from(taken.tv_nsec).unwrap_or(0))
}

impl Figures {
    pub(crate) fn json(&self) -> Value {
        let tenths = |figure: Option<f64>| figure.map(|figure| (figure * 10.0).round() / 10.0);
        json!({
            "per_second": self.per_second.round(),
            "p50_us": tenths(self.p50_us),
            "p99_us": tenths(self.p99_us),
            "cpu_us": tenths(self.cpu_us),
        })
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let or_dash =
            |figure: Option<f64>, digits: usize| figure.map_or("-".into(), |value| format!("{value:.digits$}"));
        let (p50, p99, cpu) = (or_dash(self.p50_us, 0), or_dash(self.p99_us, 0), or_dash(self.cpu_us, 1));
        write!(f, "{:>8.0}/s  p50 {p50:>6} us  p99 {p99:>6} us  cpu {cpu:>5} us", self.per_second)
    }
}

/// The median over rounds of what `pick` says of `ours` by what it says of `theirs`.
pub(crate) fn median_ratio(ours: &[Figures], theirs: &[Figures], pick: fn(&Figures) -> Option<f64>) -> Option<f64> {
    let mut ratios: Vec<f64> =
        ours.iter().zip(theirs).filter_map(|(ours, theirs)| Some(pick(ours)? / pick(theirs)?)).collect();
    ratios.sort_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied()
}
