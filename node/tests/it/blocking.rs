//! An application that blocks its workers harms nobody's view of it.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use swimring::membership::Preset;
use swimring::runtime::node::{CallRequest, Swimring};
use swimring::runtime::service::{Request, handler};

use crate::harness::{SOON, Site, agree, eventually};

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
    let begun = Instant::now();
    while begun.elapsed() < BLOCK {
        for node in [&a, &b] {
            let seen = node.believes("app").map(|(state, _)| state);
            assert_eq!(seen.as_deref(), Some("alive"), "after {:?}", begun.elapsed());
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    runtime.shutdown_background();
}
