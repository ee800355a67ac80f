//! The streams of a connection: lanes that frames share, and one for each large body.

use quinn::{RecvStream, SendStream, VarInt};
use swimring_forwarder::wire::{LANE_BODY_BYTES_MAX, PREFIX_BYTES, Prefix};
use swimring_membership::codec::Malformed;

use super::super::endpoint::close_code;
use super::connections::Lane;
use super::serving::{Body, on_call, on_cancel};
use super::*;
use crate::core::hello::Class;
use crate::core::link::Arrival;
use crate::core::peers::Goodbye;

/// Lanes of a connection. With one, a lost packet holds up everything behind it.
pub const LANES: usize = 2;
/// Most bytes written at once.
const BATCH: usize = 64 * 1_024;
/// Most bytes read at once.
const READ: usize = 64 * 1_024;
/// Most large bodies on their way out on one connection.
const LARGE_MAX: usize = 8;
/// For how long calls are begun in place before others have their turn.
const IN_PLACE_MAX: Duration = Duration::from_micros(200);
/// How long a large body may take, either way.
pub(super) const LARGE_TIMEOUT: Duration = Duration::from_secs(60);

/// Opens the lanes beside the first, or takes those that the other end opens.
pub(super) async fn open_lanes(lane: Lane, dialled: bool) {
    for _ in 1..LANES {
        let streams = if dialled { lane.connection.open_bi().await } else { lane.connection.accept_bi().await };
        let Ok((mut send, recv)) = streams else { return };
        if dialled {
            // A stream is seen by the other end once something comes on it.
            let mut bytes = Vec::new();
            Frame::Clock { sent: lane.calls.clock.now().as_nanos() }.encode(&[], &mut bytes);
            if send.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let (calls, lane) = (Arc::clone(&lane.calls), lane.clone());
        calls.spawn(async move { keep_lane(&lane, send, recv).await });
    }
}

/// Writes and reads on one lane until it ends.
pub(super) async fn keep_lane(lane: &Lane, send: SendStream, recv: RecvStream) {
    tokio::join!(write(lane, send), read(lane, recv));
}

/// Writes what waits for the lanes, in batches.
async fn write(lane: &Lane, mut send: SendStream) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        batch.clear();
        let more = {
            let mut link = lane.link.lock();
            link.take(lane.calls.clock.now(), lane.conn, BATCH, &mut batch);
            if !link.is_choked() {
                lane.link.room.notify_waiters();
            }
            link.has_work()
        };
        if batch.is_empty() {
            tokio::select! {
                () = lane.writers.lanes.notified() => {}
                _ = lane.connection.closed() => return,
            }
            // Whatever else is ready to run may have something for the same packet.
            tokio::task::yield_now().await;
            continue;
        }
        if more {
            lane.writers.lanes.notify_one();
        }
        if send.write_all(&batch).await.is_err() {
            return;
        }
    }
}

/// Counts something that the transport has and the other end may not.
struct Unacknowledged(Arc<Calls>);

impl Unacknowledged {
    fn count(calls: &Arc<Calls>) -> Self {
        calls.unacknowledged.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(calls))
    }
}

impl Drop for Unacknowledged {
    fn drop(&mut self) {
        self.0.unacknowledged.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Reads frames until the lane ends or holds what is no frame.
async fn read(lane: &Lane, mut recv: RecvStream) {
    let mut buffer: Vec<u8> = Vec::with_capacity(READ);
    while let Ok(chunk) = recv.read_chunk(READ, true).await {
        match chunk {
            Some(chunk) => buffer.extend_from_slice(&chunk.bytes),
            // A lane ends with its connection, not before.
            None => return expel(lane, Malformed::Truncated),
        }
        let mut spare = IN_PLACE_MAX;
        match take_frames(lane, &buffer, &mut spare) {
            Ok(taken) => _ = buffer.drain(..taken),
            Err(problem) => return expel(lane, problem),
        }
        if spare.is_zero() {
            // The lane's writer, and others on this thread, have waited for long enough.
            tokio::task::yield_now().await;
        }
    }
}

/// Handles every whole frame; how many bytes they took.
fn take_frames(lane: &Lane, buffer: &[u8], spare: &mut Duration) -> Result<usize, Malformed> {
    let mut taken = 0;
    while let Some(length) = Frame::length(&buffer[taken..], LANE_BODY_BYTES_MAX)? {
        let Some(frame) = buffer.get(taken..taken + length) else {
            break;
        };
        on_frame(lane, frame, Some(spare))?;
        taken += length;
    }
    Ok(taken)
}

fn expel(lane: &Lane, problem: Malformed) {
    metrics::malformed(Class::Calls);
    if lane.calls.port.is_new(lane.connection.remote_address(), &problem) {
        tracing::warn!(%problem, node = %lane.from.node, "closed a connection whose bytes are no frame");
    }
    lane.connection.close(close_code(Goodbye::Malformed), b"no frame");
}

fn on_frame(lane: &Lane, frame: &[u8], spare: Option<&mut Duration>) -> Result<(), Malformed> {
    let now = lane.calls.clock.now();
    let (arrival, over) = lane.link.queue(|link| (link.handle_frame(now, frame), link.over().next().is_some()));
    match arrival? {
        Arrival::Call(header, body) => on_call(lane, header, Body::Here(Bytes::copy_from_slice(body)), spare),
        Arrival::Ran(token, result, fence) => {
            let result = result.map(Bytes::copy_from_slice).map_err(Bytes::copy_from_slice);
            let _ = token.send(Report::Ran(result, fence));
        }
        Arrival::Refused(token, why, owner, record) => {
            let _ = token.send(Report::Refused(why, owner, record));
        }
        Arrival::Cancel(seq) => on_cancel(lane, seq),
        Arrival::Goodbye(back) => {
            lane.link.room.notify_waiters();
            for (token, proof) in back {
                let _ = token.send(Report::Unsent(proof));
            }
        }
        Arrival::Nothing => {}
    }
    if over {
        lane.calls.close_over(&lane.link);
    }
    Ok(())
}

/// Sends every frame with a large body on a stream of its own.
pub(super) async fn send_large(lane: Lane) {
    let places = Arc::new(Semaphore::new(LARGE_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        // Taken only once there is a stream for it: until then it can be withdrawn.
        let stream = lane.connection.open_uni().await;
        let Ok(mut stream) = stream else { return };
        let mut frame = Vec::new();
        while !lane.link.lock().take_large(lane.calls.clock.now(), lane.conn, &mut frame) {
            // It may want to ask first, in a lane.
            lane.writers.lanes.notify_one();
            tokio::select! {
                () = lane.writers.large.notified() => {}
                _ = lane.connection.closed() => return,
            }
        }
        lane.link.room.notify_waiters();
        let counted = Unacknowledged::count(&lane.calls);
        lane.calls.spawn(async move {
            let (_place, _counted) = (place, counted);
            let sending = async {
                stream.write_all(&frame).await.ok()?;
                stream.finish().ok()?;
                stream.stopped().await.ok()
            };
            let _ = tokio::time::timeout(LARGE_TIMEOUT, sending).await;
        });
    }
}

/// Takes every frame with a large body.
pub(super) async fn receive_large(lane: Lane) {
    while let Ok(stream) = lane.connection.accept_uni().await {
        let (calls, lane) = (Arc::clone(&lane.calls), lane.clone());
        calls.spawn(async move {
            // Whoever waits for a body that ends early or takes too long hears of it at the deadline.
            if let Ok(Err(problem)) = tokio::time::timeout(LARGE_TIMEOUT, on_stream(&lane, stream)).await {
                expel(&lane, problem);
            }
        });
    }
}

/// Reads the head of a frame before its body, so that what is not wanted is not taken.
async fn on_stream(lane: &Lane, mut stream: RecvStream) -> Result<(), Malformed> {
    let mut bytes = [0; PREFIX_BYTES];
    if stream.read_exact(&mut bytes).await.is_err() {
        return Ok(());
    }
    let prefix = Prefix::read(&bytes, lane.calls.body_bytes_max)?;
    let mut frame = bytes.to_vec();
    frame.resize(PREFIX_BYTES + prefix.header_bytes, 0);
    if stream.read_exact(&mut frame[PREFIX_BYTES..]).await.is_err() {
        return Ok(());
    }
    match prefix.frame(&frame[PREFIX_BYTES..])? {
        Some(Frame::Call(header)) => on_call(lane, header, Body::Coming(stream, prefix.body_bytes), None),
        Some(Frame::Ok { seq, .. } | Frame::Executed { seq, .. }) if lane.link.lock().is_pending(seq) => {
            let Some(_claimed) = Arriving::claim(&lane.link, seq) else {
                return Err(Malformed::OutOfRange("a second answer to one attempt"));
            };
            if read_body(&mut stream, prefix.body_bytes, &mut frame).await.is_some() {
                on_frame(lane, &frame, None)?;
            }
        }
        _ => {
            metrics::dropped("unasked");
            _ = stream.stop(VarInt::from_u32(0));
        }
    }
    Ok(())
}

/// Takes so many bytes, as they come: what was announced is not yet here.
pub(super) async fn read_body(stream: &mut RecvStream, length: usize, into: &mut Vec<u8>) -> Option<()> {
    let end = into.len() + length;
    while into.len() < end {
        let chunk = stream.read_chunk(end - into.len(), true).await.ok()??;
        into.extend_from_slice(&chunk.bytes);
    }
    Some(())
}

/// A large answer that is coming: no other stream brings it.
struct Arriving<'a>(&'a PeerLink, u64);

impl<'a> Arriving<'a> {
    fn claim(link: &'a PeerLink, seq: u64) -> Option<Self> {
        lock(&link.arriving).insert(seq).then_some(Self(link, seq))
    }
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        lock(&self.0.arriving).remove(&self.1);
    }
}
