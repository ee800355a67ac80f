//! Whether a plan is one in which nodes only come and go in good order.

use std::time::Duration;

use super::{Action, Plan, Select, Side};

/// How long a node that is rolled may be away.
const AWAY: Duration = Duration::from_secs(20);

impl Plan {
    /// Whether nothing is lost on the way, nobody fails, and at any time more nodes stay than are away.
    pub fn is_orderly(&self) -> bool {
        let whole = self.links.iter().all(|link| link.loss == 0 && link.corrupt == 0);
        let kind = |action: &Action| {
            matches!(action, Action::Leave(_) | Action::Roll(_) | Action::Drain(_) | Action::Join(..) | Action::Measure)
        };
        whole && self.steps.iter().all(|step| kind(&step.action)) && self.most_away() * 2 < self.world.nodes
    }

    /// How many nodes are away at once, at most.
    fn most_away(&self) -> usize {
        let goes = |at: Duration| {
            let so_far = self.steps.iter().filter(move |step| step.at <= at);
            so_far.map(move |step| match &step.action {
                Action::Leave(who) | Action::Drain(who) => self.count(who),
                Action::Roll(who) if at - step.at < AWAY => self.count(who),
                _ => 0,
            })
        };
        self.steps.iter().map(|step| goes(step.at).sum()).max().unwrap_or(0)
    }

    /// How many nodes are chosen, at most.
    fn count(&self, who: &Select) -> usize {
        match who {
            Select::Side(Side::Node(_)) | Select::Owner(_) => 1,
            Select::Side(Side::Zone(_)) => self.world.nodes.div_ceil(self.world.zones),
            Select::Nodes(nodes) => nodes.len(),
            Select::Random(count) => *count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_orderly(steps: &str) -> bool {
        let text = format!("plan 1\nworld nodes=7\n{steps}\nquiet at 100s\n");
        Plan::parse(&text).expect("the plan is right").is_orderly()
    }

    #[test]
    fn a_rolling_restart_is_orderly_as_long_as_most_nodes_stay() {
        assert!(is_orderly("at 10s roll random(3)\nat 30s roll random(3)\nat 50s join 2 over 1s"));
        assert!(!is_orderly("at 10s roll random(2)\nat 20s roll random(2)"));
        assert!(!is_orderly("at 10s leave n1\nat 30s leave n2\nat 50s drain n3\nat 90s leave n4"));
    }

    #[test]
    fn nothing_is_orderly_in_which_somebody_fails_or_something_is_lost() {
        assert!(!is_orderly("at 10s crash n1"));
        assert!(!is_orderly("link latency=const(1ms) loss=0.1%"));
    }
}
