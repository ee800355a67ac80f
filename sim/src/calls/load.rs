//! Who calls what, and when: drawn from the load of the plan.

use super::*;
use crate::host::Home;
use crate::plan::Keys;
use crate::recording::Event;

/// Share of the calls that are for other members than the owners of their keys, in millionths.
const SCOPED: u32 = 100_000;
/// Share of the calls that are dropped before they end, in millionths.
const DROPPED: u32 = 30_000;

impl World {
    /// Schedules the first call, if the plan has a load.
    pub(crate) fn start_load(&mut self) {
        if self.plan.load.is_some() {
            self.schedule(Instant::ORIGIN + Duration::from_secs(5), Happening::Call(CallHappening::Arrive));
        }
    }

    /// A call of a random process, and the moment of the next one.
    pub(super) fn on_call_arrives(&mut self) {
        let Some(load) = self.plan.load.clone() else {
            return;
        };
        let rate = load.rate * self.overload;
        let gap = draw(&mut self.load_rng, plan::Latency::Exp(Duration::from_secs(1) / rate));
        self.schedule(self.now + gap.max(Duration::from_micros(1)), Happening::Call(CallHappening::Arrive));
        let pick = self.load_rng.index(self.hosts.len());
        let (key, idempotent) = (draw_key(&mut self.load_rng, load.keys), self.load_rng.chance(load.idempotent));
        let host = &self.hosts[pick];
        if !host.is_up() || host.stands_still() || host.app.is_none() || host.home == Home::Foreign {
            return;
        }
        let process = host.process();
        let entry = Entry {
            made: self.now,
            deadline: self.now + load.deadline,
            idempotent,
            duplex: false,
            begun: false,
            executed: 0,
            handled: Duration::ZERO,
            passed_over: false,
            refused: 0,
            owed: self.is_owed(),
            orderly: self.is_orderly_at(pick, self.now + load.deadline),
            outcome: None,
        };
        let call = self.ledger.add(entry);
        let spec = CallSpec { deadline: host.local(self.now + load.deadline), idempotent };
        self.note(|| Event::Call { call, key: String::from_utf8_lossy(&key).into(), node: pick });
        self.give_call(process, CallInput::Call(call, key, spec));
        if self.load_rng.chance(DROPPED) {
            let at = self.now + self.load_rng.span(Duration::ZERO, load.deadline);
            self.schedule(at, Happening::Call(CallHappening::Drop(process, call)));
        }
    }
}

impl World {
    /// Some calls are for one of the first owners of their keys, or for any member.
    pub(super) fn draw_scope(&mut self, index: usize, mut rng: Rng, key: &[u8]) -> (Option<NodeId>, Scope) {
        if !rng.chance(SCOPED) {
            return (None, Scope::Owner);
        }
        let (view, hash) = (self.view(index), self.hasher.hash(key));
        let count = 1 + rng.index(3);
        let (nodes, scope): (Vec<NodeId>, _) = if rng.chance(700_000) {
            let owners = view.ring().owners(hash, count);
            (owners.iter().map(|owner| owner.id).collect(), Scope::Owners(count as u8))
        } else {
            let present = view.members().filter(|member| member.state.is_present());
            (present.map(|member| member.record.id()).collect(), Scope::Members)
        };
        let at = (!nodes.is_empty()).then(|| nodes[rng.index(nodes.len())]);
        (at, if at.is_some() { scope } else { Scope::Owner })
    }
}

fn draw_key(rng: &mut Rng, keys: Keys) -> Vec<u8> {
    let key = match keys {
        Keys::Uniform(count) => rng.below(u64::from(count.max(1))),
        Keys::Zipf(exponent, count) => u64::from(zipf::rank(rng, exponent, count) - 1),
    };
    format!("k{key}").into_bytes()
}
