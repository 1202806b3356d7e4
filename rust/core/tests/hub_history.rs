//! What is remembered of topics of applications, by their rules: what is not is told as a gap, or asked of the daemon.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may stop at the first surprise")]

use flx_core::hub::{
    Class, ConnKey, Delivery, Dialect, Event, Hub, Limits, Position, Profile, Rights, Shard, TopicRule,
};

fn hub(rule: TopicRule) -> Hub {
    let mut hub = Hub::new(Limits { topic_ttl_ms: 10_000, ..Limits::default() }, 1, "here");
    hub.set_topic_rules([TopicRule { pattern: "app.own.*".into(), ..rule }]);
    hub.restart("e", 0, "start", 0);
    hub
}

fn connect(hub: &mut Hub) -> ConnKey {
    let rights = Rights::new("ann", [Class::App]);
    hub.connect(Profile { shard: Shard::FIRST, tenant: "t".into(), rights, dialect: Dialect::Batched }).unwrap()
}

/// The same events on a topic of the rule and on one of none.
fn tell(hub: &mut Hub, count: u64, data: &str, now_ms: u64) {
    for _ in 0..count {
        for (topic, seq) in [("app.own.x", hub.seq() + 1), ("app.other", hub.seq() + 2)] {
            let prev = seq.saturating_sub(2);
            assert!(hub.append(&Event { tenant: "t", topic, seq, prev, ts_us: 5, data }, now_ms));
        }
    }
}

/// What a connection is told that had no room since the beginning: gaps, and numbers of events.
fn told(hub: &mut Hub, conn: ConnKey) -> Vec<String> {
    hub.writable(conn, 0);
    let mut out: Vec<Delivery> = Vec::new();
    hub.take(Shard::FIRST, 1_000_000, 10, &mut out);
    let frames = out.iter().flat_map(|delivery| &delivery.turn.frames);
    frames
        .map(|frame| {
            let value: serde_json::Value = serde_json::from_slice(&frame.payload).unwrap();
            if value["type"] == "gap" {
                return format!("{} to {}: {}", value["after"], value["before"], value["reason"]);
            }
            value["s"].to_string()
        })
        .collect()
}

fn stalled(hub: &mut Hub, topic: &str) -> ConnKey {
    let conn = connect(hub);
    hub.subscribe(conn, topic, None, 0).unwrap();
    hub.busy(conn);
    conn
}

#[test]
fn so_many_events_are_remembered() {
    let mut hub = hub(TopicRule { history_events: Some(3), ..TopicRule::default() });
    let (own, other) = (stalled(&mut hub, "app.own.x"), stalled(&mut hub, "app.other"));
    tell(&mut hub, 5, "1", 0);
    assert_eq!(["0 to 4: \"evicted\"", "[5,7,9]"], *told(&mut hub, own));
    assert_eq!(["[2,4,6,8,10]"], *told(&mut hub, other));
    assert_eq!(1, hub.gaps()["evicted"]);
}

#[test]
fn what_is_not_remembered_is_asked_of_the_daemon() {
    let mut hub = hub(TopicRule { history_events: Some(3), ..TopicRule::default() });
    tell(&mut hub, 5, "1", 0);
    let conn = connect(&mut hub);
    let position = |seq| Position { epoch: "e".into(), seq, ..Position::default() };
    for (topic, seq, asks) in [("app.own.x", 2, true), ("app.own.x", 3, false), ("app.other", 0, false)] {
        let subscribed = hub.subscribe(conn, topic, Some(&position(seq).encode()), 0).unwrap();
        assert_eq!(asks.then(|| position(seq)), subscribed.history, "{topic} from {seq}");
        hub.give_up(conn, "evicted", 0);
        hub.unsubscribe(conn, topic, 0);
    }
}

#[test]
fn so_many_bytes_are_remembered_less_and_more_than_of_others() {
    let data = format!("\"{}\"", "x".repeat(998));
    for (bytes, least, most) in [(8_000, 3, 8), (6 << 20, 5_000, 5_000)] {
        let mut hub = hub(TopicRule { history_bytes: Some(bytes), ..TopicRule::default() });
        let conn = stalled(&mut hub, "app.own.x");
        tell(&mut hub, 5_000, &data, 0);
        hub.writable(conn, 0);
        let mut events = 0;
        loop {
            let mut out: Vec<Delivery> = Vec::new();
            hub.take(Shard::FIRST, 1_000_000, 10, &mut out);
            if out.is_empty() {
                break;
            }
            events += out[0].turn.frames.iter().map(|frame| frame.events).sum::<u32>();
        }
        assert!((least..=most).contains(&events), "{events} of {bytes} bytes");
    }
}

#[test]
fn so_long_is_remembered() {
    for (history_ms, swept_ms, is_kept) in
        [(None, 9_999, true), (Some(2_000), 1_999, true), (Some(2_000), 2_000, false)]
            .into_iter()
            .chain([(None, 10_000, false), (Some(60_000), 59_000, true)])
    {
        let mut hub = hub(TopicRule { history_ms, ..TopicRule::default() });
        let conn = stalled(&mut hub, "app.own.x");
        tell(&mut hub, 2, "1", 0);
        hub.sweep(swept_ms);
        let expected = if is_kept { "[1,3]" } else { "0 to 4: \"evicted\"" };
        assert_eq!([expected], *told(&mut hub, conn), "{history_ms:?} at {swept_ms}");
    }
}

/// A hub whose memory begins behind what is asked for, and a connection that catches up with a topic.
fn catching(patterns: &[&str]) -> (Hub, ConnKey) {
    let mut hub = Hub::new(Limits::default(), 1, "here");
    hub.restart("e", 10, "start", 0);
    let conn = connect(&mut hub);
    hub.subscribe(conn, "app.live", None, 0).unwrap();
    let from = Position { epoch: "e".into(), seq: 5, ..Position::default() }.encode();
    assert!(hub.subscribe_all(conn, patterns, Some(&from), 0).unwrap().history.is_some());
    (hub, conn)
}

/// The topics of what a connection is told.
fn topics(hub: &mut Hub) -> Vec<String> {
    let mut out: Vec<Delivery> = Vec::new();
    hub.take(Shard::FIRST, 1_000_000, 10, &mut out);
    let frames = out.iter().flat_map(|delivery| &delivery.turn.frames);
    let values = frames.map(|frame| serde_json::from_slice::<serde_json::Value>(&frame.payload).unwrap());
    values.map(|value| value["t"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn rights_that_end_end_what_a_connection_catches_up_with() {
    let rules = |open: &str| Rights::new("ann", [Class::App]).under([(open.into(), true), ("app.*".into(), false)]);
    for (still, lost, is_held) in [
        ("app.live", &["app.a", "app.b"][..], false),
        ("app.a", &["app.b", "app.live"], true),
        ("app.nothing", &["app.a", "app.b", "app.live"], false),
    ] {
        let (mut hub, conn) = catching(&["app.a", "app.b"]);
        let mut told = hub.set_rights(conn, rules(still), 1);
        told.sort_unstable();
        assert_eq!(lost, told.iter().map(|pattern| &**pattern).collect::<Vec<_>>());
        for (seq, topic) in (11..).zip(["app.a", "app.b", "app.live"]) {
            assert!(hub.append(&Event { tenant: "t", topic, seq, prev: 0, ts_us: 5, data: "1" }, 1));
        }
        let live: &[&str] = if still == "app.live" { &["app.live"] } else { &[] };
        assert_eq!(live, topics(&mut hub));
        assert_eq!(is_held, hub.give_up(conn, "evicted", 1).is_some());
    }
}

#[test]
fn who_leaves_a_topic_while_it_catches_up_with_it_hears_it_no_longer() {
    let (mut hub, conn) = catching(&["app.live"]);
    assert!(hub.unsubscribe(conn, "app.live", 1));
    assert!(hub.subscriptions(conn).is_empty() && hub.give_up(conn, "evicted", 1).is_none());
    assert!(hub.append(&Event { tenant: "t", topic: "app.live", seq: 11, prev: 0, ts_us: 5, data: "1" }, 1));
    assert!(topics(&mut hub).is_empty());
    assert!(!hub.unsubscribe(conn, "app.live", 1));
}
