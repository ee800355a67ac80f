//! `swimring demo --rolling`: every process leaves and starts again, one after the other, under load.
//!
//! Callers that stay enter through processes that stay; those of the process that leaves are served by it until it says
//! that it goes. What a process holds may go with it; calls may not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;

use super::DemoArgs;
use super::children::Cluster;
use super::load::{self, Load, Tally};
use super::report::Screen;

/// How long it is quiet first, to know what a call takes then.
const QUIET: Duration = Duration::from_secs(5);
/// How long callers have to turn to other doors before theirs is closed.
const TURN: Duration = Duration::from_millis(200);
/// Longer than any number of rounds takes.
const FOR_EVER: Duration = Duration::from_secs(86_400);

/// What a span of time came to.
#[derive(Serialize)]
struct Span {
    seconds: f64,
    calls: u64,
    failed: u64,
    ran_twice: u64,
    wrong_value: u64,
    wrong_owner: u64,
    p50_us: u32,
    p99_us: u32,
    /// Calls of the leavers' own callers, which were answered or failed before they were told to go.
    own_calls: u64,
    own_failed: u64,
}

impl Span {
    fn between(before: &Tally, after: &Tally, took: Duration, (own_calls, own_failed): (u64, u64)) -> Self {
        let mut latencies = after.latency_us[before.latency_us.len()..].to_vec();
        latencies.sort_unstable();
        let quantile = |of: usize| latencies.get(latencies.len() * of / 100).copied().unwrap_or(0);
        Self {
            seconds: (took.as_secs_f64() * 10.0).round() / 10.0,
            calls: after.calls() - before.calls(),
            failed: after.failed() - before.failed(),
            ran_twice: after.ran_twice - before.ran_twice,
            wrong_value: after.wrong_value - before.wrong_value,
            wrong_owner: after.wrong_owner - before.wrong_owner,
            p50_us: quantile(50),
            p99_us: quantile(99),
            own_calls,
            own_failed,
        }
    }

    fn describe(&self) -> String {
        format!(
            "{} calls in {:.1} s, {} failed, {} run twice, p50 {:.1} ms, p99 {:.1} ms; {} of the leavers' own, {} failed",
            self.calls,
            self.seconds,
            self.failed,
            self.ran_twice,
            f64::from(self.p50_us) / 1e3,
            f64::from(self.p99_us) / 1e3,
            self.own_calls,
            self.own_failed,
        )
    }
}

/// What a rolling restart came to.
#[derive(Serialize)]
pub(super) struct Report {
    nodes: usize,
    rate: u64,
    quiet: Span,
    rounds: Vec<Span>,
    /// What was said of calls that failed, and how often.
    said: BTreeMap<String, u64>,
    /// By how much the p99 of the worst round is above that of the quiet time.
    added_p99_us: u32,
}

impl Report {
    /// What a cluster that works does not do.
    pub(super) fn problems(&self) -> Vec<String> {
        let spans = || self.rounds.iter().chain([&self.quiet]);
        let sum = |of: fn(&Span) -> u64| spans().map(of).sum::<u64>();
        let counts = [
            (sum(|span| span.failed), "calls that failed"),
            (sum(|span| span.own_failed), "calls of a leaver's own callers that failed"),
            (sum(|span| span.ran_twice), "reads of a key that was written more often than it was put"),
            (sum(|span| span.wrong_value), "reads of a wrong value"),
            (sum(|span| span.wrong_owner), "calls that ran at a node whose own view named another"),
        ];
        let mut problems: Vec<String> =
            counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        if spans().any(|span| span.calls == 0) {
            problems.push("no calls at all".into());
        }
        problems
    }

    pub(super) fn print(&self, json: bool) {
        if json {
            return say!("{}", serde_json::to_string(self).expect("a report has only text keys"));
        }
        say!("");
        say!("  quiet    {}", self.quiet.describe());
        for (number, round) in self.rounds.iter().enumerate() {
            say!("  round {:<2} {}", number + 1, round.describe());
        }
        say!("  added to the p99 by the worst round: {:.1} ms", f64::from(self.added_p99_us) / 1e3);
        say!("");
        let problems = self.problems();
        if problems.is_empty() {
            say!("Everything held.");
        }
        problems.iter().for_each(|problem| say!("WRONG: {problem}"));
        self.said.iter().for_each(|(said, count)| say!("  {count} times: {said}"));
    }
}

pub(super) async fn tell(args: &DemoArgs, rounds: u16) -> anyhow::Result<Report> {
    let nodes = usize::from(args.nodes);
    let screen = Screen::new(args.json);
    let mut cluster = Cluster::new()?;
    screen.say(&format!("starting {nodes} processes with certificates made just now"));
    for _ in 0..nodes {
        cluster.add().await?;
    }
    cluster.wait_for_members(nodes).await.context("the processes did not find each other")?;

    let load = Arc::new(Load::new(cluster.live()));
    let running = load::start(&load, args.rate, FOR_EVER);
    let begun = Instant::now();
    tokio::time::sleep(QUIET).await;
    let mut before = load.tally();
    let quiet = Span::between(&Tally::default(), &before, begun.elapsed(), (0, 0));
    screen.say(&format!("quiet: {}", quiet.describe()));
    let mut spans = Vec::new();
    for number in 1..=rounds {
        let begun = Instant::now();
        let mut own = (0, 0);
        for index in 0..nodes {
            let (answered, failed) = restart(&mut cluster, &load, index).await?;
            own = (own.0 + answered, own.1 + failed);
        }
        let after = load.tally();
        let span = Span::between(&before, &after, begun.elapsed(), own);
        screen.say(&format!("round {number}: {}", span.describe()));
        spans.push(span);
        before = after;
    }
    load.end();
    running.await.context("the load ended early")?;
    cluster.end().await;
    let worst = spans.iter().map(|span| span.p99_us).max().unwrap_or(0);
    Ok(Report {
        nodes,
        rate: args.rate,
        added_p99_us: worst.saturating_sub(quiet.p99_us),
        quiet,
        rounds: spans,
        said: before.said,
    })
}

/// One process leaves and starts again. Returns how its own callers fared meanwhile.
async fn restart(cluster: &mut Cluster, load: &Load, index: usize) -> anyhow::Result<(u64, u64)> {
    let mut child = cluster.remove(index);
    load.replace_entries(cluster.live());
    tokio::time::sleep(TURN).await;
    load.mark_moves();
    let own = tokio::spawn(load::read_until_closed(child.entry()));
    child.leave().await?;
    let own = own.await?;
    load.mark_moves();
    cluster.restart(index, child.name.clone()).await?;
    load.replace_entries(cluster.live());
    Ok(own)
}
