//! A steady load of puts and gets through random nodes, and what the callers may expect to read.
//!
//! A key belongs to one worker, which makes one call at a time: so it knows the last acknowledged put, those
//! that may still come into force, and whether the owner has changed since.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::task::JoinHandle;

use super::rand::Draws;

/// How many callers there are, at most.
const WORKERS_MAX: u64 = 128;
/// Keys of one worker.
const KEYS: usize = 32;
/// How long a caller waits for its entry node.
const PATIENCE: Duration = Duration::from_secs(10);

/// A door into the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) http: String,
}

/// The doors in use, and the counts.
pub(super) struct Load {
    entries: Mutex<Vec<Entry>>,
    dead: Mutex<Vec<String>>,
    tally: Mutex<Tally>,
}

/// What the callers saw.
#[derive(Clone, Default, Debug)]
pub(super) struct Tally {
    pub(super) ok: u64,
    pub(super) executed_error: u64,
    pub(super) not_executed: u64,
    pub(super) unknown: u64,
    pub(super) wrong_value: u64,
    pub(super) wrong_owner: u64,
    pub(super) absent_after_move: u64,
    /// Reads of a key that was written more often than its worker has put it.
    pub(super) ran_twice: u64,
    pub(super) forwarded: u64,
    pub(super) hops_max: u64,
    /// Of every answered call, in microseconds.
    pub(super) latency_us: Vec<u32>,
}

impl Tally {
    pub(super) fn calls(&self) -> u64 {
        self.ok + self.failed()
    }

    pub(super) fn failed(&self) -> u64 {
        self.executed_error + self.not_executed + self.unknown
    }
}

impl Load {
    pub(super) fn new(entries: Vec<Entry>) -> Self {
        Self { entries: Mutex::new(entries), dead: Mutex::default(), tally: Mutex::default() }
    }

    pub(super) fn replace_entries(&self, entries: Vec<Entry>) {
        *self.entries.lock().expect("nothing panics while it holds the lock") = entries;
    }

    pub(super) fn mark_dead(&self, name: &str) {
        self.dead.lock().expect("nothing panics while it holds the lock").push(name.to_owned());
    }

    fn is_dead(&self, name: &str) -> bool {
        self.dead.lock().expect("nothing panics while it holds the lock").iter().any(|dead| dead == name)
    }

    pub(super) fn tally(&self) -> Tally {
        self.tally.lock().expect("nothing panics while it holds the lock").clone()
    }

    fn count(&self, change: impl FnOnce(&mut Tally)) {
        change(&mut self.tally.lock().expect("nothing panics while it holds the lock"));
    }

    fn entry(&self, draws: &mut Draws) -> Entry {
        let entries = self.entries.lock().expect("nothing panics while it holds the lock");
        entries[draws.below(entries.len())].clone()
    }
}

/// Starts the load for `span`.
pub(super) fn start(load: &Arc<Load>, rate: u64, span: Duration) -> JoinHandle<()> {
    let workers = rate.div_ceil(10).clamp(1, WORKERS_MAX);
    let load = Arc::clone(load);
    tokio::spawn(async move {
        let tasks: Vec<_> =
            (0..workers).map(|number| tokio::spawn(worker(Arc::clone(&load), number, workers, rate, span))).collect();
        for task in tasks {
            let _ = task.await;
        }
    })
}

/// What a worker knows of one of its keys.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The value of the last acknowledged put, and who owned the key then.
    acknowledged: Option<(u64, String)>,
    /// Puts since then whose outcome is not known.
    possible: Vec<u64>,
    /// Puts ever made.
    puts: u64,
}

async fn worker(load: Arc<Load>, number: u64, workers: u64, rate: u64, span: Duration) {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let mut draws = Draws::new();
    let mut known: BTreeMap<usize, Known> = BTreeMap::new();
    let mut value = number << 40;
    let begun = Instant::now();
    let gap = Duration::from_secs_f64(workers as f64 / rate as f64);
    let mut next = begun + gap.mul_f64(number as f64 / workers as f64);
    while begun.elapsed() < span {
        tokio::time::sleep_until(next.into()).await;
        // Behind by much, the rate is what the cluster takes.
        next = (next + gap).max(Instant::now() - gap);
        let key = draws.below(KEYS);
        let put = draws.half().then(|| {
            value += 1;
            value
        });
        let entry = load.entry(&mut draws);
        let asked = Instant::now();
        let answer = ask(&client, &entry, &format!("w{number}-{key}"), put).await;
        let latency = asked.elapsed();
        let known = known.entry(key).or_default();
        known.puts += u64::from(put.is_some());
        match answer {
            Some(answer) => {
                load.count(|tally| judge(tally, known, put, &answer, latency));
            }
            // Not handed to anybody, or to a door that was just killed: what it did with it is not known.
            None => {
                known.possible.extend(put);
                if !load.is_dead(&entry.name) {
                    load.count(|tally| tally.unknown += 1);
                }
            }
        }
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

async fn ask(
    client: &Client<HttpConnector, Full<Bytes>>,
    entry: &Entry,
    key: &str,
    put: Option<u64>,
) -> Option<Answer> {
    let uri = format!("http://{}/kv/{key}", entry.http);
    let request = match put {
        Some(value) => Request::put(uri).body(Full::new(Bytes::from(value.to_string()))),
        None => Request::get(uri).body(Full::default()),
    };
    let response = async {
        let response = client.request(request.ok()?).await.ok()?;
        let (parts, body) = response.into_parts();
        Some(Answer { status: parts.status, headers: parts.headers, body: body.collect().await.ok()?.to_bytes() })
    };
    tokio::time::timeout(PATIENCE, response).await.ok().flatten()
}

/// Counts an answer, and checks what it says against what the worker knows.
fn judge(tally: &mut Tally, known: &mut Known, put: Option<u64>, answer: &Answer, latency: Duration) {
    let text = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let owner = text("x-swimring-owner").to_owned();
    let hops: u64 = text("x-swimring-hops").parse().unwrap_or(0);
    tally.hops_max = tally.hops_max.max(hops);
    tally.forwarded += u64::from(hops > 0);
    tally.wrong_owner += u64::from(!text("x-swimring-misrouted").is_empty());
    tally.latency_us.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
    match answer.status {
        StatusCode::NO_CONTENT | StatusCode::OK | StatusCode::NOT_FOUND => tally.ok += 1,
        StatusCode::INTERNAL_SERVER_ERROR => tally.executed_error += 1,
        StatusCode::GATEWAY_TIMEOUT => {
            tally.unknown += 1;
            known.possible.extend(put);
        }
        _ => tally.not_executed += 1,
    }
    match (put, answer.status) {
        (Some(value), StatusCode::NO_CONTENT) => {
            known.acknowledged = Some((value, owner));
            known.possible.clear();
        }
        (None, StatusCode::OK) => {
            let read = std::str::from_utf8(&answer.body).ok().and_then(|text| text.parse::<u64>().ok());
            let right = read.is_some_and(|read| {
                known.possible.contains(&read) || known.acknowledged.as_ref().is_some_and(|(value, _)| *value == read)
            });
            tally.wrong_value += u64::from(!right);
            let writes: u64 = text("x-swimring-writes").parse().unwrap_or(0);
            tally.ran_twice += u64::from(writes > known.puts);
        }
        (None, StatusCode::NOT_FOUND) => {
            if let Some((_, put_at)) = &known.acknowledged {
                let moved = *put_at != owner;
                tally.absent_after_move += u64::from(moved);
                tally.wrong_value += u64::from(!moved);
                if moved {
                    known.acknowledged = None;
                }
            }
        }
        _ => {}
    }
}
