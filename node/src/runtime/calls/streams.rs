//! The tasks of a connection: greeting, writing what waits, reading what comes.

use swimring_membership::codec::Malformed;

use super::*;

/// How often the clocks of connected processes are compared.
const CLOCKS_EVERY: Duration = Duration::from_secs(10);

pub(super) fn reply(link: &PeerLink, frame: &Frame, body: &[u8]) {
    link.lock().send(frame, body);
    link.wake();
}

pub(super) fn refuse(link: &PeerLink, seq: u64, why: Refusal, owner: Option<(NodeId, Blob)>) {
    let (owner, record) = owner.map_or((None, None), |(owner, record)| (Some(owner), Some(record)));
    reply(link, &Frame::Refused { seq, why, owner, record }, &[]);
}

/// Greets whoever dials.
pub(super) async fn accept(calls: Arc<Calls>) {
    while let Some(incoming) = calls.port.accept().await {
        let calls_here = Arc::clone(&calls);
        calls.spawn(async move {
            let address = incoming.remote_address();
            let (mut established, node) = match Port::greet(incoming).await {
                Ok(greeted) => greeted,
                Err(problem) => {
                    metrics::handshake_refused(Class::Calls, &problem);
                    if calls_here.port.is_new(address, &problem) {
                        tracing::warn!(%address, %problem, "refused a handshake for calls");
                    }
                    return;
                }
            };
            let judged = calls_here.lock_peers().judge(&established.hello, node, &calls_here.fingerprint);
            if let Err(refusal) = judged {
                metrics::hello_refused(Class::Calls, refusal);
                if calls_here.port.is_new(address, &refusal) {
                    tracing::warn!(%address, %refusal, "refused a connection for calls");
                }
                return established.answer(&Answer::Refused(refusal)).await;
            }
            established.answer(&Answer::Welcome(calls_here.hello())).await;
            let now = calls_here.clock.now();
            calls_here.adopt(established, |peers, id, hello| peers.handle_accepted(now, id, hello));
            calls_here.settle();
        });
    }
}

/// Tells the connections what is due.
pub(super) async fn keep_time(calls: Arc<Calls>) {
    let mut clocks = tokio::time::interval(CLOCKS_EVERY);
    let mut observe = tokio::time::interval(metrics::OBSERVE_EVERY);
    loop {
        let next = calls.lock_peers().poll_timeout();
        tokio::select! {
            _ = clocks.tick() => {
                // Clocks drift: an estimate is only as good as it is new.
                for link in calls.links.iter() {
                    let mut held = link.lock();
                    if held.is_connected() {
                        held.ask_clock(calls.clock.now());
                        drop(held);
                        link.wake();
                    }
                }
            }
            () = calls.clock.wait_for(next) => {
                calls.lock_peers().handle_timeout(calls.clock.now());
                calls.settle();
            }
            () = calls.timers.notified() => {}
            _ = observe.tick() => {
                metrics::observe_success(calls.succeeded.load(Ordering::Relaxed));
                metrics::observe_admission(&calls.admission_stats());
                metrics::observe_connections(Class::Calls, calls.lock_peers().len());
            }
        }
    }
}

/// Writes what waits for a link, in batches.
pub(super) async fn write(
    calls: Arc<Calls>,
    link: Arc<PeerLink>,
    (conn, work): (ConnId, Arc<Notify>),
    mut send: SendStream,
    closing: CancellationToken,
) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        batch.clear();
        link.lock().take(calls.clock.now(), conn, BATCH, &mut batch, |_| {});
        if batch.is_empty() {
            tokio::select! {
                () = work.notified() => continue,
                () = closing.cancelled() => return,
            }
        }
        if send.write_all(&batch).await.is_err() {
            return;
        }
    }
}

/// Reads frames until the stream ends or holds what is no frame.
pub(super) async fn read(calls: &Arc<Calls>, link: &Arc<PeerLink>, from: Instance, mut recv: RecvStream) {
    let mut buffer: Vec<u8> = Vec::with_capacity(READ);
    loop {
        match recv.read_chunk(READ, true).await {
            Ok(Some(chunk)) => buffer.extend_from_slice(&chunk.bytes),
            Ok(None) | Err(_) => return,
        }
        let mut taken = 0;
        loop {
            let length = match Frame::length(&buffer[taken..], calls.body_bytes_max) {
                Ok(Some(length)) if buffer.len() - taken >= length => length,
                Ok(_) => break,
                Err(problem) => return not_a_frame(from, problem),
            };
            let frame = &buffer[taken..taken + length];
            if let Err(problem) = on_frame(calls, link, from, frame) {
                return not_a_frame(from, problem);
            }
            taken += length;
        }
        buffer.drain(..taken);
        if buffer.is_empty() {
            buffer.shrink_to(READ);
        }
    }
}

fn not_a_frame(from: Instance, problem: Malformed) {
    metrics::malformed(Class::Calls);
    tracing::warn!(%problem, node = %from.node, "closed a connection whose bytes are no frame");
}

fn on_frame(calls: &Arc<Calls>, link: &Arc<PeerLink>, from: Instance, frame: &[u8]) -> Result<(), Malformed> {
    let (arrival, work) = {
        let mut held = link.lock();
        let arrival = held.handle_frame(calls.clock.now(), frame)?;
        (arrival, held.has_work())
    };
    if work {
        link.wake();
    }
    match arrival {
        Arrival::Call(header, body) => {
            let body = Bytes::copy_from_slice(body);
            calls.spawn(Arc::clone(calls).on_incoming(from, Arc::clone(link), header, body));
        }
        Arrival::Ran(token, result, fence) => {
            let result = result.map(Bytes::copy_from_slice).map_err(Bytes::copy_from_slice);
            let _ = token.send(Report::Ran(result, fence));
        }
        Arrival::Refused(token, why, owner, record) => {
            let _ = token.send(Report::Refused(from, why, owner, record));
        }
        Arrival::Cancel(seq) => {
            if let Some(running) = link.running.lock().expect("nothing panics while it holds the lock").remove(&seq) {
                running.cancel();
            }
        }
        Arrival::Nothing => {}
    }
    Ok(())
}
