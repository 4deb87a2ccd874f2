//! Bodies on their way: counted, never gathered.

use crate::access_log::Record;
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How the sending of a request goes, for who waits for the answer.
#[derive(Clone)]
pub struct Progress(Arc<Mutex<State>>);

struct State {
    last: std::time::Instant,
    client_failed: bool,
}

impl Progress {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            last: std::time::Instant::now(),
            client_failed: false,
        })))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When a part of the body was last taken (at first: when sending began).
    pub fn last(&self) -> std::time::Instant {
        self.state().last
    }

    /// Whether the client is to blame that the request did not go out as a whole.
    pub fn client_failed(&self) -> bool {
        self.state().client_failed
    }
}

/// A client's body on its way to an upstream. Ends with an error when the client pauses too long.
pub enum RequestBody {
    Empty,
    Stream {
        inner: Incoming,
        pause: Duration,
        timer: Option<Pin<Box<Sleep>>>,
        progress: Progress,
    },
}

impl RequestBody {
    pub fn new(inner: Incoming, pause: Duration) -> Self {
        if inner.is_end_stream() {
            Self::Empty
        } else {
            Self::Stream {
                inner,
                pause,
                timer: None,
                progress: Progress::new(),
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    pub fn progress(&self) -> Progress {
        match self {
            Self::Empty => Progress::new(),
            Self::Stream { progress, .. } => progress.clone(),
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Stream {
                inner,
                pause,
                timer,
                progress,
            } => {
                if let Poll::Ready(frame) = Pin::new(inner).poll_frame(context) {
                    *timer = None;
                    let mut state = progress.state();
                    state.last = std::time::Instant::now();
                    state.client_failed |= matches!(frame, Some(Err(_)));
                    return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
                }
                let timer = timer.get_or_insert_with(|| Box::pin(sleep(*pause)));
                ready!(timer.as_mut().poll(context));
                timer.as_mut().reset(Instant::now() + *pause);
                progress.state().client_failed = true;
                let error = io::Error::new(io::ErrorKind::TimedOut, "the client paused too long");
                Poll::Ready(Some(Err(error.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Stream { inner, .. } => inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Stream { inner, .. } => inner.size_hint(),
        }
    }
}

/// An answer on its way to a client. Its record is logged when it ends, however it ends.
pub struct ResponseBody {
    inner: Source,
    record: Option<Record>,
}

enum Source {
    Upstream(Incoming),
    Own(Option<Bytes>),
}

impl ResponseBody {
    pub fn upstream(inner: Incoming, record: Record) -> Self {
        Self {
            inner: Source::Upstream(inner),
            record: Some(record),
        }
    }

    /// An answer of the edge's own; `record` is `None` where somebody else keeps it.
    pub fn own(text: impl Into<Bytes>, record: Option<Record>) -> Self {
        Self {
            inner: Source::Own(Some(text.into())),
            record,
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let frame = match &mut this.inner {
            Source::Upstream(inner) => ready!(Pin::new(inner).poll_frame(context)),
            Source::Own(text) => text
                .take()
                .filter(|text| !text.is_empty())
                .map(|text| Ok(Frame::data(text))),
        };
        match (&frame, &mut this.record) {
            (Some(Ok(frame)), Some(record)) => {
                record.add_bytes(frame.data_ref().map_or(0, |data| data.len() as u64));
            }
            (Some(Err(_)), Some(record)) => record.broke_off(),
            // Ended well: the upstream is let go now, not when the connection forgets the body.
            (None, _) => this.record = None,
            _ => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Source::Upstream(inner) => inner.is_end_stream(),
            Source::Own(text) => text.as_ref().is_none_or(Bytes::is_empty),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Source::Upstream(inner) => inner.size_hint(),
            Source::Own(text) => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
        }
    }
}
