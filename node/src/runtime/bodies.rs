//! Bodies that come in pieces while a call is under way: what goes to the handler behind the call's own body, and what comes
//! from it before the answer.
//!
//! A writer waits while its reader is behind, wherever that is: little lies between them.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use swimring_forwarder::wire::LANE_BODY_BYTES_MAX;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Longest piece of a body between two processes, in bytes; whoever writes need not care.
const PIECE_BYTES_MAX: usize = LANE_BODY_BYTES_MAX;
/// Most pieces between a writer and its reader in one process.
const PIECES: usize = 4;

/// The other end of a body has gone before the body was at its end.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the body was cut off")]
pub struct Cut;

impl From<Cut> for io::Error {
    fn from(cut: Cut) -> Self {
        Self::new(io::ErrorKind::UnexpectedEof, cut)
    }
}

/// Writes a body. Dropped without [`finish`](Self::finish), it cuts the body off, and the reader hears so.
#[derive(Debug)]
pub struct BodyWriter(mpsc::Sender<Bytes>);

/// Reads a body: bytes in their order. Where one piece ends and the next begins means nothing.
#[derive(Debug)]
pub struct BodyReader {
    pieces: mpsc::Receiver<Bytes>,
    over: bool,
}

/// Both ends of a body.
pub(crate) fn body() -> (BodyWriter, BodyReader) {
    let (writer, pieces) = mpsc::channel(PIECES);
    (BodyWriter(writer), BodyReader { pieces, over: false })
}

impl BodyWriter {
    /// Writes some bytes; waits while the reader is behind.
    ///
    /// # Errors
    /// If nobody reads any more: the call has its outcome, or never began. A caller in another process that reads no more, and
    /// still waits for the outcome, is not noticed: what is written for it goes nowhere.
    pub async fn write(&mut self, bytes: impl Into<Bytes>) -> Result<(), Cut> {
        let mut rest = bytes.into();
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(PIECE_BYTES_MAX));
            self.0.send(piece).await.map_err(|_| Cut)?;
        }
        Ok(())
    }

    /// The body is whole.
    ///
    /// # Errors
    /// If nobody reads any more.
    pub async fn finish(self) -> Result<(), Cut> {
        self.0.send(Bytes::new()).await.map_err(|_| Cut)
    }
}

impl BodyReader {
    /// The next bytes, at least one; none once the body is at its end.
    ///
    /// # Errors
    /// If the body was cut off, once.
    pub async fn read(&mut self) -> Option<Result<Bytes, Cut>> {
        std::future::poll_fn(|context| self.poll_read(context)).await
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        if self.over {
            return Poll::Ready(None);
        }
        self.pieces.poll_recv(context).map(|piece| {
            let more = piece.as_ref().is_some_and(|bytes| !bytes.is_empty());
            self.over = !more;
            match piece {
                Some(bytes) => more.then_some(Ok(bytes)),
                None => Some(Err(Cut)),
            }
        })
    }

    /// The rest of the body; no more than `max` bytes of it.
    ///
    /// # Errors
    /// If the body was cut off, or is longer.
    pub async fn read_to_end(&mut self, max: usize) -> Result<Bytes, Cut> {
        let mut whole = BytesMut::new();
        while let Some(bytes) = self.read().await.transpose()? {
            if whole.len() + bytes.len() > max {
                return Err(Cut);
            }
            whole.extend_from_slice(&bytes);
        }
        Ok(whole.freeze())
    }

    /// The next piece as it was written: an empty one is the last. None if the writer has gone.
    pub(crate) async fn piece(&mut self) -> Option<Bytes> {
        self.pieces.recv().await
    }

    /// The same, of those that are there; nothing more is taken.
    pub(crate) fn last_piece(&mut self) -> Option<Bytes> {
        self.pieces.close();
        self.pieces.try_recv().ok()
    }
}

impl Stream for BodyReader {
    type Item = Result<Bytes, Cut>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_read(context)
    }
}

/// The handler's ends of the bodies of a duplex call: what comes behind the call's own body, and what goes before its
/// answer. Empty in all other calls.
#[derive(Clone, Default)]
pub struct Duplex(Option<Arc<Mutex<Ends>>>);

/// None once they were taken.
type Ends = Option<(BodyReader, BodyWriter)>;

impl Duplex {
    pub(crate) fn new(reader: BodyReader, writer: BodyWriter) -> Self {
        Self(Some(Arc::new(Mutex::new(Some((reader, writer))))))
    }

    /// Takes both: once, of however many clones. A handler that does not cuts both bodies off.
    pub fn take(&self) -> Option<(BodyReader, BodyWriter)> {
        self.0.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether somebody has taken them.
    fn is_taken(&self) -> bool {
        self.0.as_ref().is_some_and(|ends| ends.lock().unwrap_or_else(PoisonError::into_inner).is_none())
    }
}

impl fmt::Debug for Duplex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Duplex" } else { "none" })
    }
}

/// A duplex call of this node.
#[derive(Debug)]
pub(crate) struct DuplexCall {
    /// For the handler, or for whoever stands in for it here.
    pub(crate) ends: Duplex,
    made: AtomicBool,
    /// It has its outcome, or nobody waits for one.
    pub(crate) over: CancellationToken,
}

impl DuplexCall {
    /// The call, and the ends of its caller.
    pub(crate) fn new() -> (Arc<Self>, BodyWriter, BodyReader) {
        let ((writer, for_handler), (of_handler, reader)) = (body(), body());
        let ends = Duplex::new(for_handler, of_handler);
        let call = Self { ends, made: AtomicBool::new(false), over: CancellationToken::new() };
        (Arc::new(call), writer, reader)
    }

    /// Makes it: whether that is the first time.
    pub(crate) fn make(&self) -> bool {
        !self.made.swap(true, Ordering::AcqRel)
    }

    /// Whether its bodies are with a handler.
    pub(crate) fn has_begun(&self) -> bool {
        self.ends.is_taken()
    }
}

/// Ends a duplex call when it goes: nobody gets its bodies any more.
pub(crate) struct Over(pub(crate) Arc<DuplexCall>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.over.cancel();
        self.0.ends.take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_arrives_whole_in_order_and_ends() {
        let (mut writer, mut reader) = body();
        let long: Bytes = (0..=255u8).cycle().take(PIECE_BYTES_MAX * 6 + 1).collect();
        let writing = async {
            writer.write(long.clone()).await?;
            writer.write(Bytes::new()).await?;
            writer.write("end").await?;
            writer.finish().await
        };
        let (written, read) = tokio::join!(writing, reader.read_to_end(usize::MAX));
        assert_eq!(written, Ok(()));
        assert_eq!(read.unwrap(), [&long[..], b"end"].concat());
        assert_eq!(reader.read().await, None);
    }

    #[tokio::test]
    async fn a_writer_waits_for_a_reader_that_is_behind() {
        let (mut writer, mut reader) = body();
        for _ in 0..PIECES {
            writer.write("piece").await.unwrap();
        }
        let mut waiting = Box::pin(writer.write("piece"));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        assert_eq!(reader.read().await, Some(Ok("piece".into())));
        assert_eq!(waiting.await, Ok(()));
    }

    #[tokio::test]
    async fn whoever_goes_away_cuts_the_body_off() {
        let (mut writer, mut reader) = body();
        writer.write("some").await.unwrap();
        drop(writer);
        assert_eq!(reader.read().await, Some(Ok("some".into())));
        assert_eq!((reader.read().await, reader.read().await), (Some(Err(Cut)), None));
        let (mut writer, reader) = body();
        drop(reader);
        assert_eq!(writer.write("none").await, Err(Cut));
        assert_eq!(writer.finish().await, Err(Cut));
    }

    #[tokio::test]
    async fn what_is_longer_than_was_asked_for_is_not_taken() {
        let (mut writer, mut reader) = body();
        writer.write("four").await.unwrap();
        writer.finish().await.unwrap();
        assert_eq!(reader.read_to_end(3).await, Err(Cut));
    }

    #[tokio::test]
    async fn the_bodies_of_a_call_are_taken_once() {
        let (call, _writer, _reader) = DuplexCall::new();
        assert!(call.make() && !call.make() && !call.has_begun());
        let other = call.ends.clone();
        assert!(other.take().is_some() && call.ends.take().is_none() && call.has_begun());
        assert!(Duplex::default().take().is_none());
    }
}
