//! The two tasks behind a stream: one reads frames and watches for silence, one writes frames and beats.

use super::{PREFIX, StreamSettings};
use crate::WireError;
use crate::server::Permit;
use bytes::{Buf, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;

const BEAT: [u8; PREFIX] = [0; PREFIX];
/// How long the goodbye of a connection may take.
const GOODBYE: Duration = Duration::from_secs(1);

pub(super) fn start<Rx: DeserializeOwned + Send + 'static>(
    io: impl AsyncRead + AsyncWrite + Send + 'static,
    settings: &StreamSettings,
    closed: CancellationToken,
    from_sender: mpsc::Receiver<Bytes>,
    to_receiver: mpsc::Sender<Result<Rx, WireError>>,
    held: Option<Permit>,
) {
    let (reader, writer) = tokio::io::split(io);
    // Said when all senders are gone and their messages are out; the reader then waits for the peer's
    // end, but not for ever.
    let finished = CancellationToken::new();
    tokio::spawn(write(
        writer,
        from_sender,
        settings.beat,
        closed.clone(),
        finished.clone(),
    ));
    let reading = Reading {
        reader,
        buffer: BytesMut::with_capacity(8 * 1024),
        max_frame: settings.max_frame,
        dead_after: settings.dead_after,
    };
    tokio::spawn(async move {
        read(reading, to_receiver, &closed, &finished).await;
        closed.cancel();
        drop(held);
    });
}

async fn write<T: AsyncWrite>(
    mut writer: WriteHalf<T>,
    mut queue: mpsc::Receiver<Bytes>,
    beat: Duration,
    closed: CancellationToken,
    finished: CancellationToken,
) {
    let mut beats = tokio::time::interval(beat.max(Duration::from_millis(1)));
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let pump = async {
        loop {
            tokio::select! {
                biased;
                frame = queue.recv() => match frame {
                    Some(frame) => writer.write_all(&frame).await?,
                    None => return Ok::<_, io::Error>(()),
                },
                _ = beats.tick() => writer.write_all(&BEAT).await?,
            }
            // What waits already goes out in the same flush.
            while let Ok(frame) = queue.try_recv() {
                writer.write_all(&frame).await?;
            }
            writer.flush().await?;
        }
    };
    let outcome = tokio::select! {
        () = closed.cancelled() => None,
        outcome = pump => Some(outcome),
    };
    match outcome {
        Some(Ok(())) => {
            let _ = timeout(GOODBYE, writer.shutdown()).await;
            finished.cancel();
        }
        Some(Err(error)) => {
            // The reader may still hold messages that came before the break, and finds it too.
            tracing::debug!(%error, "a stream cannot be written");
            queue.close();
            finished.cancel();
        }
        None => {
            let _ = timeout(GOODBYE, writer.shutdown()).await;
        }
    }
}

async fn read<T: AsyncRead, Rx: DeserializeOwned>(
    mut reading: Reading<T>,
    to_receiver: mpsc::Sender<Result<Rx, WireError>>,
    closed: &CancellationToken,
    finished: &CancellationToken,
) {
    let dead_after = reading.dead_after;
    let given_up = async {
        finished.cancelled().await;
        tokio::time::sleep(dead_after).await;
    };
    let mut given_up = std::pin::pin!(given_up);
    loop {
        let next = tokio::select! {
            next = reading.next() => next,
            () = closed.cancelled() => Err(WireError::Closed),
            () = given_up.as_mut() => Ok(None),
        };
        let message = match next {
            Ok(None) => return,
            Ok(Some(frame)) => serde_json::from_slice(&frame).map_err(WireError::Malformed),
            // We said goodbye; how the peer hangs up is its own affair.
            Err(WireError::Io(_)) if finished.is_cancelled() => return,
            Err(error) => Err(error),
        };
        let last = message.is_err();
        if last {
            // Senders learn at once, and the connection goes, however slow the receiver is.
            closed.cancel();
            drop(reading);
            // A receiver that is behind gets its messages first and the reason after them.
            let _ = to_receiver.send(message).await;
            return;
        }
        tokio::select! {
            // Fails when the receiver is gone: then messages are discarded.
            _ = to_receiver.send(message) => {}
            () = closed.cancelled() => {}
        }
    }
}

struct Reading<T> {
    reader: ReadHalf<T>,
    buffer: BytesMut,
    max_frame: usize,
    dead_after: Duration,
}

impl<T: AsyncRead> Reading<T> {
    /// The next frame that is no beat; `None` when the peer ended between frames.
    async fn next(&mut self) -> Result<Option<BytesMut>, WireError> {
        loop {
            if let Some(prefix) = self.buffer.first_chunk::<PREFIX>() {
                let length = u32::from_be_bytes(*prefix) as usize;
                if length == 0 {
                    self.buffer.advance(PREFIX);
                    continue;
                }
                if length > self.max_frame {
                    return Err(WireError::Oversize {
                        bytes: length as u64,
                        limit: self.max_frame as u64,
                    });
                }
                if self.buffer.len() >= PREFIX + length {
                    self.buffer.advance(PREFIX);
                    return Ok(Some(self.buffer.split_to(length)));
                }
            }
            // Room grows with what arrives, not with what a prefix promises.
            self.buffer.reserve(8 * 1024);
            match timeout(self.dead_after, self.reader.read_buf(&mut self.buffer)).await {
                Err(_) => {
                    return Err(WireError::Silent {
                        after: self.dead_after,
                    });
                }
                Ok(Err(error)) => return Err(WireError::Io(error)),
                Ok(Ok(0)) if self.buffer.is_empty() => return Ok(None),
                Ok(Ok(0)) => return Err(WireError::Io(io::ErrorKind::UnexpectedEof.into())),
                Ok(Ok(_)) => {}
            }
        }
    }
}
