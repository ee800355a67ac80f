//! A cluster of real processes on loopback: what it sends while nothing happens, how soon all know of a `kill -9`, and
//! what becomes of a process that stands still for a while. Prints what it did; `-- --json` for one object.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

#[path = "../tests/it/harness.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod harness;

use harness::{Node, SOON, Site, agree};

const NODES: usize = 25;
/// How long it is quiet before bytes are counted, and for how long they are.
const SETTLING: Duration = Duration::from_secs(30);
const IDLE: Duration = Duration::from_secs(120);
const KILLS: usize = 10;
const STOPPED: Duration = Duration::from_secs(20);
/// What the loopback interface counts of each packet besides IP.
const LINK_HEADER_BYTES: u64 = 14;
const LAN: [&str; 2] = ["--preset", "lan"];

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let as_json = asked.iter().any(|word| word == "--json");
    let say = |line: String| {
        if !as_json {
            println!("{line}");
        }
    };
    let site = Site::new();
    let mut nodes: Vec<Node> = Vec::new();
    for number in 0..NODES {
        nodes.push(start(&site, number, nodes.first()));
    }
    agree(&nodes.iter().collect::<Vec<_>>(), NODES);
    say(format!("{NODES} processes, lan preset, mutual TLS"));

    std::thread::park_timeout(SETTLING);
    let (before, begun) = (loopback(), Instant::now());
    while begun.elapsed() < IDLE {
        std::thread::park_timeout(IDLE - begun.elapsed());
    }
    let (after, seconds) = (loopback(), begun.elapsed().as_secs_f64());
    let (packets, bytes) = (after.0 - before.0, after.1 - before.1 - (after.0 - before.0) * LINK_HEADER_BYTES);
    let per_node = |count: u64| count as f64 / seconds / NODES as f64;
    let (packets_s, bytes_s) = (per_node(packets), per_node(bytes));
    say(format!(
        "idle for {seconds:.0} s: {bytes_s:.0} bytes in {packets_s:.1} packets a second and node, IP included"
    ));

    let mut known_ms = Vec::new();
    let mut accused = 0;
    for round in 0..KILLS {
        // The first one stays: the others come back through it.
        let victim = 1 + (round * 7) % (NODES - 1);
        let at = kill(&mut nodes[victim]);
        let others = nodes.iter().enumerate().filter(|(index, _)| *index != victim).map(|(_, node)| node);
        let known = all_know(&others.collect::<Vec<_>>(), &name(victim), at, &mut accused);
        say(format!("kill -9 of {}: all know after {known} ms", name(victim)));
        known_ms.push(known);
        nodes[victim] = start(&site, victim, nodes.first());
        agree(&nodes.iter().collect::<Vec<_>>(), NODES);
    }
    known_ms.sort_unstable();
    let median = known_ms[known_ms.len() / 2];
    say(format!("median {median} ms, all {known_ms:?}; {accused} others were suspected or held down meanwhile"));

    let stopped = stop_and_continue(&nodes);
    say(format!("stopped for {} s and continued: {stopped}", STOPPED.as_secs()));
    if as_json {
        let answer = json!({
            "nodes": NODES, "idle_bytes_per_node_s": bytes_s, "idle_packets_per_node_s": packets_s,
            "kill_known_ms": known_ms, "kill_known_median_ms": median, "others_accused": accused, "stopped": stopped,
        });
        println!("{answer}");
    }
}

fn name(number: usize) -> String {
    format!("n{number}")
}

fn start(site: &Site, number: usize, seed: Option<&Node>) -> Node {
    let name = name(number);
    if !std::path::Path::new(&site.at(&name)).exists() {
        site.issue("ca", &name, &name, "2");
    }
    let seeds: Vec<String> = seed.into_iter().map(|seed| seed.gossip.clone()).collect();
    site.start_with(&name, &name, &seeds, &LAN).expect("the node says where it listens")
}

/// Packets and bytes that the loopback interface has sent, by the kernel's count.
fn loopback() -> (u64, u64) {
    let count = |name: &str| -> u64 {
        let path = format!("/sys/class/net/lo/statistics/{name}");
        std::fs::read_to_string(path).expect("Linux counts").trim().parse().expect("a number")
    };
    (count("tx_packets"), count("tx_bytes"))
}

fn kill(node: &mut Node) -> Instant {
    let at = Instant::now();
    node.process.kill().expect("it runs");
    let _ = node.process.wait();
    at
}

/// The states that a node sees, by name.
fn states(node: &Node) -> Vec<(String, String)> {
    let members = node.ask("/members").unwrap_or(Value::Null);
    let members = members["members"].as_array().cloned().unwrap_or_default();
    let word = |member: &Value, key: &str| member[key].as_str().unwrap_or_default().to_owned();
    members.iter().map(|member| (word(member, "name"), word(member, "state"))).collect()
}

/// Milliseconds until all of them hold `victim` down; counts everybody else of whom they think ill meanwhile.
fn all_know(nodes: &[&Node], victim: &str, since: Instant, accused: &mut u64) -> u64 {
    let mut waiting: Vec<&Node> = nodes.to_vec();
    while !waiting.is_empty() {
        assert!(since.elapsed() < SOON * 2, "{} nodes do not know", waiting.len());
        waiting.retain(|node| {
            let seen = states(node);
            *accused += seen.iter().filter(|(name, state)| name != victim && state != "alive").count() as u64;
            !seen.iter().any(|(name, state)| name == victim && state == "down")
        });
        std::thread::park_timeout(Duration::from_millis(20));
    }
    since.elapsed().as_millis() as u64
}

/// What became of a process that stood still, and of what it believed of others.
fn stop_and_continue(nodes: &[Node]) -> Value {
    let (stopped, others) = nodes.split_last().expect("there are some");
    let name = name(nodes.len() - 1);
    stopped.signal("-STOP");
    std::thread::park_timeout(STOPPED);
    let held_down = others.iter().filter(|node| node.believes(&name).is_none_or(|(state, _)| state == "down")).count();
    stopped.signal("-CONT");
    let since = Instant::now();
    let (mut believed_ms, mut well_ms, mut downs) = (None, None, 0);
    while since.elapsed() < SOON {
        let now = since.elapsed().as_millis() as u64;
        let seen = states(stopped);
        downs += seen.iter().filter(|(_, state)| state == "down").count();
        if seen.len() == nodes.len() && seen.iter().all(|(_, state)| state == "alive") {
            well_ms.get_or_insert(now);
        } else {
            well_ms = None;
        }
        let believe = |node: &Node| node.believes(&name).is_some_and(|(state, _)| state == "alive");
        if believed_ms.is_none() && others.iter().all(believe) {
            believed_ms = Some(now);
        }
        if believed_ms.is_some() && well_ms.is_some_and(|well| now > well + 3_000) {
            break;
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    json!({
        "held_down_by": held_down, "believed_by_all_ms": believed_ms, "its_own_suspicions_over_ms": well_ms,
        "held_down_by_it": downs,
    })
}
