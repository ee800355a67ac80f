//! What calls cost while something goes wrong: a stuck owner, a hot key, gigantic bodies, and three times the load that an
//! owner can take.
//!
//! `cargo bench -p swimring --bench strain -- [--json]`. All nodes are in this process, each with a runtime of its own, and
//! share its processors. Calm and troubled rounds take turns; every round is printed, and the median of the ratios.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use serde_json::{Value, json};
use swimring::forwarder::{Limits, Outcome};
use swimring::membership::{Name, NodeId, Preset};
use swimring::runtime::certs;
use swimring::runtime::node::{CallRequest, Swimring};
use swimring::runtime::service::{Request, handler};
use tokio::runtime::Runtime;

const BODY: usize = 128;
/// Calls a second whose latency is looked at.
const RATE: f64 = 2_000.0;
/// What the owner that is overloaded takes: so many calls at once, each for so long.
const SLOTS: usize = 64;
const SLOT: Duration = Duration::from_millis(5);
/// How many times that it is asked for.
const TIMES: f64 = 3.0;
/// In such spans it is counted how many calls are answered.
const WINDOW: Duration = Duration::from_millis(500);
/// How many of a hundred calls are answered once the owner is well again.
const WELL: u64 = 95;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    // `cargo test --benches` runs this without `--bench`: then it only shows that it works.
    let measuring = arguments.iter().any(|argument| argument == "--bench");
    let json = arguments.iter().any(|argument| argument == "--json");
    let say = |line: String| {
        if !json {
            println!("{line}");
        }
    };
    let written = Arc::new(Written::default());
    metrics::set_global_recorder(Listener(Arc::clone(&written))).expect("the only recorder");
    let scene = Scene::start();
    let (rounds, span) = if measuring { (5, Duration::from_secs(3)) } else { (1, Duration::from_millis(100)) };
    let mut fairness = Vec::new();
    for trouble in [Trouble::StuckOwner, Trouble::HotKey, Trouble::GiganticBodies] {
        fairness.push(scene.compare(trouble, rounds, span, &say));
    }
    let (load, after) = if measuring { (10, 4) } else { (1, 1) };
    let overload = scene.overload(Duration::from_secs(load), Duration::from_secs(after), &written, &say);
    if json {
        println!("{}", json!({ "fairness": fairness, "overload": overload }));
    }
    let _ = std::fs::remove_dir_all(&scene.directory);
    std::process::exit(0);
}

/// How long refusals took to be written, in seconds, as the nodes tell it.
#[derive(Default)]
struct Written(Mutex<Vec<f64>>);

impl Written {
    /// What was written since the last time, the smallest first.
    fn take(&self) -> Vec<f64> {
        let mut taken = std::mem::take(&mut *self.0.lock().expect("no panic"));
        taken.sort_by(f64::total_cmp);
        taken
    }
}

impl HistogramFn for Written {
    fn record(&self, took: f64) {
        self.0.lock().expect("no panic").push(took);
    }
}

/// Hears of what is measured here, and of nothing else.
struct Listener(Arc<Written>);

impl Recorder for Listener {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        if key.name() == swimring::runtime::metrics::REFUSAL {
            Histogram::from_arc(Arc::clone(&self.0))
        } else {
            Histogram::noop()
        }
    }
}

/// What goes wrong at the third node while the second one is called.
#[derive(Copy, Clone, Debug)]
enum Trouble {
    /// A thousand calls are under way there, and none is ever answered.
    StuckOwner,
    /// Two hundred callers ask for one key there, which takes 15 to 25 ms each time.
    HotKey,
    /// Bodies of 16 MiB go there and come back, one after the other.
    GiganticBodies,
}

impl Trouble {
    fn name(self) -> &'static str {
        match self {
            Self::StuckOwner => "a stuck owner",
            Self::HotKey => "a hot key",
            Self::GiganticBodies => "gigantic bodies",
        }
    }

    /// How many callers make it, with which service, and which body.
    fn calls(self) -> (usize, &'static str, usize) {
        match self {
            Self::StuckOwner => (1_000, "stuck", BODY),
            Self::HotKey => (200, "slow", BODY),
            Self::GiganticBodies => (1, "echo", 16 << 20),
        }
    }
}

/// Four nodes: one that calls, and three that own a key each: for calm calls, for trouble, and for more than it takes.
struct Scene {
    runtimes: Vec<Runtime>,
    caller: Swimring,
    keys: [String; 3],
    directory: PathBuf,
}

impl Scene {
    fn start() -> Self {
        let directory = std::env::temp_dir().join(format!("swimring-strain-{}", std::process::id()));
        let cluster = Name::new("strain").expect("a name");
        certs::make_authority(&cluster, &directory.join("ca")).expect("an authority");
        let runtimes: Vec<Runtime> = (0..4).map(|_| runtime()).collect();
        let mut nodes: Vec<Swimring> = Vec::new();
        for (number, runtime) in runtimes.iter().enumerate() {
            let name = format!("n{number}");
            certs::issue(&directory.join("ca"), &Name::new(&name).expect("a name"), &[], 2, &directory.join(&name))
                .expect("an identity");
            let mut builder = Swimring::builder(directory.join(&name))
                .listen("127.0.0.1:0".parse().expect("an address"))
                .preset(Preset::Local)
                .quick_service("echo", handler(|request: Request| async move { Ok(request.body) }))
                .service("stuck", handler(|_: Request| std::future::pending()))
                .service("slow", handler(|request: Request| takes(slow(&request), request)))
                .service("slot", handler(|request: Request| takes(SLOT, request)));
            if number == 3 {
                let limits = Limits { calls_max: SLOTS, calls_of_peer_max: SLOTS, ..Limits::default() };
                builder = builder.limits(limits);
            }
            if let Some(first) = nodes.first() {
                builder = builder.seed(first.gossip_address().to_string());
            }
            nodes.push(runtime.block_on(builder.start()).expect("a node"));
        }
        while !nodes.iter().all(|node| node.is_ready() && node.view().ring().members().len() == 4) {
            std::thread::yield_now();
        }
        let key_of = |owner: NodeId| {
            let there = |key: &String| nodes[0].owner(key.as_bytes()) == Ok(owner);
            (0..).map(|number| format!("k{number}")).find(there).expect("a quarter of all keys")
        };
        let keys = [1, 2, 3].map(|number: usize| key_of(nodes[number].view().me().node));
        Self { runtimes, caller: nodes[0].clone(), keys, directory }
    }

    fn compare(&self, trouble: Trouble, rounds: usize, span: Duration, say: &impl Fn(String)) -> Value {
        let mut taken = Vec::new();
        for round in 0..rounds {
            let calm = self.p99(span);
            let troubled = {
                let over = self.make(trouble);
                let p99 = self.p99(span);
                over.store(true, Ordering::Relaxed);
                p99
            };
            say(format!(
                "{}, round {round}: p99 of another owner {calm:.0} us calm, {troubled:.0} us meanwhile",
                trouble.name()
            ));
            taken.push((calm, troubled));
        }
        let mut ratios: Vec<f64> = taken.iter().map(|(calm, troubled)| troubled / calm).collect();
        ratios.sort_by(f64::total_cmp);
        let ratio = ratios[ratios.len() / 2];
        say(format!("{}: median ratio {ratio:.2}", trouble.name()));
        let rounds =
            taken.iter().map(|(calm, troubled)| json!({ "calm_p99_us": calm.round(), "p99_us": troubled.round() }));
        json!({ "trouble": trouble.name(), "rounds": rounds.collect::<Vec<_>>(), "median_ratio": ratio })
    }

    /// Makes trouble until it is told that that is over.
    fn make(&self, trouble: Trouble) -> Arc<AtomicBool> {
        let over = Arc::new(AtomicBool::new(false));
        let (callers, service, bytes) = trouble.calls();
        for caller in 0..callers {
            let body = bytes::Bytes::from(vec![caller as u8; bytes]);
            let (node, key, body, over) = (self.caller.clone(), self.keys[1].clone(), body.clone(), Arc::clone(&over));
            self.runtimes[0].spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let request = CallRequest::new(service, key.clone(), body.clone());
                    node.call(request.timeout(Duration::from_millis(500))).await;
                }
            });
        }
        over
    }

    /// The p99 of calls at a steady rate to the second node, in microseconds.
    fn p99(&self, span: Duration) -> f64 {
        let tally = Arc::new(Tally::default());
        self.load(&tally, &self.keys[0], "echo", RATE, span);
        let latencies = tally.take(&tally.answered);
        assert!(!latencies.is_empty(), "calm calls are answered");
        quantile(&latencies, 0.99)
    }

    /// Calls at a steady rate, whatever comes of them, for `span`; returns once every one has its outcome.
    fn load(&self, tally: &Arc<Tally>, key: &str, service: &'static str, rate: f64, span: Duration) {
        let (node, key, tally) =
            (self.caller.clone(), bytes::Bytes::copy_from_slice(key.as_bytes()), Arc::clone(tally));
        self.runtimes[0].block_on(async move {
            let (begun, mut made, mut ticks) = (Instant::now(), 0u64, tokio::time::interval(Duration::from_millis(1)));
            let mut calls = tokio::task::JoinSet::new();
            while begun.elapsed() < span {
                ticks.tick().await;
                let due = (begun.elapsed().as_secs_f64() * rate) as u64;
                for _ in made..due {
                    let (node, key, tally) = (node.clone(), key.clone(), Arc::clone(&tally));
                    calls.spawn(async move {
                        let asked = Instant::now();
                        let answered = node.call(CallRequest::new(service, key, vec![7; BODY])).await;
                        tally.count(asked.elapsed(), &answered);
                    });
                }
                made = due;
                while calls.try_join_next().is_some() {}
            }
            while calls.join_next().await.is_some() {}
        });
    }

    /// Three times what the fourth node takes, and then half of it.
    fn overload(&self, span: Duration, after: Duration, written: &Written, say: &impl Fn(String)) -> Value {
        let takes = SLOTS as f64 / SLOT.as_secs_f64();
        let before = resident_mib();
        let peak = Arc::new(AtomicU64::new(0));
        let over = Arc::new(AtomicBool::new(false));
        let watching = {
            let (peak, over) = (Arc::clone(&peak), Arc::clone(&over));
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    peak.fetch_max(resident_mib(), Ordering::Relaxed);
                    std::thread::park_timeout(Duration::from_millis(100));
                }
            })
        };
        let tally = Arc::new(Tally::default());
        written.take();
        self.load(&tally, &self.keys[2], "slot", takes * TIMES, span);
        over.store(true, Ordering::Relaxed);
        watching.join().expect("it only looks");
        let (answered, refused) = (tally.take(&tally.answered), tally.take(&tally.refused));
        let goodput = answered.len() as f64 / span.as_secs_f64();
        let refusals = [0.5, 0.99, 0.999].map(|of| quantile(&refused, of) / 1e3);
        let written = written.take();
        let writes = [0.5, 0.99, 0.999].map(|of| quantile(&written, of) * 1e3);
        let peak = peak.load(Ordering::Relaxed);
        say(format!(
            "overload: {:.0} calls a second asked for, {takes:.0} possible, for {:.0} s: {goodput:.0} answered, {:.0} refused \
             a second, {} others",
            takes * TIMES,
            span.as_secs_f64(),
            refused.len() as f64 / span.as_secs_f64(),
            tally.others.load(Ordering::Relaxed)
        ));
        say(format!(
            "  from reading a call to having written its refusal: p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms",
            writes[0], writes[1], writes[2]
        ));
        say(format!(
            "  refusals that were not tried again, there and back: p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms",
            refusals[0], refusals[1], refusals[2]
        ));
        say(format!("  memory of all four nodes and the callers: {before} MiB before, {peak} MiB at most"));
        let ended = Instant::now();
        let (mut back, mut windows) = (None, Vec::new());
        while ended.elapsed() < after {
            let window = Arc::new(Tally::default());
            self.load(&window, &self.keys[2], "slot", takes / 2.0, WINDOW);
            let answered = window.take(&window.answered).len();
            let failed = window.take(&window.refused).len() as u64 + window.others.load(Ordering::Relaxed);
            windows.push(answered as u64 * 100 / (answered as u64 + failed).max(1));
            if (answered as u64) * 100 < (answered as u64 + failed) * WELL {
                back = None;
            } else if back.is_none() {
                back = Some(ended.elapsed().saturating_sub(WINDOW));
            }
        }
        let back = back.map(|back| back.as_secs_f64());
        say(match back {
            Some(back) => {
                format!("  under half of what it takes, {WELL} % are answered from {back:.1} s after its end on")
            }
            None => format!("  under half of what it takes, {WELL} % were not answered again"),
        });
        let shown: Vec<String> = windows.iter().map(|percent| format!("{percent} %")).collect();
        say(format!("  answered in each {} ms of that: {}", WINDOW.as_millis(), shown.join(", ")));
        json!({
            "asked_per_second": takes * TIMES, "possible_per_second": takes, "answered_per_second": goodput.round(),
            "refused": refused.len(), "others": tally.others.load(Ordering::Relaxed), "refusal_ms": refusals,
            "refusal_written_ms": writes, "memory_mib": [before, peak], "back_after_s": back,
            "answered_after_percent": windows,
        })
    }
}

/// What came of calls, and how long it took, in microseconds.
#[derive(Default)]
struct Tally {
    answered: Mutex<Vec<f64>>,
    refused: Mutex<Vec<f64>>,
    others: AtomicU64,
}

impl Tally {
    fn count(&self, took: Duration, answered: &swimring::runtime::Answered) {
        let push = |into: &Mutex<Vec<f64>>| into.lock().expect("no panic").push(took.as_secs_f64() * 1e6);
        match &answered.outcome {
            Outcome::Ok(_) => push(&self.answered),
            Outcome::NotExecuted(no) if no.retry_after().is_some() => {
                if answered.repeats == 0 {
                    push(&self.refused);
                }
            }
            _ => _ = self.others.fetch_add(1, Ordering::Relaxed),
        }
    }

    fn take(&self, of: &Mutex<Vec<f64>>) -> Vec<f64> {
        let mut taken = std::mem::take(&mut *of.lock().expect("no panic"));
        taken.sort_by(f64::total_cmp);
        taken
    }
}

fn quantile(sorted: &[f64], of: f64) -> f64 {
    sorted.get((sorted.len() as f64 * of) as usize).copied().unwrap_or(0.0)
}

/// Callers do not all wait for the same moment.
fn slow(request: &Request) -> Duration {
    Duration::from_micros(15_000 + u64::from(request.body[0]) * 40)
}

async fn takes(long: Duration, request: Request) -> Result<bytes::Bytes, swimring::runtime::service::ServiceError> {
    tokio::time::sleep(long).await;
    Ok(request.body)
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

/// What this process takes of the machine's memory, in MiB.
fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|kib| kib.parse::<u64>().ok());
    kib.unwrap_or(0) / 1_024
}
