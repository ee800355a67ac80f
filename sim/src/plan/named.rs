//! Whom a plan names, and whether they are ever there: those who are chosen when the time comes aside.

use super::parse::NODES_MAX;
use super::{Action, Cut, Pairs, Plan, Select, Side};

/// Whether more nodes join than a world may have, or somebody is named who is never there; each step with the line on
/// which it is.
pub(super) fn wrong(plan: &Plan, steps: &[usize], links: &[usize]) -> Option<(usize, String)> {
    too_many(plan, steps).or_else(|| missing(plan, steps, links))
}

fn too_many(plan: &Plan, steps: &[usize]) -> Option<(usize, String)> {
    let mut nodes = plan.world.nodes;
    plan.steps.iter().zip(steps).find_map(|(step, line)| {
        if let Action::Join(count, _) = step.action {
            nodes = nodes.saturating_add(count);
        }
        (nodes > NODES_MAX)
            .then(|| (*line, format!("a world has at most {NODES_MAX} nodes, those that join among them")))
    })
}

fn missing(plan: &Plan, steps: &[usize], links: &[usize]) -> Option<(usize, String)> {
    let newcomers = plan.steps.iter().map(|step| newcomers(&step.action, plan.world.nodes));
    let most = newcomers.fold(plan.world.nodes, usize::saturating_add);
    let node =
        |number: usize| (number > most).then(|| format!("there is never a node n{number}: at most {most} in all"));
    let zone = |letter: char| {
        let beyond = usize::from(letter as u8 - b'a') >= plan.world.zones;
        beyond.then(|| format!("there is no zone {letter}: {} in all", plan.world.zones))
    };
    let side = |side: &Side| match side {
        Side::Node(number) => node(*number),
        Side::Zone(letter) => zone(*letter),
    };
    let of_step = |action: &Action| {
        let (mut action, mut problem) = (action.clone(), None);
        named(&mut action, &mut |number| problem = problem.take().or_else(|| node(*number)));
        let of_sides = sides(&mut action).into_iter().find_map(|named| side(named));
        let of_cut = if let Action::Cut(Cut::Zone(letter)) = action { zone(letter) } else { None };
        problem.or(of_sides).or(of_cut)
    };
    let in_links = plan.links.iter().zip(links).find_map(|(link, line)| match &link.pairs {
        Pairs::All => None,
        Pairs::Between(a, b) | Pairs::From(a, b) => Some((*line, side(a).or_else(|| side(b))?)),
    });
    in_links.or_else(|| plan.steps.iter().zip(steps).find_map(|(step, line)| Some((*line, of_step(&step.action)?))))
}

/// How many machines an action adds at most, in a world that began with so many.
fn newcomers(action: &Action, nodes: usize) -> usize {
    match action {
        Action::Join(count, _) => *count,
        Action::Replace(who) | Action::Foreign(who) | Action::Twin(who, _) => match who {
            Select::Side(Side::Node(_)) | Select::Owner(_) => 1,
            Select::Side(Side::Zone(_)) => nodes,
            Select::Nodes(named) => named.len(),
            Select::Random(count) => *count,
        },
        _ => 0,
    }
}

/// Every node that an action names.
pub(crate) fn named(action: &mut Action, change: &mut dyn FnMut(&mut usize)) {
    match action {
        Action::Cut(Cut::Groups(groups)) => groups.iter_mut().flatten().for_each(&mut *change),
        Action::Bridge(_, through, _) => change(through),
        _ => {}
    }
    if let Some(Select::Nodes(nodes)) = selects(action) {
        nodes.iter_mut().for_each(&mut *change);
    }
    for side in sides(action) {
        if let Side::Node(node) = side {
            change(node);
        }
    }
}

/// The sides that an action names.
fn sides(action: &mut Action) -> Vec<&mut Side> {
    match action {
        Action::Oneway(a, b) | Action::Bridge(a, _, b) => vec![a, b],
        other => match selects(other) {
            Some(Select::Side(side)) => vec![side],
            _ => Vec::new(),
        },
    }
}

/// Whom an action chooses.
pub(crate) fn selects(action: &mut Action) -> Option<&mut Select> {
    match action {
        Action::Cut(Cut::Isolate(who))
        | Action::Crash(who, _)
        | Action::Pause(who)
        | Action::Block(who)
        | Action::Slow(who, _)
        | Action::Drift(who, _)
        | Action::Leave(who)
        | Action::Roll(who)
        | Action::Quit(who)
        | Action::Drain(who)
        | Action::Replace(who)
        | Action::Foreign(who)
        | Action::Twin(who, _)
        | Action::Upgrade(who)
        | Action::Weigh(who, _)
        | Action::Strangers(_, who) => Some(who),
        Action::Loss(_, who) | Action::Hole(_, who) => who.as_mut(),
        Action::Cut(Cut::Half | Cut::Ring | Cut::Zone(_) | Cut::Groups(_))
        | Action::Oneway(..)
        | Action::Bridge(..)
        | Action::Bursts(_)
        | Action::Dup(_)
        | Action::Reorder(_)
        | Action::Join(..)
        | Action::Overload(_)
        | Action::Measure => None,
    }
}
