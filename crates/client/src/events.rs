//! Server-sent events: the parser, and a stream of typed events.

use crate::ClientError;
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::marker::PhantomData;

/// One event as it came over the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerEvent {
    /// What to send as `Last-Event-ID` to go on after this one.
    pub id: Option<String>,
    /// The event's type; empty stands for a plain message.
    pub event: String,
    pub data: String,
}

/// Cuts a byte stream into events, however the network has cut it before.
#[derive(Debug, Default)]
pub struct ServerEventParser {
    line: Vec<u8>,
    after_return: bool,
    pending: ServerEvent,
    has_data: bool,
}

impl ServerEventParser {
    /// Takes the next bytes and gives the events they completed.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<ServerEvent> {
        let mut complete = Vec::new();
        for &byte in bytes {
            let line_feed_of_pair = byte == b'\n' && self.after_return;
            self.after_return = byte == b'\r';
            match byte {
                b'\n' if line_feed_of_pair => {}
                b'\n' | b'\r' => {
                    let line = std::mem::take(&mut self.line);
                    complete.extend(self.end_of_line(&String::from_utf8_lossy(&line)));
                }
                other => self.line.push(other),
            }
        }
        complete
    }

    fn end_of_line(&mut self, line: &str) -> Option<ServerEvent> {
        if line.is_empty() {
            let event = std::mem::take(&mut self.pending);
            return std::mem::take(&mut self.has_data).then_some(event);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                if self.has_data {
                    self.pending.data.push('\n');
                }
                self.pending.data.push_str(value);
                self.has_data = true;
            }
            "event" => value.clone_into(&mut self.pending.event),
            "id" => self.pending.id = Some(value.to_owned()),
            // Comments keep the connection alive; unknown fields are for later versions.
            _ => {}
        }
        None
    }
}

/// A live stream of values of one kind.
pub struct Events<T> {
    bytes: BoxStream<'static, Result<Bytes, reqwest::Error>>,
    parser: ServerEventParser,
    ready: VecDeque<ServerEvent>,
    kind: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Events<T> {
    pub(crate) fn new(answer: reqwest::Response) -> Self {
        Self {
            bytes: answer.bytes_stream().boxed(),
            parser: ServerEventParser::default(),
            ready: VecDeque::new(),
            kind: PhantomData,
        }
    }

    /// The next value with its event id; nothing when the Director ended the stream.
    ///
    /// # Errors
    /// The connection broke off, or an event is not of this kind.
    pub async fn next(&mut self) -> Result<Option<(Option<String>, T)>, ClientError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                let value = serde_json::from_str(&event.data)
                    .map_err(|source| ClientError::Malformed { source })?;
                return Ok(Some((event.id, value)));
            }
            match self.bytes.next().await {
                Some(Ok(bytes)) => self.ready.extend(self.parser.push(&bytes)),
                Some(Err(source)) => {
                    return Err(ClientError::BrokeOff {
                        source: source.without_url(),
                    });
                }
                None => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_any_cut() {
        let text = b": hello\n\nid: 7\nevent: step\ndata: {\"a\":\ndata: 1}\n\nretry: 10\ndata:x\r\n\r\ndata: y\r\r";
        let wanted = vec![
            ServerEvent {
                id: Some("7".into()),
                event: "step".into(),
                data: "{\"a\":\n1}".into(),
            },
            ServerEvent {
                id: None,
                event: String::new(),
                data: "x".into(),
            },
            ServerEvent {
                id: None,
                event: String::new(),
                data: "y".into(),
            },
        ];
        for size in 1..=text.len() {
            let mut parser = ServerEventParser::default();
            let found: Vec<_> = text
                .chunks(size)
                .flat_map(|chunk| parser.push(chunk))
                .collect();
            assert_eq!(found, wanted, "cut every {size} bytes");
        }
    }

    #[test]
    fn an_event_without_data_or_end_is_none() {
        let mut parser = ServerEventParser::default();
        assert!(parser.push(b"id: 1\n\ndata: half\n").is_empty());
        assert_eq!(parser.push(b"\n").len(), 1);
    }
}
