use super::resolver::answer;
use super::*;
use conpaas_model::ids::NodeNumber;
use std::net::Ipv4Addr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;

/// A part of the loopback network for this test process and test alone.
fn loopback(test: u8) -> Loopback {
    let own = (std::process::id() % 60) as u8;
    Loopback([127, 130 + own + 60 * (test % 2)])
}

/// Says its own name to everybody and then echoes.
async fn provider(node: u64) -> (Provider, JoinHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let provider = Provider {
        role: "store".into(),
        node: NodeNumber(node),
        release: None,
        address: Ipv4Addr::LOCALHOST,
        port: listener.local_addr().unwrap().port(),
        capacity: 0,
    };
    let task = tokio::spawn(async move {
        let mut all = JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            all.spawn(async move {
                stream.write_all(&[node as u8]).await.unwrap();
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    (provider, task)
}

fn level(slot: u8, port: u16, targets: &[&Provider], on_change: OnChange) -> EndpointLevel {
    EndpointLevel {
        listen: SocketAddrV4::new(Ipv4Addr::new(127, 77, slot, 1), port),
        users: ["web".to_owned()].into(),
        targets: targets.iter().map(|p| (*p).clone()).collect(),
        hold_seconds: 20,
        on_change,
    }
}

fn one(level: EndpointLevel) -> BTreeMap<String, EndpointLevel> {
    BTreeMap::from([("db".to_owned(), level)])
}

async fn dial(at: SocketAddrV4) -> TcpStream {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match TcpStream::connect(at).await {
            Ok(stream) => return stream,
            Err(error) if Instant::now() > deadline => panic!("{at} does not listen: {error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Whom a connection was led to.
async fn whom(stream: &mut TcpStream) -> u8 {
    tokio::time::timeout(Duration::from_secs(10), stream.read_u8())
        .await
        .unwrap()
        .unwrap()
}

/// Whether a connection still echoes.
async fn lives(stream: &mut TcpStream) -> bool {
    if stream.write_all(b"x").await.is_err() {
        return false;
    }
    let echo = tokio::time::timeout(Duration::from_secs(10), stream.read_u8()).await;
    matches!(echo.unwrap(), Ok(b'x'))
}

async fn until_held(endpoints: &Endpoints, expected: &[(u64, u64)]) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let held: Vec<(u64, u64)> = endpoints
            .held()
            .values()
            .flatten()
            .map(|(instance, count)| (instance.node.0, *count))
            .collect();
        if held == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{held:?}, not {expected:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn connections_are_held_until_there_is_somebody_and_led_there() {
    let mut endpoints = Endpoints::new(loopback(0));
    let at = loopback(0).place(level(1, 7001, &[], OnChange::Keep).listen);
    endpoints.lead(&one(level(1, 7001, &[], OnChange::Keep)), None);
    let mut held = Vec::new();
    for _ in 0..50 {
        held.push(dial(at).await);
    }
    until_held(&endpoints, &[]).await;
    // One that refuses is no help: it goes on holding.
    let (gone, task) = provider(9).await;
    // Both have their ports at one time, so they are two.
    let (first, _task) = provider(1).await;
    task.abort();
    let _ = task.await;
    endpoints.lead(&one(level(1, 7001, &[&gone], OnChange::Keep)), None);
    endpoints.lead(&one(level(1, 7001, &[&gone, &first], OnChange::Keep)), None);
    for stream in &mut held {
        assert_eq!(whom(stream).await, 1);
        assert!(lives(stream).await);
    }
    until_held(&endpoints, &[(1, 50)]).await;
    drop(held);
    until_held(&endpoints, &[]).await;
}

#[tokio::test]
async fn a_switch_keeps_or_cuts_what_is_open_and_leads_all_new_ones_elsewhere() {
    let (first, _one) = provider(1).await;
    let (second, _two) = provider(2).await;
    for (slot, policy) in [(2, OnChange::Keep), (3, OnChange::Cut)] {
        let mut endpoints = Endpoints::new(loopback(0));
        let at = loopback(0).place(level(slot, 7002, &[], policy).listen);
        endpoints.lead(&one(level(slot, 7002, &[&first], policy)), None);
        let mut old = dial(at).await;
        assert_eq!(whom(&mut old).await, 1);
        endpoints.lead(&one(level(slot, 7002, &[&second], policy)), None);
        let mut new = dial(at).await;
        assert_eq!(whom(&mut new).await, 2);
        assert_eq!(lives(&mut old).await, policy == OnChange::Keep);
        if policy == OnChange::Keep {
            until_held(&endpoints, &[(1, 1), (2, 1)]).await;
            drop(old);
        }
        until_held(&endpoints, &[(2, 1)]).await;
        assert!(lives(&mut new).await);
    }
}

#[tokio::test]
async fn new_connections_take_turns_and_a_hold_has_an_end() {
    let (first, _one) = provider(1).await;
    let (second, _two) = provider(2).await;
    let mut endpoints = Endpoints::new(loopback(0));
    let mut wanted = level(4, 7003, &[&first, &second], OnChange::Keep);
    let at = loopback(0).place(wanted.listen);
    endpoints.lead(&one(wanted.clone()), None);
    let mut led = BTreeMap::new();
    for _ in 0..10 {
        *led.entry(whom(&mut dial(at).await).await).or_insert(0) += 1;
    }
    assert_eq!(led, BTreeMap::from([(1, 5), (2, 5)]));
    wanted.targets.clear();
    wanted.hold_seconds = 0;
    endpoints.lead(&one(wanted), None);
    let mut stream = dial(at).await;
    assert!(stream.read_u8().await.is_err(), "ended, not held for ever");
}

/// Answers each letter with its own name and that letter, but never answers a question mark.
async fn oracle(node: u64) -> (Provider, JoinHandle<()>) {
    let (mut provider, _) = provider(node).await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    provider.port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let mut all = JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            all.spawn(async move {
                while let Ok(letter) = stream.read_u8().await {
                    if letter == b'!' {
                        return;
                    }
                    if letter != b'?' && stream.write_all(&[node as u8, letter]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (provider, task)
}

async fn ask(stream: &mut TcpStream, letter: u8) -> [u8; 2] {
    stream.write_all(&[letter]).await.unwrap();
    answered(stream).await
}

async fn answered(stream: &mut TcpStream) -> [u8; 2] {
    let mut answer = [0; 2];
    let read = stream.read_exact(&mut answer);
    tokio::time::timeout(Duration::from_secs(10), read)
        .await
        .unwrap()
        .unwrap();
    answer
}

#[tokio::test]
async fn a_question_without_an_answer_is_asked_again_elsewhere() {
    let (first, task) = oracle(1).await;
    let (second, _two) = oracle(2).await;
    let (third, _three) = oracle(3).await;
    let resend = |targets: &[&Provider]| one(level(5, 7004, targets, OnChange::Resend));
    let mut endpoints = Endpoints::new(loopback(0));
    let at = loopback(0).place(level(5, 7004, &[], OnChange::Resend).listen);
    endpoints.lead(&resend(&[&first]), None);
    let (mut idle, mut busy) = (dial(at).await, dial(at).await);
    assert_eq!(ask(&mut idle, b'a').await, [1, b'a']);
    assert_eq!(ask(&mut busy, b'a').await, [1, b'a']);
    // Asked of one that dies before it answers: held, and answered by the next.
    busy.write_all(b"b").await.unwrap();
    assert_eq!(answered(&mut busy).await, [1, b'b']);
    busy.write_all(b"?").await.unwrap();
    busy.write_all(b"c").await.unwrap();
    assert_eq!(answered(&mut busy).await, [1, b'c']);
    busy.write_all(b"?").await.unwrap();
    task.abort();
    let _ = task.await;
    endpoints.lead(&resend(&[]), None);
    until_held(&endpoints, &[]).await;
    busy.write_all(b"d").await.unwrap();
    endpoints.lead(&resend(&[&second]), None);
    assert_eq!(answered(&mut busy).await, [2, b'd']);
    // One that is no target any more is left at once, and nobody notices.
    endpoints.lead(&resend(&[&third]), None);
    assert_eq!(ask(&mut idle, b'e').await, [3, b'e']);
    assert_eq!(ask(&mut busy, b'f').await, [3, b'f']);
    until_held(&endpoints, &[(3, 2)]).await;
    // One that hangs up instead of answering is asked again, until the hold is over.
    let mut short = level(5, 7004, &[&third], OnChange::Resend);
    short.hold_seconds = 0;
    endpoints.lead(&one(short), None);
    busy.write_all(b"!").await.unwrap();
    assert!(busy.read_u8().await.is_err(), "it ended");
    drop(idle);
    until_held(&endpoints, &[]).await;
}

/// Asks what was asked before by its other name.
struct Other;

impl RoleAgents for Other {
    fn role_agent(&self, _role: &str) -> Option<Box<dyn conpaas_core::role_agent::RoleAgent>> {
        None
    }
    fn asked_again(&self, endpoint: &str, question: &[u8]) -> Option<Vec<u8>> {
        (endpoint == "db" && question == b"?").then(|| b"y".to_vec())
    }
}

#[tokio::test]
async fn a_type_may_ask_otherwise_what_was_asked_before() {
    let (first, task) = oracle(1).await;
    let (second, _two) = oracle(2).await;
    let mut endpoints = Endpoints::new(loopback(0));
    let resend = |target: &Provider| one(level(6, 7005, &[target], OnChange::Resend));
    endpoints.lead(&resend(&first), Some(&Other));
    let at = loopback(0).place(level(6, 7005, &[], OnChange::Resend).listen);
    let (mut stream, mut other) = (dial(at).await, dial(at).await);
    assert_eq!(ask(&mut other, b'a').await, [1, b'a']);
    stream.write_all(b"?").await.unwrap();
    until_held(&endpoints, &[(1, 2)]).await;
    endpoints.lead(&resend(&second), Some(&Other));
    assert_eq!(answered(&mut stream).await, [2, b'y']);
    // What was answered is over, and a first question is asked as it is.
    assert_eq!(ask(&mut other, b'b').await, [2, b'b']);
    other.write_all(b"?").await.unwrap();
    other.write_all(b"c").await.unwrap();
    assert_eq!(answered(&mut other).await, [2, b'c']);
    task.abort();
}

/// A question as resolvers send it.
fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut packet = vec![0xab, 0xcd, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        packet.push(label.len() as u8);
        packet.extend_from_slice(label.as_bytes());
    }
    packet.push(0);
    packet.extend_from_slice(&kind.to_be_bytes());
    packet.extend_from_slice(&1u16.to_be_bytes());
    packet
}

fn names() -> Names {
    let names = Names::default();
    names.set(BTreeMap::from([(
        "db".to_owned(),
        Ipv4Addr::new(127, 77, 0, 3),
    )]));
    names
}

#[test]
fn names_of_the_level_are_answered_and_no_other() {
    let ask = |name: &str, kind| answer(&names(), &question(name, kind)).unwrap();
    for name in ["db.internal", "DB.Internal"] {
        let reply = ask(name, 1);
        assert_eq!(reply[..4], [0xab, 0xcd, 0x85, 0]);
        assert_eq!(reply[6..8], [0, 1]);
        assert!(reply.ends_with(&[0, 4, 127, 77, 0, 3]));
    }
    // It is there, without an address of the newer kind.
    assert_eq!(ask("db.internal", 28)[3..8], [0, 0, 1, 0, 0]);
    assert!(ask("localhost", 1).ends_with(&[127, 0, 0, 1]));
    for name in ["other.internal", "db", "dbinternal", "internal"] {
        assert_eq!(ask(name, 1)[3], 3, "{name}");
    }
    // The world's names are for the next name server: that is told with the question, without which
    // resolvers take no answer for one.
    for name in ["a.b.org", "db.internal.org"] {
        let reply = ask(name, 1);
        assert_eq!(reply[2..8], [0x81, 5, 0, 1, 0, 0], "{name}");
        assert_eq!(reply[12..], question(name, 1)[12..], "{name}");
    }
}

#[test]
fn what_is_no_question_does_no_harm() {
    assert_eq!(answer(&names(), &[]), None);
    assert_eq!(answer(&names(), &[1; 11]), None);
    let good = question("db.internal", 1);
    let mut reply = good.clone();
    reply[2] |= 0x80;
    assert_eq!(answer(&names(), &reply), None, "an answer is not answered");
    for length in 12..good.len() {
        assert_eq!(answer(&names(), &good[..length]).unwrap()[3], 1);
    }
    let mut pointer = good.clone();
    pointer[12] = 0xc0;
    assert_eq!(answer(&names(), &pointer).unwrap()[3], 1);
    let mut update = good;
    update[2] = 0x28;
    assert_eq!(answer(&names(), &update).unwrap()[3], 4);
}

#[tokio::test]
async fn names_are_answered_by_datagram_and_by_stream() {
    let [a, b] = loopback(1).0;
    let at = SocketAddrV4::new(Ipv4Addr::new(a, b, 0, 53), 5353);
    let task = tokio::spawn(serve_names(at, names()));
    let mut stream = dial(at).await;
    let asked = question("db.internal", 1);
    for _ in 0..2 {
        stream.write_u16(asked.len() as u16).await.unwrap();
        stream.write_all(&asked).await.unwrap();
        let mut reply = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut reply).await.unwrap();
        assert!(reply.ends_with(&[127, 77, 0, 3]));
    }
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let mut reply = [0; 512];
    for (name, code) in [
        ("db.internal", 0),
        ("conpaas.internal", 3),
        ("conpaas.org", 5),
    ] {
        socket.send_to(&question(name, 1), at).await.unwrap();
        let answered = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut reply));
        answered.await.unwrap().unwrap();
        assert_eq!(reply[3], code);
    }
    task.abort();
}
