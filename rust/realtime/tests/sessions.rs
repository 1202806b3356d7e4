//! The realtime protocol over real sockets, with a thread in the place of the rest of the process.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod parts;

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use flx_core::admission::Principal;
use flx_core::admission::roster::{Face, Guest};
use flx_core::hub::{
    Backfill, COHORT, Class, Dialect, Event, Hub, Limits as HubLimits, Position, Profile, Rights, Shard,
};
use flx_core::jwt::revocation::{DEFAULT_TENANT, Kind, Revocation, Revocations};
use flx_realtime::desk::{Caller, Desk, Handshake, History, Newcomer, NotIn, Owner, Question, Refresh};
use flx_realtime::listener::{Clock, Limits, Listener};
use flx_realtime::seat::{Seat, SharedRoster};
use flx_realtime::service::ConnId;
use flx_realtime::sessions::Sessions;
use flx_realtime::shared_hub::SharedHub;
use parts::{Client, PATIENCE, close, frame, head, limits};
use serde_json::{Value, json};

/// Events that a client is told which does not read.
const LAST: u64 = 600;
const ALL: [Class; 6] = [Class::Pipeline, Class::Execution, Class::Log, Class::Schedule, Class::System, Class::App];

/// A listener whose handshakes are decided by their path: `/ws/{client id}?{subject}&{how}`.
struct Process {
    listener: Listener,
    desk: Arc<Desk>,
    history: Receiver<History>,
    held: Receiver<Handshake>,
    roster: SharedRoster,
    refreshes: Receiver<Refresh>,
}

fn process(hub: HubLimits, limits: Limits) -> Process {
    process_of(1, hub, limits)
}

fn process_of(threads: usize, hub: HubLimits, limits: Limits) -> Process {
    let clock = Clock::default();
    let (rings, bell) = mpsc::channel();
    let rings: Mutex<Sender<()>> = Mutex::new(rings);
    let ring = move || {
        let _ = rings.lock().unwrap().send(());
    };
    let mut hub = Hub::new(hub, 7, "local-1");
    hub.restart("epoch-1", 0, "", 0);
    let hub = Arc::new(SharedHub::new(hub));
    let desk = Arc::new(Desk::new(hub, 3, clock, Box::new(ring)));
    let (asked, history) = mpsc::channel();
    let (offered, refreshes) = mpsc::channel();
    let (hold, held) = mpsc::channel();
    let sessions = Arc::clone(&desk);
    let listener = Listener::start(([127, 0, 0, 1], 0).into(), threads, limits, None, clock, move |_, thread| {
        let refusals = Box::new(|fault| format!("HTTP/1.1 400 {fault:?}\r\n\r\n").into_bytes());
        Sessions::new(Arc::clone(&sessions), refusals, thread)
    });
    let outside = Arc::clone(&desk);
    let roster = SharedRoster::default();
    let guests = Arc::clone(&roster);
    thread::spawn(move || {
        while bell.recv().is_ok() {
            for question in outside.questions() {
                match question {
                    Question::Handshake(handshake) if handshake.query.ends_with("&held") => drop(hold.send(handshake)),
                    Question::Handshake(handshake) => decide(&outside, &guests, &handshake),
                    Question::History(history) => drop(asked.send(history)),
                    Question::Refresh(refresh) => drop(offered.send(refresh)),
                    Question::Room(_) => {}
                }
            }
        }
    });
    Process { listener: listener.unwrap(), desk, history, held, roster, refreshes }
}

fn decide(desk: &Desk, roster: &SharedRoster, handshake: &Handshake) {
    let client_id = handshake.path.strip_prefix("/ws/").unwrap();
    let (subject, how) = handshake.query.split_once('&').unwrap_or((&handshake.query, ""));
    let dialect = if how.ends_with("batched") { Dialect::Batched } else { Dialect::Plain };
    let ends_ms = if how.starts_with("ends") { desk.now_ms() + 1_000 } else { u64::MAX / 2 };
    let newcomer = Newcomer {
        client_id: Some(client_id.into()),
        owner: Arc::new(Owner { tenant: "default".into(), subject: subject.into() }),
        rights: Rights::new(subject, ALL),
        dialect,
        ends_ms,
        seat: Seat::take(roster, guest(subject, client_id, handshake.caller.conn)),
        topics: Vec::new(),
        from: None,
    };
    if let Err(why) = desk.accept(handshake.caller, newcomer, None) {
        desk.refuse(handshake.caller, format!("HTTP/1.1 409 {why:?}\r\nconnection: close\r\n\r\n").into_bytes());
    }
}

fn guest(subject: &str, client_id: &str, conn: ConnId) -> Guest {
    let principal = Principal {
        subject: subject.into(),
        tenant: None,
        roles: Vec::new(),
        token_id: None,
        session: None,
        issued_at: Some(5),
        expires_at: 9,
        key_id: None,
    };
    let handle = u64::from(conn.index) << 32 | u64::from(conn.generation);
    Guest {
        principal: Arc::new(principal),
        client_id: client_id.into(),
        face: Face::Native,
        handle,
        key: None,
        since_us: 1,
    }
}

impl Process {
    fn client(&self, target: &str) -> Client {
        let mut client = Client::tcp(&self.listener);
        client.send(head(target).as_bytes());
        assert!(client.http().starts_with("HTTP/1.1 101 "));
        assert_eq!("connected", hear(&mut client)["type"]);
        client
    }

    fn refused(&self, target: &str) -> String {
        let mut client = Client::tcp(&self.listener);
        client.send(head(target).as_bytes());
        client.rest()
    }

    fn tell(&self, topic: &str, seq: u64, prev: u64, data: &str) {
        let event = Event { tenant: "default", topic, seq, prev, ts_us: 5, data };
        assert!(self.desk.hub().append(&event, self.desk.now_ms()));
    }
}

/// A storm of clients is decided about a few at a time, and everybody has a turn.
#[test]
fn handshakes_wait_unread_while_others_are_decided_about() {
    let process = process(HubLimits::default(), Limits { deciding: 2, ..limits() });
    let connect = |number: usize| {
        let mut client = Client::tcp(&process.listener);
        client.send(head(&format!("/ws/c{number}?s{number}&held")).as_bytes());
        client
    };
    let mut clients: Vec<_> = (0..6).map(connect).collect();
    let next = || process.held.recv_timeout(PATIENCE).unwrap();
    let mut deciding = VecDeque::from([next(), next()]);
    for decided in 1..=clients.len() {
        assert!(process.held.try_recv().is_err(), "more than two at a time");
        let handshake = deciding.pop_front().unwrap();
        decide(&process.desk, &process.roster, &handshake);
        let number: usize = handshake.path["/ws/c".len()..].parse().unwrap();
        assert!(clients[number].http().starts_with("HTTP/1.1 101 "));
        if decided + deciding.len() < clients.len() {
            deciding.push_back(next());
        }
    }
}

fn hear(client: &mut Client) -> Value {
    let (first, payload) = client.frame().unwrap();
    assert_eq!(0x81, first, "{}", String::from_utf8_lossy(&payload));
    serde_json::from_slice(&payload).unwrap()
}

fn ask(client: &mut Client, message: &Value) -> Value {
    client.send(&frame(0x81, message.to_string().as_bytes()));
    hear(client)
}

#[test]
fn what_is_published_is_heard_by_those_who_subscribed() {
    let process = process(HubLimits::default(), limits());
    let (mut plain, mut batched) = (process.client("/ws/a?ann"), process.client("/ws/b?ann&batched"));
    let mut deaf = process.client("/ws/c?bert");
    for client in [&mut plain, &mut batched] {
        let answer = ask(client, &json!({"type": "subscribe", "event": "app.*"}));
        assert_eq!(("subscribed", "app.*"), (answer["type"].as_str().unwrap(), answer["event"].as_str().unwrap()));
    }
    process.tell("app.x", 4, 0, r#"{"n":1}"#);
    let event = hear(&mut plain);
    let pos = event["pos"].clone();
    let expected = json!({"type": "event", "event": "app.x", "seq": 4, "prev": 0, "epoch": "epoch-1", "ts": 5, "pos": pos, "data": {"n": 1}});
    assert_eq!(expected, event);
    let batch = hear(&mut batched);
    assert_eq!(
        (json!("app.x"), json!([4]), json!([{"n": 1}])),
        (batch["t"].clone(), batch["s"].clone(), batch["d"].clone())
    );
    // Who comes back with the position hears what followed, and nothing twice.
    process.tell("app.x", 6, 4, "2");
    assert_eq!(6, hear(&mut plain)["seq"]);
    let mut again = process.client("/ws/d?ann");
    ask(&mut again, &json!({"type": "subscribe", "event": "app.x", "from": pos}));
    assert_eq!(6, hear(&mut again)["seq"]);
    assert_eq!("unsubscribed", ask(&mut again, &json!({"type": "unsubscribe", "event": "app.x"}))["type"]);
    process.tell("app.x", 7, 6, "3");
    assert_eq!(7, hear(&mut plain)["seq"]);
    for client in [&mut again, &mut deaf] {
        assert_eq!("pong", ask(client, &json!({"type": "ping"}))["type"]);
    }
}

#[test]
fn what_cannot_be_done_is_told_and_too_much_of_it_ends() {
    let process = process(HubLimits::default(), limits());
    let mut client = process.client("/ws/a?ann");
    for (message, code) in [
        (json!({"type": "subscribe", "event": "nothing.x"}), "not_found"),
        (json!({"type": "subscribe", "event": "app..x"}), "invalid_request"),
        (json!({"type": "subscribe", "event": "user.bert"}), "forbidden"),
        (json!({"type": "subscribe", "event": "app.x", "from": "?"}), "invalid_request"),
        (json!([1]), "invalid_request"),
    ] {
        let answer = ask(&mut client, &message);
        assert_eq!((json!("error"), json!(code)), (answer["type"].clone(), answer["code"].clone()), "{message}");
    }
    assert_eq!(json!({"type": "echo", "data": {"type": "x"}}), ask(&mut client, &json!({"type": "x"})));
    client.send(&frame(0x82, b"{").repeat(6));
    let frames = client.frames();
    let (first, last) = frames.last().unwrap();
    assert_eq!((7, 0x88, &1008_u16.to_be_bytes()[..]), (frames.len(), *first, &last[..2]));

    let mut flood = process.client("/ws/b?ann");
    flood.send(&frame(0x81, br#"{"type":"ping"}"#).repeat(200));
    let frames = flood.frames();
    let told: Vec<Value> =
        frames[..frames.len() - 1].iter().map(|(_, it)| serde_json::from_slice(it).unwrap()).collect();
    assert!(told.iter().filter(|it| it["type"] == "pong").count() >= 50);
    assert_eq!("rate_limited", told.last().unwrap()["code"]);
    assert_eq!(0x88, frames.last().unwrap().0);
}

#[test]
fn who_sees_no_pings_hears_a_sign_of_life() {
    let process = process(HubLimits::default(), Limits { ping_ms: 200, life_ms: 5_000, ..limits() });
    let mut client = process.client("/ws/a?ann");
    assert_eq!(Some((0x89, vec![])), client.frame());
    assert_eq!("heartbeat", hear(&mut client)["type"]);
}

#[test]
fn a_client_id_is_its_owners_while_it_is_connected() {
    let process = process(HubLimits::default(), limits());
    let first = process.client("/ws/same?ann");
    let _second = process.client("/ws/same?ann");
    assert!(process.refused("/ws/same?bert").starts_with("HTTP/1.1 409 Taken"));
    let _third = process.client("/ws/other?ann");
    assert!(process.refused("/ws/another?ann").starts_with(&format!("HTTP/1.1 409 {:?}", NotIn::TooMany)));
    let bert = Owner { tenant: "default".into(), subject: "bert".into() };
    assert!(!process.desk.is_free("same", &bert) && process.desk.is_free("free", &bert));
    // A place that is given back can be taken.
    let mut first = first;
    first.send(&close(1000, b""));
    assert_eq!(None, {
        first.frame();
        first.frame()
    });
    process.client("/ws/another?ann");
}

#[test]
fn a_token_ends_with_a_warning_unless_there_is_another_one() {
    let process = process(HubLimits::default(), limits());
    for how in ["", "&batched"] {
        let mut client = process.client(&format!("/ws/a?ann&ends{how}"));
        assert_eq!(json!({"type": "expiring", "in_s": 1}), hear(&mut client));
        let (first, last) = client.frame().unwrap();
        assert_eq!((0x88, &4401_u16.to_be_bytes()[..]), (first, &last[..2]));
    }
    let mut client = process.client("/ws/a?ann&ends");
    ask(&mut client, &json!({"type": "subscribe", "event": "app.x"}));
    client.send(&frame(0x81, br#"{"type":"refresh","token":"secret"}"#));
    let Refresh { caller, key, token, .. } = process.refreshes.recv_timeout(PATIENCE).unwrap();
    assert_eq!(("secret", "Secret(..)"), (&*token.0, &*format!("{token:?}")));
    let lost = process.desk.renew(caller, key, Rights::new("ann", [Class::Log]), u64::MAX / 2);
    assert_eq!([Box::from("app.x")], *lost);
    process.desk.say(caller, vec![r#"{"type":"refreshed","in_s":9}"#.into()], false);
    while hear(&mut client)["type"] != "refreshed" {}
    thread::sleep(Duration::from_millis(1_300));
    assert_eq!("pong", ask(&mut client, &json!({"type": "ping"}))["type"]);
    for _ in 0..11 {
        process.desk.say(caller, vec!["{}".into()], true);
        assert_eq!(json!({}), hear(&mut client));
    }
    let (first, last) = client.frame().unwrap();
    assert_eq!((0x88, &1008_u16.to_be_bytes()[..]), (first, &last[..2]));
}

#[test]
fn who_finds_the_hub_full_is_counted_by_its_code() {
    let process = process(HubLimits { max_connections: 1, ..HubLimits::default() }, limits());
    let mut first = process.client("/ws/a?ann");
    ask(&mut first, &json!({"type": "subscribe", "event": "app.x"}));
    let mut second = Client::tcp(&process.listener);
    second.send(head("/ws/b?bert").as_bytes());
    assert!(second.http().starts_with("HTTP/1.1 101 "));
    let (first, payload) = second.frame().unwrap();
    assert_eq!((0x88, &4429_u16.to_be_bytes()[..]), (first, &payload[..2]));
    until(|| process.desk.closed() == BTreeMap::from([(4429, 1)]));
}

/// The turn in which one is sent away is the last thing that its thread does before it sleeps.
#[test]
fn others_hear_at_once_what_happens_after_one_was_sent_away() {
    let process = process(HubLimits::default(), Limits { close_ms: 5_000, ..limits() });
    let mut other = process.client("/ws/b?bert");
    ask(&mut other, &json!({"type": "subscribe", "event": "app.x"}));
    let mut ended = process.client("/ws/a?ann&ends");
    assert_eq!("expiring", hear(&mut ended)["type"]);
    assert_eq!(0x88, ended.frame().unwrap().0);
    until(|| process.desk.closed().contains_key(&4401));
    // It does not answer the Close, which would wake the thread.
    let begun = Instant::now();
    process.tell("app.x", 1, 0, "1");
    assert_eq!(1, hear(&mut other)["seq"]);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn history_comes_before_what_is_live_and_nothing_twice() {
    let process = process(HubLimits { topic_bytes: 1, ..HubLimits::default() }, limits());
    process.tell("app.x", 1, 0, "1");
    let mut client = process.client("/ws/a?ann");
    let pos = ask(&mut client, &json!({"type": "subscribe", "event": "app.x"}))["pos"].clone();
    // So much that memory does not reach back to the position.
    let long = format!("\"{}\"", "x".repeat(40_000));
    for seq in 2..8 {
        process.tell("app.x", seq, seq - 1, &long);
        assert_eq!(seq, hear(&mut client)["seq"]);
    }
    let mut late = process.client("/ws/b?ann");
    assert_eq!("subscribed", ask(&mut late, &json!({"type": "subscribe", "event": "app.x", "from": pos}))["type"]);
    let History { caller, key, patterns, since } = process.history.recv_timeout(PATIENCE).unwrap();
    assert_eq!(("app.x", 1), (&*patterns[0], since.seq));
    // Something happens meanwhile.
    process.tell("app.x", 8, 7, "8");
    assert_eq!(8, hear(&mut client)["seq"]);
    let event = |seq: u64| Event { tenant: "default", topic: "app.x", seq, prev: seq - 1, ts_us: 5, data: "0" };
    for (seqs, is_last) in [(2..5, false), (5..9, true)] {
        let journal_seq = seqs.end - 1;
        let events: Vec<_> = seqs.map(event).collect();
        let batch = Backfill { epoch: "epoch-1", events: &events, journal_seq, is_last };
        assert!(process.desk.backfill(caller, key, &batch).is_some());
    }
    process.tell("app.x", 9, 8, "9");
    let heard: Vec<_> = (2..10).map(|_| hear(&mut late)["seq"].as_u64().unwrap()).collect();
    assert_eq!((2..10).collect::<Vec<_>>(), heard);
}

/// A process whose memory begins behind its clients' positions, and such a position, of some logs.
fn restarted(logs: u64) -> (Process, String) {
    let process = process(HubLimits::default(), limits());
    process.desk.hub().restart("epoch-1", 10, "", 0);
    let logs = (0..logs).map(|number| (format!("{number:036}").into(), number)).collect();
    (process, Position { epoch: "epoch-1".into(), seq: 5, logs }.encode())
}

impl Process {
    /// The daemon has nothing of what is asked for next.
    fn nothing_happened(&self) {
        let History { caller, key, .. } = self.history.recv_timeout(PATIENCE).unwrap();
        let nothing = Backfill { epoch: "epoch-1", events: &[], journal_seq: 10, is_last: true };
        assert_eq!(Some(true), self.desk.backfill(caller, key, &nothing));
    }
}

#[test]
fn many_topics_catch_up_one_after_the_other_however_long_the_position_is() {
    let (process, from) = restarted(60);
    let mut client = process.client("/ws/a?ann");
    let subscribe = |number| json!({"type": "subscribe", "event": format!("app.{number}"), "from": from});
    let asked: Vec<_> = (0..45).map(subscribe).chain([json!({"type": "ping"})]).collect();
    client.send(&asked.iter().flat_map(|it| frame(0x81, it.to_string().as_bytes())).collect::<Vec<_>>());
    for number in 0..45 {
        process.nothing_happened();
        let answer = hear(&mut client);
        assert_eq!(
            (json!("subscribed"), json!(format!("app.{number}"))),
            (answer["type"].clone(), answer["event"].clone())
        );
    }
    assert_eq!("pong", hear(&mut client)["type"]);
}

#[test]
fn what_is_too_much_while_a_client_catches_up_is_told_in_its_turn() {
    let (process, from) = restarted(0);
    let mut client = process.client("/ws/a?ann");
    assert_eq!("subscribed", ask(&mut client, &json!({"type": "subscribe", "event": "app.x", "from": from}))["type"]);
    let message = |number: usize| frame(0x81, json!({"type": "x", "n": number}).to_string().as_bytes());
    client.send(&(0..55).flat_map(message).collect::<Vec<_>>());
    client.send(&frame(0x89, b"read"));
    assert_eq!(Some((0x8a, b"read".to_vec())), client.frame());
    process.nothing_happened();
    let answers: Vec<_> = (0..55).map(|_| hear(&mut client)).collect();
    let refused = answers.iter().filter(|it| it["code"] == "rate_limited").count();
    assert!((1..=10).contains(&refused), "{refused}");
    for (number, answer) in answers.iter().enumerate().filter(|(_, it)| it["code"] != "rate_limited") {
        assert_eq!(json!(number), answer["data"]["n"]);
    }
}

#[test]
fn a_ping_is_answered_when_what_was_asked_for_before_is_level() {
    let process = process(HubLimits::default(), limits());
    let mut client = process.client("/ws/a?ann");
    for seq in 1..5 {
        process.tell("app.x", seq, seq - 1, "0");
    }
    let from = Position { epoch: "epoch-1".into(), seq: 1, ..Position::default() }.encode();
    let asked = [
        json!({"type": "subscribe", "event": "app.x", "from": from}),
        json!({"type": "ping"}),
        json!({"type": "x"}),
        json!({"type": "ping"}),
    ];
    client.send(&asked.iter().flat_map(|it| frame(0x81, it.to_string().as_bytes())).collect::<Vec<_>>());
    let kinds: Vec<_> = (0..7).map(|_| hear(&mut client)["type"].as_str().unwrap().to_owned()).collect();
    assert_eq!(["subscribed", "event", "event", "event", "pong", "echo", "pong"], *kinds);
}

#[test]
fn who_does_not_read_is_told_what_it_missed_and_nothing_else_is_lost() {
    let small = HubLimits { topic_bytes: 256 << 10, total_bytes: 1 << 20, ..HubLimits::default() };
    let process = process(small, Limits { send_buffer_bytes: 16 << 10, ..limits() });
    let (mut slow, mut quick) = (process.client("/ws/a?ann&batched"), process.client("/ws/b?ann&batched"));
    for client in [&mut slow, &mut quick] {
        ask(client, &json!({"type": "subscribe", "event": "app.x"}));
    }
    let data = format!("\"{}\"", "x".repeat(20_000));
    let read = |client: &mut Client, mut seen: u64| {
        let mut gaps = 0;
        while seen < LAST {
            let message = hear(client);
            if message["type"] == "gap" {
                let before = message["before"].as_u64().unwrap();
                assert!(before > seen, "{message}");
                seen = before - 1;
                gaps += 1;
                continue;
            }
            assert_eq!(json!(seen), message["prev"]);
            let numbers = message["s"].as_array().unwrap();
            assert_eq!(json!(seen + 1), numbers[0]);
            seen = numbers.last().unwrap().as_u64().unwrap();
        }
        gaps
    };
    let quick = thread::spawn(move || read(&mut quick, 0));
    for seq in 1..=LAST {
        process.tell("app.x", seq, seq - 1, &data);
    }
    let gaps = read(&mut slow, 0);
    assert!(gaps > 0, "12 MB fit into no socket here");
    let _ = quick.join().unwrap();
    assert_eq!("pong", ask(&mut slow, &json!({"type": "ping"}))["type"]);
}

#[test]
fn threads_and_another_face_hear_one_log_without_hole_duplicate_or_disorder() {
    const EVENTS: u64 = 3_000;
    let process = process_of(3, HubLimits::default(), limits());
    let mut clients: Vec<Client> = (0..9)
        .map(|number| process.client(&format!("/ws/{number}?s{number}&{}", ["batched", ""][number % 2])))
        .collect();
    for client in &mut clients {
        assert_eq!("subscribed", ask(client, &json!({"type": "subscribe", "event": "app.*"}))["type"]);
    }
    until(|| process.listener.connections() == [3, 3, 3]);
    let here = {
        let mut hub = process.desk.hub();
        let rights = Rights::new("ann", ALL);
        let (shard, tenant, dialect) = (Shard::FIRST, "default".into(), Dialect::Batched);
        let here = hub.connect(Profile { shard, tenant, rights, dialect }).unwrap();
        hub.subscribe(here, "app.x", None, 0).unwrap();
        here
    };
    let readers: Vec<_> = clients.into_iter().map(|client| thread::spawn(move || read_all(client, EVENTS))).collect();
    let (mut seen, mut turns) = (0, Vec::new());
    for seq in 1..=EVENTS {
        process.tell("app.x", seq, seq - 1, "0");
        turns.clear();
        process.desk.hub().take(Shard::FIRST, process.desk.now_ms(), COHORT, &mut turns);
        for delivery in &turns {
            assert_eq!(here, delivery.conn);
            for frame in &delivery.turn.frames {
                seen = follow(&serde_json::from_slice(&frame.payload).unwrap(), seen);
            }
        }
    }
    until(|| {
        turns.clear();
        process.desk.hub().take(Shard::FIRST, process.desk.now_ms(), COHORT, &mut turns);
        for frame in turns.iter().flat_map(|delivery| &delivery.turn.frames) {
            seen = follow(&serde_json::from_slice(&frame.payload).unwrap(), seen);
        }
        seen == EVENTS
    });
    let mut clients: Vec<Client> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
    // Who leaves makes room for the next in the same thread.
    clients.truncate(8);
    until(|| process.listener.connections().iter().sum::<usize>() == 8);
    let _next = process.client("/ws/next?next");
    until(|| process.listener.connections() == [3, 3, 3]);
    assert_eq!(10, process.desk.hub().stats().connections);
    process.listener.stop();
    assert_eq!((1, 0), (process.desk.hub().stats().connections, process.desk.len()));
}

/// Reads events until the last, none of which may be missing or come twice.
fn read_all(mut client: Client, last: u64) -> Client {
    let mut seen = 0;
    while seen < last {
        seen = follow(&hear(&mut client), seen);
    }
    client
}

/// The last number of a message that must go on after `seen`.
fn follow(message: &Value, seen: u64) -> u64 {
    assert_eq!(json!(seen), message["prev"], "{message}");
    let numbers = message["s"].as_array().cloned().unwrap_or_else(|| vec![message["seq"].clone()]);
    assert_eq!(json!(seen + 1), numbers[0]);
    numbers.last().and_then(Value::as_u64).unwrap()
}

/// Waits for something that another thread will do.
fn until(mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE);
        thread::yield_now();
    }
}

#[test]
fn whose_token_is_revoked_is_closed_and_leaves_the_roster() {
    let process = process(HubLimits::default(), limits());
    let (mut hit, mut other) = (process.client("/ws/a?ann"), process.client("/ws/b?bert"));
    let mut revocations = Revocations::new((1, 2));
    let revocation = Revocation {
        kind: Kind::Subject,
        value: "ann".into(),
        tenant: DEFAULT_TENANT.into(),
        issued_before_s: Some(5),
        expires_at_s: None,
    };
    revocations.apply(revocation);
    let revoked = process.roster.lock().unwrap().revoked(&revocations);
    assert_eq!(1, revoked.len());
    for (_, handle) in revoked {
        let conn = ConnId { index: (handle >> 32) as u32, generation: handle as u32 };
        process.desk.close(Caller { thread: 0, conn }, 4401, "the token has ended");
    }
    let (first, payload) = hit.frame().unwrap();
    assert_eq!((0x88, &4401_u16.to_be_bytes()[..]), (first, &payload[..2]));
    assert_eq!("pong", ask(&mut other, &json!({"type": "ping"}))["type"]);
    until(|| process.roster.lock().unwrap().len() == 1);
}
