//! L13: while a cut heals, and at any other time, no live member leaves the ring of a node that can reach it.
//!
//! Only pairs are judged that have reached each other for a while, on machines without trouble of their own,
//! and only while few packets are lost, and were a moment ago: then nothing excuses a verdict.

use std::time::Duration;

use swimring::core::control::ControlEvent;
use swimring_membership::{Event, Instant, State};

use super::{Facts, Findings, Oracle, Property};

/// How long two nodes must have reached each other: a probe that was lost before takes that long.
const REACHABLE: Duration = Duration::from_secs(2);
/// How long everybody must have reached the subject where a node believes its observers: what they found takes that long
/// to get around, and to be objected to.
const REACHABLE_BY_ALL: Duration = Duration::from_secs(8);
/// How long a machine must have been without trouble: what it missed in a pause has effects for a while.
const WELL: Duration = Duration::from_secs(60);
/// Loss above this excuses a verdict, in millionths.
const LOSS_MAX: u32 = 20_000;

pub(super) struct Watch;

impl Oracle for Watch {
    fn on_event(&mut self, facts: &Facts<'_>, host: usize, event: &ControlEvent, out: &mut Findings) {
        let ControlEvent::Membership(Event::Changed {
            id,
            before: Some((before, _)),
            state: State::Down,
            incarnation,
            ..
        }) = event
        else {
            return;
        };
        // Of two processes with one name, one has to go.
        let mut subjects = facts.lately_with_id(*id);
        let (Some(subject), None) = (subjects.next().filter(|_| before.is_present()), subjects.next()) else {
            return;
        };
        let well = |index: usize| {
            let machine = &facts.hosts[index];
            let quiet = machine.troubled.is_none_or(|since| facts.now.since(since) > WELL);
            quiet && !machine.stands_still() && facts.now.since(machine.started) > WELL
        };
        let reached_by = |other: usize, least: Duration| {
            let since = facts.network.reachable_since(other, subject.index);
            since.is_some_and(|since| facts.now.since(since) > least)
        };
        let mesh = facts.hosts[host].control.as_ref().is_none_or(|control| control.membership().is_mesh());
        let reached = reached_by(host, REACHABLE)
            && (mesh || (0..facts.hosts.len()).all(|other| reached_by(other, REACHABLE_BY_ALL)));
        let alive = subject.control.as_ref().is_some_and(|control| {
            control.membership().is_confirmed() && control.membership().record().incarnation().boot == incarnation.boot
        });
        let lately = Instant::from_nanos(facts.now.as_nanos().saturating_sub(REACHABLE.as_nanos() as u64));
        let loss = facts.network.worst_loss_since(lately);
        let wrong = alive && reached && well(host) && well(subject.index) && loss <= LOSS_MAX;
        let index = subject.index;
        out.check(facts, Property::L13, &[host, index], !wrong, || {
            format!("{} is reachable and was removed", subject.name)
        });
    }
}
