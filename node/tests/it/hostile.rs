//! Peers that do not keep the protocol, over real QUIC: each is refused, counted, and the cluster goes on.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use swimring::core::hello::{Answer, Class, Hello, Refusal};
use swimring::forwarder::wire::{CallHeader, Frame, Scope};
use swimring::membership::codec::Slice;
use swimring::membership::{Name, NodeId, Peer};
use swimring::runtime::kv::Command;

use crate::harness::{Node, SOON, Site, agree, eventually};

const GOSSIP: &[u8] = b"swimring-gossip/1";
const CALLS: &[u8] = b"swimring-calls/1";

/// Two nodes, and the identity of a third that is not started.
struct Scene {
    runtime: tokio::runtime::Runtime,
    site: Site,
    a: Node,
    b: Node,
}

impl Scene {
    fn new() -> Self {
        let site = Site::new();
        let a = site.start("a", &[]);
        let b = site.start("b", &[&a]);
        agree(&[&a, &b], 2);
        site.issue("ca", "mallory", "mallory", "2");
        Self { runtime: tokio::runtime::Runtime::new().expect("a runtime"), site, a, b }
    }

    fn identity(&self) -> std::path::PathBuf {
        self.site.path.join("mallory")
    }

    /// A connection of mallory's to `a`, its first stream open.
    fn dial(&self, place: &str, alpn: &[u8]) -> Dialled {
        let config = client(Some(&self.identity()), alpn);
        self.runtime.block_on(Dialled::to(place, config)).expect("the certificate is good")
    }

    /// As [`dial`](Self::dial), with the hello answered.
    fn greet(&self, place: &str, alpn: &[u8], class: Class) -> Dialled {
        self.meet(place, alpn, class).0
    }

    /// As [`greet`](Self::greet), with what was answered.
    fn meet(&self, place: &str, alpn: &[u8], class: Class) -> (Dialled, Hello) {
        let dialled = self.dial(place, alpn);
        self.introduce(dialled, class)
    }

    fn introduce(&self, mut dialled: Dialled, class: Class) -> (Dialled, Hello) {
        let mut bytes = Vec::new();
        self.hello(class).encode(&mut bytes);
        let answer = self.runtime.block_on(async {
            dialled.send.write_all(&bytes).await.expect("it can be sent");
            dialled.answer().await
        });
        let Some(Answer::Welcome(hello)) = answer else { panic!("{answer:?}") };
        (dialled, hello)
    }

    fn hello(&self, class: Class) -> Hello {
        let name = |text| Name::new(text).expect("a name");
        let id = NodeId::of(&name("test"), &name("mallory"));
        let key = std::fs::read_to_string(self.identity().join("cluster.key")).expect("the secret is there");
        let secret: Vec<u8> =
            (0..32).map(|at| u8::from_str_radix(&key[2 * at..2 * at + 2], 16).expect("digits")).collect();
        let mut hasher = blake3::Hasher::new_keyed(&secret.try_into().expect("32 bytes"));
        // 2^20 arcs, and keys by the keyed hash.
        hasher.update(b"swimring 1 cluster constants").update(b"test").update(&20u32.to_le_bytes()).update(&[0]);
        let mut fingerprint = [0; 16];
        hasher.finalize_xof().fill(&mut fingerprint);
        let address = SocketAddr::from(([127, 0, 0, 1], 9));
        Hello { class, peer: Peer { id, address }, life: 4, fingerprint, clock: 0, anew: false }
    }

    /// A key that `a` owns.
    fn key_of_a(&self) -> String {
        let is_its = |key: &String| self.a.ask(&format!("/lookup?key={key}")).is_some_and(|seen| seen["owner"] == "a");
        (0..).map(|number| format!("k{number}")).find(is_its).expect("half of all keys")
    }

    /// The cluster is as it was.
    fn goes_on(&self) {
        assert_eq!(self.b.put("k", "v"), 204);
        assert_eq!(self.a.get("k").as_deref(), Some("v"));
        agree(&[&self.a, &self.b], 2);
    }
}

/// The first call of a process to one that has answered `hello`.
fn call<'a>(service: &'a str, key: &'a str, hello: &Hello) -> CallHeader<'a> {
    CallHeader {
        seq: 1,
        floor: 1,
        life: hello.life,
        deadline: hello.clock + 20_000_000_000,
        error_us: 0,
        hop: 1,
        service,
        key: Slice(key.as_bytes()),
        record: None,
        scope: Scope::Owner,
        context: Slice(&[]),
    }
}

struct Dialled {
    _endpoint: Endpoint,
    connection: Connection,
    send: SendStream,
    recv: RecvStream,
}

impl Dialled {
    async fn to(place: &str, config: quinn::ClientConfig) -> Result<Self, quinn::ConnectionError> {
        let endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port is free");
        let address = place.parse().expect("an address");
        let connection = endpoint.connect_with(config, address, "node.swimring").expect("a valid call").await?;
        let (send, recv) = connection.open_bi().await?;
        Ok(Self { _endpoint: endpoint, connection, send, recv })
    }

    async fn answer(&mut self) -> Option<Answer> {
        let mut length = [0; 2];
        self.recv.read_exact(&mut length).await.ok()?;
        let mut block = vec![0; usize::from(u16::from_le_bytes(length))];
        self.recv.read_exact(&mut block).await.ok()?;
        Answer::decode(&block).ok()
    }
}

/// A client that believes everybody.
fn client(identity: Option<&Path>, alpn: &[u8]) -> quinn::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    let mut tls = match identity {
        Some(directory) => {
            let chain = CertificateDer::pem_file_iter(directory.join("node.pem")).expect("a file");
            let key = PrivateKeyDer::from_pem_file(directory.join("node.key")).expect("a key");
            builder.with_client_auth_cert(chain.map(|one| one.expect("a certificate")).collect(), key).expect("a pair")
        }
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![alpn.to_vec()];
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("TLS 1.3")));
    config.transport_config(Arc::default());
    config
}

#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[test]
fn a_client_without_a_valid_certificate_is_refused_on_both_ports() {
    let scene = Scene::new();
    scene.site.issue("ca", "late", "late", "-1");
    let late = scene.site.path.join("late");
    for (place, alpn, class) in [(&scene.a.gossip, GOSSIP, "gossip"), (&scene.a.places[1], CALLS, "calls")] {
        for (identity, count) in [(None, 1), (Some(late.as_path()), 2)] {
            let refused = scene.runtime.block_on(async {
                // The dialler's handshake completes before its certificate is judged.
                match Dialled::to(place, client(identity, alpn)).await {
                    Ok(dialled) => dialled.connection.closed().await,
                    Err(error) => error,
                }
            });
            assert!(refused.to_string().contains("certificate"), "{refused}");
            scene.a.counts("swimring_handshakes_refused_total", &[("class", class), ("reason", "certificate")], count);
        }
    }
    scene.goes_on();
}

#[test]
fn a_first_word_that_is_no_hello_or_of_a_later_version_is_refused() {
    let scene = Scene::new();
    let stranger = [&24u16.to_le_bytes()[..], &[7; 24]].concat();
    let long = [&0xffffu16.to_le_bytes()[..], &[7; 24]].concat();
    let mut later = Vec::new();
    scene.hello(Class::Gossip).encode(&mut later);
    // Length, magic, version.
    later[6] += 1;
    for (first, reason, refusal) in [
        (&stranger, "version", Some(Refusal::Version)),
        (&later, "version", Some(Refusal::Version)),
        (&long, "malformed", None),
    ] {
        let mut dialled = scene.dial(&scene.a.gossip, GOSSIP);
        let labels = [("class", "gossip"), ("reason", reason)];
        let before = scene.a.counted("swimring_handshakes_refused_total", &labels);
        let said = scene.runtime.block_on(async {
            dialled.send.write_all(first).await.expect("it can be sent");
            dialled.answer().await
        });
        assert_eq!(said, refusal.map(Answer::Refused));
        scene.a.counts("swimring_handshakes_refused_total", &labels, before + 1);
    }
    scene.goes_on();
}

#[test]
fn a_hello_that_lies_or_comes_to_the_wrong_port_is_refused() {
    let scene = Scene::new();
    let good = scene.hello(Class::Gossip);
    let other = NodeId::from_u128(7);
    for (hello, reason, refusal) in [
        (Hello { class: Class::Calls, ..good }, "class", Refusal::Class),
        (Hello { fingerprint: [0; 16], ..good }, "cluster", Refusal::Cluster),
        (Hello { peer: Peer { id: other, ..good.peer }, ..good }, "identity", Refusal::Identity),
    ] {
        let mut dialled = scene.dial(&scene.a.gossip, GOSSIP);
        let mut bytes = Vec::new();
        hello.encode(&mut bytes);
        let said = scene.runtime.block_on(async {
            dialled.send.write_all(&bytes).await.expect("it can be sent");
            dialled.answer().await
        });
        assert_eq!(said, Some(Answer::Refused(refusal)));
        scene.a.counts("swimring_handshakes_refused_total", &[("class", "gossip"), ("reason", reason)], 1);
    }
    scene.goes_on();
}

#[test]
fn gossip_that_is_random_cut_short_or_of_a_later_version_closes_the_connection() {
    let scene = Scene::new();
    // Kind, version, length: a ping that says it is longer than it is; one of version 2; noise.
    for (count, bytes) in [&[1, 1, 200, 0, 5][..], &[1, 2, 1, 0, 5], &[0xa5; 64]].into_iter().enumerate() {
        for by_stream in [false, true] {
            let dialled = scene.greet(&scene.a.gossip, GOSSIP, Class::Gossip);
            let closed = scene.runtime.block_on(async {
                if by_stream {
                    let mut stream = dialled.connection.open_uni().await.expect("a stream is allowed");
                    stream.write_all(bytes).await.expect("it can be sent");
                    stream.finish().expect("it is open");
                } else {
                    dialled.connection.send_datagram(bytes.to_vec().into()).expect("datagrams are allowed");
                }
                dialled.connection.closed().await
            });
            assert!(closed.to_string().contains("closed by peer"), "{closed}");
            let so_far = 2 * count as u64 + u64::from(by_stream) + 1;
            scene.a.counts("swimring_connections_malformed_total", &[("class", "gossip")], so_far);
            scene.a.counts("swimring_membership_total", &[("kind", "malformed")], so_far);
        }
    }
    scene.goes_on();
}

#[test]
fn call_frames_that_are_random_too_long_or_of_a_later_version_close_the_connection() {
    let scene = Scene::new();
    let mut later = Vec::new();
    Frame::Goodbye.encode(&[], &mut later);
    later[5] += 1;
    let long = [&u32::MAX.to_le_bytes()[..], &[1; 60]].concat();
    for (count, bytes) in [&later, &long, &vec![0; 64]].into_iter().enumerate() {
        let mut dialled = scene.greet(&scene.a.places[1], CALLS, Class::Calls);
        let closed = scene.runtime.block_on(async {
            dialled.send.write_all(bytes).await.expect("it can be sent");
            dialled.connection.closed().await
        });
        assert!(closed.to_string().contains("closed by peer"), "{closed}");
        scene.a.counts("swimring_connections_malformed_total", &[("class", "calls")], count as u64 + 1);
    }
    scene.goes_on();
}

#[test]
fn a_call_frame_that_ends_early_runs_nothing() {
    let scene = Scene::new();
    let mut dialled = scene.greet(&scene.a.places[1], CALLS, Class::Calls);
    scene.runtime.block_on(async {
        // It announces a thousand bytes, sends ten, and goes away.
        dialled.send.write_all(&[&1_000u32.to_le_bytes()[..], &[1; 10]].concat()).await.expect("it can be sent");
        dialled.send.finish().expect("it is open");
        let _ = dialled.connection.closed().await;
    });
    scene.a.counts("swimring_connections_malformed_total", &[("class", "calls")], 1);
    assert_eq!(scene.a.counted("swimring_admissions_total", &[("verdict", "admitted")]), 0);
    scene.goes_on();
}

#[test]
fn a_call_for_a_service_that_nobody_offers_is_refused_and_it_is_measured_how_soon() {
    let scene = Scene::new();
    let (mut dialled, a) = scene.meet(&scene.a.places[1], CALLS, Class::Calls);
    let key = scene.key_of_a();
    let mut frame = Vec::new();
    Frame::Call(call("nothing", &key, &a)).encode(&[], &mut frame);
    scene.runtime.block_on(dialled.send.write_all(&frame)).expect("it can be sent");
    scene.a.counts("swimring_refusal_seconds_count", &[], 1);
    scene.goes_on();
}

#[test]
fn a_large_body_that_ends_early_runs_nothing() {
    let scene = Scene::new();
    let (dialled, a) = scene.meet(&scene.a.places[1], CALLS, Class::Calls);
    let key = scene.key_of_a();
    let header = call("kv", &key, &a);
    let put = Command::Put { ttl_s: None }.encode(&[7; 100_000]);
    let send = |seq, bytes: usize| {
        let mut frame = Vec::new();
        Frame::Call(CallHeader { seq, ..header }).encode(&put, &mut frame);
        scene.runtime.block_on(async {
            let mut stream = dialled.connection.open_uni().await.expect("a stream is allowed");
            stream.write_all(&frame[..bytes.min(frame.len())]).await.expect("it can be sent");
            stream.finish().expect("it is open");
            let _ = stream.stopped().await;
        });
    };
    send(1, 50_000);
    scene.a.counts("swimring_admissions_total", &[("verdict", "admitted")], 1);
    assert_eq!(scene.a.get(&key), None, "half a value is none");
    send(2, usize::MAX);
    eventually("the whole value", SOON, || scene.b.get(&key).filter(|value| value.len() == 100_000));
    scene.goes_on();
}

#[test]
fn whoever_takes_no_answers_is_refused_and_everybody_else_is_served() {
    let scene = Scene::new();
    let key = scene.key_of_a();
    assert_eq!(scene.b.put(&key, &"v".repeat(8 << 20)), 204);
    // It lets nobody open a stream to it, and long answers have streams of their own.
    let mut config = client(Some(&scene.identity()), CALLS);
    let mut transport = quinn::TransportConfig::default();
    transport.max_concurrent_uni_streams(0u8.into());
    config.transport_config(Arc::new(transport));
    let dialled = scene.runtime.block_on(Dialled::to(&scene.a.places[1], config)).expect("the certificate is good");
    let (mut dialled, a) = scene.introduce(dialled, Class::Calls);
    let header = call("kv", &key, &a);
    for seq in 1..=20 {
        let mut frame = Vec::new();
        Frame::Call(CallHeader { seq, ..header }).encode(&Command::Get.encode(&[]), &mut frame);
        scene.runtime.block_on(dialled.send.write_all(&frame)).expect("it can be sent");
    }
    scene.a.counts_some("swimring_refusal_seconds_count", &[]);
    scene.goes_on();
}
