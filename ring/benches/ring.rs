//! What a lookup, a build, a change, memory, balance and movement cost, beside other crates, on the same keys in the same
//! run. `cargo bench -p swimring-ring`; `-- lookup` (or `shares`, `changes`, `peers`) for one part.
//!
//! Rounds are interleaved: in each, everybody is timed once, one after another; a ratio is taken within its round, and the
//! median of five is reported beside all of them. Shares are exact, of arcs; those of the peers, which have no arcs, are of
//! sampled keys.

#![expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "wall time is what is measured")]

use std::collections::BTreeMap;
use std::fmt::Display;
use std::hint::black_box;
use std::time::{Duration, Instant};

use peak_alloc::PeakAlloc;
use swimring_membership::{NodeId, Rng};
use swimring_ring::{Arc, Hashing, KeyHash, KeyHasher, Placement, Ring, RingMember};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const SIZES: [usize; 5] = [3, 10, 100, 1_000, 10_000];
const ROUNDS: usize = 5;
const KEY_BYTES: usize = 24;
const KEYS: usize = 1 << 20;
/// No owner's number has it.
const UNUSED_BIT: usize = 1 << 62;
/// Points on the circle of each node, where a peer has such a thing.
const POINTS: usize = 128;
/// Above it some peers take minutes to build.
const PEERS_MAX: usize = 1_000;

/// `cargo test --benches` runs this without `--bench`: then it only shows that it works.
fn sizes() -> &'static [usize] {
    if std::env::args().any(|arg| arg == "--bench") { &SIZES } else { &SIZES[..1] }
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let runs = |part: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == part);
    if runs("shares") {
        shares();
    }
    if runs("changes") {
        changes();
    }
    if runs("peers") {
        peers();
    }
    if runs("lookup") {
        lookup();
    }
}

fn member(number: usize, weight: u16) -> RingMember {
    // Without one bit, see `nanos`.
    let id = Rng::new(number as u64).next_u64() & !(UNUSED_BIT as u64).to_be();
    RingMember { id: NodeId::from_u128(id.into()), weight, zone: None }
}

fn members(nodes: usize, weights: &[u16]) -> Vec<RingMember> {
    (0..nodes).map(|number| member(number, weights[number % weights.len()])).collect()
}

fn ring(nodes: usize) -> Ring {
    Ring::build(Placement::default(), members(nodes, &[1]))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn listed(values: &[f64], digits: usize) -> String {
    values.iter().map(|value| format!("{value:.digits$}")).collect::<Vec<_>>().join(" ")
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let began = Instant::now();
    let done = work();
    (done, began.elapsed())
}

// Who gets how much.

/// The largest share over what the weight promises, of the nodes of each weight.
fn excess(ring: &Ring) -> BTreeMap<u16, f64> {
    let total: f64 = ring.members().iter().map(|member| f64::from(member.weight)).sum();
    let mut worst = BTreeMap::new();
    for (member, owned) in ring.members().iter().zip(ring.owned_counts()) {
        let due = f64::from(ring.arcs()) * f64::from(member.weight) / total;
        let held = worst.entry(member.weight).or_insert(0.0f64);
        *held = held.max(f64::from(owned) / due);
    }
    worst
}

fn shares() {
    println!("## Shares of arcs, 2^20 of them: the largest over what the weight promises\n");
    println!("| nodes | weights | of weight | largest / promised | at most |\n|---|---|---|---|---|");
    let equal = sizes().iter().map(|nodes| (*nodes, vec![1]));
    let weighted = [(1_000, vec![1, 4]), (1_000, vec![1, 3, 7])];
    for (nodes, weights) in equal.chain(weighted) {
        let ring = Ring::build(Placement::default(), members(nodes, &weights));
        let mean = ring.members().iter().map(|member| f64::from(member.weight)).sum::<f64>() / nodes as f64;
        for (weight, worst) in excess(&ring) {
            let bound = match (weights.len(), nodes) {
                (1, ..=10) => "1.02".into(),
                (1, ..=100) => "1.05".into(),
                (1, ..=1_000) => "1.10".into(),
                (1, _) => "-".into(),
                _ => format!("{:.3}", 1.0 + 0.10 * (mean / f64::from(weight)).sqrt()),
            };
            println!("| {nodes} | {weights:?} | {weight} | {worst:.4} | {bound} |");
        }
    }
    println!();
}

// What a change costs and moves.

fn moved(old: &Ring, new: &Ring) -> (u32, u32) {
    let arcs = (0..old.arcs()).map(Arc);
    let changed = arcs.filter(|arc| old.owner_of_arc(*arc) != new.owner_of_arc(*arc)).count() as u32;
    let ideal = |ring: &Ring, other: &Ring| -> u32 {
        let gone = ring.members().iter().filter(|member| other.members().binary_search(member).is_err());
        gone.map(|member| ring.owned_count(member.id)).sum()
    };
    (changed, ideal(old, new) + ideal(new, old))
}

fn changes() {
    println!("## Build, one change, memory; arcs moved by a join and a leave, and those that had to move\n");
    println!(
        "| nodes | build ms | join ms | leave ms | change / build | KiB | joined: moved / ideal | left: moved / ideal |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for &nodes in sizes() {
        let all = members(nodes + 1, &[1]);
        let (fewer, newcomer) = (&all[..nodes], &all[nodes]);
        let before = MEMORY.current_usage();
        let (ring, _) = timed(|| Ring::build(Placement::default(), fewer.iter().cloned()));
        let kib = (MEMORY.current_usage() - before) / 1_024;
        let (mut builds, mut joins, mut leaves) = (Vec::new(), Vec::new(), Vec::new());
        let mut moves = Vec::new();
        for _ in 0..ROUNDS {
            let (_, build) = timed(|| black_box(Ring::build(Placement::default(), fewer.iter().cloned())));
            let (joined, join) = timed(|| ring.change(fewer.iter().chain([newcomer]).cloned()));
            let (left, leave) = timed(|| joined.change(fewer.iter().cloned()));
            moves = vec![moved(&ring, &joined), moved(&joined, &left)];
            for (values, time) in [(&mut builds, build), (&mut joins, join), (&mut leaves, leave)] {
                values.push(time.as_secs_f64() * 1e3);
            }
        }
        let ratios = (0..ROUNDS).map(|round| joins[round].max(leaves[round]) / builds[round]).collect();
        let [join, leave] = [moves[0], moves[1]].map(|(moved, ideal)| format!("{moved} / {ideal}"));
        println!(
            "| {nodes} | {:.1} | {:.2} | {:.2} | {:.3} | {kib} | {join} | {leave} |",
            median(builds),
            median(joins),
            median(leaves),
            median(ratios)
        );
    }
    println!();
}

// Peers.

type Key = [u8; KEY_BYTES];

fn keys() -> Vec<Key> {
    let mut rng = Rng::new(1);
    let mut key = || {
        let mut bytes = [0; KEY_BYTES];
        bytes.chunks_mut(8).for_each(|word| word.copy_from_slice(&rng.next_u64().to_le_bytes()));
        bytes
    };
    (0..KEYS).map(|_| key()).collect()
}

/// Somebody else who says which node has a key; nodes are numbers.
struct Peer {
    owner: Box<dyn Fn(&Key) -> usize>,
    /// The same without the last node.
    without_last: Box<dyn Fn(&Key) -> usize>,
    contender: Contender,
    built: Duration,
    kib: usize,
}

/// Builds a peer for `nodes`; `fewer` has the last of them leave it.
fn peer<T: 'static>(
    name: &'static str,
    keys: &'static [Key],
    build: impl Fn() -> T,
    fewer: impl Fn(T) -> T,
    owner: impl Fn(&T, &Key) -> usize + Copy + 'static,
) -> Peer {
    let before = MEMORY.current_usage();
    let (all, built) = timed(&build);
    let kib = MEMORY.current_usage().saturating_sub(before) / 1_024;
    let all: &'static T = Box::leak(Box::new(all));
    let fewer = fewer(build());
    Peer {
        owner: Box::new(move |key| owner(all, key)),
        without_last: Box::new(move |key| owner(&fewer, key)),
        contender: Contender::new(name, move |number| owner(all, &keys[number])),
        built,
        kib,
    }
}

fn all_peers(nodes: usize, keys: &'static [Key]) -> Vec<Peer> {
    let last = nodes - 1;
    let points = |node: usize| (0..POINTS).map(move |point| (node, point));
    let anchor = anchorhash::Builder::default().with_resources(0..nodes);
    let mut peers = vec![
        peer(
            "hashring",
            keys,
            || {
                let mut ring = hashring::HashRing::new();
                ring.batch_add((0..nodes).flat_map(points).collect());
                ring
            },
            |mut ring| {
                points(last).for_each(|point| _ = ring.remove(&point));
                ring
            },
            |ring, key| ring.get(key).map_or(0, |(node, _)| *node),
        ),
        peer(
            "anchorhash",
            keys,
            // A clone has the same random hasher.
            || anchor.clone().build::<Key>(nodes as u16 + 1),
            |mut anchor| {
                anchor.remove_resource(&last).expect("it has that one");
                anchor
            },
            |anchor, key| anchor.get_resource(*key).copied().unwrap_or(0),
        ),
        peer(
            "jumphash",
            keys,
            || (jumphash::JumpHasher::new_with_keys(1, 2), nodes as u32),
            |(jump, nodes)| (jump, nodes - 1),
            |(jump, nodes), key| jump.slot(key, *nodes) as usize,
        ),
    ];
    if nodes <= PEERS_MAX {
        peers.push(peer(
            "consistent_hash_ring",
            keys,
            || consistent_hash_ring::RingBuilder::default().vnodes(POINTS).nodes_iter(0..nodes).build(),
            |mut ring| {
                ring.remove(&last);
                ring
            },
            |ring, key| *ring.get(key),
        ));
        peers.push(peer(
            "maglev",
            keys,
            || maglev::Maglev::new(0..nodes),
            |all| maglev::Maglev::with_capacity(0..last, maglev::ConsistentHasher::capacity(&all)),
            |table, key| table[key],
        ));
    }
    peers
}

fn peers() {
    println!("## Other crates: build, memory, shares and movement on {KEYS} sampled keys ({POINTS} points a node)\n");
    println!("| nodes | crate | build ms | KiB | largest share / mean | moved / ideal when the last one leaves |");
    println!("|---|---|---|---|---|---|");
    let keys: &'static [Key] = Box::leak(keys().into_boxed_slice());
    for &nodes in sizes() {
        if nodes > PEERS_MAX {
            println!("| {nodes} | consistent_hash_ring, maglev | not built: minutes | | | |");
        }
        for peer in all_peers(nodes, keys) {
            let mut owned = vec![0usize; nodes];
            let (mut moved, mut ideal) = (0, 0);
            for key in keys {
                let owner = (peer.owner)(key);
                owned[owner] += 1;
                moved += usize::from((peer.without_last)(key) != owner);
                ideal += usize::from(owner == nodes - 1);
            }
            let largest = owned.iter().copied().max().unwrap_or(0) * nodes;
            println!(
                "| {nodes} | {} | {:.1} | {} | {:.3} | {:.2} |",
                peer.contender.name,
                peer.built.as_secs_f64() * 1e3,
                peer.kib,
                largest as f64 / KEYS as f64,
                moved as f64 / ideal.max(1) as f64
            );
        }
    }
    println!();
}

// Lookups.

/// Nanoseconds a lookup: `look` gets the number of a key, which depends on the answer before if lookups have to wait for
/// each other.
fn nanos(depends: bool, look: impl Fn(usize) -> usize) -> f64 {
    let mut sum = 0usize;
    let began = Instant::now();
    if depends {
        let mut last = 0;
        for number in 0..KEYS {
            let answer = look((number + last) % KEYS);
            sum = sum.wrapping_add(answer);
            // 0, which only the answer shows: no owner's number has this bit.
            last = (black_box(answer) & UNUSED_BIT) >> UNUSED_BIT.ilog2();
        }
    } else {
        for number in 0..KEYS {
            sum = sum.wrapping_add(look(number));
        }
    }
    let took = began.elapsed();
    black_box(sum);
    took.as_secs_f64() * 1e9 / KEYS as f64
}

/// Somebody who is timed.
struct Contender {
    name: String,
    /// One round; whether each lookup depends on the one before.
    round: Box<dyn Fn(bool) -> f64>,
}

impl Contender {
    fn new(name: impl Display, look: impl Fn(usize) -> usize + Clone + 'static) -> Self {
        Self { name: name.to_string(), round: Box::new(move |depends| nanos(depends, look.clone())) }
    }
}

/// Of an id's bytes eight, whichever.
fn number_of(id: NodeId) -> usize {
    u64::from_ne_bytes(*id.as_bytes().last_chunk().expect("an id has sixteen bytes")) as usize
}

/// Our ring, with each hasher, and what it cannot beat: the hash and one load.
fn ours(nodes: usize, keys: &'static [Key]) -> Vec<Contender> {
    let ring: &'static Ring = Box::leak(Box::new(ring(nodes)));
    let table: &'static [u16] = Box::leak((0..ring.arcs()).map(|arc| arc as u16).collect());
    let shift = 64 - table.len().ilog2();
    let load = move |hash: KeyHash| usize::from(table[(hash.0 >> shift) as usize]);
    let own = move |hash: KeyHash| number_of(ring.owner(hash).expect("the ring has members"));
    let keyed = KeyHasher::new(Hashing::Keyed, &[7; 32]);
    let hashes: &'static [KeyHash] = Box::leak(keys.iter().map(|key| keyed.hash(key)).collect());
    let mut contenders = vec![
        Contender::new(LOAD, move |number| load(hashes[number])),
        Contender::new(HASHED, move |number| own(hashes[number])),
    ];
    for (hashing, floor, name) in [
        (Hashing::Keyed, KEYED_LOAD, KEYED),
        (Hashing::Fast, "XXH3 + that load", FAST),
        (Hashing::Blake3, "blake3 + that load", "swimring, blake3"),
    ] {
        let hasher = KeyHasher::new(hashing, &[7; 32]);
        contenders.push(Contender::new(floor, move |number| load(hasher.hash(&keys[number]))));
        contenders.push(Contender::new(name, move |number| own(hasher.hash(&keys[number]))));
    }
    contenders
}

const LOAD: &str = "one load from a table of that size";
const HASHED: &str = "swimring, hash at hand";
const KEYED_LOAD: &str = "SipHash-1-3 + that load";
const KEYED: &str = "swimring, keyed (default)";
const FAST: &str = "swimring, fast";

fn lookup() {
    println!("## Lookups of {KEYS} random keys of {KEY_BYTES} bytes, ns each; {ROUNDS} interleaved rounds\n");
    let keys: &'static [Key] = Box::leak(keys().into_boxed_slice());
    for &nodes in sizes() {
        let mut contenders = ours(nodes, keys);
        contenders.extend(all_peers(nodes, keys).into_iter().map(|peer| peer.contender));
        for depends in [false, true] {
            println!("{nodes} nodes, {}:\n", if depends { "each waits for the one before" } else { "independent" });
            println!("| what | median | rounds |\n|---|---|---|");
            let mut rounds: BTreeMap<String, Vec<f64>> = BTreeMap::new();
            for _ in 0..ROUNDS {
                for contender in &contenders {
                    rounds.entry(contender.name.clone()).or_default().push((contender.round)(depends));
                }
            }
            for contender in &contenders {
                let all = &rounds[&contender.name];
                println!("| {} | {:.1} | {} |", contender.name, median(all.clone()), listed(all, 1));
            }
            println!("\n| ratio | median | rounds | at most |\n|---|---|---|---|");
            let pairs = [(HASHED, LOAD, "1.5"), (KEYED, KEYED_LOAD, "1.5"), (FAST, "anchorhash", "1.2")];
            let slower = ["hashring", "consistent_hash_ring", "maglev", "jumphash"].map(|peer| (KEYED, peer, "1"));
            for (one, other, most) in pairs.into_iter().chain(slower) {
                let (Some(ones), Some(others)) = (rounds.get(one), rounds.get(other)) else { continue };
                let ratios: Vec<f64> = ones.iter().zip(others).map(|(one, other)| one / other).collect();
                // The targets are for independent lookups at 1,000 nodes.
                let most = if nodes == 1_000 && !depends { most } else { "-" };
                println!("| {one} / {other} | {:.2} | {} | {most} |", median(ratios.clone()), listed(&ratios, 2));
            }
            println!();
        }
    }
}
