//! What a data plane does with frames of others, and what the ledger says of every execution and outcome.

use swimring::forwarder::{Repeat, Unknown, Why};

use super::*;
use crate::recording::Event;

/// The longest pause before a call is tried again.
const PAUSE: Duration = Duration::from_millis(110);
/// At one of how many executions it is counted what is remembered of callers.
const REMEMBERED_EVERY: u64 = 16;
/// How long a question and its answer take at most, when little is lost.
const ON_THE_WAY: Duration = Duration::from_secs(2);

/// What a caller was told. Bodies are long.
fn told(outcome: &Outcome<Vec<u8>>) -> String {
    match outcome {
        Outcome::Ok(body) => format!("ok, {} bytes", body.len()),
        Outcome::Executed(error) => format!("ran, and failed with {} bytes", error.len()),
        failure => format!("{failure:?}"),
    }
}

/// Whether this is one of the nodes that a call is for, said here once more on its own.
fn may_run_here(view: &View, key: KeyHash, scope: Scope) -> bool {
    let count = match scope {
        Scope::Owner => return view.ring().owner(key) == Ok(view.me().node),
        Scope::Owners(count) => usize::from(count),
        Scope::Members => return true,
    };
    view.ring().owners(key, count).iter().any(|owner| owner.id == view.me().node)
}

impl World {
    /// A frame of another process.
    pub(super) fn on_call_frame(&mut self, index: usize, conn: ConnId, bytes: &[u8]) {
        self.trace.note(self.now, index, 3, bytes);
        let now = self.hosts[index].local(self.now);
        let Some(app) = &mut self.hosts[index].app else {
            return;
        };
        let Some(from) = app.conns.get(&conn).copied() else {
            return;
        };
        let Some(link) = app.links.get_mut(&from) else {
            return;
        };
        app.heard.insert(from, now);
        match link.handle_frame(now, conn, bytes) {
            Ok(Arrival::Call(header, body)) => self.on_incoming(index, (from, conn), header, body.to_vec()),
            Ok(Arrival::Ran(token, result, _)) => {
                let result = result.map(<[u8]>::to_vec).map_err(<[u8]>::to_vec);
                self.report(index, token, |call, _, _| call.answered(token.attempt, result));
            }
            Ok(Arrival::Refused(token, why, owner, record)) => {
                if let Some(record) = &record {
                    self.merge(index, from, &record.0);
                }
                if let Some(active) = self.hosts[index].app.as_mut().and_then(|app| app.active.get_mut(&token.call)) {
                    active.record = record;
                }
                let before = self.finds(index, token);
                self.report(index, token, |call, now, budget| call.refused(now, token.attempt, why, owner, budget));
                let after = self.finds(index, token);
                let named = why == Refusal::NotOwner && owner.is_some();
                let ignored = named && before.is_some_and(|(hop, _)| hop == 1) && before == after;
                self.check(index, Property::F5, !ignored, || {
                    format!("call {} does not ask the owner that was named", token.call)
                });
            }
            Ok(Arrival::Goodbye(back)) => {
                let left = link.queued_count();
                self.check(index, Property::P4, left == 0, || format!("{left} calls wait for {from:?}, which goes"));
                back.into_iter().for_each(|(token, proof)| self.on_unsent(index, token, proof));
            }
            Ok(Arrival::Begun(seq)) => {
                let Some(token) = link.pending(seq).copied() else { return };
                if let Some(entry) = self.ledger.get_mut(token.call) {
                    entry.begun = true;
                }
                self.report(index, token, |call, _, _| call.begun(token.attempt));
            }
            Ok(Arrival::Cancel(seq)) => {
                app.admission.cancel(from, seq);
                app.cancelled.insert((from, seq));
            }
            Ok(Arrival::Nothing) => {}
            Err(problem) => {
                app.peers.expel(conn);
                let own = self.network.conns.get(conn.0).is_some();
                self.check(index, Property::W2, !own, || format!("refused a frame of another node: {problem}"));
            }
        }
        self.close_what_is_over(index, from);
    }

    /// A process that goes waits for others to close once they have all answers.
    pub(super) fn close_what_is_over(&mut self, index: usize, from: Instance) {
        let Some(app) = &mut self.hosts[index].app else {
            return;
        };
        let over: Vec<ConnId> = app.links.get(&from).map(|link| link.over().collect()).unwrap_or_default();
        for conn in over {
            let process = self.hosts[index].process();
            self.close(conn.0, process);
            if let Some(app) = &mut self.hosts[index].app {
                app.peers.handle_closed(conn);
            }
            self.on_call_conn_closed(index, conn);
        }
    }

    /// Which hop the attempt of a call is, and how often it has looked for a node that was named to it.
    fn finds(&self, index: usize, token: Token) -> Option<(u8, u32)> {
        let app = self.hosts[index].app.as_ref()?;
        app.active.get(&token.call).map(|active| (active.hop, active.finds))
    }

    fn merge(&mut self, index: usize, from: Instance, record: &[u8]) {
        let host = &mut self.hosts[index];
        let now = host.local(self.now);
        if let Some(control) = &mut host.control {
            let merged = control.command(now, |membership| membership.merge_record(now, from.node, record));
            self.check(index, Property::W2, merged.is_ok(), || "refused a record of another node".into());
        }
        self.pump(index);
    }

    /// Another process wants something run.
    fn on_incoming(&mut self, index: usize, (from, on): (Instance, ConnId), header: CallHeader<'_>, body: Vec<u8>) {
        let hash = self.hasher.hash(header.key.0);
        if let Some(record) = header.record
            && self.view(index).ownership(hash, header.scope) != Ownership::Mine
        {
            self.merge(index, from, record.0);
        }
        let view = self.view(index);
        let now = self.hosts[index].local(self.now);
        let Some(app) = &mut self.hosts[index].app else {
            return;
        };
        let first = app.seen.insert((from, header.seq));
        let incoming = Incoming { caller: from, header: &header, body_bytes: body.len() };
        match app.admission.admit(now, incoming, view.is_confirmed(), || view.ownership(hash, header.scope)) {
            Verdict::Run(permit) => {
                let call = u64::from_le_bytes(*body.first_chunk().expect("bodies of the load begin with a number"));
                let error = Duration::from_micros(u64::from(header.error_us));
                let (me, limits) = (app.me, app.admission.limits());
                let cancelled = app.cancelled.contains(&(from, header.seq));
                let remembered = (self.runs.is_multiple_of(REMEMBERED_EVERY)).then(|| app.admission.remembered());
                let sound = header.life == me.life
                    && (1..=2).contains(&header.hop)
                    && !header.key.0.is_empty()
                    && body.len() <= limits.body_bytes_max;
                self.check(index, Property::F17, sound, || format!("runs {header:?} with {} bytes", body.len()));
                self.check(index, Property::F7, !cancelled, || format!("runs call {call}, which was cancelled before"));
                if let Some(remembered) = remembered {
                    self.check(index, Property::B4, remembered.callers <= limits.callers_max, || {
                        format!("remembers {remembered:?}")
                    });
                }
                self.execute(index, call, header.key.0, header.scope, Running::There { permit, on, body }, error);
            }
            Verdict::Refuse(why, owner) => {
                self.say(|| format!("n{:<4} refuses number {} of {from:?}: {why}", index + 1, header.seq));
                self.check_refusal(index, from, why, owner.is_some(), view.ownership(hash, header.scope));
                self.count_refusal(index, &body, why);
                let Some(app) = &mut self.hosts[index].app else { return };
                let (owner, record) = owner.map_or((None, None), |(owner, record)| (Some(owner), Some(record)));
                if let Some(link) = app.links.get_mut(&from) {
                    link.reply(on, &Frame::Refused { seq: header.seq, why, owner, record });
                }
            }
            Verdict::Ignore => {
                if let Some(entry) = body.first_chunk().and_then(|call| self.ledger.get_mut(u64::from_le_bytes(*call)))
                {
                    entry.passed_over = true;
                }
                let Some(app) = &self.hosts[index].app else { return };
                let room = app.admission.remembered().callers < app.admission.limits().callers_max;
                let (me, meant) = (app.me, header.life == app.me.life);
                let waited = self.waits_for(from, me, header.seq);
                self.check(index, Property::F18, !(first && meant && room && waited), || {
                    format!("passed over {header:?}, for which its caller waits")
                });
            }
        }
    }

    /// Whether a process waits for the answer to an attempt at `at`.
    fn waits_for(&self, caller: Instance, at: Instance, seq: u64) -> bool {
        let apps = self.hosts.iter().filter_map(|host| host.app.as_ref());
        let link = apps.filter(|app| app.me == caller).find_map(|app| app.links.get(&at));
        link.is_some_and(|link| link.is_pending(seq))
    }

    /// A refusal is true, and helps whoever gets it.
    fn check_refusal(&mut self, index: usize, from: Instance, why: Refusal, names: bool, ownership: Ownership) {
        let Some(app) = &self.hosts[index].app else { return };
        let of_peer = app.running.values().filter(|running| running.peer() == Some(from.node)).count();
        let all = app.running.values().filter(|running| running.peer().is_some()).count();
        let limits = app.admission.limits();
        let full = of_peer >= limits.calls_of_peer_max || all >= limits.calls_max;
        self.check(index, Property::F13, !matches!(why, Refusal::Overloaded { .. }) || full, || {
            format!("says that it is overloaded with {of_peer} calls of the caller, and {all} in all")
        });
        let silent = why == Refusal::NotOwner && !names && matches!(ownership, Ownership::Theirs(..));
        self.check(index, Property::F6, !silent, || "does not own the key, and does not say who does".into());
    }

    /// What was refused for good is not sent again.
    fn count_refusal(&mut self, index: usize, body: &[u8], why: Refusal) {
        let call = body.first_chunk().map_or(u64::MAX, |call| u64::from_le_bytes(*call));
        self.note(|| Event::Refused { call, node: index, why: why.to_string() });
        if let Some(entry) = self.ledger.get_mut(call).filter(|_| why == Refusal::Invalid) {
            entry.refused += 1;
            let refused = entry.refused;
            self.check(index, Property::F16, refused == 1, || {
                format!("call {call} was refused {refused} times: {why}")
            });
        }
    }

    /// A handler begins: counted before anything else can happen.
    pub(super) fn execute(
        &mut self,
        index: usize,
        call: u64,
        key: &[u8],
        scope: Scope,
        running: Running,
        error: Duration,
    ) {
        self.trace.note(self.now, index, 4, &call.to_le_bytes());
        self.say(|| format!("n{:<4} runs call {call}", index + 1));
        self.note(|| Event::Run { call, node: index });
        let (view, hash) = (self.view(index), self.hasher.hash(key));
        let here = may_run_here(&view, hash, scope);
        self.check(index, Property::F6, here, || format!("ran call {call}, which is for others: {scope:?}"));
        let host = &self.hosts[index];
        let has_others = host.control.as_ref().is_some_and(|control| control.membership().roster().present_count() > 1);
        let sure = view.is_confirmed() && !(host.is_unsure && has_others);
        self.check(index, Property::O7, sure, || {
            format!("ran call {call} after it had stood still, before anybody confirmed it")
        });
        if scope == Scope::Owner {
            self.check_fence(index, hash, view.fence());
        }
        let is_leaving = self.hosts[index].app.as_ref().is_some_and(|app| app.leaving);
        let by_other = matches!(running, Running::There { .. });
        self.check(index, Property::L8, !(is_leaving && by_other), || {
            format!("began call {call} of another while leaving")
        });
        let late = self.ledger.get(call).map_or(Duration::ZERO, |entry| self.now.since(entry.deadline));
        self.check(index, Property::F7, late <= error * 2 + LATE, || {
            format!("began call {call} {late:?} after its deadline, with an error of {error:?}")
        });
        if let Some(entry) = self.ledger.get_mut(call) {
            entry.executed += 1;
            let (executed, idempotent, outcome) = (entry.executed, entry.idempotent, entry.outcome);
            self.check(index, Property::F2, idempotent || executed == 1, || {
                format!("call {call} ran {executed} times")
            });
            let told = outcome == Some("not_executed");
            self.check(index, Property::F3, !told, || {
                format!("call {call} runs, after its caller was told that it would not")
            });
        }
        let handler = self.plan.load.as_ref().map_or(plan::Latency::Const(Duration::ZERO), |load| load.handler);
        let host = &mut self.hosts[index];
        let slow = host.slow;
        let process = host.process();
        let Some(app) = &mut host.app else { return };
        let span = draw(&mut app.rng, handler) * slow;
        self.runs += 1;
        if let Some(entry) = self.ledger.get_mut(call) {
            entry.handled += span;
        }
        if let Running::There { permit, on, .. } = &running
            && self.ledger.get(call).is_some_and(|entry| entry.duplex)
            && let Some(link) = app.links.get_mut(&permit.caller())
        {
            link.reply(*on, &Frame::Begun { seq: permit.seq() });
        }
        let peer = running.peer();
        app.running.insert(self.runs, running);
        let of_others = app.running.values().filter_map(Running::peer);
        let (all, of_peer) =
            of_others.fold((0, 0), |(all, own), other| (all + 1, own + usize::from(Some(other) == peer)));
        let limits = app.admission.limits();
        let within = of_peer <= limits.calls_of_peer_max && all <= limits.calls_max;
        self.check(index, Property::B1, within, || {
            format!("runs {of_peer} calls of {peer:?}, and {all} of all others: more than its limits")
        });
        self.schedule(self.now + span, Happening::Call(CallHappening::Done(process, self.runs)));
    }

    /// Once the core has agreed, whoever runs a key holds it above everybody else of the core who ever ran it.
    fn check_fence(&mut self, index: usize, key: KeyHash, fence: u64) {
        self.ran_at.entry(key).or_default().insert(index);
        if let Some(app) = &mut self.hosts[index].app {
            app.held.entry(key).and_modify(|held| *held = (*held).max(fence)).or_insert(fence);
        }
        let settled = self.converged_after.is_some() && self.is_settled();
        let (Some(core), Some(ran_at)) = (self.core.as_ref().filter(|_| settled), self.ran_at.get(&key)) else {
            return;
        };
        let others = ran_at.iter().filter(|host| **host != index && core.binary_search(host).is_ok());
        let others = others.filter_map(|host| self.hosts[*host].app.as_ref());
        let most = others.filter_map(|app| app.held.get(&key)).max().copied().unwrap_or(0);
        self.check(index, Property::F19, fence > most, || {
            format!("holds a key under fence {fence}, which ran under {most}")
        });
    }

    pub(super) fn on_handler_done(&mut self, index: usize, run: u64) {
        let now = self.hosts[index].local(self.now);
        let Some(app) = &mut self.hosts[index].app else {
            return;
        };
        match app.running.remove(&run) {
            Some(Running::Here { call, body }) => {
                if let Some(active) = app.active.get_mut(&call) {
                    active.call.ran(Ok(body));
                    self.drive(index, call);
                }
            }
            Some(Running::There { permit, on, body }) => {
                if let Some(link) = app.links.get_mut(&permit.caller()) {
                    link.answer(on, &Frame::Ok { seq: permit.seq(), fence: 0 }, body.into());
                }
                app.admission.complete(now, permit);
            }
            None => {}
        }
    }

    /// Whether a process is slow or stands still, or did just now. What waited for a busy one when it was blocked waits for
    /// as long as that lasts.
    fn may_be_late(&self, index: usize) -> bool {
        let host = &self.hosts[index];
        host.stands_still() || host.slow > 1 || host.troubled.is_some_and(|at| self.now.since(at) < LATE * 50)
    }

    pub(super) fn on_outcome(&mut self, index: usize, id: u64, outcome: &Outcome<Vec<u8>>) {
        let Some(app) = &mut self.hosts[index].app else {
            return;
        };
        let Some(active) = app.active.remove(&id) else {
            return;
        };
        app.over += 1;
        app.repeats += active.call.repeats(Repeat::Trouble);
        app.moves += active.call.repeats(Repeat::Moving);
        let (fresh, repeats, moves) = (app.fresh, app.repeats, app.moves);
        self.check(index, Property::F12, repeats <= 10 + fresh / 10 && moves <= 1_000 + fresh, || {
            format!("tried {repeats} and {moves} times again for {fresh} calls")
        });
        let Some(entry) = self.ledger.get_mut(id) else {
            return;
        };
        let kind = match outcome {
            Outcome::Ok(_) => "ok",
            Outcome::Executed(_) => "executed_error",
            Outcome::NotExecuted(_) => "not_executed",
            Outcome::Unknown(_) => "unknown",
        };
        let (owed, orderly, since) = (entry.owed, entry.orderly, self.now);
        let before = entry.outcome.replace(kind);
        let (deadline, executed) = (entry.deadline, entry.executed);
        *self.ledger.outcomes.entry(kind).or_insert(0) += 1;
        self.ledger.hops_max = self.ledger.hops_max.max(active.call.hops);
        self.say(|| format!("n{:<4} call {id}: {}", index + 1, told(outcome)));
        self.note(|| Event::Outcome { call: id, outcome: kind.into(), hops: active.call.hops });
        let on_time = self.now <= deadline + LATE || self.may_be_late(index);
        self.check(index, Property::F1, before.is_none() && on_time, || {
            format!("call {id} ended {kind} too late, or again after {before:?}")
        });
        let gave_up = matches!(outcome, Outcome::NotExecuted(no)
            if matches!(no.why(), Why::Refused(why) if why.is_passing())
                && self.now + PAUSE.max(no.retry_after().unwrap_or_default() * 2) < deadline
                && self.hosts[index].app.as_ref().is_some_and(|app| app.budget.left(if no.why().is_moving() { Repeat::Moving } else { Repeat::Trouble }) > 0));
        self.check(index, Property::F16, !gave_up, || {
            format!("call {id} ended {} with time and repeats left", told(outcome))
        });
        let honest = kind != "not_executed" || executed == 0;
        self.check(index, Property::F3, honest, || {
            format!("call {id} ran {executed} times, and its caller was told that it did not")
        });
        // Longer than any handler of the load, and than what is lost once or twice on the way.
        let longest = self.plan.load.as_ref().map_or(Duration::ZERO, |load| load.handler.longest());
        let enough = self.plan.load.as_ref().is_some_and(|load| load.deadline > longest + ON_THE_WAY);
        let reason = match outcome {
            Outcome::NotExecuted(no) => {
                let excused = |why| matches!(why, Refusal::Expired | Refusal::Overloaded { .. } | Refusal::Invalid);
                !matches!(no.why(), Why::Deadline) && !matches!(no.why(), Why::Refused(why) if excused(why))
            }
            Outcome::Unknown(why) => *why != Unknown::Deadline || enough,
            Outcome::Ok(_) | Outcome::Executed(_) => false,
        };
        self.check(index, Property::L5, !(owed && reason), || {
            format!("call {id} ended {} at {} ms, long after the cluster had agreed", told(outcome), since.as_millis())
        });
        let failed = match outcome {
            Outcome::NotExecuted(no) => !matches!(no.why(), Why::Refused(Refusal::Invalid)),
            Outcome::Unknown(_) => true,
            Outcome::Ok(_) | Outcome::Executed(_) => false,
        };
        self.check(index, Property::F11, !(orderly && enough && failed), || {
            format!("call {id} ended {}, and nodes only came and went in good order", told(outcome))
        });
        let right = !matches!(outcome, Outcome::Ok(body) if !body.starts_with(&id.to_le_bytes()));
        self.check(index, Property::F8, right, || format!("call {id} got the answer of another"));
        self.check_isolation(index, id, &active, outcome);
        self.check(index, Property::F5, active.call.hops <= 2, || format!("call {id} took {} hops", active.call.hops));
    }

    /// Calls of live processes that are past their deadline and have no outcome.
    pub(crate) fn check_open_calls(&mut self) {
        for index in 0..self.hosts.len() {
            let host = &self.hosts[index];
            let Some(app) = host.app.as_ref().filter(|_| !host.stands_still() && host.slow == 1) else {
                continue;
            };
            let open: Vec<u64> = app.open_calls().collect();
            for id in open {
                let late = self.ledger.get(id).is_some_and(|entry| self.now > entry.deadline + LATE * 50);
                self.check(index, Property::F1, !late, || format!("call {id} has no outcome long after its deadline"));
            }
        }
    }
}
