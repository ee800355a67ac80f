//! A 128-byte call forwarded on loopback, beside what others do with the same bytes, in the same run.
//!
//! `cargo bench -p swimring --bench forward -- [--json] [--only NAME]... [--in-flight N]... [--rounds N]`
//!
//! | contender | what it is |
//! |---|---|
//! | `swimring` | a call of one node to the other, mutual TLS |
//! | `futures` | raw quinn: frames on as many long-lived streams, written in batches as ours are, a future a request |
//! | `batched` | raw quinn: the same frames, whatever is answered asked anew at once, nobody waiting for a single one |
//! | `tonic` | unary gRPC calls without TLS, as tonic comes |
//! | `redis` | `redis-benchmark` GET without pipelining or TLS; left out, and said so, where it is missing |
//!
//! Both ends of a contender have a runtime of their own with one thread, in this process (Redis: two processes). The
//! contenders take turns, in rounds; every round is reported, and the medians of the ratios of ours to each.

use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use figures::{Begun, Figures, median_ratio};

mod figures;
mod ours;
mod raw;
mod redis_get;
mod tonic_unary;

const BODY: usize = 128;
const NAMES: [&str; 5] = ["swimring", "futures", "batched", "tonic", "redis"];

#[derive(Parser)]
struct Arguments {
    /// Prints one JSON object at the end.
    #[arg(long)]
    json: bool,
    /// Only these contenders.
    #[arg(long, value_parser = NAMES)]
    only: Vec<String>,
    /// How many calls are under way at once.
    #[arg(long, default_values_t = [1, 16, 64, 256])]
    in_flight: Vec<usize>,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Given by `cargo bench`; without it (`cargo test --benches`) this only shows that it works.
    #[arg(long)]
    bench: bool,
}

type Measure = Box<dyn Fn(usize, Duration) -> Figures>;

fn main() {
    let arguments = Arguments::parse();
    let (rounds, span) =
        if arguments.bench { (arguments.rounds, Duration::from_secs(1)) } else { (1, Duration::from_millis(50)) };
    let contenders: Vec<(&str, Measure)> = NAMES
        .into_iter()
        .filter(|name| arguments.only.is_empty() || arguments.only.iter().any(|only| only == name))
        .filter_map(|name| Some((name, start(name)?)))
        .collect();
    let mut rows = Vec::new();
    for &in_flight in &arguments.in_flight {
        let mut taken: Vec<Vec<Figures>> = contenders.iter().map(|_| Vec::new()).collect();
        for round in 0..rounds {
            for ((name, measure), taken) in contenders.iter().zip(&mut taken) {
                let figures = measure(in_flight, span);
                if !arguments.json {
                    println!("in flight {in_flight:>3}  round {round}  {name:<8}  {figures}");
                }
                taken.push(figures);
            }
        }
        rows.push(compared(in_flight, &contenders, &taken, arguments.json));
    }
    if arguments.json {
        println!("{}", json!({ "body_bytes": BODY, "rows": rows }));
    }
}

/// `None` for who is not here.
fn start(name: &str) -> Option<Measure> {
    Some(match name {
        "swimring" => {
            let it = ours::Ours::start();
            Box::new(move |in_flight, span| it.measure(in_flight, span))
        }
        "futures" => {
            let it = raw::Futures::start();
            Box::new(move |in_flight, span| it.measure(in_flight, span))
        }
        "batched" => {
            let it = raw::Batched::start();
            Box::new(move |in_flight, span| it.measure(in_flight, span))
        }
        "tonic" => {
            let it = tonic_unary::Tonic::start();
            Box::new(move |in_flight, span| it.measure(in_flight, span))
        }
        _ => {
            let Some(it) = redis_get::Redis::start() else {
                eprintln!("redis: left out, there is no redis-server and redis-benchmark here");
                return None;
            };
            Box::new(move |in_flight, span| it.measure(in_flight, span))
        }
    })
}

/// Prints the medians of the ratios of the first contender to each other one, and gives the whole as JSON.
fn compared(in_flight: usize, contenders: &[(&str, Measure)], taken: &[Vec<Figures>], json: bool) -> Value {
    let mut row = json!({ "in_flight": in_flight });
    for ((name, _), figures) in contenders.iter().zip(taken) {
        row[*name] = figures.iter().map(Figures::json).collect();
        let ours = &taken[0];
        let [per_second, p99, cpu] = [|f: &Figures| Some(f.per_second), |f: &Figures| f.p99_us, |f: &Figures| f.cpu_us]
            .map(|pick| median_ratio(ours, figures, pick));
        row["ratios"][*name] = json!({ "per_second": per_second, "p99": p99, "cpu": cpu });
        if !json && *name != contenders[0].0 {
            let or_dash = |ratio: Option<f64>| ratio.map_or("-".into(), |ratio| format!("{ratio:.2}"));
            println!(
                "in flight {in_flight:>3}  {} to {name}: calls per second {}, p99 {}, cpu {}",
                contenders[0].0,
                or_dash(per_second),
                or_dash(p99),
                or_dash(cpu)
            );
        }
    }
    row
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

/// Keeps `in_flight` requests under way for `span`.
fn drive<F, Fut>(runtime: &Runtime, in_flight: usize, span: Duration, ask: F) -> Figures
where
    F: Fn() -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send,
{
    runtime.block_on(async {
        let begun = Begun::now();
        let until = Instant::now() + span;
        let tasks: Vec<_> = (0..in_flight)
            .map(|_| {
                let ask = ask.clone();
                tokio::spawn(async move {
                    let mut latencies = Vec::new();
                    let mut asked = Instant::now();
                    while asked < until {
                        ask().await;
                        let answered = Instant::now();
                        latencies.push(answered - asked);
                        asked = answered;
                    }
                    latencies
                })
            })
            .collect();
        let mut all = Vec::new();
        for task in tasks {
            all.extend(task.await.expect("a request does not panic"));
        }
        begun.timed(all)
    })
}
