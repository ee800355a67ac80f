//! Bodies of calls: long ones, and ones that are too long for one of two.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use swimring::forwarder::{Limits, Outcome, Why};
use swimring::runtime::builder::Builder;
use swimring::runtime::http::VALUE_BYTES_MAX;
use swimring::runtime::node::CallRequest;
use swimring::runtime::service::{Request, handler};

use crate::harness::{SOON, Site, agree, eventually};
use crate::library::{Pair, id};

#[test]
fn a_large_body_goes_there_and_comes_back() {
    let pair = Pair::new(|builder| builder.service("echo", handler(async |request: Request| Ok(request.body))));
    for size in [0, 65_536, 65_537, 1 << 20, 16 << 20] {
        let body: Bytes = (0..size).map(|at: u32| (at % 251) as u8).collect();
        for (owner, hops) in [(&pair.one, 0), (&pair.two, 1)] {
            let answered = pair.call(CallRequest::new("echo", pair.key_of(owner), body.clone()));
            assert!(answered.outcome == Outcome::Ok(body.clone()), "{size} bytes: {answered:?}");
            assert_eq!((answered.hops, answered.owner), (hops, Some(id(owner))));
        }
    }
    let answered = pair.call(CallRequest::new("echo", "k", vec![0; (16 << 20) + 1]));
    assert!(matches!(answered.outcome, Outcome::NotExecuted(no) if matches!(no.why(), Why::Invalid(_))));
}

#[test]
fn what_is_too_long_for_the_other_node_is_refused_for_itself() {
    const MIB: usize = 1 << 20;
    // The first one that starts takes bodies of 1 MiB at most.
    let is_first = AtomicBool::new(true);
    let pair = Pair::new(|builder: Builder| {
        let body_bytes_max = if is_first.swap(false, Ordering::Relaxed) { MIB } else { 4 * MIB };
        let limits = Limits { body_bytes_max, ..Limits::default() };
        let sized = handler(async |request: Request| {
            let length = std::str::from_utf8(&request.body).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
            Ok(Bytes::from(vec![7; length]))
        });
        builder.limits(limits).service("sized", sized)
    });
    let (of_one, of_two) = (pair.key_of(&pair.one), pair.key_of(&pair.two));
    // What goes on at the same time on the same connection is none the worse for it.
    let long = CallRequest::new("sized", of_one.clone(), vec![b' '; 2 * MIB]);
    let short = || CallRequest::new("sized", of_one.clone(), "70000");
    let (long, short) = pair.runtime.block_on(async { tokio::join!(pair.two.call(long), pair.two.call(short())) });
    assert!(
        matches!(&long.outcome, Outcome::NotExecuted(no) if matches!(no.why(), Why::Refused(_))),
        "a question: {:?}",
        long.outcome
    );
    assert_eq!(short.outcome, Outcome::Ok(vec![7; 70_000].into()));
    let answer = |length: usize| pair.call(CallRequest::new("sized", of_two.clone(), length.to_string())).outcome;
    assert_eq!(answer(MIB), Outcome::Ok(vec![7; MIB].into()));
    assert_eq!(answer(MIB + 1), Outcome::Executed("the answer is too long".into()));
    assert_eq!(answer(MIB), Outcome::Ok(vec![7; MIB].into()));
}

#[test]
fn values_on_their_way_to_clients_that_do_not_read_take_so_much_room_and_no_more() {
    let site = Site::new();
    let a = site.start("a", &[]);
    agree(&[&a], 1);
    assert_eq!(a.put("k", &"v".repeat(VALUE_BYTES_MAX)), 204);
    let clients: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut client = a.http_stream();
            client.write_all(b"GET /kv/k HTTP/1.1\r\nhost: h\r\n\r\n").expect("it can be sent");
            client
        })
        .collect();
    // Sixteen take all of it.
    a.counts("swimring_http_refused_total", &[("reason", "busy")], 4);
    drop(clients);
    eventually("there is room again", SOON, || a.get("k").filter(|value| value.len() == VALUE_BYTES_MAX));
}
