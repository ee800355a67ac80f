//! What a demo shows: lines as it goes, a table at the end, or one JSON object.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::task::JoinHandle;

use super::load::{Load, Tally};

/// The process that was killed.
#[derive(Serialize)]
pub(super) struct Killed {
    pub(super) node: String,
    /// For each survivor, from the SIGKILL until it showed *down*; none if it never did.
    pub(super) noticed_ms: Vec<Option<u64>>,
    pub(super) arcs: u32,
}

/// The process that left.
#[derive(Serialize)]
pub(super) struct Left {
    pub(super) node: String,
    /// Calls that failed while it left.
    pub(super) errors: u64,
}

/// The process that came.
#[derive(Serialize)]
pub(super) struct Joined {
    pub(super) node: String,
    pub(super) ready_ms: u64,
}

/// What a demo came to.
#[derive(Serialize)]
pub(super) struct Report {
    nodes: usize,
    seconds: f64,
    calls: u64,
    ok: u64,
    executed_error: u64,
    not_executed: u64,
    unknown: u64,
    wrong_value: u64,
    wrong_owner: u64,
    absent_after_move: u64,
    ran_twice: u64,
    forwarded: u64,
    hops_max: u64,
    p50_us: u32,
    p99_us: u32,
    killed: Killed,
    left: Left,
    joined: Joined,
}

impl Report {
    pub(super) fn new(
        nodes: usize,
        took: Duration,
        mut tally: Tally,
        killed: Killed,
        left: Left,
        joined: Joined,
    ) -> Self {
        tally.latency_us.sort_unstable();
        let quantile = |of: usize| tally.latency_us.get(tally.latency_us.len() * of / 100).copied().unwrap_or(0);
        Self {
            nodes,
            seconds: (took.as_secs_f64() * 1_000.0).round() / 1_000.0,
            calls: tally.calls(),
            ok: tally.ok,
            executed_error: tally.executed_error,
            not_executed: tally.not_executed,
            unknown: tally.unknown,
            wrong_value: tally.wrong_value,
            wrong_owner: tally.wrong_owner,
            absent_after_move: tally.absent_after_move,
            ran_twice: tally.ran_twice,
            forwarded: tally.forwarded,
            hops_max: tally.hops_max,
            p50_us: quantile(50),
            p99_us: quantile(99),
            killed,
            left,
            joined,
        }
    }

    /// What a cluster that works does not do.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut wrong = |count: u64, what: &str| {
            if count > 0 {
                problems.push(format!("{count} {what}"));
            }
        };
        wrong(self.wrong_value, "reads of a wrong value");
        wrong(self.wrong_owner, "calls that ran at a node whose own view named another");
        wrong(self.ran_twice, "reads of a key that was written more often than it was put");
        wrong(self.left.errors, "calls that failed while a process left in an orderly way");
        wrong(self.hops_max.saturating_sub(2), "hops too many");
        let unnoticed = self.killed.noticed_ms.iter().filter(|ms| ms.is_none_or(|ms| ms > 10_000)).count();
        wrong(unnoticed as u64, "survivors that did not notice the kill within 10 s");
        if self.calls == 0 {
            problems.push("no calls at all".into());
        }
        problems
    }

    pub(super) fn print(&self, json: bool) {
        if json {
            say!("{}", serde_json::to_string(self).expect("a report has only text keys"));
            return;
        }
        let row = |name: &str, value: String| say!("  {name:<34} {value}");
        say!("");
        row("calls", format!("{} in {:.1} s", self.calls, self.seconds));
        row("answered", self.ok.to_string());
        row("handler failed", self.executed_error.to_string());
        row("not executed (safe to repeat)", self.not_executed.to_string());
        row("unknown (may have run)", self.unknown.to_string());
        row("forwarded", format!("{} ({:.0} %), at most {} hops", self.forwarded, self.share(), self.hops_max));
        row(
            "latency p50, p99",
            format!("{:.1} ms, {:.1} ms", f64::from(self.p50_us) / 1e3, f64::from(self.p99_us) / 1e3),
        );
        row("values lost with their owner", self.absent_after_move.to_string());
        row("wrong values, owners, doubles", format!("{}, {}, {}", self.wrong_value, self.wrong_owner, self.ran_twice));
        // None if a survivor never noticed.
        let slowest = self.killed.noticed_ms.iter().copied().try_fold(0, |slowest, ms| ms.map(|ms| slowest.max(ms)));
        let slowest = slowest.map_or_else(|| "not within the run".to_owned(), |ms| format!("after {ms} ms"));
        row("kill -9 noticed by all", format!("{} {slowest}", self.killed.node));
        row("errors while one left", format!("{} ({})", self.left.errors, self.left.node));
        row("a new process took keys", format!("{} after {} ms", self.joined.node, self.joined.ready_ms));
        say!("");
        let problems = self.problems();
        if problems.is_empty() {
            say!("Everything held.");
        }
        problems.iter().for_each(|problem| say!("WRONG: {problem}"));
    }

    fn share(&self) -> f64 {
        self.forwarded as f64 * 100.0 / self.calls.max(1) as f64
    }
}

/// Where progress goes: a line that moves on a terminal, plain lines elsewhere.
#[derive(Clone)]
pub(super) struct Screen {
    begun: Instant,
    live: bool,
    line: Arc<Mutex<usize>>,
}

impl Screen {
    pub(super) fn new(json: bool) -> Self {
        Self { begun: Instant::now(), live: !json && std::io::stderr().is_terminal(), line: Arc::default() }
    }

    /// A line that stays. Progress goes to standard error, so that standard output is the result alone.
    pub(super) fn say(&self, text: &str) {
        let mut length = self.line.lock().expect("nothing panics while it holds the lock");
        let clear = " ".repeat(std::mem::take(&mut *length));
        let wipe = if clear.is_empty() { String::new() } else { format!("\r{clear}\r") };
        remark!("{wipe}{:>6.1} s  {text}", self.begun.elapsed().as_secs_f64());
    }

    /// Shows how the load goes: on a terminal a line that moves, elsewhere one now and then.
    pub(super) fn watch(&self, load: &Arc<Load>, span: Duration) -> JoinHandle<()> {
        let (screen, load) = (self.clone(), Arc::clone(load));
        tokio::spawn(async move {
            let begun = Instant::now();
            let every = if screen.live { Duration::from_millis(250) } else { Duration::from_secs(5) };
            loop {
                tokio::time::sleep(every).await;
                let tally = load.tally();
                let left = span.saturating_sub(begun.elapsed()).as_secs();
                let text = format!("{} calls, {} failed, {left} s to go", tally.calls(), tally.failed());
                if screen.live { screen.show(&text) } else { screen.say(&text) }
            }
        })
    }

    fn show(&self, text: &str) {
        let mut length = self.line.lock().expect("nothing panics while it holds the lock");
        let line = format!("{:>6.1} s  {text}", self.begun.elapsed().as_secs_f64());
        let mut terminal = std::io::stderr();
        _ = write!(terminal, "\r{line:<width$}", width = *length).and_then(|()| terminal.flush());
        *length = line.len();
    }
}
