//! A 128-byte call forwarded on loopback, beside a raw quinn echo with the same lanes, in the same run.
//!
//! `cargo bench -p swimring --bench forward -- [--json]`. Both ends have a runtime of their own in this process.
//! The contenders take turns, in rounds; every round is reported, and the median of the ratios.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, RecvStream, SendStream, ServerConfig};
use serde_json::json;
use swimring::membership::{Name, Preset};
use swimring::runtime::LANES;
use swimring::runtime::certs;
use swimring::runtime::node::{CallRequest, Swimring};
use swimring::runtime::service::{Request, handler};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, oneshot};

const BODY: usize = 128;
const ROUNDS: usize = 5;
const IN_FLIGHT: [usize; 4] = [1, 16, 64, 256];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    // `cargo test --benches` runs this without `--bench`: then it only shows that it works.
    let measuring = arguments.iter().any(|argument| argument == "--bench");
    let json = arguments.iter().any(|argument| argument == "--json");
    let (rounds, span) = if measuring { (ROUNDS, Duration::from_secs(1)) } else { (1, Duration::from_millis(50)) };
    let raw = Raw::start();
    let ours = Ours::start();
    let mut rows = Vec::new();
    for in_flight in IN_FLIGHT {
        let mut taken = Vec::new();
        for round in 0..rounds {
            let (r, o) = (raw.measure(in_flight, span), ours.measure(in_flight, span));
            if !json {
                println!("in flight {in_flight:>3}, round {round}: raw quinn {r}   swimring {o}");
            }
            taken.push((r, o));
        }
        let mut ratios: Vec<f64> = taken.iter().map(|(r, o)| o.per_second / r.per_second).collect();
        ratios.sort_by(f64::total_cmp);
        let ratio = ratios[ratios.len() / 2];
        if !json {
            println!("in flight {in_flight:>3}: median ratio {ratio:.2}");
        }
        let list =
            |pick: fn(&(Figures, Figures)) -> &Figures| taken.iter().map(|pair| pick(pair).json()).collect::<Vec<_>>();
        rows.push(json!({ "in_flight": in_flight, "raw_quinn": list(|p| &p.0), "swimring": list(|p| &p.1), "median_ratio": ratio }));
    }
    if json {
        println!("{}", json!({ "body_bytes": BODY, "rows": rows }));
    }
    let _ = std::fs::remove_dir_all(&ours.directory);
    std::process::exit(0);
}

/// What one round came to.
struct Figures {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
}

impl Figures {
    fn of(mut latencies: Vec<Duration>, took: Duration) -> Self {
        latencies.sort_unstable();
        let quantile = |of: usize| latencies.get(latencies.len() * of / 100).map_or(0.0, |l| l.as_secs_f64() * 1e6);
        Self { per_second: latencies.len() as f64 / took.as_secs_f64(), p50_us: quantile(50), p99_us: quantile(99) }
    }

    fn json(&self) -> serde_json::Value {
        json!({ "per_second": self.per_second.round(), "p50_us": self.p50_us.round(), "p99_us": self.p99_us.round() })
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:>8.0}/s p50 {:>6.0} us p99 {:>6.0} us", self.per_second, self.p50_us, self.p99_us)
    }
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
        let begun = Instant::now();
        let tasks: Vec<_> = (0..in_flight)
            .map(|_| {
                let ask = ask.clone();
                tokio::spawn(async move {
                    let mut latencies = Vec::new();
                    while begun.elapsed() < span {
                        let asked = Instant::now();
                        ask().await;
                        latencies.push(asked.elapsed());
                    }
                    latencies
                })
            })
            .collect();
        let mut all = Vec::new();
        for task in tasks {
            all.extend(task.await.expect("a request does not panic"));
        }
        Figures::of(all, begun.elapsed())
    })
}

/// Two nodes, and a key that the other one owns.
struct Ours {
    client: Runtime,
    _server: Runtime,
    node: Swimring,
    key: String,
    directory: PathBuf,
}

impl Ours {
    fn start() -> Self {
        let directory = std::env::temp_dir().join(format!("swimring-bench-{}", std::process::id()));
        let cluster = Name::new("bench").expect("a name");
        certs::make_authority(&cluster, &directory.join("ca")).expect("an authority");
        for name in ["a", "b"] {
            certs::issue(&directory.join("ca"), &Name::new(name).expect("a name"), &[], 2, &directory.join(name))
                .expect("an identity");
        }
        let (client, server) = (runtime(), runtime());
        let listen: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let echo = || handler(|request: Request| async move { Ok(request.body) });
        let builder = |name: &str| {
            Swimring::builder(directory.join(name)).listen(listen).preset(Preset::Local).quick_service("echo", echo())
        };
        let a = client.block_on(builder("a").start()).expect("a node");
        let b = server.block_on(builder("b").seed(a.gossip_address().to_string()).start()).expect("a node");
        let owner = b.view().me().node;
        while !(a.is_ready() && b.is_ready() && a.view().ring().members().len() == 2) {
            std::thread::yield_now();
        }
        let there = |key: &String| a.owner(key.as_bytes()) == Ok(owner);
        let key = (0..).map(|number| format!("k{number}")).find(there).expect("half of all keys are there");
        Self { client, _server: server, node: a, key, directory }
    }

    fn measure(&self, in_flight: usize, span: Duration) -> Figures {
        let (node, key) = (self.node.clone(), self.key.clone());
        drive(&self.client, in_flight, span, move || {
            let (node, key) = (node.clone(), key.clone());
            async move {
                let answered = node.call(CallRequest::new("echo", key, vec![7; BODY])).await;
                assert!(matches!(answered.outcome, swimring::forwarder::Outcome::Ok(_)), "{answered:?}");
            }
        })
    }
}

/// quinn alone: frames on as many long-lived streams, written in batches as ours are, a future a request.
struct Raw {
    client: Runtime,
    _server: Runtime,
    lane: Arc<Lane>,
}

#[derive(Default)]
struct Lane {
    queue: Mutex<(u64, Vec<u8>)>,
    waiting: Mutex<HashMap<u64, oneshot::Sender<()>>>,
    work: Notify,
}

impl Raw {
    fn start() -> Self {
        let (client, server) = (runtime(), runtime());
        let made = rcgen::generate_simple_self_signed(vec!["bench".into()]).expect("a certificate");
        let certificate = made.cert.der().clone();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .expect("a configuration");
        let config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).expect("a cipher suite")));
        let listen: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let endpoint = server.block_on(async { Endpoint::server(config, listen) }).expect("an endpoint");
        let address = endpoint.local_addr().expect("it is bound");
        server.spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let connection = incoming.await.expect("a connection");
                for _ in 0..LANES {
                    let (send, recv) = connection.accept_bi().await.expect("a stream");
                    tokio::spawn(echo(send, recv));
                }
            }
        });
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate).expect("a root");
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("a cipher suite")));
        let lane = Arc::new(Lane::default());
        client.block_on(async {
            let endpoint = Endpoint::client(listen).expect("an endpoint");
            let connection =
                endpoint.connect_with(config, address, "bench").expect("a dial").await.expect("a connection");
            for _ in 0..LANES {
                let (mut send, recv) = connection.open_bi().await.expect("a stream");
                // The other end sees a stream once something comes on it.
                send.write_all(&[0; FRAME]).await.expect("it can be sent");
                tokio::spawn(write(Arc::clone(&lane), send));
                tokio::spawn(read(Arc::clone(&lane), recv, connection.clone()));
            }
        });
        Self { client, _server: server, lane }
    }

    fn measure(&self, in_flight: usize, span: Duration) -> Figures {
        let lane = Arc::clone(&self.lane);
        drive(&self.client, in_flight, span, move || {
            let lane = Arc::clone(&lane);
            async move {
                let (done, answer) = oneshot::channel();
                {
                    let mut queue = lane.queue.lock().expect("no panic");
                    queue.0 += 1;
                    let number = queue.0;
                    lane.waiting.lock().expect("no panic").insert(number, done);
                    queue.1.extend_from_slice(&number.to_le_bytes());
                    queue.1.extend_from_slice(&[7; BODY]);
                }
                lane.work.notify_one();
                answer.await.expect("an answer");
            }
        })
    }
}

const FRAME: usize = 8 + BODY;

async fn write(lane: Arc<Lane>, mut send: SendStream) {
    loop {
        let batch = std::mem::take(&mut lane.queue.lock().expect("no panic").1);
        if batch.is_empty() {
            lane.work.notified().await;
            tokio::task::yield_now().await;
        } else if send.write_all(&batch).await.is_err() {
            return;
        }
    }
}

async fn read(lane: Arc<Lane>, mut recv: RecvStream, _keep: quinn::Connection) {
    let mut buffer = Vec::new();
    while let Ok(Some(chunk)) = recv.read_chunk(64 << 10, true).await {
        buffer.extend_from_slice(&chunk.bytes);
        let whole = buffer.len() / FRAME * FRAME;
        for frame in buffer[..whole].chunks(FRAME) {
            let number = u64::from_le_bytes(*frame.first_chunk().expect("a frame begins with its number"));
            if let Some(done) = lane.waiting.lock().expect("no panic").remove(&number) {
                let _ = done.send(());
            }
        }
        buffer.drain(..whole);
    }
}

async fn echo(mut send: SendStream, mut recv: RecvStream) {
    let mut buffer = Vec::new();
    while let Ok(Some(chunk)) = recv.read_chunk(64 << 10, true).await {
        buffer.extend_from_slice(&chunk.bytes);
        let whole = buffer.len() / FRAME * FRAME;
        let batch: Vec<u8> = buffer.drain(..whole).collect();
        if send.write_all(&batch).await.is_err() {
            return;
        }
    }
}
