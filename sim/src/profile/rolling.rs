//! Plans in which nodes only come and go in good order.

use super::*;

const LAST: Duration = Duration::from_secs(200);
const END: Duration = Duration::from_secs(240);
/// Between two steps: longer than a node that is rolled is away.
const GAP: Duration = Duration::from_secs(20);

/// The plan of `seed`: what is lost, late or in the way is not drawn, and most of the nodes stay at any time.
pub(super) fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed).fork(0x726f_6c6c);
    let nodes = log_uniform(&mut rng, 3, 64) as usize;
    let world = WorldSpec {
        nodes,
        zones: 1 + rng.index(3),
        seeds: 1 + rng.index(3.min(nodes)),
        preset: Preset::Lan,
        arcs: 10,
        balanced: rng.chance(250_000),
        limits: Limits::Shipped,
        mesh: draw_mesh(rng.fork(2)),
    };
    let link = LinkRule { loss: 0, corrupt: 0, ..draw_link(&mut rng) };
    let handler = Latency::Exp(millis(&mut rng, 1, 300));
    let load = Load { handler, deadline: secs(&mut rng, 6, 20), ..draw_load(&mut rng, Profile::Rolling) };
    let most = (nodes - 1) / 2;
    let (mut steps, mut gone) = (Vec::new(), 0);
    let mut at = Duration::from_secs(5 + rng.below(20));
    while at < LAST {
        let action = match rng.below(10) {
            0 | 1 => Action::Join(1 + rng.index(4), secs(&mut rng, 1, 10)),
            2 if gone < most => {
                gone += 1;
                if rng.chance(500_000) { Action::Leave(Select::Random(1)) } else { Action::Drain(Select::Random(1)) }
            }
            _ if gone < most => Action::Roll(Select::Random(1 + rng.index(most - gone))),
            _ => Action::Join(1, Duration::ZERO),
        };
        steps.push(Step { at, action, lasts: Duration::ZERO });
        at += GAP + Duration::from_millis(rng.below(10_000));
    }
    Plan {
        world,
        links: vec![link],
        load: Some(load),
        steps,
        quiet: Some(Quiet { at: END, core: 100 }),
        expect: Expect { converged: Duration::from_secs(30), served: true },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_plan_is_orderly_and_does_something() {
        for seed in 0..200 {
            let plan = plan(seed);
            assert!(plan.is_orderly() && plan.steps.len() > 4, "{plan}");
        }
    }
}
