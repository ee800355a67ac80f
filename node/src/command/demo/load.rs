//! A steady load of puts and gets through random nodes, and what the callers may expect to read.
//!
//! A key belongs to one worker, which makes one call at a time: so it knows the last acknowledged put, those
//! that may still come into force, and whether the owner has changed since.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
/// Most different texts of failures that are kept.
const SAID_MAX: usize = 32;
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
    /// How often processes went and came.
    epoch: AtomicU64,
    tally: Mutex<Tally>,
    over: AtomicBool,
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
    /// What was said of calls that failed, and how often.
    pub(super) said: BTreeMap<String, u64>,
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
        Self {
            entries: Mutex::new(entries),
            dead: Mutex::default(),
            epoch: AtomicU64::new(0),
            tally: Mutex::default(),
            over: AtomicBool::new(false),
        }
    }

    pub(super) fn replace_entries(&self, entries: Vec<Entry>) {
        *self.entries.lock().expect("nothing panics while it holds the lock") = entries;
    }

    pub(super) fn mark_dead(&self, name: &str) {
        self.dead.lock().expect("nothing panics while it holds the lock").push(name.to_owned());
    }

    /// A process is about to go, or has come: a key may move away, and back.
    pub(super) fn mark_moves(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Ends the load before its time.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
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

/// Who owned a key, and in which epoch.
type Holding = (String, u64);

/// What a worker knows of one of its keys.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The value of the last acknowledged put, and who owned the key then.
    acknowledged: Option<(u64, Holding)>,
    /// Puts since then whose outcome is not known.
    possible: Vec<u64>,
    /// Puts ever made.
    puts: u64,
}

async fn worker(load: Arc<Load>, number: u64, workers: u64, rate: u64, span: Duration) {
    let client = client();
    let mut draws = Draws::new();
    let mut known: BTreeMap<usize, Known> = BTreeMap::new();
    let mut value = number << 40;
    let begun = Instant::now();
    let gap = Duration::from_secs_f64(workers as f64 / rate as f64);
    let mut next = begun + gap.mul_f64(number as f64 / workers as f64);
    while begun.elapsed() < span && !load.over.load(Ordering::Relaxed) {
        tokio::time::sleep_until(next.into()).await;
        // Behind by much, the rate is what the cluster takes.
        next = (next + gap).max(Instant::now() - gap);
        let key = draws.below(KEYS);
        let put = draws.half().then(|| {
            value += 1;
            value
        });
        let entry = load.entry(&mut draws);
        let (asked, epoch) = (Instant::now(), load.epoch.load(Ordering::SeqCst));
        let answer = ask(&client, &entry, &format!("w{number}-{key}"), put).await;
        let latency = asked.elapsed();
        let known = known.entry(key).or_default();
        known.puts += u64::from(put.is_some());
        match answer {
            Some(answer) => {
                // A put counts for when it was asked for, a read for when it was answered.
                let epoch = if put.is_some() { epoch } else { load.epoch.load(Ordering::SeqCst) };
                let held = (answer.header("x-swimring-owner").to_owned(), epoch);
                load.count(|tally| judge(tally, known, put, &answer, held, latency));
            }
            // Not handed to anybody, or to a door that was just killed: what it did with it is not known.
            None => {
                known.possible.extend(put);
                if !load.is_dead(&entry.name) {
                    load.count(|tally| {
                        tally.unknown += 1;
                        *tally.said.entry(format!("{} did not answer", entry.name)).or_default() += 1;
                    });
                }
            }
        }
    }
}

/// Reads keys through one door until it is closed or turns callers away, and counts what fails before. Returns how
/// many were answered, and how many failed.
pub(super) async fn read_until_closed(entry: Entry) -> (u64, u64) {
    let (client, mut answered, mut failed) = (client(), 0, 0);
    loop {
        let key = format!("k{answered}");
        let Some(answer) = ask(&client, &entry, &key, None).await else {
            return (answered, failed);
        };
        match answer.status {
            StatusCode::OK | StatusCode::NOT_FOUND => answered += 1,
            // It says that it goes.
            StatusCode::SERVICE_UNAVAILABLE if answer.body.windows(LEAVING.len()).any(|part| part == LEAVING) => {
                return (answered, failed);
            }
            _ => failed += 1,
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What a node says that is about to end.
const LEAVING: &[u8] = b"this node is going away";

fn client() -> Client<HttpConnector, Full<Bytes>> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).build(connector)
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
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
fn judge(tally: &mut Tally, known: &mut Known, put: Option<u64>, answer: &Answer, held: Holding, latency: Duration) {
    let hops: u64 = answer.header("x-swimring-hops").parse().unwrap_or(0);
    tally.hops_max = tally.hops_max.max(hops);
    tally.forwarded += u64::from(hops > 0);
    tally.wrong_owner += u64::from(!answer.header("x-swimring-misrouted").is_empty());
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
    if !matches!(answer.status, StatusCode::NO_CONTENT | StatusCode::OK | StatusCode::NOT_FOUND) {
        let said = String::from_utf8_lossy(&answer.body);
        // Few different things are said; were it more, the first would do.
        if tally.said.len() < SAID_MAX || tally.said.contains_key(&*said) {
            *tally.said.entry(said.trim().to_owned()).or_default() += 1;
        }
    }
    match (put, answer.status) {
        (Some(value), StatusCode::NO_CONTENT) => {
            known.acknowledged = Some((value, held));
            known.possible.clear();
        }
        (None, StatusCode::OK) => {
            let read = std::str::from_utf8(&answer.body).ok().and_then(|text| text.parse::<u64>().ok());
            let right = read.is_some_and(|read| {
                known.possible.contains(&read) || known.acknowledged.as_ref().is_some_and(|(value, _)| *value == read)
            });
            tally.wrong_value += u64::from(!right);
            let writes: u64 = answer.header("x-swimring-writes").parse().unwrap_or(0);
            tally.ran_twice += u64::from(writes > known.puts);
        }
        (None, StatusCode::NOT_FOUND) => {
            if let Some((_, put_at)) = &known.acknowledged {
                let moved = *put_at != held;
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
