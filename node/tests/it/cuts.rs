//! Cuts between real processes: their datagrams are dropped at the sockets, both ways or one.

use std::collections::BTreeSet;
use std::io::{self, BufRead, IoSliceMut, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::sync::{Arc, RwLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::PrometheusBuilder;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, UdpPoller};
use swimring::membership::{Event, Preset, Settings};
use swimring::runtime::admin::{Admin, AdminAddress};
use swimring::runtime::kv::{SERVICE, Store};
use swimring::runtime::node::Swimring;
use swimring::runtime::service::handler;
use swimring::runtime::system::{OperatingSystem, Socket, System};
use tokio_util::sync::CancellationToken;

use crate::harness::{Node, SOON, Site, agree, eventually};

const REAP: Duration = Duration::from_secs(3);
const IDLE: Duration = Duration::from_secs(6);
/// The bound that is promised for one view after a cut.
const HEALED: Duration = Duration::from_secs(10);
/// What a node says once it has carried an order out.
const DONE: &str = "it is done:";

#[test]
fn two_halves_serve_apart_and_become_one_without_a_healthy_member_leaving_a_ring() {
    let site = Site::new();
    let names = ["a", "b", "c", "d", "e", "f"];
    let mut nodes: Vec<Node> = Vec::new();
    for name in names {
        nodes.push(start(&site, name, nodes.first(), IDLE));
    }
    let all: Vec<&Node> = nodes.iter().collect();
    agree(&all, 6);
    let (left, right) = all.split_at(3);

    let begun = Instant::now();
    let places = |half: &[&Node]| half.iter().flat_map(|node| node.places.clone()).collect::<Vec<_>>().join(" ");
    let (of_left, of_right) = (places(left), places(right));
    left.iter().for_each(|node| tell(node, &format!("cut {of_right}")));
    right.iter().for_each(|node| tell(node, &format!("cut {of_left}")));
    for half in [left, right] {
        for node in half {
            eventually("the other half is reaped", SOON * 2, || (listed(node).len() == 3).then_some(()));
        }
        agree(half, 3);
    }
    for (half, value) in [(left, "left"), (right, "right")] {
        for number in 0..30 {
            let (asked, reader) = (half[number % 3], half[(number + 1) % 3]);
            assert_eq!(asked.put(&format!("k{number}"), value), 204);
            assert_eq!(reader.get(&format!("k{number}")).as_deref(), Some(value));
        }
    }
    eventually("connections have been silent for too long", SOON, || (begun.elapsed() > IDLE * 2).then_some(()));

    let before: Vec<usize> = nodes.iter().map(|node| node.log().len()).collect();
    let healed = Instant::now();
    nodes.iter().for_each(|node| tell(node, "heal"));
    agree(&all, 6);
    assert!(healed.elapsed() < HEALED, "one view after {:?}", healed.elapsed());
    for (node, before) in nodes.iter().zip(before) {
        let since = node.log().split_off(before);
        assert!(!since.contains("left the ring"), "at {}: {since}", node.admin.display());
    }
    for number in 0..30 {
        let values: BTreeSet<_> = all.iter().map(|node| node.get(&format!("k{number}"))).collect();
        assert_eq!(values.len(), 1, "k{number}: all ask the same owner");
    }
}

#[test]
fn a_connection_that_is_silent_is_given_up_and_a_new_one_serves_once_the_way_is_whole() {
    let site = Site::new();
    let mut nodes: Vec<Node> = Vec::new();
    for name in ["a", "b", "c"] {
        nodes.push(start(&site, name, nodes.first(), IDLE * 20));
    }
    let [a, b, _] = &nodes[..] else { unreachable!("there are three") };
    agree(&nodes.iter().collect::<Vec<_>>(), 3);
    let owner = |key: &str| a.ask(&format!("/lookup?key={key}")).map(|found| found["owner"].clone());
    let mut keys = (0..100).map(|number| format!("k{number}"));
    let key = keys.find(|key| owner(key).is_some_and(|name| name == "b")).expect("b owns one of so many");
    assert_eq!(a.put(&key, "before"), 204);

    tell(a, &format!("mute {}", b.places.join(" ")));
    assert_eq!(a.put(&key, "lost"), 504, "nobody knows whether it ran");
    a.counts_some("swimring_connections_silent_total", &[]);
    assert_eq!(a.put(&key, "never sent"), 503);
    assert_eq!(b.get(&key).as_deref(), Some("before"));
    tell(a, "heal");
    eventually("a new connection serves", SOON, || (a.put(&key, "after") == 204).then_some(()));
    assert_eq!(b.get(&key).as_deref(), Some("after"));
}

/// Everybody whom a node lists.
fn listed(node: &Node) -> Vec<String> {
    let members = node.ask("/members").unwrap_or_default();
    let members = members["members"].as_array().cloned().unwrap_or_default();
    members.iter().filter_map(|member| member["name"].as_str().map(str::to_owned)).collect()
}

/// Gives a node an order, and waits until it is carried out.
fn tell(node: &Node, order: &str) {
    let done = || node.log().matches(DONE).count();
    let before = done();
    let mut stdin = node.process.stdin.as_ref().expect("the process takes orders");
    writeln!(stdin, "{order}").expect("the process runs");
    eventually("the order is carried out", SOON, || (done() > before).then_some(()));
}

/// Starts a process that is [`a_node_that_can_be_cut_off`].
fn start(site: &Site, name: &str, seed: Option<&Node>, idle: Duration) -> Node {
    site.issue("ca", name, name, "2");
    let mut command = Command::new(std::env::current_exe().expect("a running program has a file"));
    command
        .args(["--exact", "cuts::a_node_that_can_be_cut_off", "--ignored", "--nocapture"])
        .env("IDENTITY", site.at(name))
        .env("IDLE", idle.as_secs().to_string())
        .env("ADMIN", site.at(&format!("{name}.sock")))
        .env("SEED", seed.map(|seed| seed.gossip.clone()).unwrap_or_default())
        .stdin(Stdio::piped());
    Node::start(command, site.path.join(format!("{name}.log"))).expect("the node says where it listens")
}

#[test]
#[ignore = "a process of the tests above, not a test"]
fn a_node_that_can_be_cut_off() {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    if variable("IDENTITY").is_empty() {
        return;
    }
    let cut = Cut::default();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _within = runtime.enter();
    runtime.spawn(run(variable("IDENTITY"), variable("ADMIN"), variable("SEED"), Arc::clone(&cut)));
    for line in io::stdin().lock().lines() {
        let line = line.expect("orders are text");
        let mut words = line.split(' ');
        let order = words.next();
        let places: BTreeSet<SocketAddr> = words.map(|place| place.parse().expect("an address")).collect();
        assert!(matches!(order, Some("cut" | "mute" | "heal")), "{line}");
        *cut.write().expect("no writer panics") = (places, order == Some("mute"));
        eprintln!("{DONE} {line}");
    }
}

async fn run(identity: String, admin: String, seed: String, cut: Cut) {
    let idle = std::env::var("IDLE").ok().and_then(|seconds| seconds.parse().ok()).map_or(IDLE, Duration::from_secs);
    let counted = PrometheusBuilder::new().install_recorder().expect("no other recorder is there");
    let settings = Settings { reap_after: REAP, ..Settings::preset(Preset::Local) };
    let store = Store::default();
    let serving = store.clone();
    let builder = Swimring::builder(identity)
        .listen(SocketAddr::from(([127, 0, 0, 1], 0)))
        .settings(settings)
        .idle_timeout(idle)
        .service(SERVICE, handler(move |request| serving.clone().serve(request)))
        .system(Arc::new(Behind(cut)));
    let builder = if seed.is_empty() { builder } else { builder.seed(seed) };
    let node = builder.start().await.expect("it starts");
    let mut events = node.events();
    tokio::spawn(store.follow(node.clone()));
    let address = AdminAddress::Socket(admin.into());
    let serving = Admin::new(node.clone(), 1, CancellationToken::new(), CancellationToken::new());
    let serving = serving.metrics(Arc::new(move || counted.render()));
    let admin = serving.listen(&address, "".as_ref()).await.expect("the admin socket opens");
    let (gossip, calls) = (node.gossip_address(), node.calls_address().expect("it listens"));
    println!(
        "\n{}",
        serde_json::json!({ "gossip": gossip.to_string(), "calls": calls.to_string(), "admin": admin.to_string() })
    );
    while let Ok(event) = events.recv().await {
        if let Event::Changed { id, before: Some((before, _)), state, .. } = event
            && before.is_present()
            && !state.is_present()
        {
            eprintln!("{id} left the ring");
        }
    }
    panic!("the events came faster than they could be written down");
}

/// Which addresses, and whether only what goes there is stopped.
type Cut = Arc<RwLock<(BTreeSet<SocketAddr>, bool)>>;

/// The operating system behind a wall that lets nothing pass to some addresses, or from them.
struct Behind(Cut);

impl System for Behind {
    fn bind(&self, address: SocketAddr) -> io::Result<Socket> {
        let socket = OperatingSystem.bind(address)?;
        let cut = Arc::clone(&self.0);
        Ok(Socket::new(socket.local_addr(), move |runtime| {
            Ok(Arc::new(Wall { socket: socket.open(runtime)?, cut }) as Arc<dyn AsyncUdpSocket>)
        }))
    }

    fn runtime(&self) -> Arc<dyn Runtime> {
        OperatingSystem.runtime()
    }

    fn now(&self) -> swimring::membership::Instant {
        OperatingSystem.now()
    }

    fn seed(&self) -> u64 {
        OperatingSystem.seed()
    }
}

#[derive(Debug)]
struct Wall {
    socket: Arc<dyn AsyncUdpSocket>,
    cut: Cut,
}

impl Wall {
    fn stops_to(&self, address: SocketAddr) -> bool {
        self.cut.read().expect("no writer panics").0.contains(&address)
    }

    fn stops_from(&self, address: SocketAddr) -> bool {
        let (places, one_way) = &*self.cut.read().expect("no writer panics");
        !one_way && places.contains(&address)
    }
}

impl AsyncUdpSocket for Wall {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.stops_to(transmit.destination) { Ok(()) } else { self.socket.try_send(transmit) }
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = self.socket.poll_recv(context, buffers, metas);
        if let Poll::Ready(Ok(count)) = received {
            metas[..count].iter_mut().filter(|meta| self.stops_from(meta.addr)).for_each(|meta| meta.len = 0);
        }
        received
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}
