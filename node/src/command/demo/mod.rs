//! `swimring demo`: a cluster of real processes on this machine, under load, losing and gaining members.
//!
//! The story: start N processes, load them, kill an owner, let one leave, start a new one, and say what the
//! callers saw. Children end when their standard input closes, so that none outlives this process.

mod children;
mod load;
mod report;
mod rolling;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use rand::Draws;
use tokio::signal::unix::{SignalKind, signal};

use self::children::{Child, Cluster};
use self::load::Load;
use self::report::{Joined, Killed, Left, Report, Screen};
use super::{OWN_FAULT, REFUSED, WRONG};

#[derive(Args)]
pub(super) struct DemoArgs {
    /// How many processes; at least 3.
    #[arg(long, env = "SWIMRING_NODES", default_value_t = 5, value_parser = clap::value_parser!(u16).range(3..=32))]
    nodes: u16,
    /// How long to load them; at least 10.
    #[arg(long, env = "SWIMRING_SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(10..=3_600))]
    seconds: u64,
    /// Calls a second.
    #[arg(long, env = "SWIMRING_RATE", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    rate: u64,
    /// Instead of the story: how many times every process in turn leaves and starts again, under load.
    #[arg(long, env = "SWIMRING_ROLLING", value_name = "ROUNDS", conflicts_with = "seconds", value_parser = clap::value_parser!(u16).range(1..=100))]
    rolling: Option<u16>,
    /// One JSON object on standard output.
    #[arg(long, env = "SWIMRING_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    json: bool,
}

/// How long survivors may take to notice.
const NOTICE_MAX: Duration = Duration::from_secs(10);
/// How often a survivor is asked whether it has noticed.
const LOOK: Duration = Duration::from_millis(20);

pub(super) fn run(args: &DemoArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(problem) => {
            remark!("swimring: {problem}");
            return ExitCode::from(OWN_FAULT);
        }
    };
    let told = runtime.block_on(async {
        tokio::select! {
            told = tell_either(args) => Some(told),
            () = interrupted() => None,
        }
    });
    // The children's standard inputs are closed by now, or will be with this process.
    runtime.shutdown_timeout(Duration::from_millis(200));
    match told {
        Some(Ok(true)) => ExitCode::SUCCESS,
        Some(Ok(false)) => ExitCode::from(WRONG),
        Some(Err(problem)) => {
            remark!("swimring: {problem:#}");
            ExitCode::from(REFUSED)
        }
        None => {
            remark!("swimring: interrupted; every process of the demo ends with this one");
            ExitCode::from(WRONG)
        }
    }
}

async fn interrupted() {
    let (Ok(mut term), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Tells what was asked for, and whether everything held.
async fn tell_either(args: &DemoArgs) -> anyhow::Result<bool> {
    match args.rolling {
        Some(rounds) => {
            let report = rolling::tell(args, rounds).await?;
            report.print(args.json);
            Ok(report.problems().is_empty())
        }
        None => {
            let report = tell(args).await?;
            report.print(args.json);
            Ok(report.problems().is_empty())
        }
    }
}

async fn tell(args: &DemoArgs) -> anyhow::Result<Report> {
    let nodes = usize::from(args.nodes);
    let screen = Screen::new(args.json);
    let begun = Instant::now();
    let mut cluster = Cluster::new()?;
    screen.say(&format!("starting {nodes} processes with certificates made just now"));
    for _ in 0..nodes {
        cluster.add().await?;
    }
    cluster.wait_for_members(nodes).await.context("the processes did not find each other")?;
    screen.say(&format!("{nodes} processes agree on one view after {} ms", begun.elapsed().as_millis()));

    let load = Arc::new(Load::new(cluster.live()));
    let span = Duration::from_secs(args.seconds);
    let running = load::start(&load, args.rate, span);
    let watching = screen.watch(&load, span);
    let mut draws = Draws::new();
    // The first fifth is quiet; then one is killed, one leaves, one comes.
    tokio::time::sleep(span / 5).await;
    let killed = kill(&mut cluster, &load, &mut draws, &screen).await?;
    tokio::time::sleep(span / 10).await;
    let left = leave(&mut cluster, &load, &mut draws, &screen).await?;
    tokio::time::sleep(span / 10).await;
    let joined = join(&mut cluster, &load, &screen).await?;
    running.await.context("the load ended early")?;
    watching.abort();
    let report = Report::new(nodes, begun.elapsed(), load.tally(), killed, left, joined);
    cluster.end().await;
    Ok(report)
}

/// Kills a process that owns keys, and asks every survivor until it has noticed.
async fn kill(cluster: &mut Cluster, load: &Load, draws: &mut Draws, screen: &Screen) -> anyhow::Result<Killed> {
    let victim = draws.below(cluster.len());
    let mut child = cluster.remove(victim);
    let arcs = child.arcs().await?;
    load.replace_entries(cluster.live());
    load.mark_dead(&child.name);
    screen.say(&format!("kill -9 {}, which owns {arcs} arcs", child.name));
    let at = Instant::now();
    child.kill().await?;
    let asked =
        cluster.iter().map(|survivor| noticed(survivor.clone_admin(), survivor.name.clone(), child.name.clone(), at));
    let asked: Vec<_> = asked.map(tokio::spawn).collect();
    let mut noticed_ms = Vec::new();
    for task in asked {
        let (survivor, after) = task.await?;
        let text = after.map_or("not at all".into(), |after| format!("after {} ms", after.as_millis()));
        screen.say(&format!("  {survivor} noticed {text}"));
        noticed_ms.push(after.map(|after| after.as_millis() as u64));
    }
    for (name, gained) in cluster.shares().await? {
        screen.say(&format!("  {name} now owns {gained} arcs"));
    }
    Ok(Killed { node: child.name, noticed_ms, arcs })
}

async fn noticed(
    admin: children::AdminOf,
    survivor: String,
    victim: String,
    at: Instant,
) -> (String, Option<Duration>) {
    while at.elapsed() < NOTICE_MAX * 2 {
        if admin.state_of(&victim).await.is_some_and(|state| state == "down") {
            return (survivor, Some(at.elapsed()));
        }
        tokio::time::sleep(LOOK).await;
    }
    (survivor, None)
}

/// Has a process leave in an orderly way, and counts what its leaving cost.
async fn leave(cluster: &mut Cluster, load: &Load, draws: &mut Draws, screen: &Screen) -> anyhow::Result<Left> {
    let leaver = draws.below(cluster.len());
    let mut child = cluster.remove(leaver);
    load.replace_entries(cluster.live());
    // What is under way through the leaver's own door ends before it goes.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = load.tally().failed();
    screen.say(&format!("{} leaves in an orderly way", child.name));
    let at = Instant::now();
    child.leave().await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let errors = load.tally().failed() - before;
    screen.say(&format!("  it was gone after {} ms; {errors} calls failed", at.elapsed().as_millis()));
    Ok(Left { node: child.name, errors })
}

/// Starts a new process, and waits until it takes keys.
async fn join(cluster: &mut Cluster, load: &Load, screen: &Screen) -> anyhow::Result<Joined> {
    let at = Instant::now();
    let name = cluster.add().await?.name.clone();
    screen.say(&format!("{name} is new"));
    let newcomer: &Child = cluster.last();
    newcomer.wait_ready().await?;
    let ready_ms = at.elapsed().as_millis() as u64;
    load.replace_entries(cluster.live());
    screen.say(&format!("  it took keys after {ready_ms} ms"));
    Ok(Joined { node: name, ready_ms })
}

mod rand {
    //! Draws of the demo: whom to ask, which key, whom to kill.

    use swimring::membership::Rng;

    /// A stream of draws.
    pub(super) struct Draws(Rng);

    impl Draws {
        pub(super) fn new() -> Self {
            let mut seed = [0; 8];
            getrandom::fill(&mut seed).expect("a system without randomness cannot run TLS either");
            Self(Rng::new(u64::from_le_bytes(seed)))
        }

        pub(super) fn below(&mut self, bound: usize) -> usize {
            self.0.index(bound)
        }

        pub(super) fn half(&mut self) -> bool {
            self.0.chance(500_000)
        }
    }
}
