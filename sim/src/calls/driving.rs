//! One call of a host, driven as [`Call`] says: what it wants next is done, and it is told what came of it.

use super::*;

impl World {
    pub(super) fn on_unsent(&mut self, index: usize, token: Token, proof: NeverSent) {
        self.report(index, token, |call, now, budget| call.unsent(now, token.attempt, proof, budget));
    }

    /// Tells a call something, and does what it wants next.
    pub(super) fn report(
        &mut self,
        index: usize,
        token: Token,
        tell: impl FnOnce(&mut Call<Vec<u8>>, Instant, &mut Budget),
    ) {
        let now = self.hosts[index].local(self.now);
        let Some(app) = &mut self.hosts[index].app else {
            return;
        };
        if let Some(active) = app.active.get_mut(&token.call) {
            tell(&mut active.call, now, &mut app.budget);
            self.drive(index, token.call);
        }
    }

    /// Does what a call wants, until it waits or ends.
    pub(super) fn drive(&mut self, index: usize, id: u64) {
        let mut ownerless = false;
        loop {
            let now = self.hosts[index].local(self.now);
            let view = self.view(index);
            self.check_routing(index, &view);
            let host = &mut self.hosts[index];
            let Some(app) = &mut host.app else { return };
            let Some(active) = app.active.get_mut(&id) else {
                return;
            };
            let step = match active.call.step() {
                Step::Resolve => {
                    let resolution = match active.at {
                        None => view.resolve(self.hasher.hash(&active.payload.key)),
                        Some(node) => {
                            view.resolve_at(node, self.hasher.hash(&active.payload.key), active.payload.scope)
                        }
                    };
                    ownerless = resolution == Resolution::Nobody;
                    active.call.resolved(now, resolution)
                }
                Step::Find(node) => {
                    active.finds += 1;
                    let found = view.named(node, self.hasher.hash(&active.payload.key));
                    active.call.named(now, found, &mut app.budget)
                }
                step => Some(step),
            };
            match step {
                None | Some(Step::Resolve | Step::Find(_)) => {}
                Some(Step::Run) => self.run_here(index, id, &view),
                Some(Step::Send { attempt, to, hop }) => {
                    self.send_attempt(index, Token { call: id, attempt }, to, hop, &view)
                }
                Some(Step::Await) => {
                    let deadline = active.call.deadline();
                    return self.wake_at(index, id, deadline);
                }
                Some(Step::Wait(until)) => {
                    self.check(index, Property::F16, !ownerless, || {
                        format!("call {id} waits, though nobody owns its key")
                    });
                    return self.wake_at(index, id, until);
                }
                Some(Step::Done(outcome)) => return self.on_outcome(index, id, &outcome),
            }
        }
    }

    fn wake_at(&mut self, index: usize, id: u64, until: Instant) {
        let host = &self.hosts[index];
        let (at, process) = (host.world(until).max(self.now), host.process());
        self.schedule(at, Happening::Call(CallHappening::Timer(process, id)));
    }

    /// A call has waited: what was sent for it ends if its deadline is here.
    pub(super) fn on_call_timer(&mut self, index: usize, id: u64) {
        let now = self.hosts[index].local(self.now);
        let Some(app) = &mut self.hosts[index].app else {
            return;
        };
        let Some(active) = app.active.get_mut(&id) else {
            return;
        };
        active.call.timeout(now);
        if let Some((to, _)) = active.sent {
            self.expire(index, to);
        }
        self.drive(index, id);
    }

    /// What is late on a link ends, and who says nothing is asked.
    pub(super) fn expire(&mut self, index: usize, to: Instance) {
        let now = self.hosts[index].local(self.now);
        let link = self.hosts[index].app.as_mut().and_then(|app| app.links.get_mut(&to));
        let Some((over, silent)) = link.map(|link| link.expire(now)) else { return };
        over.unsent.into_iter().for_each(|(token, proof)| self.on_unsent(index, token, proof));
        for token in over.lost {
            self.report(index, token, |call, _, _| call.late(token.attempt));
        }
        if let Some(conn) = silent {
            self.check_given_up(index, to);
            _ = self.hosts[index].app.as_mut().is_some_and(|app| app.peers.give_up(conn));
        }
        self.close_what_is_over(index, to);
        self.watch_link(index, to);
    }

    /// A link is looked at when it says so.
    pub(super) fn watch_link(&mut self, index: usize, to: Instance) {
        let host = &mut self.hosts[index];
        let process = host.process();
        let Some(link) = host.app.as_ref().and_then(|app| app.links.get(&to)) else { return };
        let soon = (link.open_count() > 0).then(|| host.local(self.now) + ASKED_AFTER);
        let Some(earliest) = link.earliest().into_iter().chain(soon).min() else { return };
        let at = host.world(earliest).max(self.now);
        let Some(app) = &mut host.app else { return };
        if app.watched.get(&to).is_none_or(|held| at < *held) {
            app.watched.insert(to, at);
            self.schedule(at, Happening::Call(CallHappening::Watch(process, to, at)));
        }
    }

    /// The caller's own node owns the key: the handler runs in place, unless this process may be a ghost.
    fn run_here(&mut self, index: usize, id: u64, view: &View) {
        let now = self.hosts[index].local(self.now);
        let Some(app) = &mut self.hosts[index].app else {
            return;
        };
        let Some(active) = app.active.get_mut(&id) else {
            return;
        };
        let scope = active.payload.scope;
        let mine = view.ownership(self.hasher.hash(&active.payload.key), scope) == Ownership::Mine;
        let refusal = if view.is_confirmed() { Refusal::NotOwner } else { Refusal::Unconfirmed };
        if !view.is_confirmed() || !mine {
            return active.call.not_run(now, refusal, &mut app.budget);
        }
        if active.started {
            return;
        }
        active.started = true;
        let (body, key) = (active.payload.body.to_vec(), Arc::clone(&active.payload.key));
        self.execute(index, id, &key, scope, Running::Here { call: id, body }, Duration::ZERO);
    }

    fn send_attempt(&mut self, index: usize, token: Token, to: Instance, hop: u8, view: &View) {
        let now = self.hosts[index].local(self.now);
        let begun = self.ledger.get(token.call).is_some_and(|entry| entry.begun);
        self.check(index, Property::F2, !begun, || {
            format!("call {} is tried again, though what follows its body is with a handler", token.call)
        });
        let Some(app) = &mut self.hosts[index].app else { return };
        let Some(active) = app.active.get_mut(&token.call) else { return };
        let outbound = Outbound {
            payload: Arc::clone(&active.payload),
            deadline: active.call.deadline(),
            idempotent: active.call.is_idempotent(),
            hop,
            record: active.record.clone().filter(|_| hop > 1),
        };
        let link = app.links.to(now, to);
        match link.enqueue(outbound, token) {
            Ok(seq) => (active.sent, active.hop) = (Some((to, seq)), hop),
            Err((_, proof)) => {
                return active.call.unsent(now, token.attempt, proof, &mut app.budget);
            }
        }
        let is_connected = link.is_connected();
        self.watch_link(index, to);
        let Some(app) = self.hosts[index].app.as_mut().filter(|_| !is_connected) else { return };
        let address = view.member(to.node).map(|member| (member.record.peer(), member.record.profile().calls));
        let route = address.map(|(peer, calls)| (peer, app.peers.route_to_process(now, peer, calls, to.life)));
        if let Some((_, Route::Connected(conn))) = route {
            let right = app.conns.get(&conn) == Some(&to);
            self.check(index, Property::P5, right, || format!("was given a connection to another process than {to:?}"));
        }
        let Some(app) = &mut self.hosts[index].app else {
            return;
        };
        match route {
            Some((peer, Route::Dialling)) => {
                app.waiting.entry(peer).or_default().insert(to);
            }
            _ => self.give_back(index, to, Unsent::Unreachable),
        }
    }

    pub(super) fn give_back(&mut self, index: usize, to: Instance, why: Unsent) {
        let now = self.hosts[index].local(self.now);
        let Some(app) = &mut self.hosts[index].app else {
            return;
        };
        let back = app.links.get_mut(&to).map(|link| link.give_back(why)).unwrap_or_default();
        let mut calls = Vec::new();
        for (token, proof) in back {
            if let Some(active) = app.active.get_mut(&token.call) {
                active.call.unsent(now, token.attempt, proof, &mut app.budget);
                calls.push(token.call);
            }
        }
        for call in calls {
            self.schedule(self.now, Happening::Call(CallHappening::Timer(self.hosts[index].process(), call)));
        }
    }
}
