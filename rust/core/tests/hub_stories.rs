//! The hub's promises one by one: what frames say, who is served when, who is held, and what costs nothing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may stop at the first surprise")]

use flx_core::hub::{
    Backfill, COHORT, Class, ConnKey, Delivery, Dialect, Event, Full, Gone, Hub, Limits, Position, Profile, Refused,
    Rights, Shard,
};

const ALL: [Class; 6] = [Class::Pipeline, Class::Execution, Class::Log, Class::Schedule, Class::System, Class::App];

fn hub() -> Hub {
    with(Limits::default())
}

fn with(limits: Limits) -> Hub {
    let mut hub = Hub::new(limits, 1, "here");
    hub.restart("e", 0, "start", 0);
    hub
}

fn profile(dialect: Dialect) -> Profile {
    Profile { shard: Shard::FIRST, tenant: "t".into(), rights: Rights::new("ann", ALL), dialect }
}

fn connect(hub: &mut Hub, dialect: Dialect, patterns: &[&str]) -> ConnKey {
    let conn = hub.connect(profile(dialect)).unwrap();
    for pattern in patterns {
        hub.subscribe(conn, pattern, None, 0).unwrap();
    }
    conn
}

fn event<'a>(topic: &'a str, seq: u64, prev: u64, data: &'a str) -> Event<'a> {
    Event { tenant: "t", topic, seq, prev, ts_us: 5, data }
}

fn take(hub: &mut Hub, now_ms: u64) -> Vec<Delivery> {
    let mut out = Vec::new();
    hub.take(Shard::FIRST, now_ms, usize::MAX / 2, &mut out);
    out
}

/// The text of all frames.
fn texts(deliveries: &[Delivery]) -> Vec<String> {
    let frames = deliveries.iter().flat_map(|delivery| &delivery.turn.frames);
    frames.map(|frame| String::from_utf8(frame.payload.to_vec()).unwrap()).collect()
}

fn pos(seq: u64, logs: &[(&str, u64)]) -> String {
    let logs = logs.iter().map(|(execution, line)| ((*execution).into(), *line)).collect();
    Position { epoch: "e".into(), seq, logs }.encode()
}

#[test]
fn both_dialects_say_what_the_interface_says() {
    let mut hub = hub();
    connect(&mut hub, Dialect::Plain, &["pipeline_events"]);
    connect(&mut hub, Dialect::Batched, &["pipeline_events"]);
    for (seq, prev, data) in [(3, 0, "1"), (4, 3, ""), (5, 4, r#"{"a":"ä"}"#), (9, 5, "4")] {
        assert!(hub.append(&event("pipeline_events", seq, prev, data), 10));
    }
    let deliveries = take(&mut hub, 10);
    let plain = |seq, prev, data| {
        let pos = pos(seq, &[]);
        format!(
            r#"{{"type":"event","event":"pipeline_events","seq":{seq},"prev":{prev},"epoch":"e","ts":5,"pos":"{pos}","data":{data}}}"#
        )
    };
    let batched = format!(
        r#"{{"t":"pipeline_events","e":"e","s":[3,4,5,9],"prev":0,"pos":"{}","ts":5,"d":[1,null,{{"a":"ä"}},4]}}"#,
        pos(9, &[])
    );
    let expected = vec![plain(3, 0, "1"), plain(4, 3, "null"), plain(5, 4, r#"{"a":"ä"}"#), plain(9, 5, "4"), batched];
    assert_eq!(expected, texts(&deliveries));
    assert!(take(&mut hub, 10).is_empty());
}

#[test]
fn numbers_without_a_hole_are_the_first_and_the_last() {
    let mut hub = hub();
    connect(&mut hub, Dialect::Batched, &["execution.x.log"]);
    for line in 1..=4 {
        hub.append(&event("execution.x.log", line, line - 1, "0"), 1);
    }
    assert!(texts(&take(&mut hub, 1))[0].contains(r#""s":[1,4],"prev":0,"#));
    for line in 5..=6 {
        hub.append(&event("execution.x.log", line, line - 1, "0"), 1);
    }
    let text = texts(&take(&mut hub, 1)).remove(0);
    assert!(text.contains(r#""s":[5,6],"prev":4,"#), "{text}");
    assert!(text.contains(&pos(0, &[("x", 6)])), "{text}");
}

#[test]
fn a_hole_in_what_was_heard_is_a_gap() {
    let mut hub = hub();
    connect(&mut hub, Dialect::Batched, &["execution.x.log"]);
    connect(&mut hub, Dialect::Plain, &["pipeline_events"]);
    hub.append(&event("execution.x.log", 1, 0, "0"), 1);
    hub.append(&event("execution.x.log", 5, 4, "0"), 1);
    hub.append(&event("pipeline_events", 1, 0, "0"), 1);
    hub.append(&event("pipeline_events", 7, 3, "0"), 1);
    let texts = texts(&take(&mut hub, 1));
    let log = r#"{"type":"gap","t":"execution.x.log","after":0,"before":5,"reason":"evicted","epoch":"e","href":"/v1/executions/x/logs?from=1"}"#;
    assert_eq!(log, texts[0]);
    assert!(texts[1].contains(r#""s":[5],"prev":4"#));
    let plain = r#"{"type":"error","code":"gap","message":"Events were skipped; what follows is new","event":"pipeline_events","after":0,"before":4,"reason":"evicted","epoch":"e"}"#;
    assert_eq!(plain, texts[2]);
    assert!(texts[3].contains(r#""seq":7,"prev":3"#));
    assert_eq!(2, hub.gaps()["evicted"]);
}

#[test]
fn what_happens_is_counted() {
    let mut hub = hub();
    let swift = connect(&mut hub, Dialect::Batched, &["app.x"]);
    let slow = connect(&mut hub, Dialect::Batched, &["app.x"]);
    hub.append(&event("app.x", 1, 0, "0"), 1);
    assert_eq!((2, 1), (hub.stats().behind, hub.stats().furthest), "nobody was served");
    let deliveries = take(&mut hub, 1);
    let sent = 2 * deliveries[0].turn.frames[0].payload.len() as u64;
    let stats = hub.stats();
    assert_eq!((2, 2, sent, 0), (stats.frames, stats.delivered, stats.sent_bytes, stats.behind));
    hub.busy(slow);
    for seq in 2..5 {
        hub.append(&event("app.x", seq, seq - 1, "0"), 1);
        take(&mut hub, 1);
    }
    assert_eq!((1, 3), (hub.stats().behind, hub.stats().furthest), "one takes nothing");
    hub.writable(slow, 1);
    take(&mut hub, 1);
    assert_eq!((0, 0), (hub.stats().behind, hub.stats().furthest));
    hub.subscribe(swift, "app.y", Some(&pos(2, &[])), 1).unwrap();
    hub.subscribe(swift, "app.z", Some(&pos(9, &[])), 1).unwrap();
    assert_eq!((2, 1), (hub.stats().resumes, hub.stats().asked), "it was ahead of this process");
    hub.give_up(swift, "upstream_unavailable", 1);
    let elsewhere = Position { epoch: "d".into(), seq: 2, ..Position::default() }.encode();
    hub.subscribe(swift, "app.v", Some(&elsewhere), 1).unwrap();
    hub.restart("f", 0, "restored", 2);
    take(&mut hub, 2);
    let gaps: Vec<_> = hub.gaps().iter().map(|(reason, count)| (&**reason, *count)).collect();
    assert_eq!(vec![("epoch", 1), ("restored", 2), ("upstream_unavailable", 1)], gaps);
}

#[test]
fn a_fleet_shares_its_turns() {
    let mut hub = hub();
    let fleet: Vec<ConnKey> =
        (0..1_000).map(|_| connect(&mut hub, Dialect::Batched, &["app.x", "execution.*"])).collect();
    connect(&mut hub, Dialect::Batched, &["app.x"]);
    assert_eq!((2, 5, 2_001), (hub.stats().audiences, hub.stats().cohorts, hub.stats().subscriptions));
    hub.append(&event("app.x", 1, 0, "0"), 1);
    let deliveries = take(&mut hub, 1);
    assert_eq!(1_001, deliveries.len());
    assert_eq!(1, hub.stats().turns, "all are at the same place");
    let payload = &deliveries[0].turn.frames[0].payload;
    let is_shared = |delivery: &Delivery| std::sync::Arc::ptr_eq(payload, &delivery.turn.frames[0].payload);
    assert!(deliveries.iter().all(is_shared), "one frame for all cohorts and audiences");
    for conn in fleet {
        hub.disconnect(conn);
    }
    assert_eq!((1, 1, 1), (hub.stats().audiences, hub.stats().cohorts, hub.stats().connections));
}

#[test]
fn room_bounds_a_take_and_nobody_is_passed_over() {
    let mut hub = hub();
    for _ in 0..3 * COHORT {
        connect(&mut hub, Dialect::Plain, &["app.x"]);
    }
    hub.append(&event("app.x", 1, 0, "0"), 1);
    let mut served = std::collections::HashSet::new();
    while hub.wakes_at(Shard::FIRST).is_some() {
        let mut out = Vec::new();
        hub.take(Shard::FIRST, 1, 100, &mut out);
        assert!(out.len() <= 100);
        for delivery in out {
            assert!(served.insert(delivery.conn));
        }
    }
    assert_eq!(3 * COHORT, served.len());
    // The pieces have found together again.
    assert!(hub.stats().cohorts <= 6, "{:?}", hub.stats());
}

#[test]
fn one_without_room_costs_nothing_and_goes_on_where_it_was() {
    let mut hub = hub();
    let slow = connect(&mut hub, Dialect::Plain, &["app.x"]);
    let swift = connect(&mut hub, Dialect::Plain, &["app.x"]);
    hub.append(&event("app.x", 1, 0, "1"), 1);
    assert_eq!(2, take(&mut hub, 1).len());
    hub.busy(slow);
    for seq in 2..=4 {
        hub.append(&event("app.x", seq, seq - 1, "2"), 1);
    }
    let deliveries = take(&mut hub, 1);
    assert_eq!(vec![swift], deliveries.iter().map(|delivery| delivery.conn).collect::<Vec<_>>());
    assert_eq!(None, hub.wakes_at(Shard::FIRST));
    hub.writable(slow, 2);
    let deliveries = take(&mut hub, 2);
    assert_eq!((1, slow), (deliveries.len(), deliveries[0].conn));
    let seqs = |deliveries: &[Delivery]| {
        let texts = texts(deliveries);
        texts
            .iter()
            .map(|text| text[text.find("\"seq\":").unwrap() + 6..].split_once(',').unwrap().0.parse().unwrap())
            .collect::<Vec<u64>>()
    };
    assert_eq!(vec![2, 3, 4], seqs(&deliveries));
    hub.put_back(slow, &deliveries[0].turn, 1);
    assert!(take(&mut hub, 3).is_empty());
    hub.writable(slow, 4);
    assert!(hub.has_passed(swift, hub.order()) && !hub.has_passed(slow, hub.order()));
    assert_eq!(vec![3, 4], seqs(&take(&mut hub, 4)));
    assert!(hub.has_passed(slow, hub.order()));
}

#[test]
fn a_lone_event_leaves_at_once_and_load_waits_for_company() {
    let mut hub = hub();
    for _ in 0..2_000 {
        connect(&mut hub, Dialect::Batched, &["app.x"]);
    }
    hub.append(&event("app.x", 1, 0, "0"), 1_000);
    assert_eq!(Some(1_000), hub.wakes_at(Shard::FIRST));
    assert_eq!(2_000, take(&mut hub, 1_000).len());
    let mut turns = 0;
    for now_ms in 1_001..3_000_u64 {
        hub.append(&event("app.x", now_ms, now_ms - 1, "0"), now_ms);
        let served = take(&mut hub, now_ms).len() as u64;
        hub.spent(Shard::FIRST, served, served * 10);
        turns += served / 2_000;
    }
    let window_ms = hub.stats().window_ms;
    assert!((20..=60).contains(&window_ms), "{window_ms}");
    assert!(turns < 500, "{turns} times each in two seconds of 1,000 events");
    take(&mut hub, 10_000);
    hub.append(&event("app.x", 5_000, 2_999, "0"), 20_000);
    assert_eq!(Some(20_000), hub.wakes_at(Shard::FIRST));
}

#[test]
fn each_shard_has_turns_of_its_own_and_who_sleeps_is_called_once() {
    let mut hub = hub();
    let second = hub.add_shard();
    let here = connect(&mut hub, Dialect::Batched, &["app.x"]);
    let there = hub.connect(Profile { shard: second, ..profile(Dialect::Batched) }).unwrap();
    hub.subscribe(there, "app.*", None, 0).unwrap();
    let sleep = |hub: &mut Hub| (hub.wakes_at(Shard::FIRST), hub.wakes_at(second));
    assert_eq!((None, None), sleep(&mut hub));
    hub.append(&event("app.y", 1, 0, "0"), 1);
    assert_eq!(vec![second], hub.called(), "nobody in the first hears it");
    hub.append(&event("app.x", 2, 0, "0"), 1);
    hub.append(&event("app.x", 3, 2, "0"), 1);
    assert_eq!(vec![Shard::FIRST], hub.called(), "the second was called before");
    let deliveries = take(&mut hub, 1);
    assert_eq!(vec![here], deliveries.iter().map(|delivery| delivery.conn).collect::<Vec<_>>());
    assert_eq!((None, Some(1)), sleep(&mut hub), "what one has taken is due for the other still");
    let mut out = Vec::new();
    hub.take(second, 1, 10, &mut out);
    assert_eq!(vec![there], out.iter().map(|delivery| delivery.conn).collect::<Vec<_>>());
    hub.append(&event("app.x", 4, 3, "0"), 1);
    assert_eq!(vec![Shard::FIRST], hub.called(), "the second is at work");
    // What sending costs in one is no reason to wait in the other.
    hub.disconnect(here);
    for _ in 0..2_000 {
        connect(&mut hub, Dialect::Batched, &["app.x"]);
    }
    for now_ms in 1_001..3_000_u64 {
        hub.append(&event("app.x", now_ms, now_ms - 1, "0"), now_ms);
        let served = take(&mut hub, now_ms).len() as u64;
        hub.spent(Shard::FIRST, served, served * 10);
        out.clear();
        hub.take(second, now_ms, 10, &mut out);
        assert_eq!(1, out.len(), "at {now_ms}");
    }
    assert!(hub.stats().window_ms >= 20);
}

#[test]
fn topics_of_this_gateway_alone_have_their_own_numbers_and_no_place_in_positions() {
    let mut hub = hub();
    assert_eq!(None, hub.publish("t", "pipeline_events", 5, "0", 1));
    connect(&mut hub, Dialect::Plain, &["bench.a"]);
    assert_eq!(Some(1), hub.publish("t", "bench.a", 5, "0", 1));
    assert_eq!(Some(2), hub.publish("t", "bench.a", 5, "0", 1));
    let texts = texts(&take(&mut hub, 1));
    let expected = format!(
        r#"{{"type":"event","event":"bench.a","seq":2,"prev":1,"epoch":"here","ts":5,"pos":"{}","data":0}}"#,
        pos(0, &[])
    );
    assert_eq!(expected, texts[1]);
    let conn = hub.connect(profile(Dialect::Batched)).unwrap();
    let subscribed = hub.subscribe(conn, "*", Some(&pos(0, &[])), 1).unwrap();
    let gap = std::str::from_utf8(&subscribed.frames[1].payload).unwrap();
    assert_eq!(r#"{"type":"gap","t":"bench.a","after":0,"before":3,"reason":"ephemeral","epoch":"here"}"#, gap);
    assert!(subscribed.history.is_none());
    assert!(take(&mut hub, 1).is_empty());
}

#[test]
fn what_may_not_be_is_refused_and_changes_nothing() {
    let mut hub = with(Limits { max_subscriptions: 2, max_connections: 2, ..Limits::default() });
    let conn = connect(&mut hub, Dialect::Plain, &["app.x"]);
    for (pattern, from, why) in [
        ("app.*.x", None, Refused::NotAPattern),
        ("what.x", None, Refused::NoSuchTopic),
        ("user.bert", None, Refused::Forbidden),
        ("app.y", Some("no"), Refused::NotAPosition),
    ] {
        assert_eq!(why, hub.subscribe(conn, pattern, from, 1).unwrap_err(), "{pattern}");
    }
    hub.subscribe(conn, "app.y", None, 1).unwrap();
    hub.subscribe(conn, "app.y", None, 1).unwrap();
    assert_eq!(Refused::TooMany, hub.subscribe(conn, "app.z", None, 1).unwrap_err());
    assert_eq!(2, hub.subscriptions(conn).len());
    hub.connect(profile(Dialect::Plain)).unwrap();
    assert_eq!(Err(Full), hub.connect(profile(Dialect::Plain)));
    hub.disconnect(conn);
    assert_eq!(Refused::Unknown, hub.subscribe(conn, "app.x", None, 1).unwrap_err());
    let next = hub.connect(profile(Dialect::Plain)).unwrap();
    assert_eq!((conn.index, true), (next.index, conn != next));
    assert!(hub.subscriptions(conn).is_empty());
}

#[test]
fn rights_follow_the_connection() {
    let mut hub = hub();
    let conn = connect(&mut hub, Dialect::Plain, &["app.x", "execution.*", "user.ann"]);
    hub.append(&event("app.x", 1, 0, "0"), 1);
    let lost = hub.set_rights(conn, Rights::new("ann", [Class::Execution]), 1);
    assert_eq!(vec!["app.x"], lost.iter().map(|pattern| &**pattern).collect::<Vec<_>>());
    hub.append(&event("execution.x.log", 1, 0, "0"), 1);
    hub.append(&event("execution.x.status", 2, 0, "0"), 1);
    hub.append(&event("user.ann", 3, 0, "0"), 1);
    let texts = texts(&take(&mut hub, 1));
    assert_eq!(2, texts.len(), "{texts:?}");
    assert!(texts[0].contains("execution.x.status") && texts[1].contains("user.ann"));
}

#[test]
fn history_that_memory_lacks_is_fed_and_joined_or_given_up() {
    let mut hub = Hub::new(Limits::default(), 1, "here");
    hub.restart("e", 10, "start", 0);
    let conn = connect(&mut hub, Dialect::Batched, &["app.x"]);
    let subscribed = hub.subscribe(conn, "pipeline_events", Some(&pos(7, &[])), 1).unwrap();
    assert_eq!(7, subscribed.history.unwrap().seq);
    assert_eq!(Refused::Busy, hub.subscribe(conn, "app.y", None, 1).unwrap_err());
    hub.append(&event("app.x", 11, 2, "0"), 1);
    hub.append(&event("pipeline_events", 12, 9, "0"), 1);
    assert!(take(&mut hub, 1).is_empty(), "it is held");
    let told = [event("pipeline_events", 8, 3, "8"), event("pipeline_events", 9, 8, "9")];
    let mut batch = Backfill { epoch: "e", events: &told, journal_seq: 9, is_last: false };
    let (frames, done) = hub.backfill(conn, &batch, 1).unwrap();
    assert!(!done);
    assert!(std::str::from_utf8(&frames[0].payload).unwrap().contains(r#""s":[8,9],"prev":3"#));
    (batch.events, batch.journal_seq) = (&told[1..], 10);
    assert!(matches!(hub.backfill(conn, &batch, 1), Ok((frames, true)) if frames.is_empty()));
    let texts = texts(&take(&mut hub, 1));
    assert!(texts[0].contains(r#""t":"app.x""#) && texts[1].contains(r#""s":[12],"prev":9"#), "{texts:?}");
    assert_eq!(Err(Gone), hub.backfill(conn, &batch, 1).map(|_| ()));

    hub.subscribe(conn, "app.y", Some(&pos(1, &[])), 1).unwrap();
    let gap = hub.give_up(conn, "upstream_unavailable", 1).unwrap();
    let text = std::str::from_utf8(&gap.payload).unwrap();
    let expected =
        format!(r#"{{"type":"gap","t":"*","reason":"upstream_unavailable","epoch":"e","pos":"{}"}}"#, pos(12, &[]));
    assert_eq!(expected, text);
    assert_eq!(3, hub.subscriptions(conn).len());
    hub.subscribe(conn, "app.z", Some(&pos(1, &[])), 1).unwrap();
    assert!(hub.unsubscribe(conn, "app.z", 1));
    assert_eq!(Err(Gone), hub.backfill(conn, &batch, 1).map(|_| ()));
    hub.subscribe(conn, "app.z", Some(&pos(1, &[])), 1).unwrap();
    hub.restart("f", 0, "epoch", 1);
    assert_eq!(Err(Gone), hub.backfill(conn, &batch, 1).map(|_| ()));
    assert!(hub.give_up(conn, "epoch", 1).is_some());
}

#[test]
fn a_restart_is_told_once_to_everyone_who_subscribed() {
    let mut hub = hub();
    connect(&mut hub, Dialect::Plain, &["app.x", "app.y"]);
    connect(&mut hub, Dialect::Plain, &[]);
    hub.append(&event("app.x", 1, 0, "0"), 1);
    hub.restart("f", 3, "evicted", 2);
    assert_eq!("f", hub.epoch());
    let texts = texts(&take(&mut hub, 2));
    let pos = Position { epoch: "f".into(), seq: 3, ..Position::default() }.encode();
    let expected = format!(
        r#"{{"type":"error","code":"gap","message":"Events were skipped; what follows is new","reason":"evicted","epoch":"f","pos":"{pos}"}}"#
    );
    assert_eq!(vec![expected], texts);
    assert!(take(&mut hub, 3).is_empty());
    assert_eq!(0, hub.stats().bytes);
}

#[test]
fn old_events_and_topics_without_readers_are_forgotten() {
    let mut hub = with(Limits { topic_ttl_ms: 1_000, ..Limits::default() });
    for topic in 0..50 {
        hub.append(&event(&format!("app.{topic}"), topic + 1, 0, "0"), 10);
    }
    let conn = connect(&mut hub, Dialect::Plain, &["app.0"]);
    hub.sweep(900);
    // One more for what is told to be lost of `app.*`.
    assert_eq!(51, hub.stats().topics);
    hub.sweep(1_010);
    assert_eq!((2, 0), (hub.stats().topics, hub.stats().bytes));
    hub.disconnect(conn);
    hub.sweep(1_011);
    assert_eq!(0, hub.stats().topics);
    // What was forgotten is asked of the daemon.
    let conn = hub.connect(profile(Dialect::Plain)).unwrap();
    assert!(hub.subscribe(conn, "app.0", Some(&pos(0, &[])), 1_020).unwrap().history.is_some());
}

/// What has to go for want of room is old: nobody who keeps up loses an event that has only just come, in however small a topic.
#[test]
fn room_is_made_by_what_is_old() {
    let mut hub = with(Limits { total_bytes: 150 << 10, ..Limits::default() });
    let topics: Vec<String> = (0..100).map(|number| format!("bench.{number}")).collect();
    for topic in &topics {
        connect(&mut hub, Dialect::Batched, &[topic]);
    }
    let data = format!("\"{}\"", "x".repeat(100));
    for round in 0..100 {
        for topic in &topics {
            assert!(hub.append(&event(topic, 0, 0, &data), round));
        }
        let told = texts(&take(&mut hub, round * 1000));
        assert_eq!((100, 0), (told.len(), told.iter().filter(|text| text.contains("gap")).count()), "{round}");
    }
    assert!(hub.stats().bytes <= 150 << 10);
}

#[test]
fn an_ephemeral_event_has_a_chain_of_its_own_beside_the_journal() {
    let mut hub = hub();
    connect(&mut hub, Dialect::Batched, &["app.x"]);
    connect(&mut hub, Dialect::Plain, &["app.*"]);
    hub.append(&event("app.x", 7, 0, "1"), 1);
    assert_eq!(Some(1), hub.publish("t", "app.x", 5, "2", 1));
    assert_eq!(Some(2), hub.publish("t", "app.x", 5, "3", 1));
    hub.append(&event("app.x", 9, 7, "4"), 1);
    assert_eq!(None, hub.publish("t", "pipeline_events", 5, "2", 1));
    assert_eq!(None, hub.publish("t", "execution.x.log", 5, "2", 1));
    let (before, after) = (pos(7, &[]), pos(9, &[]));
    let texts = texts(&take(&mut hub, 1));
    let (batched, plain) = texts.split_at(3);
    assert_eq!(
        [
            format!(r#"{{"t":"app.x","e":"e","s":[7],"prev":0,"pos":"{before}","ts":5,"d":[1]}}"#),
            format!(
                r#"{{"t":"app.x","e":"here.0","s":[1,2],"prev":0,"pos":"{before}","ts":5,"ephemeral":true,"d":[2,3]}}"#
            ),
            format!(r#"{{"t":"app.x","e":"e","s":[9],"prev":7,"pos":"{after}","ts":5,"d":[4]}}"#),
        ],
        batched
    );
    assert_eq!(4, plain.len());
    let second = r#"{"type":"event","event":"app.x","seq":2,"prev":1,"epoch":"here.0","ts":5,"#;
    assert!(plain[2].starts_with(second) && plain[2].ends_with(r#","ephemeral":true,"data":3}"#), "{}", plain[2]);
}

#[test]
fn an_ephemeral_event_reaches_nobody_else() {
    let mut hub = hub();
    let other = Profile { tenant: "t2".into(), ..profile(Dialect::Plain) };
    let nothing = Profile { rights: Rights::new("bert", []), ..profile(Dialect::Plain) };
    for (profile, pattern) in [(other, "*"), (nothing, "user.*")] {
        let conn = hub.connect(profile).unwrap();
        hub.subscribe(conn, pattern, None, 0).unwrap();
    }
    connect(&mut hub, Dialect::Plain, &["app.y", "pipeline_events"]);
    hub.publish("t", "app.x", 5, "2", 1);
    hub.publish("t", "user.ann", 5, "2", 1);
    assert!(take(&mut hub, 1).is_empty());
}

#[test]
fn a_loss_is_told_to_whoever_may_miss_something_and_begins_an_epoch() {
    let mut hub = hub();
    for patterns in [&["app.x"][..], &["app.never.heard"], &["user.ann"], &["*"], &["pipeline_events", "execution.*"]] {
        connect(&mut hub, Dialect::Batched, patterns);
    }
    hub.publish("t", "app.x", 5, "1", 1);
    assert_eq!(2, take(&mut hub, 1).len());
    hub.lose("bus_restarted", 2);
    hub.publish("t", "app.x", 5, "2", 2);
    let told = take(&mut hub, 1_000);
    let all = texts(&told).join("\n");
    let gap = |class| format!(r#"{{"type":"gap","t":"{class}","reason":"bus_restarted","epoch":"here.1"}}"#);
    assert_eq!(4, told.len(), "{all}");
    assert_eq!((3, 2), (all.matches(&gap("app.*")).count(), all.matches(&gap("user.*")).count()), "{all}");
    assert_eq!(2, all.matches(r#""e":"here.1","s":[1],"prev":0"#).count(), "{all}");
    assert_eq!(None, hub.gaps().get("evicted"));
    assert_eq!(Some(&(all.matches("bus_restarted").count() as u64)), hub.gaps().get("bus_restarted"));
    assert!(take(&mut hub, 2_000).is_empty());
}

#[test]
fn a_loss_is_told_to_who_lags_and_to_who_just_came() {
    let mut hub = hub();
    let slow = connect(&mut hub, Dialect::Plain, &["app.x"]);
    hub.publish("t", "app.x", 5, "1", 1);
    let turn = take(&mut hub, 1).remove(0).turn;
    hub.put_back(slow, &turn, 0);
    hub.lose("bus_trimmed", 2);
    let late = connect(&mut hub, Dialect::Plain, &[]);
    hub.subscribe(late, "app.x", Some(&pos(0, &[])), 2).unwrap();
    hub.publish("t", "app.x", 5, "2", 3);
    hub.writable(slow, 3);
    for delivery in take(&mut hub, 1_000) {
        let told = texts(std::slice::from_ref(&delivery));
        let gaps = told.iter().filter(|text| text.contains("bus_trimmed")).count();
        assert_eq!(usize::from(delivery.conn == slow), gaps, "{told:?}");
        assert!(told.last().unwrap().contains(r#""seq":1,"prev":0,"epoch":"here.1""#), "{told:?}");
    }
}

#[test]
fn whoever_resumes_is_told_that_ephemeral_events_are_missing() {
    let mut hub = hub();
    for number in 0..65 {
        hub.publish("t", &format!("app.{number}"), 5, "1", 1);
        hub.publish("t", &format!("app.{number}"), 5, "1", 1);
    }
    let conn = connect(&mut hub, Dialect::Batched, &[]);
    let told = |frames: Vec<flx_core::hub::Frame>| -> Vec<String> {
        frames.iter().map(|frame| String::from_utf8(frame.payload.to_vec()).unwrap()).collect()
    };
    let one = told(hub.subscribe(conn, "app.3", Some(&pos(0, &[])), 2).unwrap().frames);
    assert_eq!(r#"{"type":"gap","t":"app.3","after":0,"before":3,"reason":"ephemeral","epoch":"here.0"}"#, one[1]);
    // Of many topics one gap for each pattern that has any.
    hub.publish("t", "bench.x", 5, "1", 1);
    let patterns = ["user.*", "app.*", "bench.*", "app.3", "*"];
    let many = told(hub.subscribe_all(conn, &patterns, Some(&pos(0, &[])), 2).unwrap().frames);
    let gap = |pattern, epoch| format!(r#"{{"type":"gap","t":"{pattern}","reason":"ephemeral","epoch":"{epoch}"}}"#);
    let expected = [("app.*", "here.0"), ("bench.*", "here"), ("app.3", "here.0"), ("*", "here.0")];
    assert_eq!(expected.map(|(pattern, epoch)| gap(pattern, epoch)), many[5..]);
}

#[test]
fn who_hears_a_topic_is_noted_as_connections_come_and_go() {
    let mut hub = hub();
    hub.note_presence_of(["app.room.*".into()]);
    let changes = move |hub: &mut Hub| -> Vec<String> {
        let told = hub.presence_changes();
        told.iter()
            .map(|it| format!("{}{} {} {}", if it.here { '+' } else { '-' }, it.tenant, it.topic, it.subject))
            .collect()
    };
    let conn = connect(&mut hub, Dialect::Plain, &["app.room.1", "app.room.1", "app.room.*", "app.other", "*"]);
    assert_eq!(["+t app.room.1 ann"], changes(&mut hub)[..]);
    hub.subscribe(conn, "app.room.2", Some(&pos(99, &[])), 1).unwrap();
    assert_eq!(["+t app.room.2 ann"], changes(&mut hub)[..]);
    assert!(!hub.unsubscribe(conn, "app.room.3", 1));
    assert!(hub.unsubscribe(conn, "app.room.1", 1));
    assert_eq!(["-t app.room.1 ann"], changes(&mut hub)[..]);
    hub.disconnect(conn);
    assert_eq!(["-t app.room.2 ann"], changes(&mut hub)[..]);
    let conn = connect(&mut hub, Dialect::Plain, &["app.room.1"]);
    let lost = hub.set_rights(conn, Rights::new("ann", [Class::Execution]), 1);
    assert_eq!(1, lost.len());
    hub.disconnect(conn);
    assert_eq!(["+t app.room.1 ann", "-t app.room.1 ann"], changes(&mut hub)[..]);
}

#[test]
fn presence_is_told_as_such_in_both_dialects() {
    let mut hub = hub();
    connect(&mut hub, Dialect::Plain, &["presence.app.room"]);
    connect(&mut hub, Dialect::Batched, &["presence.*"]);
    assert_eq!(Some(1), hub.publish("t", "presence.app.room", 5, "{}", 1));
    let told = texts(&take(&mut hub, 1));
    assert!(told[0].starts_with(r#"{"type":"presence","event":"presence.app.room","seq":1,"prev":0,"#), "{}", told[0]);
    assert!(told[1].starts_with(r#"{"type":"presence","t":"presence.app.room","e":"here.0","s":[1],"#), "{}", told[1]);
    hub.lose("epoch", 2);
    let told = texts(&take(&mut hub, 1_000));
    assert_eq!(
        2,
        told.iter().filter(|text| text.contains("presence.*") && text.contains(r#""reason":"epoch""#)).count()
    );
}
