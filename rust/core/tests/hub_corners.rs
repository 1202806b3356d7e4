//! Corners of the hub: what happens together but seldom.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may stop at the first surprise")]

use std::time::{Duration, Instant};

use flx_core::hub::{
    Backfill, Class, ConnKey, Delivery, Dialect, Event, Hub, Limits, Position, PresenceChange, Profile, Rights, Shard,
};
use serde_json::Value;

const ALL: [Class; 6] = [Class::Pipeline, Class::Execution, Class::Log, Class::Schedule, Class::System, Class::App];
const TTL_MS: u64 = 10_000;

fn hub() -> Hub {
    let mut hub = Hub::new(Limits { topic_ttl_ms: TTL_MS, ..Limits::default() }, 1, "here");
    hub.restart("e", 0, "start", 0);
    hub
}

fn connect(hub: &mut Hub, dialect: Dialect, patterns: &[&str]) -> ConnKey {
    let rights = Rights::new("ann", ALL);
    let conn = hub.connect(Profile { shard: Shard::FIRST, tenant: "t".into(), rights, dialect }).unwrap();
    for pattern in patterns {
        hub.subscribe(conn, pattern, None, 0).unwrap();
    }
    conn
}

fn tell(hub: &mut Hub, topic: &str, seq: u64, prev: u64, now_ms: u64) -> bool {
    hub.append(&Event { tenant: "t", topic, seq, prev, ts_us: 5, data: "1" }, now_ms)
}

fn take(hub: &mut Hub, now_ms: u64) -> Vec<Delivery> {
    let mut out = Vec::new();
    hub.take(Shard::FIRST, now_ms, 100, &mut out);
    out
}

fn said(deliveries: &[Delivery]) -> Vec<Value> {
    let frames = deliveries.iter().flat_map(|delivery| &delivery.turn.frames);
    frames.map(|frame| serde_json::from_slice(&frame.payload).unwrap()).collect()
}

fn position_of(message: &Value) -> Position {
    Position::decode(message["pos"].as_str().unwrap()).unwrap()
}

fn at(seq: u64) -> String {
    Position { epoch: "e".into(), seq, ..Position::default() }.encode()
}

#[test]
fn a_log_with_lines_to_come_is_in_the_position_however_many_others_are_over() {
    let mut hub = hub();
    let conn = connect(&mut hub, Dialect::Plain, &["execution.*"]);
    hub.busy(conn);
    tell(&mut hub, "execution.x.status", 1, 0, 1);
    tell(&mut hub, "execution.x.log", 1, 0, 1);
    tell(&mut hub, "execution.x.status", 2, 1, 1);
    tell(&mut hub, "execution.x.log", 2, 1, 1);
    hub.over("t", "x");
    for other in 0..40 {
        tell(&mut hub, &format!("execution.{other}.status"), 3 + other, 0, 1);
        hub.over("t", &other.to_string());
    }
    hub.writable(conn, 1);
    let heard = said(&take(&mut hub, 1_000));
    let lines: Vec<_> = heard[..3].iter().map(|it| position_of(it).logs.get("x").copied()).collect();
    assert_eq!([Some(0), Some(1), Some(1)], *lines);
    assert_eq!("execution.x.log", heard[3]["event"]);
    // Who goes on from before the second line hears it.
    let again = connect(&mut hub, Dialect::Plain, &[]);
    let from = heard[2]["pos"].as_str().unwrap();
    assert!(hub.subscribe(again, "execution.x.log", Some(from), 2).unwrap().history.is_none());
    assert_eq!(["2"], *said(&take(&mut hub, 2_000)).iter().map(|it| it["seq"].to_string()).collect::<Vec<_>>());
}

#[test]
fn the_log_of_an_execution_that_is_tried_again_goes_on_for_who_comes_back() {
    let mut hub = hub();
    let conn = connect(&mut hub, Dialect::Plain, &["execution.*"]);
    tell(&mut hub, "execution.x.status", 1, 0, 1);
    tell(&mut hub, "execution.x.log", 1, 0, 1);
    hub.over("t", "x");
    for other in 0..40 {
        tell(&mut hub, &format!("execution.{other}.status"), 2 + other, 0, 1);
        hub.over("t", &other.to_string());
    }
    // It was there to the end, when the log was complete for long, and leaves.
    let left = said(&take(&mut hub, 1_000)).pop().unwrap();
    assert!(!position_of(&left).logs.contains_key("x"));
    hub.disconnect(conn);
    tell(&mut hub, "execution.x.status", 42, 1, 1);
    tell(&mut hub, "execution.x.log", 2, 1, 1);
    hub.over("t", "x");
    tell(&mut hub, "execution.x.log", 3, 2, 1);
    let again = connect(&mut hub, Dialect::Plain, &[]);
    assert!(hub.subscribe(again, "execution.*", left["pos"].as_str(), 2).unwrap().history.is_none());
    let heard = said(&take(&mut hub, 2_000));
    let told: Vec<_> = heard.iter().map(|it| (it["event"].as_str().unwrap(), it["seq"].as_u64().unwrap())).collect();
    assert_eq!([("execution.x.status", 42), ("execution.x.log", 2), ("execution.x.log", 3)], *told);
    // Who leaves before its first line knows that there will be some.
    assert_eq!(Some(&1), position_of(&heard[0]).logs.get("x"));
}

#[test]
fn a_number_of_an_ephemeral_event_means_one_event_as_long_as_the_epoch_lasts() {
    for topic in ["app.x", "user.ann", "bench.x"] {
        let mut hub = hub();
        let last = (0..3).map(|_| hub.publish("t", topic, 5, "1", 0).unwrap()).last();
        assert_eq!(Some(3), last);
        // Nobody hears it, and it is too old.
        hub.sweep(TTL_MS);
        assert_eq!(0, hub.stats().topics);
        let conn = connect(&mut hub, Dialect::Plain, &[topic]);
        assert!(hub.publish("t", topic, 5, "1", TTL_MS).unwrap() > 3, "{topic}");
        let heard = said(&take(&mut hub, TTL_MS));
        assert!(heard[0]["prev"].as_u64() >= Some(3) && heard.len() == 1, "{heard:?}");
        hub.disconnect(conn);
    }
}

#[test]
fn topics_of_old_are_forgotten_though_somebody_hears_all_there_are() {
    let mut hub = hub();
    connect(&mut hub, Dialect::Plain, &["execution.*", "app.kept"]);
    connect(&mut hub, Dialect::Plain, &["*"]);
    connect(&mut hub, Dialect::Batched, &["execution.3.status"]);
    for seq in 1..=100 {
        let topic = format!("execution.{seq}.status");
        assert!(tell(&mut hub, &topic, seq, 0, seq));
        hub.over("t", &seq.to_string());
        take(&mut hub, seq);
    }
    assert_eq!(0, take(&mut hub, 1_000).len());
    hub.sweep(100 + TTL_MS);
    // The logs that are in positions, and what somebody hears by its name; before that there are logs of all.
    let topics = hub.stats().topics;
    assert!(topics < 40, "{topics}");
    // They begin again where they were.
    assert!(
        tell(&mut hub, "execution.7.status", 101, 7, 20_000) && tell(&mut hub, "execution.3.status", 102, 3, 20_000)
    );
    let heard = said(&take(&mut hub, 30_000));
    let told: Vec<_> =
        heard.iter().map(|it| (it["type"] == "gap" || it["code"] == "gap", it["prev"].as_u64())).collect();
    assert_eq!(5, told.len());
    assert!(told.iter().all(|(is_gap, prev)| !is_gap && matches!(prev, Some(3 | 7))), "{heard:?}");
    // Memory still says what came since the last that was forgotten, and nothing before.
    for (from, is_here) in [(100, true), (99, false)] {
        let conn = connect(&mut hub, Dialect::Plain, &[]);
        let subscribed = hub.subscribe(conn, "execution.*", Some(&at(from)), 30_000).unwrap();
        assert_eq!(is_here, subscribed.history.is_none(), "{from}");
    }
}

/// Topics of which gaps were told, why, and in which epoch.
fn gaps(heard: &[Value]) -> Vec<(&str, &str, &str)> {
    let gaps = heard.iter().filter(|it| it["code"] == "gap");
    gaps.map(|it| {
        let text = |member: &str| it[member].as_str().unwrap();
        (text("event"), text("reason"), text("epoch"))
    })
    .collect()
}

#[test]
fn ephemeral_topics_that_patterns_hear_are_no_more_than_there_may_be() {
    let limits = Limits { topic_ttl_ms: TTL_MS, empty_topics: 8, ..Limits::default() };
    let mut hub = Hub::new(limits, 1, "here");
    hub.restart("e", 0, "start", 0);
    let wild = connect(&mut hub, Dialect::Plain, &["app.*", "presence.app.*"]);
    connect(&mut hub, Dialect::Plain, &["app.named"]);
    let fixed = hub.stats().topics;
    let tell = |hub: &mut Hub, topics: std::ops::Range<u64>, now_ms| {
        for number in topics {
            hub.publish("t", &format!("app.{number}"), 5, "1", now_ms).unwrap();
        }
        hub.publish("t", "app.named", 5, "1", now_ms).unwrap();
        said(&take(hub, now_ms + 1_000))
    };
    assert_eq!(8 + 2, tell(&mut hub, 0..8, 0).len());
    let _ = (hub.called(), hub.wakes_at(Shard::FIRST));
    hub.sweep(2 * TTL_MS);
    // So many stay, and their numbers go on.
    assert!(take(&mut hub, 2 * TTL_MS).is_empty() && hub.called().is_empty());
    assert_eq!(fixed + 8 + 1, hub.stats().topics);
    let heard = tell(&mut hub, 0..9, 25_000);
    let number_of = |heard: &[Value], topic| {
        let event = heard.iter().find(|it| it["event"] == topic && it["code"] != "gap");
        event.map(|it| (it["seq"].as_u64().unwrap(), it["prev"].as_u64().unwrap(), it["epoch"].clone()))
    };
    assert_eq!(Some((2, 1, "here.0".into())), number_of(&heard, "app.0"));
    assert!(gaps(&heard).is_empty());
    // One more is too many: all who may miss something are told, once, and nothing of them is left.
    let _ = (hub.called(), hub.wakes_at(Shard::FIRST));
    hub.sweep(40_000);
    assert_eq!([Shard::FIRST], *hub.called());
    assert_eq!(fixed + 1, hub.stats().topics, "what is heard by its name stays");
    let told = take(&mut hub, 50_000);
    let (of_wild, of_named): (Vec<_>, Vec<_>) = told.into_iter().partition(|delivery| delivery.conn == wild);
    let (class, presence) = (("app.*", "evicted", "here.1"), ("presence.*", "evicted", "here.1"));
    assert_eq!([class, presence], *gaps(&said(&of_wild)));
    assert_eq!([class], *gaps(&said(&of_named)));
    assert_eq!(3, said(&of_wild).len() + said(&of_named).len());
    assert_eq!(Some(&3), hub.gaps().get("evicted"));
    // What comes is of the new epoch, and joins on.
    let heard = tell(&mut hub, 0..2, 60_000);
    assert_eq!((4, Some((1, 0, "here.1".into()))), (heard.len(), number_of(&heard, "app.0")));
    assert_eq!(Some((1, 0, "here.1".into())), number_of(&heard, "app.named"));
    hub.sweep(80_000);
    assert!(take(&mut hub, 80_000).is_empty());
}

#[test]
fn who_is_behind_is_told_of_ephemeral_topics_that_were_too_many() {
    let limits = Limits { topic_ttl_ms: TTL_MS, empty_topics: 8, ..Limits::default() };
    let mut hub = Hub::new(limits, 1, "here");
    hub.restart("e", 0, "start", 0);
    let slow = connect(&mut hub, Dialect::Plain, &["app.*"]);
    for number in 0..9 {
        hub.publish("t", &format!("app.{number}"), 5, "1", 0).unwrap();
    }
    let given = take(&mut hub, 1_000);
    hub.sweep(2 * TTL_MS);
    hub.put_back(slow, &given[0].turn, 3);
    hub.publish("t", "app.3", 5, "2", 3 * TTL_MS).unwrap();
    hub.writable(slow, 3 * TTL_MS);
    let heard = said(&take(&mut hub, 4 * TTL_MS));
    assert_eq!([("app.*", "evicted", "here.1")], *gaps(&heard));
    assert_eq!((2, Some(1), "here.1"), (heard.len(), heard[1]["seq"].as_u64(), heard[1]["epoch"].as_str().unwrap()));
}

/// A loss leaves topics without numbers: they go, and with them what the lists of the hub had of them.
#[test]
fn after_a_loss_topics_that_patterns_hear_go() {
    let mut hub = hub();
    connect(&mut hub, Dialect::Plain, &["app.*"]);
    let fixed = hub.stats().topics;
    for number in 0..5 {
        hub.publish("t", &format!("app.{number}"), 5, "1", 0).unwrap();
        hub.publish("t", &format!("bench.{number}"), 5, "1", 0).unwrap();
    }
    hub.lose("bus_restarted", 1);
    let late = connect(&mut hub, Dialect::Plain, &[]);
    let frames = hub.subscribe_all(late, &["app.*", "bench.*"], Some(&at(0)), 1).unwrap().frames;
    assert_eq!(2 + 5, frames.len(), "of the local ones a gap each, of the lost ones none");
    hub.sweep(2);
    assert_eq!(fixed + 5, hub.stats().topics);
}

/// One pass of all topics each, while everybody else waits for the hub: with one for every topic this would take half a minute.
#[test]
fn many_ephemeral_topics_are_lost_and_forgotten_in_a_moment() {
    let mut hub = hub();
    for _ in 0..2 {
        for number in 0..32_000 {
            hub.publish("t", &format!("app.{number}"), 5, "1", 0).unwrap();
        }
        let begun = Instant::now();
        hub.lose("bus_restarted", 1);
        hub.sweep(TTL_MS);
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        assert_eq!(0, hub.stats().topics);
    }
}

/// One look at all topics for all that a connection asks for: with one for each this would take a quarter of a minute.
#[test]
fn many_topics_at_once_are_looked_for_once() {
    let mut hub = hub();
    for number in 0..32_000 {
        hub.publish("t", &format!("app.{number}"), 5, "1", 0).unwrap();
    }
    let names: Vec<String> = (0..250).map(|number| format!("app.of.{number}")).collect();
    let patterns: Vec<&str> = ["execution.*"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let conn = connect(&mut hub, Dialect::Plain, &[]);
    let begun = Instant::now();
    hub.subscribe_all(conn, &patterns, None, 0).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(251, hub.subscriptions(conn).len());
}

#[test]
fn what_is_put_back_of_a_topic_that_was_forgotten_meanwhile_is_told() {
    let mut hub = hub();
    let conn = connect(&mut hub, Dialect::Plain, &["app.*"]);
    tell(&mut hub, "app.x", 1, 0, 0);
    let given = take(&mut hub, TTL_MS);
    hub.sweep(TTL_MS);
    hub.put_back(conn, &given[0].turn, 0);
    hub.writable(conn, TTL_MS);
    let heard = said(&take(&mut hub, TTL_MS));
    assert_eq!(
        (1, "gap", "app.x"),
        (heard.len(), heard[0]["code"].as_str().unwrap(), heard[0]["event"].as_str().unwrap())
    );
    let _ = hub.wakes_at(Shard::FIRST);
    hub.sweep(TTL_MS);
    assert_eq!((0, 1), (hub.stats().behind, hub.stats().audiences));
    tell(&mut hub, "app.x", 2, 1, 0);
    assert_eq!(1, said(&take(&mut hub, 2 * TTL_MS)).len());
}

#[test]
fn who_leaves_a_topic_that_it_has_twice_leaves_it_once() {
    let mut hub = hub();
    hub.note_presence_of(["app.room".into()]);
    hub.restart("e", 10, "start", 0);
    let conn = connect(&mut hub, Dialect::Plain, &["app.room"]);
    let subscribed = hub.subscribe(conn, "app.room", Some(&at(5)), 0).unwrap();
    assert!(subscribed.history.is_some(), "it catches up with what it hears");
    hub.disconnect(conn);
    let here = |here| PresenceChange { tenant: "t".into(), topic: "app.room".into(), subject: "ann".into(), here };
    assert_eq!([here(true), here(false)], *hub.presence_changes());
}

#[test]
fn what_is_put_back_of_a_history_that_has_ended_is_not_gone_on_with() {
    let mut hub = hub();
    for seq in 1..=4 {
        tell(&mut hub, "app.x", seq, seq - 1, 1);
    }
    let conn = connect(&mut hub, Dialect::Plain, &[]);
    hub.subscribe(conn, "app.x", Some(&at(2)), 1).unwrap();
    let given = take(&mut hub, 1);
    assert_eq!(2, given[0].turn.frames.len());
    // While it is written, another thread hears that the database was restored.
    hub.restart("f", 1, "restored", 2);
    hub.put_back(conn, &given[0].turn, 1);
    hub.writable(conn, 2);
    tell(&mut hub, "app.x", 2, 0, 2);
    let heard = said(&take(&mut hub, 3));
    assert_eq!(("restored", 2), (heard[0]["reason"].as_str().unwrap(), heard.len()), "{heard:?}");
    assert_eq!((Some(2), "f"), (heard[1]["seq"].as_u64(), heard[1]["epoch"].as_str().unwrap()));
}

#[test]
fn what_was_heard_before_leaves_no_topic_that_others_do_not_hear() {
    let mut hub = hub();
    connect(&mut hub, Dialect::Plain, &["app.*"]);
    hub.advance(5);
    assert!(!tell(&mut hub, "app.x", 4, 0, 1), "it was heard before");
    assert!(tell(&mut hub, "app.x", 6, 4, 1));
    assert_eq!(Some(6), said(&take(&mut hub, 1)).last().and_then(|it| it["seq"].as_u64()));
}

#[test]
fn a_position_on_the_way_through_a_long_history_is_one_that_is_taken_back() {
    let mut hub = hub();
    hub.restart("e", 2_000, "start", 0);
    let conn = connect(&mut hub, Dialect::Plain, &[]);
    assert!(hub.subscribe(conn, "execution.*", Some(&at(0)), 0).unwrap().history.is_some());
    let topics: Vec<_> = (0..400).map(|number| format!("execution.{number:0150}.status")).collect();
    let event = |(seq, topic)| Event { tenant: "t", topic, seq, prev: 0, ts_us: 5, data: "1" };
    let events: Vec<_> = (1..).zip(&topics).map(|(seq, topic)| event((seq, topic.as_str()))).collect();
    let batch = Backfill { epoch: "e", events: &events, journal_seq: 400, is_last: false };
    let (frames, is_done) = hub.backfill(conn, &batch, 0).unwrap();
    assert_eq!((400, false), (frames.len(), is_done));
    let mut before = 0;
    for frame in &frames {
        let message: Value = serde_json::from_slice(&frame.payload).unwrap();
        let seq = position_of(&message).seq;
        assert!(before <= seq && seq <= message["seq"].as_u64().unwrap());
        before = seq;
    }
    assert!(before > 150, "it moved as far as could be");
}
