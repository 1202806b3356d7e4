//! Streams of events over real sockets: HTTP as RFC 9112 has it, events as WHATWG HTML section 9.2 does.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod parts;

use std::io::Read;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::thread;

use flx_core::admission::Principal;
use flx_core::admission::roster::{Face, Guest};
use flx_core::hub::{Class, Dialect, Event, Hub, Limits as HubLimits, Rights};
use flx_realtime::desk::{Desk, Handshake, Newcomer, Owner, Question};
use flx_realtime::listener::{Clock, Limits, Listener};
use flx_realtime::seat::{Seat, SharedRoster};
use flx_realtime::service::ConnId;
use flx_realtime::sessions::Sessions;
use flx_realtime::shared_hub::SharedHub;
use parts::{Client, head, limits};
use serde_json::Value;

/// A listener whose requests are let in; the query is the topics, and perhaps `&ends`.
struct Process {
    listener: Listener,
    desk: Arc<Desk>,
}

fn process(limits: Limits) -> Process {
    let clock = Clock::default();
    let (rings, bell) = mpsc::channel();
    let rings: Mutex<Sender<()>> = Mutex::new(rings);
    let ring = move || {
        let _ = rings.lock().unwrap().send(());
    };
    let mut hub = Hub::new(HubLimits::default(), 7, "local-1");
    hub.restart("epoch-1", 0, "", 0);
    let hub = Arc::new(SharedHub::new(hub));
    let desk = Arc::new(Desk::new(hub, 3, clock, Box::new(ring)));
    let sessions = Arc::clone(&desk);
    let listener = Listener::start(([127, 0, 0, 1], 0).into(), 1, limits, None, clock, move |_, thread| {
        let refusals = Box::new(|fault| format!("HTTP/1.1 400 {fault:?}\r\n\r\n").into_bytes());
        Sessions::new(Arc::clone(&sessions), refusals, thread)
    });
    let outside = Arc::clone(&desk);
    let roster = SharedRoster::default();
    thread::spawn(move || {
        while bell.recv().is_ok() {
            for question in outside.questions() {
                if let Question::Handshake(handshake) = question {
                    decide(&outside, &roster, handshake);
                }
            }
        }
    });
    Process { listener: listener.unwrap(), desk }
}

fn guest(conn: ConnId) -> Guest {
    let principal = Principal {
        subject: "ann".into(),
        tenant: None,
        roles: Vec::new(),
        token_id: None,
        session: None,
        issued_at: None,
        expires_at: 9,
        key_id: None,
    };
    let handle = u64::from(conn.index);
    Guest { principal: Arc::new(principal), client_id: "".into(), face: Face::Native, handle, key: None, since_us: 0 }
}

fn decide(desk: &Desk, roster: &SharedRoster, handshake: Handshake) {
    let (topics, how) = handshake.query.split_once('&').unwrap_or((&handshake.query, ""));
    let ends_ms = if how == "ends" { desk.now_ms() + 300 } else { u64::MAX / 2 };
    let rights = Rights::new("ann", [Class::Pipeline, Class::App]);
    let newcomer = Newcomer {
        client_id: None,
        owner: Arc::new(Owner { tenant: "default".into(), subject: "ann".into() }),
        rights,
        dialect: Dialect::EventStream,
        ends_ms,
        topics: topics.split(',').map(Into::into).collect(),
        from: None,
        seat: Seat::take(roster, guest(handshake.caller.conn)),
    };
    let method = handshake.method.unwrap();
    let head = format!("HTTP/1.1 200 OK\r\nx-method: {method}\r\ntransfer-encoding: chunked\r\n\r\n");
    if let Err(why) = desk.accept_stream(handshake.caller, newcomer, head.into_bytes()) {
        desk.refuse(handshake.caller, format!("HTTP/1.1 429 {why:?}\r\nconnection: close\r\n\r\n").into_bytes());
    }
}

impl Process {
    /// A stream, behind its head, its `retry` and its subscriptions.
    fn stream(&self, query: &str) -> Client {
        let mut client = self.asked("GET", "/v1/events", query);
        assert!(client.http().starts_with("HTTP/1.1 200 "));
        assert!(chunk(&mut client).unwrap().starts_with("retry: "));
        for _ in query.split('&').next().unwrap().split(',') {
            assert_eq!("subscribed", told(&mut client).0);
        }
        client
    }

    fn asked(&self, method: &str, path: &str, query: &str) -> Client {
        let mut client = Client::tcp(&self.listener);
        client.send(format!("{method} {path}?{query} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        client
    }

    fn tell(&self, topic: &str, seq: u64, prev: u64, data: &str) {
        let event = Event { tenant: "default", topic, seq, prev, ts_us: 5, data };
        assert!(self.desk.hub().append(&event, self.desk.now_ms()));
    }
}

/// A chunk; none is the last one.
fn chunk(client: &mut Client) -> Option<String> {
    let mut size = String::new();
    while !size.ends_with("\r\n") {
        let mut byte = [0];
        client.0.read_exact(&mut byte).unwrap();
        size.push(char::from(byte[0]));
    }
    let size = usize::from_str_radix(size.trim_end(), 16).unwrap();
    let mut bytes = vec![0; size + 2];
    client.0.read_exact(&mut bytes).unwrap();
    assert_eq!(b"\r\n", &bytes[size..]);
    bytes.truncate(size);
    (size > 0).then(|| String::from_utf8(bytes).unwrap())
}

/// The name and the data of an event that is alone in its chunk.
fn told(client: &mut Client) -> (String, Value) {
    let text = chunk(client).unwrap();
    let kind = text.lines().find_map(|line| line.strip_prefix("event: ")).unwrap();
    let data = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    (kind.to_owned(), serde_json::from_str(data).unwrap())
}

#[test]
fn what_is_published_is_heard_by_who_listens() {
    let process = process(limits());
    let mut both = process.stream("app.*,pipeline_events");
    let mut one = process.stream("pipeline_events");
    process.tell("app.x", 4, 0, r#"{"n":1}"#);
    process.tell("pipeline_events", 5, 0, "2");
    assert_eq!(("event".to_owned(), 4.into()), {
        let (kind, data) = told(&mut both);
        (kind, data["seq"].clone())
    });
    for client in [&mut both, &mut one] {
        let (kind, data) = told(client);
        assert_eq!(
            ("event", "pipeline_events", 5),
            (&*kind, data["event"].as_str().unwrap(), data["seq"].as_u64().unwrap())
        );
    }
}

#[test]
fn what_a_client_says_after_its_request_is_no_request() {
    let process = process(limits());
    let mut client = process.asked("GET", "/v1/events", "app.x");
    assert!(client.http().starts_with("HTTP/1.1 200 "));
    client.send(head("/ws/a?ann").as_bytes());
    client.send(b"GET /v1/events?app.y HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(chunk(&mut client).unwrap().starts_with("retry: "));
    assert_eq!("subscribed", told(&mut client).0);
    process.tell("app.y", 1, 0, "1");
    process.tell("app.x", 2, 0, "2");
    assert_eq!(2, told(&mut client).1["seq"]);
}

#[test]
fn other_paths_and_methods_are_no_streams() {
    let process = process(limits());
    for (method, path, why) in [
        ("GET", "/v1/pipelines", "NoUpgrade"),
        ("GET", "/v1/events/", "NoUpgrade"),
        ("GET", "/ws/a", "NoUpgrade"),
        ("POST", "/v1/events", "Method"),
    ] {
        assert_eq!(
            format!("HTTP/1.1 400 {why}\r\n\r\n"),
            process.asked(method, path, "app.x").rest(),
            "{method} {path}"
        );
    }
    for method in ["HEAD", "OPTIONS"] {
        assert!(process.asked(method, "/v1/events", "app.x").http().contains(&format!("x-method: {method}\r\n")));
    }
}

#[test]
fn an_end_is_told_and_nothing_comes_after_it() {
    let process = process(limits());
    let mut ended = process.stream("app.x&ends");
    assert_eq!("expiring", told(&mut ended).0);
    let (kind, data) = told(&mut ended);
    assert_eq!(("closed", 4401), (&*kind, data["code"].as_u64().unwrap()));
    assert_eq!(None, chunk(&mut ended));
    assert_eq!("", ended.rest());
    let mut drained = process.stream("app.x");
    process.listener.drain(10);
    assert_eq!("reconnect", told(&mut drained).0);
    assert_eq!(1012, told(&mut drained).1["code"]);
    assert_eq!((None, String::new()), (chunk(&mut drained), drained.rest()));
    assert!(process.asked("GET", "/v1/events", "app.x").rest().contains("Draining"));
}

#[test]
fn a_stream_gives_its_place_back_and_a_subject_has_only_so_many() {
    let process = process(limits());
    let held: Vec<Client> = (0..3).map(|_| process.stream("app.x")).collect();
    assert!(process.asked("GET", "/v1/events", "app.x").rest().contains("TooMany"));
    drop(held);
    // That they have left is heard when it is.
    let is_let_in = |_| process.asked("GET", "/v1/events", "app.x").http().starts_with("HTTP/1.1 200 ");
    assert!((0..1_000).any(is_let_in));
}

#[test]
fn silence_is_filled_with_comments_and_who_takes_nothing_is_forgotten() {
    let quick = Limits { ping_ms: 50, write_ms: 200, send_buffer_bytes: 16 << 10, ..limits() };
    let process = process(quick);
    let mut client = process.stream("app.x");
    assert_eq!(": heartbeat\n\n", chunk(&mut client).unwrap());
    let data = format!("\"{}\"", "x".repeat(60_000));
    let mut seq = 0;
    while process.desk.hub().stats().connections > 0 {
        process.tell("app.x", seq + 1, seq, &data);
        seq += 1;
    }
}
