//! Plan to text, so that what a seed drew can be kept, read and changed.

use std::fmt::{Formatter, Result};
use std::time::Duration;

use swimring_membership::Preset;

use super::parse::MESH;
use super::{Action, Cut, Keys, Latency, Limits, Memory, Pairs, Plan, Select, Side};

pub(super) fn plan(plan: &Plan, f: &mut Formatter<'_>) -> Result {
    let w = &plan.world;
    let preset = match w.preset {
        Preset::Lan => "lan",
        Preset::Wan => "wan",
        Preset::Local => "local",
    };
    writeln!(f, "plan 1")?;
    write!(f, "world nodes={} zones={} seeds={} preset={preset} arcs=2^{}", w.nodes, w.zones, w.seeds, w.arcs)?;
    write!(f, "{}", if w.balanced { " balanced=yes" } else { "" })?;
    write!(f, "{}", if w.limits == Limits::Shipped { " limits=shipped" } else { "" })?;
    if w.mesh != MESH {
        write!(f, " mesh={}", w.mesh)?;
    }
    writeln!(f)?;
    for rule in &plan.links {
        write!(f, "link latency={} loss={}", latency(rule.latency), percent(rule.loss))?;
        write!(f, " dup={} reorder={} corrupt={}", percent(rule.dup), time(rule.reorder), percent(rule.corrupt))?;
        match &rule.pairs {
            Pairs::All => writeln!(f)?,
            Pairs::Between(a, b) => writeln!(f, " between {} {}", side(a), side(b))?,
            Pairs::From(a, b) => writeln!(f, " from {} to {}", side(a), side(b))?,
        }
    }
    if let Some(load) = &plan.load {
        let keys = match load.keys {
            Keys::Uniform(count) => format!("uniform({count})"),
            Keys::Zipf(exponent, count) => {
                format!("zipf({}.{:03},{count})", exponent / 1_000, exponent % 1_000)
            }
        };
        write!(f, "load rate={} keys={keys} deadline={}", load.rate, time(load.deadline))?;
        writeln!(f, " idempotent={} handler={} body={}", percent(load.idempotent), latency(load.handler), load.body)?;
    }
    for step in &plan.steps {
        write!(f, "at {} {}", time(step.at), action(&step.action))?;
        if !step.lasts.is_zero() {
            write!(f, " for {}", time(step.lasts))?;
        }
        writeln!(f)?;
    }
    if let Some(quiet) = plan.quiet {
        writeln!(f, "quiet at {} core={}%", time(quiet.at), quiet.core)?;
    }
    let served = if plan.expect.served { "all" } else { "none" };
    writeln!(f, "expect converged<={} served={served}", time(plan.expect.converged))
}

fn time(span: Duration) -> String {
    let micros = span.as_micros();
    match micros {
        _ if micros.is_multiple_of(1_000_000) => format!("{}s", micros / 1_000_000),
        _ if micros.is_multiple_of(1_000) => format!("{}ms", micros / 1_000),
        _ => format!("{micros}us"),
    }
}

fn percent(millionths: u32) -> String {
    format!("{}.{:04}%", millionths / 10_000, millionths % 10_000)
}

fn latency(latency: Latency) -> String {
    match latency {
        Latency::Const(value) => format!("const({})", time(value)),
        Latency::Uniform(low, high) => format!("uniform({},{})", time(low), time(high)),
        Latency::Exp(mean) => format!("exp({})", time(mean)),
        Latency::Bimodal(usual, rare, share) => {
            format!("bimodal({},{},{})", time(usual), time(rare), percent(share))
        }
    }
}

fn side(side: &Side) -> String {
    match side {
        Side::Node(node) => format!("n{node}"),
        Side::Zone(zone) => format!("zone:{zone}"),
    }
}

fn listed(nodes: &[usize]) -> String {
    nodes.iter().map(|node| format!("n{node}")).collect::<Vec<_>>().join(" ")
}

fn select(who: &Select) -> String {
    match who {
        Select::Side(who) => side(who),
        Select::Nodes(nodes) => format!("nodes({})", listed(nodes)),
        Select::Random(count) => format!("random({count})"),
        Select::Owner(key) => format!("owner(\"{key}\")"),
    }
}

fn memory(memory: Memory) -> &'static str {
    match memory {
        Memory::Kept => "kept",
        Memory::Lost => "lost",
        Memory::Stale => "stale",
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(&action(self))
    }
}

fn action(action: &Action) -> String {
    match action {
        Action::Cut(Cut::Half) => "cut half".into(),
        Action::Cut(Cut::Ring) => "cut ring".into(),
        Action::Cut(Cut::Isolate(who)) => format!("cut isolate {}", select(who)),
        Action::Cut(Cut::Zone(zone)) => format!("cut zone {zone}"),
        Action::Cut(Cut::Groups(groups)) => {
            let groups = groups.iter().map(|group| listed(group));
            format!("cut groups({})", groups.collect::<Vec<_>>().join(" | "))
        }
        Action::Oneway(from, to) => format!("oneway {} -> {}", side(from), side(to)),
        Action::Bridge(a, through, b) => format!("bridge {} n{through} {}", side(a), side(b)),
        Action::Loss(rate, None) => format!("loss {}", percent(*rate)),
        Action::Loss(rate, Some(who)) => format!("loss {} of {}", percent(*rate), select(who)),
        Action::Dup(rate) => format!("dup {}", percent(*rate)),
        Action::Reorder(span) => format!("reorder {}", time(*span)),
        Action::Bursts(b) => {
            format!("bursts {} share={} length={}", percent(b.loss), percent(b.share), time(b.length))
        }
        Action::Hole(bytes, None) => format!("hole {bytes}"),
        Action::Hole(bytes, Some(who)) => format!("hole {bytes} of {}", select(who)),
        Action::Quit(who) => format!("quit {}", select(who)),
        Action::Replace(who) => format!("replace {}", select(who)),
        Action::Foreign(who) => format!("foreign {}", select(who)),
        Action::Twin(who, held) => format!("twin {} memory={}", select(who), memory(*held)),
        Action::Upgrade(who) => format!("upgrade {}", select(who)),
        Action::Weigh(who, weight) => format!("weigh {} {weight}", select(who)),
        Action::Drain(who) => format!("drain {}", select(who)),
        Action::Crash(who, None) => format!("crash {}", select(who)),
        Action::Crash(who, Some((after, held))) => {
            format!("crash {} ; restart after={} memory={}", select(who), time(*after), memory(*held))
        }
        Action::Block(who) => format!("block {}", select(who)),
        Action::Pause(who) => format!("pause {}", select(who)),
        Action::Slow(who, factor) => format!("slow {} x{factor}", select(who)),
        Action::Drift(who, ppm) => format!("clock {} drift={ppm}ppm", select(who)),
        Action::Leave(who) => format!("leave {}", select(who)),
        Action::Roll(who) => format!("roll {}", select(who)),
        Action::Join(count, over) => format!("join {count} over {}", time(*over)),
        Action::Overload(factor) => format!("overload x{factor}"),
        Action::Measure => "measure".into(),
        Action::Strangers(count, who) => format!("strangers {count} of {}", select(who)),
    }
}
