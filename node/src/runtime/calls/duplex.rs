//! Duplex calls: each has a stream of its own both ways, on which more of the body follows the call, and more answers
//! precede the last one.
//!
//! The caller sends the call alone, and what follows only once the handler has begun: until then the call can be refused,
//! and be made elsewhere. From then on its bodies are with that handler, and it is never tried again.

use quinn::{RecvStream, SendStream, VarInt};
use swimring_forwarder::wire::{LANE_BODY_BYTES_MAX, PREFIX_BYTES, Prefix};
use swimring_membership::codec::Malformed;

use super::super::bodies::{BodyReader, BodyWriter, Duplex, DuplexCall, body};
use super::connections::Lane;
use super::serving::{Body, Place, on_call};
use super::streams::{LARGE_TIMEOUT, Unacknowledged, expel, on_arrival, read_body};
use super::*;
use crate::core::link::{Arrival, Opening};

/// Most duplex calls under way on one connection, each way; others wait for their turn.
pub const DUPLEX_MAX: usize = 16;
/// What a duplex call may take of the memory of whoever serves it, besides its own body: what was sent and not read.
pub(crate) const DUPLEX_BYTES: usize = 1 << 20;
/// Tells the other end that what was on a stream is not whole.
const CUT_OFF: VarInt = VarInt::from_u32(1);

/// The writing end of a stream: what nobody waits for any more is not sent.
pub(super) struct Sending(SendStream);

impl Sending {
    async fn write(&mut self, frame: &Frame<'_>, body: Bytes) -> Result<(), quinn::WriteError> {
        let mut head = Vec::new();
        frame.encode_head(body.len(), &mut head);
        self.0.write_all_chunks(&mut [head.into(), body]).await
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        // Nothing happens to one that was finished and acknowledged.
        _ = self.0.reset(CUT_OFF);
    }
}

/// Gives every duplex call a stream.
pub(super) async fn send_duplex(lane: Lane) {
    let places = Arc::new(Semaphore::new(DUPLEX_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        // Taken only once there is a stream for it: until then it can be withdrawn.
        let Ok((send, recv)) = lane.connection.open_bi().await else { return };
        let opening = loop {
            if let Some(opening) = lane.link.lock().take_duplex(lane.calls.clock.now(), lane.conn) {
                break opening;
            }
            // It may want to ask first, in a lane.
            lane.writers.lanes.notify_one();
            tokio::select! {
                () = lane.writers.duplex.notified() => {}
                _ = lane.connection.closed() => return,
            }
        };
        let Some(call) = lane.link.duplex.lock().remove(&opening.seq) else { continue };
        let (calls, lane) = (Arc::clone(&lane.calls), lane.clone());
        calls.spawn(async move {
            let _place = place;
            tokio::select! {
                result = exchange(&lane, opening, &call, Sending(send), recv) => {
                    if let Err(problem) = result {
                        expel(&lane, problem);
                    }
                }
                () = call.over.cancelled() => {}
            }
        });
    }
}

/// The caller's side of one attempt, from the call to its answer.
async fn exchange(
    lane: &Lane,
    opening: Opening<Bytes>,
    call: &DuplexCall,
    mut send: Sending,
    mut recv: RecvStream,
) -> Result<(), Malformed> {
    let Opening { seq, frame } = opening;
    if send.0.write_all_chunks(&mut [frame.head.into(), frame.body]).await.is_err() {
        return Ok(());
    }
    let bytes_max = lane.calls.body_bytes_max.max(LANE_BODY_BYTES_MAX);
    let Some((prefix, header)) = read_head(&mut recv, bytes_max).await? else { return Ok(()) };
    let Some(frame @ Frame::Begun { .. }) = prefix.frame(&header)? else {
        return Err(Malformed::OutOfRange("an answer before the beginning"));
    };
    let ends = lane.link.queue(|link| {
        // Nobody else takes them once this attempt has ended as lost: that is told under the same lock.
        let arrival = link.handle(lane.calls.clock.now(), lane.conn, frame, ());
        matches!(arrival, Arrival::Begun(begun) if begun == seq).then(|| call.ends.take()).flatten()
    });
    let Some((reader, writer)) = ends else { return Ok(()) };
    let sending = async {
        if !pump_out(reader, &mut send).await {
            // What was written before still arrives; that it has no end shows that it was cut off.
            _ = send.0.finish();
        }
        std::future::pending().await
    };
    let last = tokio::select! {
        last = pump_in(&mut recv, writer, (Then::Answer, bytes_max)) => last?,
        () = sending => None,
    };
    let Some((prefix, header)) = last else { return Ok(()) };
    let Some(body) = read_body(&mut recv, prefix.body_bytes, || {}).await else { return Ok(()) };
    match prefix.frame(&header)? {
        Some(frame @ (Frame::Ok { .. } | Frame::Executed { .. })) => {
            let arrival = lane.link.queue(|link| link.handle(lane.calls.clock.now(), lane.conn, frame, body));
            on_arrival(lane, arrival, false, None);
            lane.calls.close_over(&lane.link);
            Ok(())
        }
        _ => Err(Malformed::OutOfRange("the end of a duplex call")),
    }
}

/// What stands before the body of the next frame; none if the stream ends before.
async fn read_head(recv: &mut RecvStream, body_max: usize) -> Result<Option<(Prefix, Vec<u8>)>, Malformed> {
    let mut bytes = [0; PREFIX_BYTES];
    if recv.read_exact(&mut bytes).await.is_err() {
        return Ok(None);
    }
    let prefix = Prefix::read(&bytes, body_max)?;
    let mut header = vec![0; prefix.header_bytes];
    Ok(recv.read_exact(&mut header).await.is_ok().then_some((prefix, header)))
}

/// Whether something follows the pieces of a body.
#[derive(Copy, Clone, PartialEq, Eq)]
enum Then {
    Answer,
    Nothing,
}

/// Takes pieces as they come, until something else does; none if the stream ends before, or nobody reads what is all that
/// comes. Whoever reads none of what an answer follows holds up nothing once it has gone.
async fn pump_in(
    recv: &mut RecvStream,
    writer: BodyWriter,
    (then, body_max): (Then, usize),
) -> Result<Option<(Prefix, Vec<u8>)>, Malformed> {
    let mut writer = Some(writer);
    while let Some((prefix, header)) = read_head(recv, body_max).await? {
        if prefix.frame(&header)? != Some(Frame::Piece) {
            return Ok(Some((prefix, header)));
        }
        let mut left = prefix.body_bytes;
        if left > LANE_BODY_BYTES_MAX {
            return Err(Malformed::TooLong);
        }
        if left == 0
            && let Some(writer) = writer.take()
        {
            _ = writer.finish().await;
        }
        while left > 0 {
            let Ok(Some(chunk)) = recv.read_chunk(left, true).await else { return Ok(None) };
            left -= chunk.bytes.len();
            if let Some(open) = &mut writer
                && open.write(chunk.bytes).await.is_err()
            {
                if then == Then::Nothing {
                    return Ok(None);
                }
                writer = None;
            }
        }
    }
    Ok(None)
}

/// Sends pieces as they come; whether the last one was among them.
async fn pump_out(mut reader: BodyReader, send: &mut Sending) -> bool {
    while let Some(piece) = reader.piece().await {
        let is_last = piece.is_empty();
        if send.write(&Frame::Piece, piece).await.is_err() || is_last {
            return is_last;
        }
    }
    false
}

/// The same, until `ended`, and then what is still there.
async fn pump_out_until(mut reader: BodyReader, send: &mut Sending, ended: &CancellationToken) {
    loop {
        let piece = tokio::select! {
            biased;
            piece = reader.piece() => piece,
            () = ended.cancelled() => reader.last_piece(),
        };
        let Some(piece) = piece else { return };
        let is_last = piece.is_empty();
        if send.write(&Frame::Piece, piece).await.is_err() || is_last {
            return;
        }
    }
}

/// Takes the duplex calls of the other end.
pub(super) async fn receive_duplex(lane: Lane) {
    while let Ok((send, recv)) = lane.connection.accept_bi().await {
        let (calls, lane) = (Arc::clone(&lane.calls), lane.clone());
        calls.spawn(async move {
            let opening = on_stream(&lane, Sending(send), recv);
            if let Ok(Err(problem)) = tokio::time::timeout(LARGE_TIMEOUT, opening).await {
                expel(&lane, problem);
            }
        });
    }
}

async fn on_stream(lane: &Lane, send: Sending, mut recv: RecvStream) -> Result<(), Malformed> {
    let Some((prefix, header)) = read_head(&mut recv, LANE_BODY_BYTES_MAX).await? else { return Ok(()) };
    let Some(Frame::Call(call)) = prefix.frame(&header)? else {
        return Err(Malformed::OutOfRange("the beginning of a duplex call"));
    };
    if lane.link.lock().is_choked() {
        metrics::dropped("call");
        return Ok(());
    }
    let Some(opening) = read_body(&mut recv, prefix.body_bytes, || {}).await else { return Ok(()) };
    let exchange = Exchange { lane: lane.clone(), send, recv };
    // Where less is allowed to any body, less is booked.
    let bytes = (opening.len() + DUPLEX_BYTES).min(lane.calls.body_bytes_max).max(opening.len());
    on_call(lane, call, Body::Opening(opening.into(), Box::new(exchange), bytes), None);
    Ok(())
}

/// The stream of a duplex call of another process.
pub(super) struct Exchange {
    lane: Lane,
    send: Sending,
    recv: RecvStream,
}

impl Exchange {
    /// Runs the handler while its bodies come and go. The stream takes its answer. None if the connection ends before: the
    /// call is lost, and nobody can say so to the handler.
    pub(super) async fn run<T>(
        &mut self,
        seq: u64,
        handler: impl AsyncFnOnce(Duplex) -> Result<Bytes, T>,
    ) -> Option<Result<Bytes, T>> {
        let ((to_handler, reader), (writer, of_handler)) = (body(), body());
        let ended = CancellationToken::new();
        let Self { lane, send, recv } = self;
        let running = async {
            let result = handler(Duplex::new(reader, writer)).await;
            ended.cancel();
            result
        };
        let sending = async {
            if send.write(&Frame::Begun { seq }, Bytes::new()).await.is_ok() {
                pump_out_until(of_handler, send, &ended).await;
            }
        };
        let receiving = async {
            tokio::select! {
                () = ended.cancelled() => {}
                read = pump_in(recv, to_handler, (Then::Nothing, LANE_BODY_BYTES_MAX)) => match read {
                    // It was cut off, or the handler does not read on.
                    Ok(None) => _ = recv.stop(CUT_OFF),
                    Ok(Some(_)) => expel(lane, Malformed::OutOfRange("what follows a duplex call")),
                    Err(problem) => expel(lane, problem),
                },
            }
        };
        tokio::select! {
            biased;
            (result, ..) = async { tokio::join!(running, sending, receiving) } => Some(result),
            _ = lane.connection.closed() => None,
        }
    }

    /// Sends the answer behind everything else, and gives the call's place back; waits until the answer is there.
    pub(super) async fn answer(mut self, frame: &Frame<'_>, body: Bytes, place: Place) {
        let _counted = Unacknowledged::count(&self.lane.calls);
        let written = self.send.write(frame, body).await.is_ok() && self.send.0.finish().is_ok();
        drop(place);
        if written {
            _ = self.send.0.stopped().await;
        }
    }
}
