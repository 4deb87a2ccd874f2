//! Streams: both ways, silence, limits, ends.

use crate::world::{AGENT, BOUND, Note, Server, World, bounded, cutting_proxy, note};
use conpaas_wire::{
    Client, FramedStream, Problem, ServerSettings, StreamSettings, Versions, WireError,
    accept_stream,
};
use http::{HeaderMap, StatusCode};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

type Opened = mpsc::UnboundedReceiver<FramedStream<Note, Note>>;

/// A server that hands out the streams it opens.
async fn stream_server(world: &World, settings: StreamSettings) -> (Server, Opened) {
    let (opened, streams) = mpsc::unbounded_channel();
    let server = world
        .server(ServerSettings::default(), move |mut request, peer| {
            let (opened, settings) = (opened.clone(), settings.clone());
            async move {
                if peer.identity.is_none() {
                    return Problem::new(StatusCode::FORBIDDEN, "forbidden", "who are you?").into();
                }
                match accept_stream::<Note, Note, _>(&mut request, &settings) {
                    Ok((response, accepting)) => {
                        tokio::spawn(
                            async move { opened.send(accepting.established().await.unwrap()) },
                        );
                        response
                    }
                    Err(problem) => problem.into(),
                }
            }
        })
        .await;
    (server, streams)
}

fn quick() -> StreamSettings {
    StreamSettings {
        beat: Duration::from_millis(100),
        dead_after: Duration::from_secs(2),
        ..StreamSettings::default()
    }
}

async fn open(
    client: &Client,
    settings: &StreamSettings,
) -> Result<FramedStream<Note, Note>, WireError> {
    bounded(
        "opening",
        client.open_stream("/stream", HeaderMap::new(), settings),
    )
    .await
}

#[tokio::test]
async fn a_stream_goes_both_ways_and_ends_in_order() {
    let world = World::new();
    let (_server, mut opened) = stream_server(&world, quick()).await;
    let client = world.client(Some(AGENT), _server.address);
    let mut ours = open(&client, &quick()).await.unwrap();
    let mut theirs = bounded("the stream", opened.recv()).await.unwrap();
    assert_eq!(ours.version(), 1);
    for n in 0..100 {
        ours.send(&note(format!("up {n}"))).await.unwrap();
        theirs.send(&note(format!("down {n}"))).await.unwrap();
        assert_eq!(
            bounded("up", theirs.recv()).await.unwrap(),
            Some(note(format!("up {n}")))
        );
        assert_eq!(
            bounded("down", ours.recv()).await.unwrap(),
            Some(note(format!("down {n}")))
        );
    }
    let large = note("x".repeat(2_000_000));
    ours.send(&large).await.unwrap();
    assert_eq!(
        bounded("a large one", theirs.recv()).await.unwrap(),
        Some(large)
    );

    // Idle for longer than the silence that counts as death: beats keep it open.
    let idle = timeout(Duration::from_millis(2500), theirs.recv()).await;
    assert!(idle.is_err(), "{idle:?}");

    let (sender, mut receiver) = ours.split();
    for n in 0..50 {
        sender.send(&note(format!("last {n}"))).await.unwrap();
    }
    drop(sender);
    for n in 0..50 {
        assert_eq!(
            bounded("the rest", theirs.recv()).await.unwrap(),
            Some(note(format!("last {n}")))
        );
    }
    assert_eq!(bounded("the end", theirs.recv()).await.unwrap(), None);
    assert_eq!(
        bounded("the end here", receiver.recv()).await.unwrap(),
        None
    );
    assert!(matches!(
        theirs.send(&note("late")).await,
        Err(WireError::Closed)
    ));
}

#[tokio::test]
async fn streams_are_refused_with_reasons() {
    let world = World::new();
    let (server, _opened) = stream_server(&world, quick()).await;
    let agent = world.client(Some(AGENT), server.address);
    let newer = StreamSettings {
        versions: Versions {
            oldest: 5,
            newest: 6,
        },
        ..quick()
    };
    let refused = open(&agent, &newer).await.err().unwrap();
    assert_eq!(refused.code(), Some("version_unsupported"), "{refused}");
    let both = StreamSettings {
        versions: Versions {
            oldest: 1,
            newest: 2,
        },
        ..quick()
    };
    // A request states what streams it speaks; one version back is enough.
    assert_eq!(open(&agent, &both).await.unwrap().version(), 1);
    let own = StreamSettings {
        versions: Versions {
            oldest: 8,
            newest: 9,
        },
        ..quick()
    };
    let (other, _opened) = stream_server(&world, own.clone()).await;
    let stream = open(&world.client(Some(AGENT), other.address), &own)
        .await
        .unwrap();
    assert_eq!(stream.version(), 9, "a stream's versions are its own");
    let unnamed = open(&world.client(None, server.address), &quick())
        .await
        .err()
        .unwrap();
    assert_eq!(unnamed.code(), Some("forbidden"));
    assert_eq!(
        agent.get_json::<()>("/stream").await.unwrap_err().code(),
        Some("stream_expected")
    );
}

#[tokio::test]
async fn silence_is_noticed() {
    let world = World::new();
    let (server, mut opened) = stream_server(&world, quick()).await;
    // A peer that lives but beats too seldom is the same as one whose machine is gone.
    let seldom = StreamSettings {
        beat: Duration::from_secs(3600),
        dead_after: BOUND,
        ..quick()
    };
    let _ours = open(&world.client(Some(AGENT), server.address), &seldom)
        .await
        .unwrap();
    let mut theirs = bounded("the stream", opened.recv()).await.unwrap();
    let handle = theirs.handle();
    let lost = bounded("silence", theirs.recv()).await;
    assert!(matches!(lost, Err(WireError::Silent { .. })), "{lost:?}");
    bounded("closing", handle.closed()).await;
    assert!(matches!(
        theirs.send(&note("late")).await,
        Err(WireError::Closed)
    ));
}

#[tokio::test]
async fn oversize_frames_are_refused_on_both_sides() {
    let world = World::new();
    let small = StreamSettings {
        max_frame: 1000,
        ..quick()
    };
    let (server, mut opened) = stream_server(&world, small.clone()).await;
    let client = world.client(Some(AGENT), server.address);
    let ours = open(&client, &small).await.unwrap();
    let mut theirs = bounded("the stream", opened.recv()).await.unwrap();
    let refused = ours.send(&note("x".repeat(1000))).await;
    assert!(matches!(
        refused,
        Err(WireError::Oversize { limit: 1000, .. })
    ));
    ours.send(&note("fits")).await.unwrap();
    assert_eq!(
        bounded("what fits", theirs.recv()).await.unwrap(),
        Some(note("fits"))
    );

    let ours = open(&client, &quick()).await.unwrap();
    let mut theirs = bounded("the stream", opened.recv()).await.unwrap();
    ours.send(&note("x".repeat(1000))).await.unwrap();
    let refused = bounded("the refusal", theirs.recv()).await;
    assert!(
        matches!(refused, Err(WireError::Oversize { limit: 1000, .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_peer_that_takes_nothing_in_does_not_hold_the_sender() {
    let world = World::new();
    let patient = StreamSettings {
        dead_after: BOUND,
        queue: 2,
        ..quick()
    };
    let (server, mut opened) = stream_server(&world, patient.clone()).await;
    let hasty = StreamSettings {
        send_deadline: Duration::from_millis(300),
        ..patient
    };
    let mut ours = open(&world.client(Some(AGENT), server.address), &hasty)
        .await
        .unwrap();
    let _theirs = bounded("the stream", opened.recv()).await.unwrap();
    let large = note("x".repeat(1_000_000));
    let stalled = bounded("the stall", async {
        loop {
            if let Err(error) = ours.send(&large).await {
                return error;
            }
        }
    })
    .await;
    assert!(matches!(stalled, WireError::Stalled { .. }), "{stalled:?}");
    assert!(matches!(
        bounded("the end", ours.recv()).await,
        Err(WireError::Closed)
    ));
}

#[tokio::test]
async fn a_cut_line_is_no_orderly_end() {
    let world = World::new();
    let (server, mut opened) = stream_server(&world, quick()).await;
    let ours = open(&world.client(Some(AGENT), server.address), &quick())
        .await
        .unwrap();
    let mut theirs = bounded("the stream", opened.recv()).await.unwrap();
    ours.send(&note("one")).await.unwrap();
    assert_eq!(
        bounded("one", theirs.recv()).await.unwrap(),
        Some(note("one"))
    );
    ours.handle().close();
    assert!(matches!(
        ours.send(&note("two")).await,
        Err(WireError::Closed)
    ));
    assert!(matches!(bounded("the end", theirs.recv()).await, Ok(None)));

    let cut = cutting_proxy(server.address, 40_000).await;
    let mut ours = open(&world.client(Some(AGENT), cut), &quick())
        .await
        .unwrap();
    let theirs = bounded("the stream", opened.recv()).await.unwrap();
    theirs.send(&note("x".repeat(100_000))).await.unwrap();
    let broken = bounded("the break", ours.recv()).await;
    assert!(matches!(broken, Err(WireError::Io(_))), "{broken:?}");
}
