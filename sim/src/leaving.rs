//! How a process of the world leaves: step by step, as the runtime does it.

use std::time::Duration;

use swimring::core::control::Control;
use swimring_membership::{Instant, Phase};

use crate::conns::Process;
use crate::faults::Ending;
use crate::oracles::Property;
use crate::plan::Memory;
use crate::world::{Happening, World};

/// How long a draining process still takes what others send before they have heard.
const DRAIN: Duration = Duration::from_millis(500);
/// How long what is under way may take.
const FINISH: Duration = Duration::from_secs(5);
/// How long a goodbye may take to go out.
const GOODBYE: Duration = Duration::from_millis(200);
/// How long others may take to close their connections.
const CLOSING: Duration = Duration::from_millis(2_500);
/// How long the process lives after it has closed its own.
const AFTERWARDS: Duration = Duration::from_millis(200);
/// How often a waiting process looks.
const LOOK: Duration = Duration::from_millis(10);

/// How far a process has come.
#[derive(Copy, Clone, Debug)]
pub(crate) enum Stage {
    /// Takes nothing new.
    Refuse,
    /// Waits, until the moment, for what is under way; then says goodbye.
    Finish(Instant),
    /// Waits, until the moment, for others to close; then closes.
    Close(Instant),
    /// Ends.
    Exit,
}

impl World {
    /// Begins to leave.
    pub(crate) fn leave(&mut self, host: usize) {
        let machine = &mut self.hosts[host];
        let (now, process) = (machine.local(self.now), machine.process());
        if std::mem::replace(&mut machine.leaving, true) {
            return;
        }
        if let Some(control) = &mut machine.control {
            control.command(now, |membership| membership.set_phase(now, Phase::Draining));
        }
        self.pump(host);
        self.schedule(self.now + DRAIN, Happening::Leaving(process, Stage::Refuse));
    }

    /// Begins to leave, and starts again once it has ended.
    pub(crate) fn roll(&mut self, host: usize) {
        let already = self.hosts[host].leaving;
        self.leave(host);
        self.hosts[host].returns = !already;
    }

    /// Says goodbye and ends, whatever is under way.
    pub(crate) fn quit(&mut self, host: usize) {
        let machine = &mut self.hosts[host];
        let (now, still) = (machine.local(self.now), machine.stands_still());
        if let Some(control) = machine.control.as_mut().filter(|_| !still && !machine.leaving) {
            control.command(now, |membership| membership.leave(now));
            self.pump(host);
            self.kill(host);
        }
    }

    /// Takes no new keys, and goes on.
    pub(crate) fn drain(&mut self, host: usize) {
        let machine = &mut self.hosts[host];
        let (now, still) = (machine.local(self.now), machine.stands_still());
        if let Some(control) = machine.control.as_mut().filter(|_| !still) {
            control.command(now, |membership| membership.set_phase(now, Phase::Draining));
            self.pump(host);
        }
    }

    /// Takes keys again, if it is only drained.
    pub(crate) fn undrain(&mut self, host: usize) {
        let machine = &mut self.hosts[host];
        let now = machine.local(self.now);
        let drained = |control: &&mut Control| control.membership().record().phase() == Phase::Draining;
        if let Some(control) = machine.control.as_mut().filter(|_| !machine.leaving).filter(drained) {
            control.command(now, |membership| membership.set_phase(now, Phase::Ready));
            self.pump(host);
        }
    }

    /// Takes the next step.
    pub(crate) fn on_leaving(&mut self, process: Process, stage: Stage) {
        let index = process.host;
        let machine = &mut self.hosts[index];
        if machine.process() != process || !machine.is_up() {
            return;
        }
        if machine.stands_still() {
            return self.schedule(self.now + LOOK, Happening::Leaving(process, stage));
        }
        let local = machine.local(self.now);
        let (Some(control), Some(app)) = (&mut machine.control, &mut machine.app) else { return };
        let next = match stage {
            Stage::Refuse => {
                app.leave();
                (LOOK, Stage::Finish(self.now + FINISH))
            }
            Stage::Finish(until) if self.now < until && app.is_busy() => (LOOK, stage),
            Stage::Finish(_) => {
                app.say_goodbye();
                control.command(local, |membership| membership.leave(local));
                (GOODBYE, Stage::Close(self.now + CLOSING))
            }
            Stage::Close(until) if self.now < until && !app.peers.is_empty() => (LOOK, stage),
            Stage::Close(_) => {
                let held = control.peers().connections().chain(app.peers.connections());
                machine.closes = held.map(|(conn, ..)| conn).collect();
                control.close();
                app.peers.close();
                machine.closed = true;
                (AFTERWARDS, Stage::Exit)
            }
            Stage::Exit => {
                let held = machine.closes.iter().filter_map(|conn| self.network.conns.get(conn.0));
                let left = held.filter(|conn| conn.is_open_at(process)).count();
                self.check(index, Property::P2, left == 0, || {
                    format!("ends with {left} connections that it has not closed")
                });
                let returns = self.hosts[index].returns;
                self.kill(index);
                if returns {
                    self.schedule(self.now, Happening::End(Ending::Start(index, Memory::Kept)));
                }
                return;
            }
        };
        self.pump(index);
        self.pump_calls(index);
        self.schedule(self.now + next.0, Happening::Leaving(process, next.1));
    }
}
