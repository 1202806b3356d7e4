//! What servers say, in the words of each: ours (plain and `flx.v1`) and centrifuge's, read into one form.
//!
//! Strategy: a payload that went to ten thousand connections is the same bytes ten thousand times, so what was read is
//! kept beside its bytes and found again by a few words of them; the bytes are compared whole before it counts.
//! Everything that can be checked within one payload is checked when it is read; what needs a connection's past is
//! left to `judge`.
//!
//! Rules:
//! - Nothing is believed that can be counted: numbers that a batch claims must be as many as its events.
//! - The publisher of a benchmark stamps `at` (microseconds since the epoch, when the event was due) and `n` (its number
//!   within the topic) into the data; a server's own claims (`seq`, `prev`) are judged beside `n`, not instead of it.
//! - Lines of text that bear the time at which they were written have a mark before it; only those are marked events.

use std::{borrow::Cow, collections::HashMap, rc::Rc};

use serde::Deserialize;
use serde_json::value::RawValue;

/// The words that are spoken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// One JSON object a message, as in interface.md.
    Plain,
    /// `flx.v1`: events in batches.
    Batched,
    /// JSON of the centrifuge library, one reply a line.
    Centrifuge,
}

/// Events of one topic that came together.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct Run {
    pub topic: u32,
    pub epoch: u32,
    /// The topic's number before the first of these, as the server says.
    pub prev: u64,
    pub seqs: Vec<u64>,
    /// The publisher's numbers; empty when the data has none.
    pub numbers: Vec<u64>,
    /// When each was due or published, in microseconds since the epoch.
    pub stamps: Vec<u64>,
    pub pos: Option<Rc<str>>,
    /// How many of these have the mark, and when the first of those was written, in microseconds since the epoch.
    pub marked: u64,
    pub written: u64,
}

/// One thing that a server said.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// The connection is open for subscriptions.
    Opened,
    /// One subscription was taken; with a position where there are some.
    Subscribed(Option<Rc<str>>),
    Events(Run),
    /// Events were skipped, of this topic or of any, and the client is told; why.
    Gap(Option<u32>, String),
    /// Something that was asked for is refused: the code.
    Refused(String),
    /// It wants to be answered, or the connection ends.
    Ping,
    /// Nothing that counts.
    Other,
}

/// A payload that is not what its dialect says; why.
#[derive(Debug, PartialEq, Eq)]
pub struct Unreadable(pub String);

/// Reads payloads of one dialect.
pub struct Reader {
    dialect: Dialect,
    mark: Box<str>,
    names: HashMap<Box<str>, u32>,
    known: Vec<Option<Known>>,
}

struct Known {
    bytes: Box<[u8]>,
    said: Rc<[Said]>,
}

const SLOTS: usize = 512;

impl Reader {
    #[must_use]
    pub fn new(dialect: Dialect) -> Self {
        Self::marked(dialect, "")
    }

    /// One that also looks for times behind a mark.
    #[must_use]
    pub fn marked(dialect: Dialect, mark: &str) -> Self {
        Self { dialect, mark: mark.into(), names: HashMap::new(), known: (0..SLOTS).map(|_| None).collect() }
    }

    /// What a payload says.
    ///
    /// # Errors
    /// It is not of this dialect, or contradicts itself.
    pub fn read(&mut self, payload: &[u8]) -> Result<Rc<[Said]>, Unreadable> {
        let slot = fingerprint(payload) % SLOTS;
        if let Some(known) = &self.known[slot]
            && *known.bytes == *payload
        {
            return Ok(Rc::clone(&known.said));
        }
        let said: Rc<[Said]> = match self.dialect {
            Dialect::Plain | Dialect::Batched => [self.ours(payload)?].into(),
            Dialect::Centrifuge => self.centrifuge(payload)?.into(),
        };
        self.known[slot] = Some(Known { bytes: payload.into(), said: Rc::clone(&said) });
        Ok(said)
    }

    /// The number of a name; the same as long as the reader lives.
    pub fn name(&mut self, name: &str) -> u32 {
        if let Some(number) = self.names.get(name) {
            return *number;
        }
        let number = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        self.names.insert(name.into(), number);
        number
    }

    fn ours(&mut self, payload: &[u8]) -> Result<Said, Unreadable> {
        let message: Ours = json(payload)?;
        if message.t.is_some() && message.kind.is_none() {
            return self.batch(message);
        }
        Ok(match message.kind.as_deref() {
            Some("event") => self.event(&message)?,
            Some("connected") => Said::Opened,
            Some("subscribed") => Said::Subscribed(message.pos.as_deref().map(Rc::from)),
            Some("gap") => Said::Gap(message.t.as_deref().map(|topic| self.name(topic)), message.why()),
            Some("error") => match message.code.as_deref() {
                Some("gap") => Said::Gap(None, message.why()),
                code => Said::Refused(code.unwrap_or("an error without a code").to_owned()),
            },
            Some(_) => Said::Other,
            None => return Err(Unreadable("a message without type and topic".into())),
        })
    }

    fn event(&mut self, message: &Ours<'_>) -> Result<Said, Unreadable> {
        let (Some(topic), Some(epoch), Some(seq), Some(prev)) =
            (message.event.as_deref(), message.epoch.as_deref(), message.seq, message.prev)
        else {
            return Err(Unreadable("an event without event, epoch, seq or prev".into()));
        };
        let mut run = Run { prev, seqs: vec![seq], pos: message.pos.as_deref().map(Rc::from), ..Run::default() };
        (run.topic, run.epoch) = (self.name(topic), self.name(epoch));
        run.data(message.data, message.ts.as_ref().and_then(|ts| ts.of(0)), &self.mark)?;
        run.check()?;
        Ok(Said::Events(run))
    }

    fn batch(&mut self, message: Ours<'_>) -> Result<Said, Unreadable> {
        let (Some(topic), Some(epoch), Some(claimed), Some(prev), Some(data)) =
            (message.t.as_deref(), message.e.as_deref(), message.s, message.prev, message.d)
        else {
            return Err(Unreadable("a batch without t, e, s, prev or d".into()));
        };
        let pos = message.pos.as_deref().map(Rc::from);
        let mut run = Run { prev, seqs: numbers_of(&claimed, data.len())?, pos, ..Run::default() };
        (run.topic, run.epoch) = (self.name(topic), self.name(epoch));
        for (at, event) in data.into_iter().enumerate() {
            run.data(Some(event), message.ts.as_ref().and_then(|ts| ts.of(at)), &self.mark)?;
        }
        run.check()?;
        Ok(Said::Events(run))
    }

    fn centrifuge(&mut self, payload: &[u8]) -> Result<Vec<Said>, Unreadable> {
        let mut said: Vec<Said> = Vec::new();
        for line in payload.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let reply: Reply = json(line)?;
            if let Some(error) = reply.error {
                said.push(Said::Refused(error.message));
            } else if reply.connect.is_some() {
                said.push(Said::Opened);
            } else if reply.subscribe.is_some() {
                said.push(Said::Subscribed(None));
            } else if let Some(Push { channel, publication: Some(publication) }) = reply.push {
                let topic = self.name(&channel);
                if let Some(Said::Events(last)) = said.last_mut()
                    && last.topic == topic
                {
                    last.numbered(publication.data)?;
                } else {
                    let mut run = Run { topic, ..Run::default() };
                    run.numbered(publication.data)?;
                    said.push(Said::Events(run));
                }
            } else if line == b"{}" {
                said.push(Said::Ping);
            } else {
                said.push(Said::Other);
            }
        }
        Ok(said)
    }
}

impl Run {
    fn data(&mut self, data: Option<&RawValue>, ts: Option<u64>, mark: &str) -> Result<(), Unreadable> {
        if let Some(written) = data.and_then(|data| time_behind(mark, data.get())) {
            self.written = if self.marked == 0 { written } else { self.written };
            self.marked += 1;
        }
        let stamp: Stamp = data.map_or(Ok(Stamp::default()), |data| {
            // Data of a topic that is not a benchmark's may be anything.
            if data.get().starts_with('{') { json(data.get().as_bytes()) } else { Ok(Stamp::default()) }
        })?;
        self.stamps.push(stamp.at.or(ts).ok_or_else(|| Unreadable("an event without a time".into()))?);
        self.numbers.extend(stamp.n);
        Ok(())
    }

    /// An event whose only numbers are the publisher's: they count as the server's too, from 1.
    fn numbered(&mut self, data: &RawValue) -> Result<(), Unreadable> {
        let stamp: Stamp = json(data.get().as_bytes())?;
        let (Some(at), Some(n)) = (stamp.at, stamp.n) else {
            return Err(Unreadable("an event without at or n".into()));
        };
        if self.seqs.is_empty() {
            self.prev = n;
        }
        self.seqs.push(n + 1);
        self.stamps.push(at);
        Ok(())
    }

    /// Hold what can be held without a past.
    fn check(&self) -> Result<(), Unreadable> {
        if !self.numbers.is_empty() && self.numbers.len() != self.seqs.len() {
            return Err(Unreadable("some events with n and some without".into()));
        }
        Ok(())
    }
}

/// The number behind the mark, where there is one.
fn time_behind(mark: &str, text: &str) -> Option<u64> {
    let (_, behind) = text.split_once(mark).filter(|_| !mark.is_empty())?;
    behind[..behind.find(|one: char| !one.is_ascii_digit()).unwrap_or(behind.len())].parse().ok()
}

/// `s` is the list of numbers, or first and last when they are dense.
fn numbers_of(claimed: &[u64], events: usize) -> Result<Vec<u64>, Unreadable> {
    if claimed.len() == events {
        return Ok(claimed.to_vec());
    }
    if let [first, last] = *claimed
        && last >= first
        && usize::try_from(last - first).is_ok_and(|more| more + 1 == events)
    {
        return Ok((first..=last).collect());
    }
    Err(Unreadable(format!("{events} events under {} numbers", claimed.len())))
}

fn json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Unreadable> {
    serde_json::from_slice(bytes).map_err(|error| {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(120)]);
        Unreadable(format!("{error}: {shown}"))
    })
}

/// A few words of a payload, well spread; not more, since the whole is compared anyway.
fn fingerprint(payload: &[u8]) -> usize {
    let mut state = payload.len() as u64;
    let middle = payload.len() / 2;
    let parts = [&payload[..payload.len().min(256)], &payload[middle..payload.len().min(middle + 64)]];
    let tail = &payload[payload.len().saturating_sub(160)..];
    for part in parts.into_iter().chain([tail]) {
        for word in part.chunks_exact(8) {
            let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
            state = (state.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
    }
    usize::try_from(state >> 20).unwrap_or(0)
}

#[derive(Deserialize)]
struct Ours<'a> {
    #[serde(rename = "type", borrow)]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    event: Option<Cow<'a, str>>,
    #[serde(borrow)]
    epoch: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pos: Option<Cow<'a, str>>,
    #[serde(borrow)]
    code: Option<Cow<'a, str>>,
    #[serde(borrow)]
    reason: Option<Cow<'a, str>>,
    #[serde(borrow)]
    t: Option<Cow<'a, str>>,
    #[serde(borrow)]
    e: Option<Cow<'a, str>>,
    seq: Option<u64>,
    prev: Option<u64>,
    ts: Option<Times>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    s: Option<Vec<u64>>,
    #[serde(borrow)]
    d: Option<Vec<&'a RawValue>>,
}

impl Ours<'_> {
    fn why(&self) -> String {
        self.reason.as_deref().unwrap_or("no reason").to_owned()
    }
}

/// One time for all events, or one for each.
#[derive(Deserialize)]
#[serde(untagged)]
enum Times {
    One(u64),
    Each(Vec<u64>),
}

impl Times {
    fn of(&self, event: usize) -> Option<u64> {
        match self {
            Self::One(one) => Some(*one),
            Self::Each(each) => each.get(event).copied(),
        }
    }
}

#[derive(Deserialize, Default)]
struct Stamp {
    at: Option<u64>,
    n: Option<u64>,
}

#[derive(Deserialize)]
struct Reply<'a> {
    #[serde(borrow)]
    connect: Option<&'a RawValue>,
    #[serde(borrow)]
    subscribe: Option<&'a RawValue>,
    error: Option<CentrifugeError>,
    #[serde(borrow)]
    push: Option<Push<'a>>,
}

#[derive(Deserialize)]
struct CentrifugeError {
    message: String,
}

#[derive(Deserialize)]
struct Push<'a> {
    #[serde(borrow, default)]
    channel: Cow<'a, str>,
    #[serde(rename = "pub", borrow)]
    publication: Option<Publication<'a>>,
}

#[derive(Deserialize)]
struct Publication<'a> {
    #[serde(borrow)]
    data: &'a RawValue,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(dialect: Dialect, text: &str) -> Run {
        let mut said = Reader::new(dialect).read(text.as_bytes()).unwrap();
        match Rc::get_mut(&mut said) {
            Some([Said::Events(run)]) => std::mem::take(run),
            _ => match &*said {
                [Said::Events(run)] => Run {
                    seqs: run.seqs.clone(),
                    numbers: run.numbers.clone(),
                    stamps: run.stamps.clone(),
                    pos: run.pos.clone(),
                    ..*run
                },
                other => panic!("{other:?}"),
            },
        }
    }

    #[test]
    fn a_plain_event_and_a_batch_say_the_same() {
        let plain = r#"{"type":"event","event":"bench.a","seq":7,"prev":5,"epoch":"E","ts":11,"pos":"P","data":{"at":9,"n":3}}"#;
        let batch = r#"{"t":"bench.a","e":"E","s":[7],"prev":5,"pos":"P","ts":11,"d":[{"at":9,"n":3}]}"#;
        let found = run(Dialect::Plain, plain);
        assert_eq!(found, run(Dialect::Batched, batch));
        assert_eq!(
            (found.prev, &found.seqs[..], &found.numbers[..], &found.stamps[..]),
            (5, &[7][..], &[3][..], &[9][..])
        );
        assert_eq!(found.pos.as_deref(), Some("P"));
    }

    #[test]
    fn a_batch_lists_its_numbers_or_says_first_and_last() {
        let dense = r#"{"t":"a","e":"E","s":[4,6],"prev":1,"pos":"","ts":[1,2,3],"d":[null,null,null]}"#;
        assert_eq!(run(Dialect::Batched, dense).seqs, [4, 5, 6]);
        assert_eq!(run(Dialect::Batched, dense).stamps, [1, 2, 3]);
        let listed = r#"{"t":"a","e":"E","s":[4,9],"prev":1,"pos":"","ts":1,"d":[null,null]}"#;
        assert_eq!(run(Dialect::Batched, listed).seqs, [4, 9]);
    }

    #[test]
    fn lines_with_the_mark_are_counted_and_the_first_says_when_it_was_written() {
        let lines =
            r#"{"t":"a","e":"E","s":[4,6],"prev":3,"pos":"","ts":9,"d":[{"event":"begin"},{"event":"at=7 x"},"at=8"]}"#;
        let said = Reader::marked(Dialect::Batched, "at=").read(lines.as_bytes()).unwrap();
        assert!(matches!(&*said, [Said::Events(run)] if (run.marked, run.written) == (2, 7)), "{said:?}");
        assert_eq!(run(Dialect::Batched, lines).marked, 0, "nobody looks for one");
        assert_eq!(time_behind("at=", "at=x"), None);
    }

    #[test]
    fn numbers_that_are_not_as_many_as_the_events_are_unreadable() {
        let mut reader = Reader::new(Dialect::Batched);
        for s in ["[4,7]", "[4]", "[6,4]", "[]"] {
            let batch = format!(r#"{{"t":"a","e":"E","s":{s},"prev":1,"pos":"","ts":1,"d":[null,null,null]}}"#);
            assert!(reader.read(batch.as_bytes()).is_err(), "{s}");
        }
        assert!(reader.read(br#"{"t":"a","e":"E","s":[1,2],"prev":0,"ts":1,"d":[{"at":1,"n":1},{"at":1}]}"#).is_err());
        assert!(reader.read(br#"{"t":"a","e":"E","s":[1],"d":[{"at":1,"n":1}]}"#).is_err(), "no prev");
        assert!(reader.read(b"{}").is_err());
        assert!(reader.read(b"nonsense").is_err());
    }

    #[test]
    fn what_is_no_event_is_told_apart() {
        let mut reader = Reader::new(Dialect::Batched);
        let mut said = |text: &str| reader.read(text.as_bytes()).unwrap();
        assert_eq!(*said(r#"{"type":"connected","message":"connected","client_id":"c"}"#), [Said::Opened]);
        assert_eq!(*said(r#"{"type":"subscribed","event":"a","pos":"P"}"#), [Said::Subscribed(Some("P".into()))]);
        assert_eq!(
            *said(r#"{"type":"error","code":"gap","message":"","reason":"epoch"}"#),
            [Said::Gap(None, "epoch".into())]
        );
        assert_eq!(
            *said(r#"{"type":"gap","t":"a","after":1,"before":3,"epoch":"E","reason":"evicted"}"#),
            [Said::Gap(Some(0), "evicted".into())]
        );
        assert_eq!(*said(r#"{"type":"error","code":"forbidden","message":""}"#), [Said::Refused("forbidden".into())]);
        assert_eq!(*said(r#"{"type":"heartbeat","ts":1}"#), [Said::Other]);
    }

    #[test]
    fn a_payload_that_was_read_before_is_told_from_one_that_resembles_it() {
        let mut reader = Reader::new(Dialect::Batched);
        let pad = "x".repeat(1000);
        let text = |n: u64| {
            format!(r#"{{"t":"a","e":"E","s":[{n}],"prev":0,"ts":1,"d":[{{"at":1,"n":{n},"data":"{pad}"}}]}}"#)
        };
        for n in (0..2000).chain(0..2000) {
            let said = reader.read(text(n).as_bytes()).unwrap();
            assert!(matches!(&*said, [Said::Events(run)] if run.seqs == [n]), "{n}");
        }
    }

    #[test]
    fn lines_of_centrifuge_are_replies_and_publications_of_a_channel_come_together() {
        let mut reader = Reader::new(Dialect::Centrifuge);
        let lines = concat!(
            "{\"id\":1,\"connect\":{\"client\":\"c\"}}\n{\"id\":2,\"subscribe\":{}}\n",
            "{\"push\":{\"channel\":\"a\",\"pub\":{\"data\":{\"at\":5,\"n\":0}}}}\n",
            "{\"push\":{\"channel\":\"a\",\"pub\":{\"data\":{\"at\":6,\"n\":1}}}}\n{}\n"
        );
        let said = reader.read(lines.as_bytes()).unwrap();
        let events = Run { seqs: vec![1, 2], stamps: vec![5, 6], ..Run::default() };
        assert_eq!(*said, [Said::Opened, Said::Subscribed(None), Said::Events(events), Said::Ping]);
    }
}
