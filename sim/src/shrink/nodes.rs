//! A plan for fewer nodes: faults move to those that are left.

use crate::plan::named::{named, selects};
use crate::plan::{Action, Cut, Plan, Select};

/// Makes do with `nodes`: who is named and is not there any more is replaced by somebody who is, and of many that are
/// chosen the same share is.
pub(super) fn keep(plan: &mut Plan, nodes: usize) {
    let before = plan.world.nodes;
    plan.world.nodes = nodes;
    plan.world.seeds = plan.world.seeds.min(nodes);
    for step in &mut plan.steps {
        // Those above came later, and still do.
        named(&mut step.action, &mut |node| {
            *node = if *node > before { *node - before + nodes } else { (*node - 1) % nodes + 1 };
        });
        counts(&mut step.action, &mut |count| *count = (*count * nodes).div_ceil(before));
        if let Action::Cut(Cut::Groups(groups)) = &mut step.action {
            let mut grouped = std::collections::BTreeSet::new();
            groups.iter_mut().for_each(|group| group.retain(|node| grouped.insert(*node)));
            groups.retain(|group| !group.is_empty());
        }
    }
}

/// Half as many of those whom a fault chooses.
pub(super) fn halve(action: &mut Action) {
    counts(action, &mut |count| *count = count.div_ceil(2));
    if let Some(Select::Nodes(nodes)) = selects(action) {
        nodes.truncate(nodes.len().div_ceil(2));
    }
}

/// How many nodes an action chooses or adds.
fn counts(action: &mut Action, change: &mut dyn FnMut(&mut usize)) {
    if let Action::Join(count, _) = action {
        change(count);
    }
    if let Some(Select::Random(count)) = selects(action) {
        change(count);
    }
}
