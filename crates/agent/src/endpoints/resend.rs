//! A connection whose questions are asked again when whoever was asked dies or is no target any
//! more: the consumer only waits longer. For protocols of question and answer (`OnChange::Resend`).
//! Whom it is led to is the endpoint's business.

use super::{AGAIN, Connection};
use conpaas_model::level::Provider;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Most of a question that is kept for asking again; of a longer one the connection is cut.
const MOST_KEPT: usize = 1 << 20;
const CHUNK: usize = 16 << 10;

/// Why a target is left.
enum End {
    /// The consumer has gone, or was answered in part and can only be cut.
    Over,
    /// The target has gone, or is none any more.
    Elsewhere,
}

/// What a connection keeps while it goes from one target to the next.
struct Kept {
    /// Asked, and not answered yet.
    question: Vec<u8>,
    /// Some of it was sent to somebody, who may have done what it asks for.
    sent: bool,
    /// It was too long to be kept whole.
    too_long: bool,
    buffer: Vec<u8>,
}

impl Kept {
    /// Waits for the consumer to ask something.
    async fn asked(&mut self, client: &mut TcpStream) -> io::Result<bool> {
        let length = client.read(&mut self.buffer).await?;
        self.keep(length);
        Ok(length > 0)
    }

    fn keep(&mut self, length: usize) {
        if self.question.len() + length > MOST_KEPT {
            self.too_long = true;
            self.question.clear();
        } else if !self.too_long {
            self.question.extend_from_slice(&self.buffer[..length]);
        }
    }
}

/// Serves a consumer until it goes, or a question is not answered for as long as it may be held.
pub(super) async fn serve(mut connection: Connection, mut client: TcpStream) {
    let mut kept = Kept {
        question: Vec::new(),
        sent: false,
        too_long: false,
        buffer: vec![0; CHUNK],
    };
    let mut since: Option<Instant> = None;
    loop {
        if kept.question.is_empty() {
            since = None;
            match kept.asked(&mut client).await {
                Ok(true) if !kept.too_long => {}
                _ => return,
            }
        }
        let since = *since.get_or_insert_with(Instant::now);
        let hold = Duration::from_secs(connection.level.borrow().hold_seconds.into());
        if since.elapsed() > hold {
            return;
        }
        let Some((server, target, _counted)) = connection.reach(&client).await else {
            return;
        };
        match led(&connection, &mut client, server, &target, &mut kept).await {
            End::Over => return,
            End::Elsewhere if kept.question.is_empty() => {}
            End::Elsewhere => tokio::time::sleep(AGAIN).await,
        }
    }
}

/// Carries questions and answers between a consumer and one target.
async fn led(
    connection: &Connection,
    client: &mut TcpStream,
    mut server: TcpStream,
    target: &Provider,
    kept: &mut Kept,
) -> End {
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    // Part of an answer is on its way to the consumer: it can be cut, and not asked again.
    let mut amid_answer = false;
    let mut level = connection.level.clone();
    let left = async {
        // The endpoint itself ends its connections when it goes.
        let left = level.wait_for(|level| !level.targets.contains(target));
        left.await.map_or(End::Over, |_| End::Elsewhere)
    };
    let again = |question: &[u8]| {
        let agents = connection.agents?;
        agents.asked_again(&connection.endpoint, question)
    };
    let end = tokio::select! {
        biased;
        end = left => end,
        end = carry(client, &mut server, kept, &mut amid_answer, again) => end,
    };
    match end {
        End::Elsewhere if amid_answer || kept.too_long => End::Over,
        end => end,
    }
}

async fn carry(
    client: &mut TcpStream,
    server: &mut TcpStream,
    kept: &mut Kept,
    amid_answer: &mut bool,
    again: impl Fn(&[u8]) -> Option<Vec<u8>>,
) -> End {
    let again = (kept.sent).then(|| again(&kept.question)).flatten();
    kept.sent = !kept.question.is_empty();
    let first = again.as_deref().unwrap_or(&kept.question);
    if server.write_all(first).await.is_err() {
        return End::Elsewhere;
    }
    let mut answer = vec![0; CHUNK];
    loop {
        tokio::select! {
            read = server.read(&mut answer) => {
                let Ok(length @ 1..) = read else { return End::Elsewhere };
                kept.question.clear();
                (kept.sent, kept.too_long) = (false, false);
                *amid_answer = true;
                if client.write_all(&answer[..length]).await.is_err() {
                    return End::Over;
                }
                *amid_answer = false;
            }
            read = client.read(&mut kept.buffer) => {
                let Ok(length @ 1..) = read else { return End::Over };
                kept.keep(length);
                kept.sent = true;
                if server.write_all(&kept.buffer[..length]).await.is_err() {
                    return End::Elsewhere;
                }
            }
        }
    }
}
