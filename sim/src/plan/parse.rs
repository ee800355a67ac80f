//! Text to plan.

use std::time::Duration;

use swimring_membership::{Preset, WEIGHT_MAX};

use super::{
    Action, Bursts, Cut, Expect, Keys, Latency, Limits, LinkRule, Load, Memory, Pairs, Plan, PlanError, Quiet, Select,
    Side, Step, WorldSpec,
};

/// Most nodes of a world, those that join among them; and most strangers that come to one at a time.
pub(super) const NODES_MAX: usize = 65_536;
/// No exponent of a Zipf law is as large.
const EXPONENT_MAX: u32 = 100;

/// Up to how many members everybody asks everybody, as shipped.
pub(super) const MESH: usize = 256;

type Parsed<T> = Result<T, String>;

pub(super) fn plan(text: &str) -> Result<Plan, PlanError> {
    let mut plan = Plan {
        world: WorldSpec {
            nodes: 3,
            zones: 1,
            seeds: 1,
            preset: Preset::Lan,
            arcs: 14,
            balanced: false,
            limits: Limits::Tight,
            mesh: MESH,
        },
        links: Vec::new(),
        load: None,
        steps: Vec::new(),
        quiet: None,
        expect: Expect::default(),
    };
    let mut versioned = false;
    let (mut steps, mut links) = (Vec::new(), Vec::new());
    for (index, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        for part in line.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            let at = |problem| PlanError { line: index + 1, problem };
            if !versioned {
                if part != "plan 1" {
                    return Err(at("a plan begins with `plan 1`".into()));
                }
                versioned = true;
                continue;
            }
            statement(&mut plan, part).map_err(at)?;
            steps.resize(plan.steps.len(), index + 1);
            links.resize(plan.links.len(), index + 1);
        }
    }
    if !versioned {
        return Err(PlanError { line: 1, problem: "a plan begins with `plan 1`".into() });
    }
    if let Some((line, problem)) = super::named::wrong(&plan, &steps, &links) {
        return Err(PlanError { line, problem });
    }
    plan.steps.sort_by_key(|step| step.at);
    Ok(plan)
}

fn statement(plan: &mut Plan, text: &str) -> Parsed<()> {
    let words = words(text)?;
    let mut words = words.iter().map(String::as_str);
    match words.next().unwrap_or_default() {
        "world" => world(&mut plan.world, words),
        "link" => {
            plan.links.push(link(words)?);
            Ok(())
        }
        "load" => {
            plan.load = Some(load(words)?);
            Ok(())
        }
        "at" => {
            plan.steps.push(step(words)?);
            Ok(())
        }
        "restart" => restart(plan, words),
        "quiet" => {
            plan.quiet = Some(quiet(words)?);
            Ok(())
        }
        "expect" => expect(&mut plan.expect, words),
        other => Err(format!("unknown statement {other:?}")),
    }
}

/// Words at white space; a pair of parentheses holds its content together.
fn words(text: &str) -> Parsed<Vec<String>> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut depth = 0u32;
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.checked_sub(1).ok_or("a parenthesis closes that was not opened")?,
            _ => {}
        }
        if c.is_whitespace() && depth == 0 {
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
        } else {
            word.push(c);
        }
    }
    if depth > 0 {
        return Err("a parenthesis is not closed".into());
    }
    if !word.is_empty() {
        words.push(word);
    }
    Ok(words)
}

fn pair(word: &str) -> Parsed<(&str, &str)> {
    word.split_once('=').ok_or_else(|| format!("{word:?} is not NAME=VALUE"))
}

fn number<T: std::str::FromStr>(text: &str) -> Parsed<T> {
    text.parse().map_err(|_| format!("{text:?} is not a number"))
}

fn many(text: &str) -> Parsed<usize> {
    let count = number(text)?;
    if count > NODES_MAX { Err(format!("{count} are more than 65,536")) } else { Ok(count) }
}

pub(super) fn duration(text: &str) -> Parsed<Duration> {
    let split = text
        .find(|c: char| c.is_ascii_alphabetic())
        .ok_or_else(|| format!("{text:?} has no unit (us, ms, s, m, h)"))?;
    let (value, unit) = text.split_at(split);
    let nanos: u64 = match unit {
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return Err(format!("{unit:?} is not a unit of time (us, ms, s, m, h)")),
    };
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    let mut total = number::<u64>(whole)?.checked_mul(nanos).ok_or("the time is too long")?;
    let mut scale = nanos;
    for digit in fraction.chars() {
        let digit = digit.to_digit(10).ok_or_else(|| format!("{text:?} is not a time"))?;
        scale /= 10;
        total += u64::from(digit) * scale;
    }
    Ok(Duration::from_nanos(total))
}

/// A percentage, as millionths.
fn percent(text: &str) -> Parsed<u32> {
    let value = text.strip_suffix('%').ok_or_else(|| format!("{text:?} is not a percentage"))?;
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    let mut total = number::<u32>(whole)?.checked_mul(10_000).ok_or("more than 100 %")?;
    let mut scale = 10_000;
    for digit in fraction.chars() {
        let digit = digit.to_digit(10).ok_or_else(|| format!("{text:?} is not a percentage"))?;
        scale /= 10;
        total += digit * scale;
    }
    if total <= 1_000_000 { Ok(total) } else { Err(format!("{text:?} is more than 100 %")) }
}

/// `name(a,b,...)`
fn call(text: &str) -> Parsed<(&str, Vec<&str>)> {
    let (name, rest) = text.split_once('(').ok_or_else(|| format!("{text:?} is not NAME(...)"))?;
    let inner = rest.strip_suffix(')').ok_or_else(|| format!("{text:?} is not NAME(...)"))?;
    Ok((name, inner.split(',').map(str::trim).collect()))
}

fn latency(text: &str) -> Parsed<Latency> {
    let (name, arguments) = call(text)?;
    match (name, arguments.as_slice()) {
        ("const", [value]) => Ok(Latency::Const(duration(value)?)),
        ("uniform", [low, high]) => Ok(Latency::Uniform(duration(low)?, duration(high)?)),
        ("exp", [mean]) => Ok(Latency::Exp(duration(mean)?)),
        ("bimodal", [usual, rare, share]) => Ok(Latency::Bimodal(duration(usual)?, duration(rare)?, percent(share)?)),
        _ => Err(format!("{text:?} is not const(T), uniform(T,T), exp(T) or bimodal(T,T,P%)")),
    }
}

fn node(text: &str) -> Parsed<usize> {
    let number = text.strip_prefix('n').and_then(|number| number.parse().ok()).filter(|number| *number > 0);
    number.ok_or_else(|| format!("{text:?} is not a node (n1, n2, ...)"))
}

fn side(text: &str) -> Parsed<Side> {
    match text.strip_prefix("zone:") {
        Some(zone) => Ok(Side::Zone(zone_letter(zone)?)),
        None => Ok(Side::Node(node(text)?)),
    }
}

fn zone_letter(text: &str) -> Parsed<char> {
    match text.chars().collect::<Vec<_>>()[..] {
        [letter] if letter.is_ascii_lowercase() => Ok(letter),
        _ => Err(format!("{text:?} is not a zone (a, b, ...)")),
    }
}

fn select(text: &str) -> Parsed<Select> {
    if let Ok((name, arguments)) = call(text) {
        return match (name, arguments.as_slice()) {
            ("nodes", [list]) => Ok(Select::Nodes(list.split_whitespace().map(node).collect::<Parsed<_>>()?)),
            ("random", [count]) => Ok(Select::Random(number(count)?)),
            ("owner", [key]) => Ok(Select::Owner(key.trim_matches('"').into())),
            _ => Err(format!("{text:?} is not nodes(n1 n2), random(N) or owner(\"KEY\")")),
        };
    }
    Ok(Select::Side(side(text)?))
}

fn world<'a>(world: &mut WorldSpec, words: impl Iterator<Item = &'a str>) -> Parsed<()> {
    for word in words {
        match pair(word)? {
            ("nodes", value) => world.nodes = number(value)?,
            ("zones", value) => world.zones = number(value)?,
            ("seeds", value) => world.seeds = number(value)?,
            ("balanced", "yes") => world.balanced = true,
            ("balanced", "no") => world.balanced = false,
            ("limits", "tight") => world.limits = Limits::Tight,
            ("limits", "shipped") => world.limits = Limits::Shipped,
            ("mesh", value) => world.mesh = number(value)?,
            ("preset", "lan") => world.preset = Preset::Lan,
            ("preset", "wan") => world.preset = Preset::Wan,
            ("preset", "local") => world.preset = Preset::Local,
            ("arcs", value) => {
                let power = value.strip_prefix("2^").ok_or("arcs is written 2^N")?;
                world.arcs = number(power)?;
            }
            (name, _) => return Err(format!("a world has no {name:?}")),
        }
    }
    let bad = world.nodes == 0 || world.nodes > NODES_MAX || !(1..=26).contains(&world.zones);
    let bad = bad || world.mesh < 4;
    if bad || world.seeds == 0 || world.seeds > world.nodes || !(8..=24).contains(&world.arcs) {
        return Err("a world has 1 to 65,536 nodes, 1 to 26 zones, at least one seed, 2^8 to 2^24 arcs and a mesh of 4 at least".into());
    }
    Ok(())
}

fn link<'a>(words: impl Iterator<Item = &'a str>) -> Parsed<LinkRule> {
    let mut rule = LinkRule {
        latency: Latency::Uniform(Duration::from_micros(200), Duration::from_millis(1)),
        loss: 0,
        dup: 0,
        corrupt: 0,
        reorder: Duration::ZERO,
        pairs: Pairs::All,
    };
    let mut words = words.peekable();
    while let Some(word) = words.next() {
        match word {
            "between" => {
                let (a, b) = (words.next().ok_or("between what?")?, words.next().ok_or("between what and what?")?);
                rule.pairs = Pairs::Between(side(a)?, side(b)?);
            }
            "|" => {}
            "from" => {
                let (a, to, b) = (words.next(), words.next(), words.next());
                match (a, to, b) {
                    (Some(a), Some("to"), Some(b)) => rule.pairs = Pairs::From(side(a)?, side(b)?),
                    _ => return Err("a one-way link is written from A to B".into()),
                }
            }
            _ => match pair(word)? {
                ("latency", value) => rule.latency = latency(value)?,
                ("loss", value) => rule.loss = percent(value)?,
                ("dup", value) => rule.dup = percent(value)?,
                ("corrupt", value) => rule.corrupt = percent(value)?,
                ("reorder", value) => rule.reorder = duration(value)?,
                (name, _) => return Err(format!("a link has no {name:?}")),
            },
        }
    }
    Ok(rule)
}

fn load<'a>(words: impl Iterator<Item = &'a str>) -> Parsed<Load> {
    let mut load = Load {
        rate: 20,
        keys: Keys::Uniform(1_000),
        deadline: Duration::from_millis(800),
        idempotent: 500_000,
        handler: Latency::Exp(Duration::from_millis(3)),
        body: 128,
    };
    for word in words {
        match pair(word)? {
            ("rate", value) => load.rate = number(value.trim_end_matches("/s"))?,
            ("keys", value) => load.keys = keys(value)?,
            ("deadline", value) => load.deadline = duration(value)?,
            ("idempotent", value) => load.idempotent = percent(value)?,
            ("handler", value) => load.handler = latency(value)?,
            ("body", value) => load.body = number(value)?,
            (name, _) => return Err(format!("a load has no {name:?}")),
        }
    }
    if load.rate == 0 || load.rate > 1_000_000 {
        return Err("a rate is 1 to 1,000,000 calls a second".into());
    }
    Ok(load)
}

fn keys(text: &str) -> Parsed<Keys> {
    let (name, arguments) = call(text)?;
    match (name, arguments.as_slice()) {
        ("uniform", [count]) => Ok(Keys::Uniform(number(count)?)),
        ("zipf", [exponent, count]) => {
            let (whole, fraction) = exponent.split_once('.').unwrap_or((exponent, ""));
            if fraction.len() > 3 {
                return Err("an exponent has at most three decimals".into());
            }
            let (whole, fraction) = (number::<u32>(whole)?, number::<u32>(&format!("{fraction:0<3}"))?);
            if whole >= EXPONENT_MAX {
                return Err(format!("an exponent is less than {EXPONENT_MAX}"));
            }
            Ok(Keys::Zipf(whole * 1_000 + fraction, number(count)?))
        }
        _ => Err(format!("{text:?} is not uniform(N) or zipf(S,N)")),
    }
}

fn step<'a>(mut words: impl Iterator<Item = &'a str>) -> Parsed<Step> {
    let at = duration(words.next().ok_or("at what time?")?)?;
    let kind = words.next().ok_or("what happens?")?;
    let mut words: Vec<&str> = words.collect();
    let mut lasts = Duration::ZERO;
    if let [rest @ .., "for", time] = words.as_slice() {
        lasts = duration(time)?;
        words = rest.to_vec();
    }
    let action = action(kind, &words)?;
    let endless = matches!(
        action,
        Action::Crash(..)
            | Action::Leave(_)
            | Action::Roll(_)
            | Action::Quit(_)
            | Action::Drain(_)
            | Action::Replace(_)
            | Action::Foreign(_)
            | Action::Twin(..)
            | Action::Upgrade(_)
            | Action::Weigh(..)
            | Action::Join(..)
            | Action::Drift(..)
    );
    if endless != lasts.is_zero() {
        return Err(if endless {
            format!("{kind} has no duration")
        } else {
            format!("{kind} needs a duration: for TIME")
        });
    }
    Ok(Step { at, action, lasts })
}

fn action(kind: &str, words: &[&str]) -> Parsed<Action> {
    Ok(match (kind, words) {
        ("cut", ["half"]) => Action::Cut(Cut::Half),
        ("cut", ["ring"]) => Action::Cut(Cut::Ring),
        ("cut", ["isolate", who]) => Action::Cut(Cut::Isolate(select(who)?)),
        ("cut", ["zone", zone]) => Action::Cut(Cut::Zone(zone_letter(zone)?)),
        ("cut", [groups]) if groups.starts_with("groups(") => Action::Cut(Cut::Groups(cut_groups(groups)?)),
        ("oneway", [from, "->", to]) => Action::Oneway(side(from)?, side(to)?),
        ("bridge", [a, through, b]) => Action::Bridge(side(a)?, node(through)?, side(b)?),
        ("loss", [rate]) => Action::Loss(percent(rate)?, None),
        ("loss", [rate, "of", who]) => Action::Loss(percent(rate)?, Some(select(who)?)),
        ("dup", [rate]) => Action::Dup(percent(rate)?),
        ("reorder", [span]) => Action::Reorder(duration(span)?),
        ("bursts", [loss, settings @ ..]) => Action::Bursts(bursts(loss, settings)?),
        ("hole", [bytes]) => Action::Hole(number(bytes)?, None),
        ("hole", [bytes, "of", who]) => Action::Hole(number(bytes)?, Some(select(who)?)),
        ("quit", [who]) => Action::Quit(select(who)?),
        ("drain", [who]) => Action::Drain(select(who)?),
        ("replace", [who]) => Action::Replace(select(who)?),
        ("foreign", [who]) => Action::Foreign(select(who)?),
        ("twin", [who, setting]) => match pair(setting)? {
            ("memory", value) => Action::Twin(select(who)?, memory(value)?),
            (name, _) => return Err(format!("a twin has no {name:?}")),
        },
        ("upgrade", [who]) => Action::Upgrade(select(who)?),
        ("weigh", [who, weight]) => match number(weight)? {
            weight if weight <= WEIGHT_MAX => Action::Weigh(select(who)?, weight),
            weight => return Err(format!("weight {weight} is above {WEIGHT_MAX}")),
        },
        ("crash", [who]) => Action::Crash(select(who)?, None),
        ("block", [who]) => Action::Block(select(who)?),
        ("pause", [who]) => Action::Pause(select(who)?),
        ("slow", [who, factor]) => {
            let factor = factor.strip_prefix('x').ok_or("slow is written xN")?;
            Action::Slow(select(who)?, number(factor)?)
        }
        ("clock", [who, setting]) => match pair(setting)? {
            ("drift", value) => Action::Drift(select(who)?, number(value.trim_end_matches("ppm"))?),
            // There is no wall clock in the cores: an offset changes only the origin, which differs anyway.
            ("offset", _) => Action::Drift(select(who)?, 0),
            (name, _) => return Err(format!("a clock has no {name:?}")),
        },
        ("leave", [who]) => Action::Leave(select(who)?),
        ("roll", [who]) => Action::Roll(select(who)?),
        ("join", [count]) => Action::Join(many(count)?, Duration::ZERO),
        ("join", [count, "over", span]) => Action::Join(many(count)?, duration(span)?),
        ("overload", [factor]) => {
            let factor = factor.strip_prefix('x').ok_or("overload is written xN")?;
            Action::Overload(number(factor)?)
        }
        ("measure", []) => Action::Measure,
        ("strangers", [count, "of", who]) => Action::Strangers(many(count)?, select(who)?),
        _ => return Err(format!("{kind} {} is not understood", words.join(" "))),
    })
}

fn bursts(loss: &str, settings: &[&str]) -> Parsed<Bursts> {
    let mut bursts = Bursts { loss: percent(loss)?, share: 100_000, length: Duration::from_millis(500) };
    for word in settings {
        match pair(word)? {
            ("share", value) => bursts.share = percent(value)?,
            ("length", value) => bursts.length = duration(value)?,
            (name, _) => return Err(format!("bursts have no {name:?}")),
        }
    }
    if bursts.length.is_zero() { Err("bursts have a length".into()) } else { Ok(bursts) }
}

fn cut_groups(text: &str) -> Parsed<Vec<Vec<usize>>> {
    let inner = text.trim_start_matches("groups(").trim_end_matches(')');
    inner.split('|').map(|group| group.split_whitespace().map(node).collect()).collect()
}

/// `restart after=T memory=M` belongs to the crash before it.
fn restart<'a>(plan: &mut Plan, words: impl Iterator<Item = &'a str>) -> Parsed<()> {
    let (mut after, mut held) = (Duration::from_secs(10), Memory::Kept);
    for word in words {
        match pair(word)? {
            ("after", value) => after = duration(value)?,
            ("memory", value) => held = memory(value)?,
            (name, _) => return Err(format!("a restart has no {name:?}")),
        }
    }
    match plan.steps.last_mut().map(|step| &mut step.action) {
        Some(Action::Crash(_, restart)) => {
            *restart = Some((after, held));
            Ok(())
        }
        _ => Err("a restart follows a crash".into()),
    }
}

fn memory(text: &str) -> Parsed<Memory> {
    match text {
        "kept" => Ok(Memory::Kept),
        "lost" => Ok(Memory::Lost),
        "stale" => Ok(Memory::Stale),
        other => Err(format!("a memory is kept, lost or stale, not {other:?}")),
    }
}

fn quiet<'a>(words: impl Iterator<Item = &'a str>) -> Parsed<Quiet> {
    let mut quiet = Quiet { at: Duration::ZERO, core: 70 };
    let mut words = words;
    while let Some(word) = words.next() {
        if word == "at" {
            quiet.at = duration(words.next().ok_or("quiet at what time?")?)?;
        } else {
            match pair(word)? {
                ("core", value) => quiet.core = percent(value)? / 10_000,
                (name, _) => return Err(format!("quiet has no {name:?}")),
            }
        }
    }
    Ok(quiet)
}

fn expect<'a>(expect: &mut Expect, words: impl Iterator<Item = &'a str>) -> Parsed<()> {
    for word in words {
        if let Some(time) = word.strip_prefix("converged<=") {
            expect.converged = duration(time)?;
        } else {
            match word {
                "served=all" => expect.served = true,
                "served=none" => expect.served = false,
                other => {
                    return Err(format!("{other:?} is not converged<=TIME, served=all or served=none"));
                }
            }
        }
    }
    Ok(())
}
