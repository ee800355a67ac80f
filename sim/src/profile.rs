//! From a seed to a plan: what a sweep tries.

use std::time::Duration;

use swimring_membership::{Preset, Rng};

use crate::plan::{
    Action, Bursts, Cut, Expect, Keys, Latency, Limits, LinkRule, Load, Memory, Pairs, Plan, Quiet, Select, Side, Step,
    WorldSpec,
};

mod rolling;

/// A family of plans.
#[derive(Copy, Clone, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Profile {
    /// For every change: 3 to 64 nodes, 10 virtual minutes, at least three kinds of fault.
    Pr,
    /// The same with 20 to 200 calls a second.
    Forward,
    /// Nodes only come and go in good order, most of them to start again, under 20 to 200 calls a second.
    Rolling,
}

impl std::fmt::Display for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pr => "pr",
            Self::Forward => "forward",
            Self::Rolling => "rolling",
        })
    }
}

/// Classes of fault; a plan uses some and leaves others out altogether.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Class {
    Cuts,
    Oneway,
    Loss,
    Disorder,
    Crashes,
    Pauses,
    Slowness,
    Drift,
    Churn,
    Strangers,
}

const CLASSES: [Class; 10] = [
    Class::Cuts,
    Class::Oneway,
    Class::Loss,
    Class::Disorder,
    Class::Crashes,
    Class::Pauses,
    Class::Slowness,
    Class::Drift,
    Class::Churn,
    Class::Strangers,
];

const CHAOS: Duration = Duration::from_secs(540);
const END: Duration = Duration::from_secs(600);
/// Share of the plans at whose end everybody leaves at once, in millionths: a moment at which nobody owns any key.
const EVERYBODY_LEAVES: u32 = 150_000;

/// Share of the plans with faults of who is who, in millionths.
const RARER: u32 = 400_000;

/// Share of the plans in which weights change, in millionths.
const WEIGHED: u32 = 300_000;

/// Half of the clusters are full meshes, whatever their size; of the others only the small ones are.
fn draw_mesh(mut rng: Rng) -> usize {
    if rng.chance(500_000) { 256 } else { log_uniform(&mut rng, 4, 32) as usize }
}

/// The plan of `seed`.
pub fn plan(profile: Profile, seed: u64) -> Plan {
    match profile {
        Profile::Pr | Profile::Forward => chaos(profile, seed),
        Profile::Rolling => rolling::plan(seed),
    }
}

fn chaos(profile: Profile, seed: u64) -> Plan {
    let mut rng = Rng::new(seed).fork(0x706c_616e);
    let nodes = log_uniform(&mut rng, 3, 64) as usize;
    let zones = 1 + rng.index(3);
    let world = WorldSpec {
        nodes,
        zones,
        seeds: 1 + rng.index(3.min(nodes)),
        preset: Preset::Lan,
        arcs: 10,
        balanced: rng.chance(250_000),
        limits: Limits::Tight,
        mesh: draw_mesh(rng.fork(2)),
    };
    let link = draw_link(&mut rng);
    let load = draw_load(&mut rng, profile);
    let mut steps = Vec::new();
    let mut at = Duration::from_secs(10 + rng.below(20));
    let classes = draw_classes(&mut rng);
    let mut turn = 0;
    while at < CHAOS {
        // The first pass uses every class once, so that none is drawn in vain.
        let class = if turn < classes.len() { classes[turn] } else { classes[rng.index(classes.len())] };
        turn += 1;
        let (action, lasts) = fault(&mut rng, class, nodes, zones);
        let lasts = lasts.min(CHAOS.saturating_sub(at) + Duration::from_secs(10));
        steps.push(Step { at, action, lasts });
        at += Duration::from_secs(5 + rng.below(50));
    }
    steps.extend(draw_rarer(rng.fork(3), nodes));
    steps.extend(draw_weights(rng.fork(4), nodes));
    steps.sort_by_key(|step| step.at);
    let mut rng = rng.fork(1);
    if rng.chance(EVERYBODY_LEAVES) {
        let at = CHAOS + secs(&mut rng, 10, 40);
        steps.push(Step { at, action: Action::Leave(Select::Random(nodes * 2)), lasts: Duration::ZERO });
    }
    Plan {
        world,
        links: vec![link],
        load: Some(load),
        steps,
        quiet: Some(Quiet { at: END, core: 70 }),
        expect: Expect { converged: Duration::from_secs(20), served: true },
    }
}

/// Faults of who is who, and processes that are blocked: in some plans, among all others.
fn draw_rarer(mut rng: Rng, nodes: usize) -> Vec<Step> {
    if !rng.chance(RARER) {
        return Vec::new();
    }
    let memories = [Memory::Kept, Memory::Lost, Memory::Stale];
    let kinds = 1 + rng.index(4);
    let steps = (0..1 + rng.index(4)).map(|turn| {
        let at = Duration::from_secs(15) + rng.span(Duration::ZERO, CHAOS - Duration::from_secs(20));
        let (action, lasts) = match (kinds + turn) % 4 {
            0 => (Action::Twin(some(&mut rng, nodes), memories[rng.index(3)]), Duration::ZERO),
            1 => (Action::Foreign(some(&mut rng, nodes)), Duration::ZERO),
            2 => (Action::Upgrade(some(&mut rng, nodes)), Duration::ZERO),
            _ => (Action::Block(some(&mut rng, nodes)), secs(&mut rng, 1, 40)),
        };
        Step { at: Duration::from_millis(at.as_millis() as u64), action, lasts }
    });
    steps.collect()
}

/// In some plans nodes get other weights while they run. Only the first may get none: somebody has to own the keys.
fn draw_weights(mut rng: Rng, nodes: usize) -> Vec<Step> {
    if !rng.chance(WEIGHED) {
        return Vec::new();
    }
    let steps = (0..1 + rng.index(4)).map(|_| {
        let at = Duration::from_secs(15) + rng.span(Duration::ZERO, CHAOS - Duration::from_secs(20));
        let action = match [0, 1, 2, 3, 7, 50][rng.index(6)] {
            0 => Action::Weigh(Select::Side(Side::Node(1)), 0),
            weight => Action::Weigh(some(&mut rng, nodes), weight),
        };
        Step { at: Duration::from_millis(at.as_millis() as u64), action, lasts: Duration::ZERO }
    });
    steps.collect()
}

fn draw_link(rng: &mut Rng) -> LinkRule {
    LinkRule {
        latency: Latency::Uniform(Duration::from_micros(100), Duration::from_micros(200 + rng.below(3_000))),
        loss: if rng.chance(500_000) { rng.below(5_000) as u32 } else { 0 },
        dup: if rng.chance(300_000) { rng.below(20_000) as u32 } else { 0 },
        corrupt: if rng.chance(300_000) { rng.below(1_000) as u32 } else { 0 },
        reorder: Duration::from_micros(if rng.chance(300_000) { rng.below(2_000) } else { 0 }),
        pairs: Pairs::All,
    }
}

fn draw_load(rng: &mut Rng, profile: Profile) -> Load {
    let rate = match profile {
        Profile::Pr => log_uniform(rng, 1, 50),
        Profile::Forward | Profile::Rolling => log_uniform(rng, 20, 200),
    };
    // Now and then bodies that take a stream of their own; fewer of them, for they are copied a lot.
    let large = rng.chance(80_000);
    Load {
        rate: if large { rate.min(5) } else { rate },
        keys: if rng.chance(500_000) { Keys::Zipf(1_100, 10_000) } else { Keys::Uniform(1_000) },
        deadline: millis(rng, 200, 6_000),
        idempotent: rng.below(1_000_000) as u32,
        handler: Latency::Exp(if rng.chance(150_000) { millis(rng, 300, 3_000) } else { millis(rng, 1, 300) }),
        body: if large { 70_000 } else { log_uniform(rng, 1, 2_000) as usize },
    }
}

fn draw_classes(rng: &mut Rng) -> Vec<Class> {
    let mut classes = CLASSES.to_vec();
    rng.shuffle(&mut classes);
    classes.truncate(3 + rng.index(CLASSES.len() - 2));
    classes
}

fn log_uniform(rng: &mut Rng, low: u32, high: u32) -> u32 {
    // A power of two between the bounds' logarithms, then any value within it.
    let (least, most) = (low.max(1).ilog2(), high.ilog2());
    loop {
        let power = least + rng.below(u64::from(most - least) + 1) as u32;
        let value = (1 << power) + rng.below(1 << power) as u32;
        if (low..=high).contains(&value) {
            return value;
        }
    }
}

fn secs(rng: &mut Rng, low: u32, high: u32) -> Duration {
    Duration::from_secs(u64::from(log_uniform(rng, low, high)))
}

fn millis(rng: &mut Rng, low: u32, high: u32) -> Duration {
    Duration::from_millis(u64::from(log_uniform(rng, low, high)))
}

fn node(rng: &mut Rng, nodes: usize) -> Side {
    Side::Node(1 + rng.index(nodes))
}

fn some(rng: &mut Rng, nodes: usize) -> Select {
    let most = (nodes / 3).max(1);
    if rng.chance(500_000) { Select::Side(node(rng, nodes)) } else { Select::Random(1 + rng.index(most)) }
}

fn side(rng: &mut Rng, nodes: usize, zones: usize) -> Side {
    if zones > 1 && rng.chance(300_000) {
        Side::Zone((b'a' + rng.index(zones) as u8) as char)
    } else {
        node(rng, nodes)
    }
}

fn fault(rng: &mut Rng, class: Class, nodes: usize, zones: usize) -> (Action, Duration) {
    let forever = Duration::ZERO;
    match class {
        Class::Cuts => {
            let cut = match rng.below(5) {
                0 => Cut::Half,
                1 => Cut::Isolate(some(rng, nodes)),
                2 if zones > 1 => Cut::Zone((b'a' + rng.index(zones) as u8) as char),
                2 => Cut::Half,
                3 => Cut::Ring,
                _ => groups(rng, nodes),
            };
            // On a circle everybody suspects somebody all the time: a short one shows as much, at less cost.
            let longest = if cut == Cut::Ring { 15 } else { 120 };
            (Action::Cut(cut), secs(rng, 1, longest))
        }
        Class::Oneway if nodes > 3 && rng.chance(300_000) => {
            let through = 1 + rng.index(nodes);
            (Action::Bridge(side(rng, nodes, zones), through, side(rng, nodes, zones)), secs(rng, 5, 60))
        }
        Class::Oneway => (Action::Oneway(side(rng, nodes, zones), side(rng, nodes, zones)), secs(rng, 1, 60)),
        Class::Loss if rng.chance(200_000) => {
            let bursts = Bursts {
                loss: 500_000 + rng.below(500_000) as u32,
                share: 20_000 + rng.below(200_000) as u32,
                length: millis(rng, 50, 3_000),
            };
            (Action::Bursts(bursts), secs(rng, 2, 60))
        }
        Class::Loss if rng.chance(200_000) => {
            let who = rng.chance(700_000).then(|| some(rng, nodes));
            (Action::Hole(400 + rng.index(900), who), secs(rng, 2, 40))
        }
        Class::Loss => {
            let who = rng.chance(500_000).then(|| some(rng, nodes));
            (Action::Loss(10_000 + rng.below(400_000) as u32, who), secs(rng, 2, 60))
        }
        Class::Disorder if rng.chance(500_000) => (Action::Dup(rng.below(500_000) as u32 + 10_000), secs(rng, 5, 60)),
        Class::Disorder => (Action::Reorder(Duration::from_millis(1 + rng.below(200))), secs(rng, 5, 60)),
        Class::Crashes => {
            let memory = [Memory::Kept, Memory::Kept, Memory::Lost, Memory::Stale][rng.index(4)];
            let restart = rng.chance(850_000).then(|| (millis(rng, 50, 60_000), memory));
            (Action::Crash(some(rng, nodes), restart), forever)
        }
        Class::Pauses => (Action::Pause(some(rng, nodes)), secs(rng, 1, 40)),
        Class::Slowness => (Action::Slow(some(rng, nodes), log_uniform(rng, 10, 2_000)), secs(rng, 5, 60)),
        Class::Drift => (Action::Drift(some(rng, nodes), rng.below(1_000) as i32 - 500), forever),
        Class::Churn if rng.chance(100_000) => (Action::Quit(Select::Random(1)), forever),
        Class::Churn if rng.chance(100_000) => (Action::Drain(Select::Random(1)), forever),
        Class::Churn if rng.chance(150_000) => (Action::Replace(some(rng, nodes)), forever),
        // Many at once, now and then.
        Class::Churn if rng.chance(100_000) => {
            (Action::Join(4 + rng.index(nodes / 2 + 1), millis(rng, 10, 1_000)), forever)
        }
        Class::Churn if rng.chance(400_000) => (Action::Leave(Select::Random(1)), forever),
        Class::Churn => (Action::Join(1 + rng.index(4), secs(rng, 1, 10)), forever),
        // Now and then more than a node takes.
        Class::Strangers => {
            let count = if rng.chance(250_000) { 3_200 } else { 1 + rng.index(60) };
            (Action::Strangers(count, Select::Random(1)), secs(rng, 5, 60))
        }
    }
}

fn groups(rng: &mut Rng, nodes: usize) -> Cut {
    let count = 2 + rng.index(2);
    let mut groups = vec![Vec::new(); count];
    for node in 1..=nodes {
        groups[rng.index(count)].push(node);
    }
    groups.retain(|group| !group.is_empty());
    Cut::Groups(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawn_plan_reads_back_from_its_text() {
        for seed in 0..200 {
            let plan = plan(Profile::Pr, seed);
            assert_eq!(Plan::parse(&plan.to_string()).as_ref(), Ok(&plan), "seed {seed}");
        }
    }

    #[test]
    fn a_plan_has_at_least_three_kinds_of_fault() {
        for seed in 0..200 {
            let steps = plan(Profile::Pr, seed).steps;
            let kinds: std::collections::BTreeSet<_> = steps.iter().map(|step| step.action.kind()).collect();
            assert!(kinds.len() >= 3, "seed {seed}: {kinds:?}");
        }
    }
}
