//! The streams of a connection: lanes that frames share, and one for each large body.

use std::task::Poll;

use quinn::{RecvStream, SendStream, VarInt};
use swimring_forwarder::wire::{HEADER_BYTES_MAX, LANE_BODY_BYTES_MAX, PREFIX_BYTES, Prefix};
use swimring_membership::codec::Malformed;

use super::super::endpoint::close_code;
use super::connections::Lane;
use super::duplex::{receive_duplex, send_duplex};
use super::serving::{Body, Reader, on_call, on_cancel};
use super::*;
use crate::core::hello::Class;
use crate::core::link::Arrival;
use crate::core::peers::Goodbye;

/// Lanes of a connection. With one, a lost packet holds up everything behind it.
pub const LANES: usize = 2;
/// Most bytes written at once.
const BATCH: usize = 64 * 1_024;
/// Bytes of a lane that are held while they are read: the longest frame, and room for what comes behind it.
const BUFFER: usize = 2 * (PREFIX_BYTES + HEADER_BYTES_MAX + LANE_BODY_BYTES_MAX);
/// Most frames that the link looks at in one go where no answers are awaited: meanwhile nobody else gets at it.
const GROUP: usize = 32;
/// The same where answers are awaited: into so many groups they fall, so that both ends are at work at once.
const GROUPS: usize = 8;
/// But groups are of so many at least, and at most.
const GROUP_OF_ANSWERS: (usize, usize) = (16, 64);
/// Most large bodies on their way out on one connection.
const LARGE_MAX: usize = 8;
/// How long a large body may take, either way.
pub(super) const LARGE_TIMEOUT: Duration = Duration::from_secs(60);

/// Lets every task that is ready now run first. Unlike tokio's `yield_now` it does not wait for the next look at the
/// sockets.
fn step_aside() -> impl Future<Output = ()> {
    let mut stepped = false;
    std::future::poll_fn(move |context| {
        if stepped {
            return Poll::Ready(());
        }
        stepped = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
}

/// Opens the lanes beside the first, or takes those that the other end opens; then duplex calls have streams of their own.
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
    // The first streams are lanes.
    let calls = Arc::clone(&lane.calls);
    calls.spawn(send_duplex(lane.clone()));
    receive_duplex(lane).await;
}

/// Writes and reads on one lane until it ends.
pub(super) async fn keep_lane(lane: &Lane, send: SendStream, recv: RecvStream) {
    // Bodies on streams of their own take what lanes leave.
    _ = send.set_priority(1);
    // What was read is answered in the same turn.
    tokio::join!(biased; read(lane, recv), write(lane, send));
}

/// Writes what waits for the lanes, in batches.
async fn write(lane: &Lane, mut send: SendStream) {
    loop {
        let mut batch = Vec::new();
        let (more, refused) = {
            let mut link = lane.link.lock();
            link.take(lane.calls.clock.now(), lane.conn, BATCH, &mut batch);
            if !link.is_choked() {
                lane.link.room.notify_waiters();
            }
            let more = link.has_work() || link.has_returns_on(lane.conn);
            // With more to come, some of them may still wait.
            (more, if more || batch.is_empty() { Vec::new() } else { lane.link.refusals.take() })
        };
        if batch.is_empty() {
            tokio::select! {
                () = lane.writers.lanes.notified() => {}
                _ = lane.connection.closed() => return,
            }
            if !lane.link.lock().has_frames() {
                // Whatever else is ready to run may have a call for the same packet.
                step_aside().await;
            }
            continue;
        }
        if more {
            lane.writers.lanes.notify_one();
        }
        if send.write_chunk(batch.into()).await.is_err() {
            return;
        }
        if !refused.is_empty() {
            let now = lane.calls.clock.now();
            refused.into_iter().for_each(|(read, count)| metrics::refused(now.since(read), count));
        }
    }
}

/// Counts something that the transport has and the other end may not.
pub(super) struct Unacknowledged(Arc<Calls>);

impl Unacknowledged {
    pub(super) fn count(calls: &Arc<Calls>) -> Self {
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
    let mut reader = Reader::default();
    let mut buffer = vec![0; BUFFER];
    // What was read and not yet taken.
    let (mut from, mut to) = (0, 0);
    while let Ok(read) = recv.read(&mut buffer[to..]).await {
        reader.has_read();
        match read {
            Some(bytes) => to += bytes,
            // A lane ends with its connection, not before.
            None => return expel(lane, Malformed::Truncated),
        }
        loop {
            reader.has_time();
            match take_frames(lane, &buffer[from..to], &mut reader) {
                Ok(0) => break,
                Ok(taken) => from += taken,
                Err(problem) => return expel(lane, problem),
            }
            // What waits to be written goes on its way, and others have their turn, while the rest is handled.
            step_aside().await;
        }
        if from == to || to > BUFFER / 2 {
            buffer.copy_within(from..to, 0);
            (from, to) = (0, to - from);
        }
    }
}

/// Handles the next whole frames; how many bytes they took.
fn take_frames(lane: &Lane, buffer: &[u8], reader: &mut Reader) -> Result<usize, Malformed> {
    let now = lane.calls.clock.now();
    reader.takes(now);
    let (mut taken, mut arrivals) = (0, Vec::with_capacity(GROUP_OF_ANSWERS.0));
    let (problem, over, mut choked) = lane.link.queue(|link| {
        let problem = look_at(link, (now, lane.conn), buffer, &mut taken, &mut arrivals).err();
        (problem, link.over().next().is_some(), link.is_choked())
    });
    for arrival in arrivals {
        on_arrival(lane, arrival, choked, Some(reader));
        if reader.has_answered(BATCH) {
            choked = reader.answer(lane);
        }
    }
    reader.answer(lane);
    if over {
        lane.calls.close_over(&lane.link);
    }
    problem.map_or(Ok(taken), Err)
}

/// How many frames are looked at in one go where so many answers are awaited.
fn group_of(awaited: usize) -> usize {
    match awaited {
        0 => GROUP,
        awaited => (awaited / GROUPS).clamp(GROUP_OF_ANSWERS.0, GROUP_OF_ANSWERS.1),
    }
}

/// Shows the link the next frames.
fn look_at<'a>(
    link: &mut Link<Token, Bytes>,
    (now, on): (Instant, ConnId),
    buffer: &'a [u8],
    taken: &mut usize,
    arrivals: &mut Vec<Arrival<'a, Token, &'a [u8]>>,
) -> Result<(), Malformed> {
    for _ in 0..group_of(link.pending_count()) {
        let length = Frame::length(&buffer[*taken..], LANE_BODY_BYTES_MAX)?;
        let Some(frame) = length.and_then(|length| buffer.get(*taken..*taken + length)) else {
            break;
        };
        arrivals.push(link.handle_frame(now, on, frame)?);
        *taken += frame.len();
    }
    Ok(())
}

pub(super) fn expel(lane: &Lane, problem: Malformed) {
    metrics::malformed(Class::Calls);
    if lane.calls.port.is_new(lane.connection.remote_address(), &problem) {
        tracing::warn!(%problem, node = %lane.from.node, "closed a connection whose bytes are no frame");
    }
    lane.connection.close(close_code(Goodbye::Malformed), b"no frame");
}

/// A body that may be kept.
pub(super) struct Held(Bytes);

/// In a lane it lies among others, which would be kept with it.
impl From<&[u8]> for Held {
    fn from(body: &[u8]) -> Self {
        Self(Bytes::copy_from_slice(body))
    }
}

impl From<Vec<u8>> for Held {
    fn from(body: Vec<u8>) -> Self {
        Self(body.into())
    }
}

/// Does what a frame asks for.
pub(super) fn on_arrival<P: Into<Held>>(
    lane: &Lane,
    arrival: Arrival<'_, Token, P>,
    choked: bool,
    reader: Option<&mut Reader>,
) {
    match arrival {
        // It does not read its answers, so it gets none; its caller hears nothing, and ends as unknown.
        Arrival::Call(..) if choked => metrics::dropped("call"),
        Arrival::Call(header, body) => on_call(lane, header, Body::Here(body.into().0), reader),
        Arrival::Ran(token, result, fence) => {
            let result = result.map(|body| body.into().0).map_err(|body| body.into().0);
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
        // It was said where nothing waits for it.
        Arrival::Begun(_) | Arrival::Nothing => {}
    }
}

/// Sends every frame with a large body on a stream of its own.
pub(super) async fn send_large(lane: Lane) {
    let places = Arc::new(Semaphore::new(LARGE_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        // Taken only once there is a stream for it: until then it can be withdrawn.
        let stream = lane.connection.open_uni().await;
        let Ok(mut stream) = stream else { return };
        let large = loop {
            if let Some(large) = lane.link.lock().take_large(lane.calls.clock.now(), lane.conn) {
                break large;
            }
            // It may want to ask first, in a lane.
            lane.writers.lanes.notify_one();
            tokio::select! {
                () = lane.writers.large.notified() => {}
                _ = lane.connection.closed() => return,
            }
        };
        lane.link.room.notify_waiters();
        let counted = Unacknowledged::count(&lane.calls);
        lane.calls.spawn(async move {
            let (_place, _counted) = (place, counted);
            let sending = async {
                stream.write_all_chunks(&mut [large.head.into(), large.body]).await.ok()?;
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
    // Other nodes may have other limits: what is too long here is refused for itself.
    let prefix = Prefix::read(&bytes, usize::MAX)?;
    let mut header = vec![0; prefix.header_bytes];
    if stream.read_exact(&mut header).await.is_err() {
        return Ok(());
    }
    match prefix.frame(&header)? {
        Some(Frame::Call(_)) if lane.link.lock().is_choked() => {
            metrics::dropped("call");
            _ = stream.stop(VarInt::from_u32(0));
        }
        Some(Frame::Call(header)) => on_call(lane, header, Body::Coming(stream, prefix.body_bytes), None),
        Some(frame @ (Frame::Ok { seq, .. } | Frame::Executed { seq, .. })) if lane.link.lock().is_pending(seq) => {
            let Some(_claimed) = Arriving::claim(&lane.link, seq) else {
                return Err(Malformed::OutOfRange("a second answer to one attempt"));
            };
            // Whoever owes so much may pass over small questions meanwhile.
            let came = || lane.link.queue(|link| link.hear(lane.calls.clock.now()));
            let (frame, body) = match frame {
                Frame::Ok { seq, fence } | Frame::Executed { seq, fence }
                    if prefix.body_bytes > lane.calls.body_bytes_max =>
                {
                    _ = stream.stop(VarInt::from_u32(0));
                    (Frame::Executed { seq, fence }, Some(ANSWER_TOO_LONG.to_vec()))
                }
                frame => (frame, read_body(&mut stream, prefix.body_bytes, came).await),
            };
            if let Some(body) = body {
                let now = lane.calls.clock.now();
                let arrival = lane.link.queue(|link| link.handle(now, lane.conn, frame, body));
                on_arrival(lane, arrival, false, None);
                lane.calls.close_over(&lane.link);
            }
        }
        _ => {
            metrics::dropped("unasked");
            _ = stream.stop(VarInt::from_u32(0));
        }
    }
    Ok(())
}

/// Takes so many bytes, as they come: what was announced is not yet here. `came` is told of every part.
pub(super) async fn read_body(stream: &mut RecvStream, length: usize, came: impl Fn()) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while body.len() < length {
        let chunk = stream.read_chunk(length - body.len(), true).await.ok()??;
        body.extend_from_slice(&chunk.bytes);
        came();
    }
    Some(body)
}

/// A large answer that is coming: no other stream brings it.
struct Arriving<'a>(&'a PeerLink, u64);

impl<'a> Arriving<'a> {
    fn claim(link: &'a PeerLink, seq: u64) -> Option<Self> {
        // What is not claimed must not be given back.
        let is_first = link.arriving.lock().insert(seq);
        is_first.then(|| Self(link, seq))
    }
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        self.0.arriving.lock().remove(&self.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_answer_is_claimed_by_one_stream_until_that_has_ended() {
        let to = Instance { node: NodeId::from_u128(1), life: 1 };
        let link = PeerLink::new(Link::new(Instant::ORIGIN, to, LinkLimits::default()));
        let first = Arriving::claim(&link, 1);
        assert!(first.is_some());
        assert!(Arriving::claim(&link, 1).is_none());
        assert!(Arriving::claim(&link, 1).is_none(), "whoever was refused has given nothing back");
        assert!(Arriving::claim(&link, 2).is_some(), "others are another attempt's");
        drop(first);
        assert!(Arriving::claim(&link, 1).is_some());
    }
}
