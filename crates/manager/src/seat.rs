//! One agent's stream: what comes up goes to the desk, the newest level and commands go down.

use crate::desk::Message;
use conpaas_model::ids::MachineId;
use conpaas_model::level::Level;
use conpaas_model::protocol::{FromAgent, ToAgent};
use conpaas_wire::{FramedStream, StreamHandle, WireError};
use std::collections::HashMap;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// What the desk holds of a connected agent.
pub struct Seat {
    /// Tells apart streams of the same machine.
    pub id: u64,
    pub levels: watch::Sender<Option<Level>>,
    pub commands: mpsc::Sender<ToAgent>,
    pub handle: StreamHandle,
    /// Commands that were sent and wait for their result.
    pub pending: HashMap<u64, oneshot::Sender<Result<serde_json::Value, String>>>,
}

impl Seat {
    /// Sends a command; its result comes by the receiver.
    pub fn command(
        &mut self,
        id: u64,
        command: ToAgent,
    ) -> Option<oneshot::Receiver<Result<serde_json::Value, String>>> {
        self.pending.retain(|_, waiting| !waiting.is_closed());
        self.commands.try_send(command).ok()?;
        let (answer, answered) = oneshot::channel();
        self.pending.insert(id, answer);
        Some(answered)
    }
}

/// Serves a stream to its end.
pub async fn run(
    stream: FramedStream<FromAgent, ToAgent>,
    machine: MachineId,
    desk: mpsc::Sender<Message>,
    shutdown: CancellationToken,
) {
    let (levels, levels_out) = watch::channel(None);
    let (commands, commands_out) = mpsc::channel(32);
    let handle = stream.handle();
    let (answer, answered) = oneshot::channel();
    let seat = Seat {
        id: 0,
        levels,
        commands,
        handle: handle.clone(),
        pending: HashMap::new(),
    };
    let _ = desk
        .send(Message::Join {
            machine: machine.clone(),
            seat,
            answer,
        })
        .await;
    let Ok(id) = answered.await else {
        handle.close();
        return;
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = handle.closed() => {}
        ended = converse(stream, id, &machine, levels_out, commands_out, &desk) => {
            if let Err(error) = ended {
                tracing::info!(%machine, %error, "an agent's stream ended");
            }
        }
    }
    handle.close();
    let _ = desk.send(Message::Gone { machine, id }).await;
}

async fn converse(
    stream: FramedStream<FromAgent, ToAgent>,
    id: u64,
    machine: &MachineId,
    mut levels: watch::Receiver<Option<Level>>,
    mut commands: mpsc::Receiver<ToAgent>,
    desk: &mpsc::Sender<Message>,
) -> Result<(), WireError> {
    let (sender, mut receiver) = stream.split();
    // Down and up do not wait for each other: an agent that takes nothing in is still heard.
    let up = async {
        while let Some(message) = receiver.recv().await? {
            let message = Message::FromAgent {
                machine: machine.clone(),
                id,
                message,
            };
            if desk.send(message).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    let down = async {
        loop {
            tokio::select! {
                changed = levels.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let level = levels.borrow_and_update().clone();
                    if let Some(level) = level {
                        sender.send(&ToAgent::Level(level)).await?;
                    }
                }
                command = commands.recv() => match command {
                    Some(command) => sender.send(&command).await?,
                    None => return Ok(()),
                },
            }
        }
    };
    tokio::select! {
        ended = up => ended,
        ended = down => ended,
    }
}
