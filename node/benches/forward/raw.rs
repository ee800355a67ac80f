//! quinn alone, with as many long-lived streams as ours: what the transport costs whoever asks over it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, RecvStream, SendStream, ServerConfig};
use swimring::runtime::LANES;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, oneshot};

use super::figures::{Begun, Figures};
use super::{BODY, drive, runtime};

/// Two endpoints, and streams between them on which every frame comes back.
struct Ends {
    client: Runtime,
    _server: Runtime,
    streams: Vec<(SendStream, RecvStream)>,
}

impl Ends {
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
        let streams = client.block_on(async {
            let endpoint = Endpoint::client(listen).expect("an endpoint");
            let connection =
                endpoint.connect_with(config, address, "bench").expect("a dial").await.expect("a connection");
            let mut streams = Vec::new();
            for _ in 0..LANES {
                let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
                // The other end sees a stream once something comes on it.
                send.write_all(&[0; FRAME]).await.expect("it can be sent");
                recv.read_exact(&mut [0; FRAME]).await.expect("it comes back");
                streams.push((send, recv));
            }
            streams
        });
        Self { client, _server: server, streams }
    }
}

/// A future a request, woken by its answer.
pub(crate) struct Futures {
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

impl Futures {
    pub(crate) fn start() -> Self {
        let Ends { client, _server, streams } = Ends::start();
        let lane = Arc::new(Lane::default());
        for (send, recv) in streams {
            client.spawn(write(Arc::clone(&lane), send));
            client.spawn(read(Arc::clone(&lane), recv));
        }
        Self { client, _server, lane }
    }

    pub(crate) fn measure(&self, in_flight: usize, span: Duration) -> Figures {
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

/// Nobody waits for a single answer: as many frames as came back go out anew, in one write.
pub(crate) struct Batched {
    client: Runtime,
    _server: Runtime,
    streams: Vec<Arc<tokio::sync::Mutex<(SendStream, RecvStream)>>>,
}

impl Batched {
    pub(crate) fn start() -> Self {
        let Ends { client, _server, streams } = Ends::start();
        let streams = streams.into_iter().map(|stream| Arc::new(tokio::sync::Mutex::new(stream))).collect();
        Self { client, _server, streams }
    }

    pub(crate) fn measure(&self, in_flight: usize, span: Duration) -> Figures {
        let lanes = self.streams.len().min(in_flight);
        self.client.block_on(async {
            let begun = Begun::now();
            let share = |lane: usize| in_flight / lanes + usize::from(lane < in_flight % lanes);
            let tasks: Vec<_> = (0..lanes)
                .map(|lane| tokio::spawn(again(Arc::clone(&self.streams[lane]), share(lane), Instant::now() + span)))
                .collect();
            let mut answered = 0;
            for task in tasks {
                answered += task.await.expect("a lane does not panic");
            }
            begun.counted(answered)
        })
    }
}

/// Keeps `in_flight` frames under way on one stream; how many came back.
async fn again(stream: Arc<tokio::sync::Mutex<(SendStream, RecvStream)>>, in_flight: usize, until: Instant) -> usize {
    let (send, recv) = &mut *stream.lock().await;
    let frames = vec![7; in_flight * FRAME];
    let (mut answered, mut out, mut partial) = (0, 0, 0);
    while Instant::now() < until {
        let free = in_flight - out;
        send.write_all(&frames[..free * FRAME]).await.expect("it can be sent");
        out += free;
        let chunk = recv.read_chunk(64 << 10, true).await.expect("a connection").expect("an open stream");
        partial += chunk.bytes.len();
        let whole = partial / FRAME;
        partial %= FRAME;
        (out, answered) = (out - whole, answered + whole);
    }
    let mut rest = vec![0; out * FRAME - partial];
    recv.read_exact(&mut rest).await.expect("the rest");
    answered + out
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

async fn read(lane: Arc<Lane>, mut recv: RecvStream) {
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
