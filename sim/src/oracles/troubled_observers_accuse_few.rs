//! L12: a node with trouble of its own (it stood still, or is slow) accuses few of those who are well: it takes silence for
//! its own fault first (Lifeguard's local health). Whom others suspected lately is theirs: it was only asked to look.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use swimring::core::control::ControlEvent;
use swimring_membership::{Event, Instant, NodeId, State};

use super::{Facts, Findings, Oracle, Property};

/// Accusations within this time are counted together.
const WINDOW: Duration = Duration::from_secs(30);
/// Most members that a troubled node accuses within the window though they are well.
const ACCUSED_MAX: usize = 8;
/// How long two nodes must have reached each other: a probe that was lost before takes that long.
const REACHABLE: Duration = Duration::from_secs(10);
/// Loss above this excuses an accusation, in millionths.
const LOSS_MAX: u32 = 20_000;

#[derive(Default)]
pub(super) struct Watch {
    /// Whom each process has accused lately, the oldest first.
    accused: BTreeMap<(usize, u32), VecDeque<(Instant, NodeId)>>,
    /// Who did not answer whom last.
    silent: Option<(usize, NodeId)>,
    /// When each process heard last that others suspect somebody.
    heard: BTreeMap<(usize, u32, NodeId), Instant>,
}

impl Oracle for Watch {
    fn on_event(&mut self, facts: &Facts<'_>, host: usize, event: &ControlEvent, out: &mut Findings) {
        let silent = self.silent.take();
        let observer = &facts.hosts[host];
        let id = match event {
            ControlEvent::Membership(Event::ProbeFailed { id }) => {
                self.silent = Some((host, *id));
                return;
            }
            ControlEvent::Membership(Event::Changed {
                id,
                before: Some((State::Alive, _)),
                state: State::Suspect,
                ..
            }) => id,
            _ => return,
        };
        if silent != Some((host, *id)) {
            self.heard.insert((host, observer.life, *id), facts.now);
            return;
        }
        let recent = |since: Option<Instant>| since.is_some_and(|since| facts.now.since(since) <= WINDOW);
        let asked = recent(self.heard.get(&(host, observer.life, *id)).copied());
        let troubled = !asked && (observer.stands_still() || observer.slow > 1 || recent(observer.troubled));
        let mut subjects = facts.lately_with_id(*id);
        let (Some(subject), None) = (subjects.next().filter(|_| troubled), subjects.next()) else {
            return;
        };
        let reached = facts.network.reachable_since(host, subject.index);
        let well = subject.is_up()
            && !subject.leaving
            && !subject.stands_still()
            && subject.slow == 1
            && !recent(subject.troubled)
            && !recent(Some(subject.started))
            && reached.is_some_and(|since| facts.now.since(since) > REACHABLE)
            && facts.network.worst_loss() <= LOSS_MAX;
        if !well {
            return;
        }
        let accused = self.accused.entry((host, observer.life)).or_default();
        accused.retain(|(at, of)| facts.now.since(*at) <= WINDOW && of != id);
        accused.push_back((facts.now, *id));
        let count = accused.len();
        out.check(facts, Property::L12, &[host, subject.index], count <= ACCUSED_MAX, || {
            format!("has accused {count} members within {WINDOW:?} that are well, while it was in trouble itself")
        });
    }
}
