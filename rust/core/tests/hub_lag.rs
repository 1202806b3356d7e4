//! How late frames leave: counted for each connection that is given one.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use flx_core::hub::{
    Class, ConnKey, Delivery, Dialect, Event, Hub, LAG_BOUNDS_MS, Limits, Position, Profile, Rights, Shard,
};

const TOPIC: &str = "pipeline_events";

fn connect(hub: &mut Hub, dialect: Dialect, from: Option<&str>, now_ms: u64) -> ConnKey {
    let rights = Rights::new("ann", [Class::Pipeline]);
    let conn = hub.connect(Profile { shard: Shard::FIRST, tenant: "t".into(), rights, dialect }).unwrap();
    hub.subscribe(conn, TOPIC, from, now_ms).unwrap();
    conn
}

fn event(seq: u64) -> Event<'static> {
    Event { tenant: "t", topic: TOPIC, seq, prev: seq - 1, ts_us: 5, data: "1" }
}

fn take(hub: &mut Hub, now_ms: u64) -> Vec<Delivery> {
    let mut out = Vec::new();
    hub.take(Shard::FIRST, now_ms, usize::MAX / 2, &mut out);
    out
}

#[test]
fn how_late_frames_leave_is_counted() {
    let mut hub = Hub::new(Limits::default(), 1, "here");
    hub.restart("e", 0, "start", 0);
    let conns = [(); 3].map(|()| connect(&mut hub, Dialect::Batched, None, 0));
    let plain = connect(&mut hub, Dialect::Plain, None, 0);
    hub.append(&event(1), 10);
    hub.append(&event(2), 40);
    let given = take(&mut hub, 50);
    assert_eq!(4, given.len());
    // The frame for three is as old as its first event; the one who gets each alone has one of 40 and one of 10.
    let counted = |hub: &Hub| {
        let found = LAG_BOUNDS_MS.iter().zip(hub.ages().counts);
        found.filter(|(_, count)| *count > 0).map(|(bound, count)| (*bound, count)).collect::<Vec<_>>()
    };
    assert_eq!(vec![(10, 1), (50, 4)], counted(&hub));
    assert_eq!(3 * 40 + 40 + 10, hub.ages().sum_ms);

    // What did not go out is late when it does.
    let delivery = given.iter().find(|delivery| delivery.conn == plain).unwrap();
    hub.put_back(plain, &delivery.turn, 1);
    hub.writable(plain, 300);
    assert_eq!(1, take(&mut hub, 300).len());
    assert_eq!(vec![(10, 1), (50, 4), (300, 1)], counted(&hub));

    // The past that is asked for is no delay.
    hub.disconnect(conns[0]);
    let begin = Position { epoch: "e".into(), seq: 0, logs: [].into() }.encode();
    connect(&mut hub, Dialect::Plain, Some(&begin), 5_000);
    assert_eq!(2, take(&mut hub, 5_000).iter().map(|delivery| delivery.turn.frames.len()).sum::<usize>());
    assert_eq!(6, hub.ages().counts.iter().sum::<u64>());
}
