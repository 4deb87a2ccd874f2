//! Long-lived streams of framed JSON, both ways, on a connection that was upgraded from HTTP.
//!
//! A frame is its length (four bytes, big-endian) and that many bytes of JSON. A frame of length zero
//! is a beat: each side sends one whenever an interval has passed, so that either notices within
//! seconds that the other is gone. Any byte that arrives counts as life, so a large frame on a slow
//! line is no silence.

mod accept;
mod pump;

pub use accept::{Accepting, accept_stream};
pub(crate) use accept::{PROTOCOL, is_our_upgrade};

use crate::{Versions, WIRE, WireError};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::marker::PhantomData;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Bytes of a frame's length.
const PREFIX: usize = 4;

/// Settings of a stream's end. Both ends should beat well within the other's `dead_after`.
#[derive(Clone, Debug)]
pub struct StreamSettings {
    /// Interval of beats. Default 1 s.
    pub beat: Duration,
    /// Without a byte from the peer for this long it counts as gone. Default 5 s.
    pub dead_after: Duration,
    /// Largest frame in bytes, both ways. Default 16 MiB.
    pub max_frame: usize,
    /// Messages that may wait, each way. Default 64.
    pub queue: usize,
    /// How long a sender waits for a place in a full queue before the stream is closed. Default 5 s.
    pub send_deadline: Duration,
    /// Versions of the stream's messages that this side speaks.
    pub versions: Versions,
}

impl Default for StreamSettings {
    fn default() -> Self {
        Self {
            beat: Duration::from_secs(1),
            dead_after: Duration::from_secs(5),
            max_frame: 16 * 1024 * 1024,
            queue: 64,
            send_deadline: Duration::from_secs(5),
            versions: WIRE,
        }
    }
}

/// Closes a stream from anywhere, and tells when it is closed.
#[derive(Clone, Debug)]
pub struct StreamHandle(CancellationToken);

impl StreamHandle {
    /// Cuts the stream; what still waits to be sent is lost.
    pub fn close(&self) {
        self.0.cancel();
    }

    pub fn is_closed(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until the stream is closed, by whomever.
    pub async fn closed(&self) {
        self.0.cancelled().await;
    }
}

/// The sending half; clones share the queue. When the last is dropped, what waits is sent and the
/// stream ends.
pub struct StreamSender<Tx> {
    queue: mpsc::Sender<Bytes>,
    handle: StreamHandle,
    max_frame: usize,
    deadline: Duration,
    message: PhantomData<fn(&Tx)>,
}

impl<Tx> Clone for StreamSender<Tx> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            handle: self.handle.clone(),
            max_frame: self.max_frame,
            deadline: self.deadline,
            message: PhantomData,
        }
    }
}

impl<Tx: Serialize> StreamSender<Tx> {
    /// Puts a message into the queue. `Ok` says that it will be sent, not that it has arrived.
    ///
    /// Errors: `Oversize` and `Encode` leave the stream as it was; `Stalled` closed it, since the peer
    /// took nothing in for the send deadline; `Closed`.
    pub async fn send(&self, message: &Tx) -> Result<(), WireError> {
        let mut frame = vec![0; PREFIX];
        serde_json::to_writer(&mut frame, message).map_err(WireError::Encode)?;
        let length = frame.len() - PREFIX;
        let oversize = WireError::Oversize {
            bytes: length as u64,
            limit: self.max_frame as u64,
        };
        if length > self.max_frame {
            return Err(oversize);
        }
        let prefix = u32::try_from(length).map_err(|_| oversize)?;
        frame[..PREFIX].copy_from_slice(&prefix.to_be_bytes());
        tokio::select! {
            biased;
            () = self.handle.0.cancelled() => Err(WireError::Closed),
            sent = tokio::time::timeout(self.deadline, self.queue.send(frame.into())) => match sent {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) => Err(WireError::Closed),
                Err(_) => {
                    self.handle.close();
                    Err(WireError::Stalled { after: self.deadline })
                }
            }
        }
    }

    pub fn handle(&self) -> StreamHandle {
        self.handle.clone()
    }
}

/// The receiving half. When it is dropped, what comes is discarded while the sending half lives on.
pub struct StreamReceiver<Rx> {
    queue: mpsc::Receiver<Result<Rx, WireError>>,
    handle: StreamHandle,
}

impl<Rx> StreamReceiver<Rx> {
    /// The next message; `None` when the peer has closed the stream in good order. After an error the
    /// stream is closed. May be cancelled without losing a message.
    pub async fn recv(&mut self) -> Result<Option<Rx>, WireError> {
        self.queue.recv().await.transpose()
    }

    pub fn handle(&self) -> StreamHandle {
        self.handle.clone()
    }
}

/// An open stream that receives `Rx` and sends `Tx`.
pub struct FramedStream<Rx, Tx> {
    sender: StreamSender<Tx>,
    receiver: StreamReceiver<Rx>,
    version: u32,
}

impl<Rx, Tx> FramedStream<Rx, Tx>
where
    Rx: DeserializeOwned + Send + 'static,
    Tx: Serialize,
{
    /// Makes a stream of a connection on which both sides have agreed to speak frames. `held` is kept
    /// until the connection is let go.
    pub(crate) fn start(
        io: impl AsyncRead + AsyncWrite + Send + 'static,
        version: u32,
        settings: &StreamSettings,
        held: Option<crate::server::Permit>,
    ) -> Self {
        let handle = StreamHandle(CancellationToken::new());
        let (to_wire, from_sender) = mpsc::channel(settings.queue.max(1));
        let (to_receiver, from_wire) = mpsc::channel(settings.queue.max(1));
        pump::start(
            io,
            settings,
            handle.0.clone(),
            from_sender,
            to_receiver,
            held,
        );
        Self {
            sender: StreamSender {
                queue: to_wire,
                handle: handle.clone(),
                max_frame: settings.max_frame,
                deadline: settings.send_deadline,
                message: PhantomData,
            },
            receiver: StreamReceiver {
                queue: from_wire,
                handle,
            },
            version,
        }
    }

    /// See [`StreamSender::send`].
    pub async fn send(&self, message: &Tx) -> Result<(), WireError> {
        self.sender.send(message).await
    }

    /// See [`StreamReceiver::recv`].
    pub async fn recv(&mut self) -> Result<Option<Rx>, WireError> {
        self.receiver.recv().await
    }

    pub fn split(self) -> (StreamSender<Tx>, StreamReceiver<Rx>) {
        (self.sender, self.receiver)
    }

    pub fn handle(&self) -> StreamHandle {
        self.sender.handle()
    }

    /// The version both sides agreed on.
    pub fn version(&self) -> u32 {
        self.version
    }
}
