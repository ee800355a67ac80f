//! A process whose application blocks its workers, or whose log nobody reads, is suspected by nobody.

use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use swimring::membership::Preset;
use swimring::runtime::node::{CallRequest, Swimring};
use swimring::runtime::service::{Request, handler};

use crate::harness::{Node, SOON, Site, agree, eventually};

const BLOCK: Duration = Duration::from_secs(5);
const WORKERS: usize = 2;

#[test]
fn a_node_whose_workers_are_all_blocked_by_handlers_is_suspected_by_nobody() {
    let site = Site::new();
    let a = site.start("a", &[]);
    let b = site.start("b", &[&a]);
    site.issue("ca", "app", "app", "2");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build().expect("a runtime");
    // A channel nobody sends on: waiting on it blocks the thread, as a bad handler does.
    let (entered, entries) = mpsc::channel();
    let blocking = handler(move |request: Request| {
        let entered = entered.clone();
        async move {
            let _ = entered.send(());
            let (_keep, never) = mpsc::channel::<()>();
            let _ = never.recv_timeout(BLOCK);
            Ok(request.body)
        }
    });
    let listen = "127.0.0.1:0".parse().expect("an address");
    let builder = Swimring::builder(site.at("app")).listen(listen).preset(Preset::Local).seed(&a.gossip);
    let app = runtime.block_on(builder.service("block", blocking).start()).expect("it starts");
    agree(&[&a, &b], 3);
    eventually("the application is ready", SOON, || app.is_ready().then_some(()));
    let me = app.view().me().node;
    let own = |key: &String| app.owner(key.as_bytes()) == Ok(me);
    let keys: Vec<String> = (0..).map(|number| format!("k{number}")).filter(own).take(WORKERS).collect();
    for key in keys {
        let app = app.clone();
        runtime.spawn(async move { app.call(CallRequest::new("block", key, "x").timeout(BLOCK * 4)).await });
    }
    for _ in 0..WORKERS {
        entries.recv_timeout(SOON).expect("every worker runs a handler");
    }
    nobody_suspects("app", &[&a, &b]);
    runtime.shutdown_background();
}

#[test]
fn a_node_whose_log_nobody_reads_is_suspected_by_nobody_and_counts_what_it_could_not_say() {
    let site = Site::new();
    let a = site.start("a", &[]);
    site.issue("ca", "b", "b", "2");
    // Once the pipe is full, whoever writes into it waits for ever.
    let mut command = site.node("b", "b", std::slice::from_ref(&a.gossip), &["--log", "trace"]);
    command.stderr(Stdio::piped());
    let b = Node::start_as_told(command, site.at("b.log").into()).expect("it says where it listens");
    agree(&[&a, &b], 2);
    eventually("lines to be dropped", SOON, || {
        (0..20).for_each(|key| _ = a.put(&format!("k{key}"), "v"));
        (b.counted("swimring_log_lines_dropped_total", &[]) > 0).then_some(())
    });
    nobody_suspects("b", &[&a]);
}

/// For a while.
fn nobody_suspects(name: &str, nodes: &[&Node]) {
    let begun = Instant::now();
    while begun.elapsed() < BLOCK {
        for node in nodes {
            let seen = node.believes(name).map(|(state, _)| state);
            assert_eq!(seen.as_deref(), Some("alive"), "after {:?}", begun.elapsed());
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}
