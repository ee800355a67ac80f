//! A call whose owner is the caller's own node: what it costs beside the handler alone and a lookup of its key, in the same
//! run.
//!
//! `cargo bench -p swimring --bench local -- [--json]`. One node, one thread, and then two at once; a handler that gives its
//! body back. The contenders take turns, in rounds; every round is reported, and the median of the ratios.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use swimring::forwarder::Outcome;
use swimring::membership::{Name, Preset};
use swimring::runtime::certs;
use swimring::runtime::node::{CallRequest, Swimring};
use swimring::runtime::service::{Request, handler};
use tokio::runtime::Runtime;
use tower::Service;

const KEYS: usize = 4_096;
const ROUNDS: usize = 5;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    // `cargo test --benches` runs this without `--bench`: then it only shows that it works.
    let measuring = arguments.iter().any(|argument| argument == "--bench");
    let json = arguments.iter().any(|argument| argument == "--json");
    let (rounds, laps) = if measuring { (ROUNDS, 100) } else { (1, 1) };
    let directory = std::env::temp_dir().join(format!("swimring-local-{}", std::process::id()));
    let runtime = Runtime::new().expect("a runtime");
    let node = start(&runtime, &directory);
    let keys: Vec<bytes::Bytes> = (0..KEYS).map(|number| format!("user:{number}").into()).collect();
    let requests: Vec<CallRequest> = keys.iter().map(|key| CallRequest::new("echo", key.clone(), "body")).collect();
    let of = |key: &bytes::Bytes| Request {
        key: key.clone(),
        hash: node.hash(key),
        scope: swimring::forwarder::wire::Scope::Owner,
        body: "body".into(),
        context: bytes::Bytes::new(),
        caller: node.view().me(),
        received: swimring::membership::Instant::ORIGIN,
        deadline: swimring::membership::Instant::ORIGIN,
        view: node.view(),
        fence: 1,
        duplex: Default::default(),
    };
    let given: Vec<Request> = keys.iter().map(of).collect();
    let mut rows = Vec::new();
    for round in 0..rounds {
        let mut echo = handler(async |request: Request| Ok(request.body));
        let alone = runtime.block_on(timed(laps, async |index| {
            assert!(echo.call(given[index].clone()).await.is_ok());
        }));
        let lookup = runtime.block_on(timed(laps, async |index| {
            assert!(std::hint::black_box(node.owner(&keys[index])).is_ok());
        }));
        let calls = || {
            runtime.block_on(timed(laps, async |index| {
                let answered = node.call(requests[index].clone()).await;
                assert!(matches!(answered.outcome, Outcome::Ok(_)));
            }))
        };
        let call = calls();
        let of_two = std::thread::scope(|scope| {
            let threads = [scope.spawn(calls), scope.spawn(calls)];
            threads.map(|thread| thread.join().expect("the calls succeed")).iter().sum::<f64>() / 2.0
        });
        let ratio = (call - alone) / lookup;
        if !json {
            println!(
                "round {round}: handler alone {alone:.0} ns, lookup {lookup:.0} ns, call {call:.0} ns ({of_two:.0} ns in two \
                 threads at once): {ratio:.1} lookups"
            );
        }
        rows.push((alone, lookup, call, of_two, ratio));
    }
    let mut ratios: Vec<f64> = rows.iter().map(|row| row.4).collect();
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ratios.len() / 2];
    if json {
        let rows = rows.iter().map(|(alone, lookup, call, of_two, ratio)| {
            json!({ "handler_ns": alone, "lookup_ns": lookup, "call_ns": call, "call_of_two_threads_ns": of_two, "ratio": ratio })
        });
        println!("{}", json!({ "rounds": rows.collect::<Vec<_>>(), "median_ratio": median }));
    } else {
        println!("over the handler: {median:.1} lookups (median)");
    }
    let _ = std::fs::remove_dir_all(&directory);
    std::process::exit(0);
}

/// Nanoseconds a time, over all keys `laps` times.
async fn timed(laps: usize, mut each: impl AsyncFnMut(usize)) -> f64 {
    let begun = Instant::now();
    for _ in 0..laps {
        for index in 0..KEYS {
            each(index).await;
        }
    }
    begun.elapsed().as_nanos() as f64 / (laps * KEYS) as f64
}

/// A cluster of one that owns keys.
fn start(runtime: &Runtime, directory: &Path) -> Swimring {
    let at = |path: &str| -> PathBuf { directory.join(path) };
    certs::make_authority(&Name::new("local").expect("a name"), &at("ca")).expect("an authority");
    certs::issue(&at("ca"), &Name::new("a").expect("a name"), &[], 2, &at("a")).expect("an identity");
    let echo = handler(async |request: Request| Ok(request.body));
    let node = Swimring::builder(at("a"))
        .listen("127.0.0.1:0".parse().expect("an address"))
        .preset(Preset::Local)
        .quick_service("echo", echo);
    let node = runtime.block_on(node.start()).expect("the node starts");
    let until = Instant::now() + Duration::from_secs(10);
    while !node.is_ready() || node.owner(b"any").is_err() {
        assert!(Instant::now() < until, "it does not come to own keys");
        runtime.block_on(async { tokio::time::sleep(Duration::from_millis(10)).await });
    }
    node
}
