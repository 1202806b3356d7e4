//! The meter against a reader that parses every line with `serde_json`, under random cutting.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};

use flx_core::meter::{MAX_STREAMS, Meter, OTHER_STREAMS, Stream};
use proptest::prelude::*;
use serde_json::Value;

fn fed(text: &[u8]) -> Meter {
    let mut meter = Meter::new(1_000);
    meter.feed(text);
    meter.finish();
    meter
}

fn stream<'a>(meter: &'a Meter, name: &str) -> &'a Stream {
    meter.streams().iter().find(|stream| stream.name == name).unwrap()
}

#[test]
fn names_may_come_in_any_order_and_spelling() {
    for line in [
        r#"{"type":"RECORD","stream":"s","record":{}}"#,
        r#" { "stream" : "s" , "type" : "RECORD" , "record" : { } } "#,
        r#"{"record":{"type":"STATE","stream":"x","a":["}",{"b":"\"}]"}]},"stream":"s","type":"RECORD"}"#,
        r#"{"time_extracted":"2020","n":-1.5e3,"t":true,"z":null,"type":"RECORD","record":{},"stream":"s"}"#,
        r#"{"\u0074ype":"\u0052ECORD","stre\u0061m":"\u0073","record":{}}"#,
        "{\"note\":\"\u{e9}\\\\\",\"type\":\"RECORD\",\"stream\":\"s\"}\r",
        r#"{"type":"RECORD","stream":"s","type":"STATE"}"#,
    ] {
        let meter = fed(format!("{line}\n").as_bytes());
        assert_eq!((1, 0), (stream(&meter, "s").records, meter.malformed()), "{line}");
        assert_eq!(line.len() as u64 + 1, stream(&meter, "s").bytes);
    }
}

#[test]
fn what_is_no_message_is_malformed() {
    for line in [
        "",
        " ",
        "x",
        "[]",
        "1",
        "{}",
        "{",
        "}",
        r#"{"type":"RECORD"}"#,
        r#"{"stream":"s"}"#,
        r#"{"type":1,"stream":"s"}"#,
        r#"{"type":"RECORD","stream":null}"#,
        r#"{"type":"RECORD" "stream":"s"}"#,
        r#"{"type":"RECORD","stream":"s""#,
        r#"{,"type":"RECORD","stream":"s"}"#,
        r#"{"type":"RECORD","stream":"s\"}"#,
        r#"{"record":{"a":1,"type":"RECORD"}"#,
        r#"{"type":"RECORD","stream":"s","record":{"a":"#,
        r#"{"type":"SCHEMA","stream":"s","key_properties":["a",]}"#,
        r#"{"type":"SCHEMA","stream":"s","key_properties":"id"}"#,
        r#"{"a":,"type":"STATE"}"#,
        r#"{"type":"\x"}"#,
    ] {
        let meter = fed(format!("{line}\n").as_bytes());
        assert_eq!((1, 1, 0), (meter.lines(), meter.malformed(), meter.streams().len() as u64), "{line}");
    }
    assert_eq!(1, fed(b"{\"type\":\"BATCH\",\"stream\":\"s\"}\n").other());
}

#[test]
fn states_are_kept_as_written_and_start_a_new_count() {
    let record = "{\"type\":\"RECORD\",\"stream\":\"s\",\"record\":{}}\n";
    let state = r#"{"value": {"é": "type"}, "type": "STATE"}"#;
    let mut meter = fed(format!("{record}{record}{state}\n").as_bytes());
    assert_eq!((1, Some(state)), (meter.states(), meter.last_state().as_deref()));
    assert_eq!(0, meter.records_after_state(stream(&meter, "s")));
    meter.feed(record.as_bytes());
    assert_eq!(1, meter.records_after_state(stream(&meter, "s")));
    assert_eq!(3, stream(&meter, "s").records);
}

#[test]
fn keys_are_read_in_any_order_and_compared_by_meaning() {
    let schema = r#"{"type":"SCHEMA","stream":"s","schema":{"key_properties":[1]},"key_properties":["id","a\"b"]}"#;
    let records = [
        r#"{"type":"RECORD","stream":"s","record":{"id":1,"x":{"id":9},"a\"b":"u"}}"#,
        r#"{"type":"RECORD","record":{"a\u0022b":"\u0075","x":[{}],"id":1},"stream":"s"}"#,
        r#"{"type":"RECORD","stream":"s","record":{"id":"1","a\"b":"u"}}"#,
        r#"{"type":"RECORD","stream":"s","record":{"id":{"n":[1, "]"]},"a\"b":"u"}}"#,
        r#"{"type":"RECORD","stream":"s","record":{"id":1}}"#,
        r#"{"type":"RECORD","stream":"s","record":[]}"#,
    ];
    let mut meter = fed(format!("{schema}\n{}\n", records.join("\n")).as_bytes());
    assert_eq!((Some(4), 5, 1), (stream(&meter, "s").distinct_keys(), stream(&meter, "s").records, meter.malformed()));
    assert_eq!(["id", "a\"b"], stream(&meter, "s").key_properties.as_slice());
    let lines = "[1,\"u\"]\n[\"1\",\"u\"]\n[{\"n\":[1, \"]\"]},\"u\"]\n[1,null]\n";
    assert_eq!(vec![("s".to_owned(), lines.as_bytes().to_vec())], meter.drain_keys());
    assert!(meter.drain_keys().is_empty());
}

#[test]
fn a_count_is_given_only_when_exact() {
    let schema = |key: &str| format!("{{\"type\":\"SCHEMA\",\"stream\":\"s\",\"key_properties\":[{key}]}}\n");
    let record = |id: u32| format!("{{\"type\":\"RECORD\",\"stream\":\"s\",\"record\":{{\"id\":{id}}}}}\n");
    let distinct = |text: String| stream(&fed(text.as_bytes()), "s").distinct_keys();
    assert_eq!(None, distinct(schema("") + &record(1)));
    assert_eq!(Some(1), distinct(schema("\"id\"") + &schema("\"id\"") + &record(1) + &schema("\"id\"") + &record(1)));
    assert_eq!(Some(1), distinct(schema("\"a\"") + &schema("\"id\"") + &record(1)));
    assert_eq!(None, distinct(record(1) + &schema("\"id\"") + &record(1)));
    assert_eq!(None, distinct(schema("\"id\"") + &record(1) + &schema("\"x\"") + &record(1)));
    assert_eq!(None, distinct(schema("\"id\"") + &(0..1_001).map(record).collect::<String>()));
    assert_eq!(Some(1_000), distinct(schema("\"id\"") + &(0..1_000).map(record).collect::<String>()));
}

#[test]
fn a_flood_of_stream_names_is_bounded() {
    let mut meter = Meter::new(10);
    for n in 0..MAX_STREAMS + 7 {
        meter.feed(format!("{{\"type\":\"RECORD\",\"stream\":\"{n}\"}}\n").as_bytes());
    }
    assert_eq!((MAX_STREAMS + 1, 7), (meter.streams().len(), stream(&meter, OTHER_STREAMS).records));
}

#[test]
fn an_unterminated_last_line_is_partial() {
    let meter = fed(b"{\"type\":\"STATE\"}\n{\"type\":\"RECORD\",\"stream\":\"s\"}");
    assert_eq!((1, 30, 0), (meter.lines(), meter.partial_bytes(), meter.streams().len()));
}

/// A line as a tap might write it: spacing and order vary, strings hold what trips naive scanners.
fn message() -> impl Strategy<Value = String> {
    let text = prop_oneof![
        Just("\"}\""),
        Just(r#""{\"""#),
        Just(r#""\\""#),
        Just("\"é\u{1f600}\""),
        Just(r#""\u00e9\ud83d\ude00""#),
        Just("\"x\""),
    ];
    let value = prop_oneof![
        text.prop_map(str::to_owned),
        Just("1".to_owned()),
        Just("-2.5e1".to_owned()),
        Just("null".to_owned()),
        Just(r#"{"type":"STATE","id":7,"n":[[],{"]":"}"}]}"#.to_owned()),
        Just("[ 1, [\"]\"] ]".to_owned()),
    ];
    let record = (0..4_u8, value.clone(), any::<bool>()).prop_map(|(id, extra, first)| {
        if first { format!(r#"{{"id":{id},"x":{extra}}}"#) } else { format!(r#"{{"x":{extra}, "id" : {id}}}"#) }
    });
    let kind = prop_oneof![
        6 => Just("RECORD"), 1 => Just("STATE"), 1 => Just("SCHEMA"), 1 => Just("ACTIVATE_VERSION"), 1 => Just("BATCH"),
    ];
    let stream = prop_oneof![Just("a"), Just("b"), Just("\\u0061"), Just("é")];
    let order = Just(vec![0, 1, 2, 3]).prop_shuffle();
    (kind, stream, record, value, order, any::<bool>()).prop_map(|(kind, stream, record, extra, order, spaced)| {
        let gap = if spaced { " " } else { "" };
        let mut members = vec![
            format!("\"type\"{gap}:{gap}\"{kind}\""),
            format!("\"stream\":{gap}\"{stream}\""),
            format!("\"record\":{record}"),
            format!("\"extra\":{extra}"),
        ];
        members = order.into_iter().map(|place: usize| members[place].clone()).collect();
        if kind == "SCHEMA" {
            members.insert(members.len() / 2, format!("\"key_properties\":{gap}[\"id\"]"));
        }
        format!("{{{gap}{}{gap}}}", members.join(&format!("{gap},{gap}")))
    })
}

proptest! {
    #[test]
    fn counts_agree_with_a_full_reader(
        lines in proptest::collection::vec(prop_oneof![9 => message(), 1 => "[ {}\"x]{0,5}"], 0..40),
        cuts in proptest::collection::vec(1..90_usize, 1..20),
        tail in "[a-z]{0,5}"
    ) {
        let text = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect::<String>() + &tail;
        let mut meter = Meter::new(1_000);
        let (mut rest, mut turn) = (text.as_bytes(), 0);
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(cuts[turn % cuts.len()].min(rest.len()));
            meter.feed(chunk);
            rest = after;
            turn += 1;
        }
        meter.finish();

        let mut malformed = 0;
        let mut records: BTreeMap<String, u64> = BTreeMap::new();
        let mut keys: BTreeMap<String, Option<BTreeSet<String>>> = BTreeMap::new();
        for line in &lines {
            let Ok(message @ Value::Object(_)) = serde_json::from_str(line) else {
                malformed += 1;
                continue;
            };
            let (Some(kind), Some(stream)) = (message["type"].as_str(), message["stream"].as_str()) else {
                malformed += 1;
                continue;
            };
            let count = records.entry(stream.into()).or_default();
            match kind {
                "RECORD" => {
                    *count += 1;
                    if let Some(Some(known)) = keys.get_mut(stream) {
                        known.insert(message["record"]["id"].to_string());
                    }
                }
                "SCHEMA" if !keys.contains_key(stream) => {
                    keys.insert(stream.into(), (*count == 0).then(BTreeSet::new));
                }
                _ => {}
            }
        }
        prop_assert_eq!((lines.len() as u64, text.len() as u64, malformed), (meter.lines(), meter.bytes(), meter.malformed()));
        prop_assert_eq!(tail.len() as u64, meter.partial_bytes());
        for stream in meter.streams() {
            prop_assert_eq!(records[&stream.name], stream.records);
            let distinct = keys.get(&stream.name).and_then(|known| known.as_ref().map(BTreeSet::len));
            prop_assert_eq!(distinct, stream.distinct_keys());
        }
    }

    #[test]
    fn no_bytes_make_it_panic(chunks in proptest::collection::vec("[\\PC\"{}\\[\\]:,\n]{0,30}", 0..20)) {
        let mut meter = Meter::new(3);
        meter.feed(b"{\"type\":\"SCHEMA\",\"stream\":\"s\",\"key_properties\":[\"k\"]}\n{\"type\":\"RECORD\",\"stream\":\"s\",\"record\":");
        for chunk in chunks {
            meter.feed(chunk.as_bytes());
        }
        meter.finish();
    }
}
