//! The connections of a data plane in the world: what stands, what ends, what is written and dialled.

use super::*;

/// How often clocks are compared, and what is over is dropped.
const HOUSE: Duration = Duration::from_secs(10);
/// After so long a process that answers nothing is handed nothing more.
const SILENT: Duration = Duration::from_millis(2_500);
/// The same where another connection to it stands, on which it may be heard: as long as losses keep one silent.
const SILENT_BESIDE: Duration = Duration::from_secs(10);
/// After so long a process that was not heard is asked before it is handed what may not run twice.
const FRESH: Duration = Duration::from_millis(3_010);

impl World {
    pub(super) fn on_call_conn(&mut self, index: usize, conn: ConnId, hello: &Hello, asked: Option<Instant>) {
        let now = self.hosts[index].local(self.now);
        let Some(app) = &mut self.hosts[index].app else {
            return;
        };
        if app.peers.peer(conn).is_none() {
            // It is closed as soon as it stands.
            return;
        }
        let instance = Instance { node: hello.peer.id, life: hello.life };
        // The process has been heard, whatever became of its other connections.
        app.unheard.retain(|held, _| app.conns.get(held) != Some(&instance));
        app.conns.insert(conn, instance);
        app.heard.insert(instance, now);
        let link = app.links.to(now, instance);
        link.connected(now, conn, asked, hello.clock());
        link.prefer(app.peers.connection(hello.peer));
        // Whoever waits for another process of this node waits in vain.
        let others = app.waiting.remove(&hello.peer).unwrap_or_default();
        let mut back: Vec<(Token, NeverSent)> = Vec::new();
        for other in others.into_iter().filter(|other| *other != instance) {
            back.extend(app.links.get_mut(&other).map(|link| link.give_back(Unsent::Replaced)).unwrap_or_default());
        }
        back.into_iter().for_each(|(token, proof)| self.on_unsent(index, token, proof));
    }

    pub(super) fn on_call_conn_closed(&mut self, index: usize, conn: ConnId) {
        let now = self.hosts[index].local(self.now);
        let Some(app) = &mut self.hosts[index].app else {
            return;
        };
        app.unheard.remove(&conn);
        let Some(instance) = app.conns.remove(&conn) else {
            return;
        };
        // What was heard on it until now was of the process that is at the other end of those that are left.
        app.unheard.retain(|left, _| app.conns.get(left) != Some(&instance));
        let Some(link) = app.links.get_mut(&instance) else {
            return;
        };
        let cut = link.closed(now, conn, Unsent::Unreachable);
        let kept = app.peers.connections().find(|(_, peer, life)| peer.id == instance.node && *life == instance.life);
        link.prefer(kept.and_then(|(_, peer, _)| app.peers.connection(peer)));
        for (token, proof) in cut.unsent {
            self.on_unsent(index, token, proof);
        }
        for token in cut.lost {
            self.report(index, token, |call, now, budget| call.lost(now, token.attempt, budget));
        }
        self.drop_link(index, instance);
    }

    /// From now on a process keeps house.
    pub(crate) fn start_keeping_house(&mut self, process: Process) {
        self.schedule(self.now + HOUSE, Happening::Call(CallHappening::KeepHouse(process)));
    }

    /// Compares clocks, and drops what belongs to processes that are gone for good.
    pub(super) fn keep_house(&mut self, process: Process) {
        let host = &mut self.hosts[process.host];
        if host.process() != process || !host.is_up() {
            return;
        }
        if !host.stands_still() {
            let now = host.local(self.now);
            let links = host.app.iter_mut().flat_map(|app| app.links.all_mut());
            let (mut idle, mut asked): (Vec<Instance>, Vec<Instance>) = Default::default();
            for (to, link) in links {
                if link.is_connected() {
                    link.keep_clock(now);
                    asked.push(*to);
                }
                idle.extend(link.is_idle().then_some(*to));
            }
            asked.into_iter().for_each(|to| self.watch_link(process.host, to));
            idle.into_iter().for_each(|to| self.drop_link(process.host, to));
            self.pump_calls(process.host);
            self.check_books(process.host);
        }
        self.start_keeping_house(process);
    }

    /// A link to a process that is gone for good is not needed any more, nor what it sent here.
    pub(super) fn drop_link(&mut self, index: usize, instance: Instance) {
        if self.hosts[index].control.is_none() {
            return;
        }
        let view = self.view(index);
        let Some(app) = &mut self.hosts[index].app else {
            return;
        };
        if !view.may_return(instance) && app.links.get(&instance).is_some_and(Link::is_idle) {
            app.links.remove(&instance);
            app.heard.remove(&instance);
            app.admission.forget(instance);
        }
    }

    /// A process is gone from this host's view: so are its connections, and no other's.
    pub(crate) fn forget_calls_to(&mut self, index: usize, peer: Peer, life: u64) {
        let process = self.hosts[index].process();
        self.dials.forget(self.now, process, Class::Calls, peer);
        let Some(app) = &mut self.hosts[index].app else {
            return;
        };
        let before = app.connected_to(peer);
        app.peers.forget(peer, life, Goodbye::Gone);
        self.pump_calls(index);
        let after = self.hosts[index].app.as_ref().map(|app| app.connected_to(peer)).unwrap_or_default();
        let right = before.iter().filter(|held| **held != life).eq(after.iter());
        self.check(index, Property::P5, right, || {
            format!("process {life:x} is gone: was connected to {before:x?}, and is now to {after:x?}")
        });
    }

    /// Writes what waits, and does what the connections want.
    pub(crate) fn pump_calls(&mut self, index: usize) {
        loop {
            let host = &mut self.hosts[index];
            let (now, process) = (host.local(self.now), host.process());
            let Some(app) = &mut host.app else { return };
            if let Some(event) = app.peers.poll_event() {
                self.on_call_peers_event(index, &event);
                continue;
            }
            if let Some(command) = app.peers.poll_command() {
                match command {
                    Command::Dial { dial, address, expect } => {
                        self.dial(process, Class::Calls, dial, (address, expect));
                    }
                    Command::Abort { dial } => self.dials.end(process, Class::Calls, dial),
                    Command::Close { conn, why } => {
                        self.check_close(process, conn, why);
                        self.close(conn.0, process);
                        self.on_call_conn_closed(index, conn);
                    }
                }
                continue;
            }
            let Some(link) = app.links.next_ready() else { break };
            let Some(conn) = link.returns_on().or(link.preferred()) else { break };
            let (mut bytes, before, to) = (Vec::new(), link.pending_count(), link.to());
            link.take(now, conn, BATCH, &mut bytes);
            let mut alone = || {
                let opening = link.take_duplex(now, conn).map(|opening| opening.frame);
                opening.or_else(|| link.take_large(now, conn))
            };
            let large = if bytes.is_empty() { alone() } else { None };
            let handed_over = link.pending_count() > before;
            if let Some(large) = large {
                bytes.extend_from_slice(&large.head);
                bytes.extend_from_slice(&large.body);
                self.send_call_frame(process, conn.0, None, &bytes);
            } else if !bytes.is_empty() {
                self.write(process, conn, &bytes);
            }
            if handed_over {
                self.check_heard(index, to, &bytes);
                self.check_silence(process, conn);
            }
        }
        self.check_waiting(index, Class::Calls);
        self.check_calls(index);
        self.arm_calls(index);
    }

    /// Calls were handed over: those that may not run twice to a process that was heard not long ago.
    fn check_heard(&mut self, index: usize, to: Instance, frames: &[u8]) {
        let host = &self.hosts[index];
        let heard = host.app.as_ref().and_then(|app| app.heard.get(&to)).copied().unwrap_or(Instant::ORIGIN);
        let silent = host.local(self.now).since(heard);
        let mut rest = if silent > FRESH { frames } else { &[] };
        let mut careless = None;
        while let Ok(Some(length)) = Frame::length(rest, frames.len()) {
            let (frame, tail) = rest.split_at(length);
            rest = tail;
            let Ok(Some((Frame::Call(_), body))) = Frame::decode(frame) else { continue };
            let call = body.first_chunk().map_or(u64::MAX, |call| u64::from_le_bytes(*call));
            careless = careless.or(self.ledger.get(call).filter(|entry| !entry.idempotent).map(|_| call));
        }
        self.check(index, Property::F15, careless.is_none(), || {
            format!("hands call {careless:?}, which may not run twice, to {to:?} after {silent:?} of silence")
        });
    }

    /// Something was handed to a connection: its other end has been heard since something first was, or not long ago.
    fn check_silence(&mut self, process: Process, conn: ConnId) {
        let now = self.now;
        let held = self.network.conns.get(conn.0);
        let heard = held.and_then(|held| held.end_of(process).map(|end| held.heard(end))).unwrap_or(now);
        let host = &mut self.hosts[process.host];
        let troubled = host.slow > 1 || host.stands_still();
        let since = host.troubled.unwrap_or(Instant::ORIGIN);
        let Some(app) = host.app.as_mut().filter(|_| !troubled) else { return };
        let (first, last) = app.unheard.entry(conn).or_insert((now, now));
        // After a while without anything it is another try, because something was heard elsewhere.
        if *first <= heard || now.since(*last) > SILENT {
            *first = now;
        }
        *last = now;
        let silent = now.since((*first).max(since));
        let to = app.conns.get(&conn);
        let has_another = || app.conns.values().filter(|other| Some(*other) == to).count() > 1;
        let right = silent <= SILENT || (silent <= SILENT_BESIDE && has_another());
        self.check(process.host, Property::F15, right, || {
            format!("hands a call to a connection on which nothing was answered for {silent:?}")
        });
    }

    pub(super) fn on_call_peers_event(&mut self, index: usize, event: &PeersEvent) {
        self.watch_waits(index, Class::Calls, event);
        let (peer, why) = match event {
            PeersEvent::Failed { target: Target::Peer(peer, _), .. } => (peer, Unsent::Unreachable),
            PeersEvent::Up { dialled: Some(Target::Peer(peer, _)), .. } => (peer, Unsent::Replaced),
            _ => return,
        };
        let Some(app) = &mut self.hosts[index].app else { return };
        let mut waiting = app.waiting.remove(peer).unwrap_or_default();
        waiting.retain(|to| !app.links.get(to).is_some_and(Link::is_connected));
        waiting.into_iter().for_each(|to| self.give_back(index, to, why));
    }

    pub(super) fn arm_calls(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        let process = host.process();
        let Some(due) = host.app.as_ref().and_then(|app| app.peers.poll_timeout()) else {
            return;
        };
        let at = host.world(due).max(self.now);
        let Some(app) = &mut host.app else { return };
        if app.armed != Some(at) {
            app.armed = Some(at);
            self.schedule(at, Happening::Call(CallHappening::Peers(process, at)));
        }
    }
}
