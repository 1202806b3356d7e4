//! One client of the fleet: upgrade, subscriptions, events; and the figures of all.
//!
//! Rules:
//! - Pure: bytes and the time in, bytes to send and figures out. The shell (`ws-load`) moves them.
//! - A connection that resumes keeps its chains, so what the outage swallowed shows as a hole.

use std::{collections::BTreeMap, rc::Rc};

use serde::Deserialize;

use crate::{
    ages::Ages,
    dialect::{Dialect, Reader, Run, Said},
    judge::{Chains, Faults},
    websocket::{self, CLOSE, PING, PONG, TEXT},
};

/// Publisher's numbers whose last arrival is kept.
const LONE_MOST: usize = 10_000;

/// What every client of a fleet does.
#[derive(Deserialize)]
pub struct Plan {
    pub address: std::net::SocketAddr,
    /// `{}` stands for the client's number.
    pub path: String,
    pub dialect: Dialect,
    /// `{}` as in `path`.
    pub topics: Vec<String>,
    #[serde(default)]
    pub tokens: Vec<String>,
    pub connections: usize,
    /// Handshakes under way at once.
    #[serde(default = "few")]
    pub concurrency: usize,
    /// The share of clients that can be stalled: their receive buffers are small.
    #[serde(default)]
    pub stallable: f64,
    /// Who signed the server's certificate, as a file of PEM; without it there is no TLS.
    #[serde(default)]
    pub ca: Option<std::path::PathBuf>,
    /// What stands before the time at which a line was written, in lines that say so.
    #[serde(default)]
    pub mark: String,
}

const fn few() -> usize {
    128
}

impl Plan {
    /// Whether this client is one of those that can be stalled.
    #[must_use]
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub fn stallable(&self, number: usize) -> bool {
        number < (self.stallable * self.connections as f64) as usize
    }

    fn request(&self, number: usize) -> Vec<u8> {
        let mut headers = String::new();
        if let Some(token) = self.tokens.get(number % self.tokens.len().max(1)) {
            headers = format!("Authorization: Bearer {token}\r\n");
        }
        if self.dialect == Dialect::Batched {
            headers.push_str("Sec-WebSocket-Protocol: flx.v1\r\n");
        }
        let path = self.path.replace("{}", &number.to_string());
        websocket::upgrade_request(&self.address.to_string(), &path, &headers)
    }

    fn subscriptions(&self, number: usize, from: Option<&str>, out: &mut Vec<u8>) {
        for (id, topic) in self.topics.iter().enumerate() {
            let topic = topic.replace("{}", &number.to_string());
            let from = from.map_or_else(String::new, |from| format!(r#","from":"{from}""#));
            let text = match self.dialect {
                Dialect::Plain | Dialect::Batched => format!(r#"{{"type":"subscribe","event":"{topic}"{from}}}"#),
                Dialect::Centrifuge => format!(r#"{{"id":{},"subscribe":{{"channel":"{topic}"}}}}"#, id + 2),
            };
            out.extend(websocket::client_frame(TEXT, text.as_bytes()));
        }
    }
}

/// What all clients saw since the figures were last cleared.
#[derive(Default)]
pub struct Figures {
    pub events: u64,
    pub frames: u64,
    pub bytes: u64,
    pub faults: Faults,
    /// Gaps that the server told.
    pub gaps: u64,
    pub gap_reasons: BTreeMap<String, u64>,
    pub unreadable: u64,
    /// The first thing that could not be read, or was refused.
    pub complaint: Option<String>,
    pub ages: Ages,
    /// Of clients that can be stalled.
    pub ages_stallable: Ages,
    /// For each of the publisher's numbers: the age at its last arrival, and how many arrived. Kept on demand: it costs.
    pub lasts: Option<BTreeMap<u64, (u64, u64)>>,
    pub written: Written,
}

/// Events with the mark.
#[derive(Default)]
pub struct Written {
    pub count: u64,
    /// When the first and the last of them came, in microseconds since the epoch.
    pub came_us: Option<(u64, u64)>,
    /// For each topic: the greatest age of the first that a client heard of it, and how many clients that were.
    pub firsts: BTreeMap<u32, (u64, u64)>,
}

impl Written {
    fn take(&mut self, run: &Run, now_us: u64, is_first: bool) {
        self.count += run.marked;
        self.came_us = Some((self.came_us.map_or(now_us, |(first, _)| first), now_us));
        if is_first {
            let first = self.firsts.entry(run.topic).or_default();
            *first = (first.0.max(now_us.saturating_sub(run.written)), first.1 + 1);
        }
    }
}

impl Figures {
    fn complain(&mut self, text: String) {
        self.complaint.get_or_insert(text);
    }

    fn events(&mut self, run: &Run, now_us: u64, stallable: bool) {
        self.events += run.seqs.len() as u64;
        let ages = if stallable { &mut self.ages_stallable } else { &mut self.ages };
        for stamp in &run.stamps {
            ages.add(now_us.saturating_sub(*stamp));
        }
        let Some(lasts) = &mut self.lasts else { return };
        for (number, stamp) in run.numbers.iter().chain(&run.seqs).zip(&run.stamps) {
            if lasts.len() < LONE_MOST || lasts.contains_key(number) {
                let last = lasts.entry(*number).or_default();
                *last = (last.0.max(now_us.saturating_sub(*stamp)), last.1 + 1);
            }
        }
    }
}

/// How far a client has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Upgrading,
    Opening,
    /// So many subscriptions are still to be confirmed.
    Subscribing(usize),
    Live,
    /// The server ended it: the close code, or the status of a refused upgrade.
    Ended(u16),
}

/// One client.
pub struct Client {
    number: usize,
    stallable: bool,
    pub phase: Phase,
    pub flx_v1: bool,
    /// Events since the figures were cleared.
    pub events: u64,
    /// Gaps told to it since the figures were cleared.
    pub gaps: u64,
    /// Topics of which it has heard an event with the mark since the figures were cleared.
    pub heard: Vec<u32>,
    /// Bytes that want to be sent.
    pub out: Vec<u8>,
    held: Vec<u8>,
    chains: Chains,
    pos: Option<Rc<str>>,
}

impl Client {
    #[must_use]
    pub fn new(number: usize, plan: &Plan) -> Self {
        Self {
            number,
            stallable: plan.stallable(number),
            phase: Phase::Upgrading,
            flx_v1: false,
            events: 0,
            gaps: 0,
            heard: Vec::new(),
            out: plan.request(number),
            held: Vec::new(),
            chains: Chains::default(),
            pos: None,
        }
    }

    /// Begin again on a new socket; with what was seen when there is a position to resume from.
    pub fn come_back(&mut self, plan: &Plan) {
        self.phase = Phase::Upgrading;
        self.held.clear();
        self.out = plan.request(self.number);
        if self.pos.is_none() {
            self.chains.forget();
        }
    }

    /// Take what was read.
    pub fn feed(&mut self, bytes: &[u8], plan: &Plan, reader: &mut Reader, figures: &mut Figures, now_us: u64) {
        if self.held.is_empty() {
            let used = self.take(bytes, plan, reader, figures, now_us);
            self.held.extend_from_slice(&bytes[used..]);
            return;
        }
        let mut held = std::mem::take(&mut self.held);
        held.extend_from_slice(bytes);
        let used = self.take(&held, plan, reader, figures, now_us);
        if used == held.len() {
            return;
        }
        held.drain(..used);
        self.held = held;
    }

    /// Take whole frames from the beginning of `bytes`; how many bytes they were.
    fn take(&mut self, bytes: &[u8], plan: &Plan, reader: &mut Reader, figures: &mut Figures, now_us: u64) -> usize {
        let mut used = 0;
        if self.phase == Phase::Upgrading {
            let Some(end) = websocket::end_of_head(bytes) else { return 0 };
            self.upgraded(&String::from_utf8_lossy(&bytes[..end]), plan, figures);
            used = end;
        }
        loop {
            if matches!(self.phase, Phase::Ended(_)) {
                return bytes.len();
            }
            let head = match websocket::head(&bytes[used..]) {
                Ok(Some(head)) if used + head.end <= bytes.len() => head,
                Ok(_) => return used,
                Err(error) => {
                    figures.unreadable += 1;
                    figures.complain(error.0.to_owned());
                    self.phase = Phase::Ended(1002);
                    return bytes.len();
                }
            };
            let payload = &bytes[used + head.start..used + head.end];
            used += head.end;
            match head.opcode {
                PING => self.out.extend(websocket::client_frame(PONG, payload)),
                CLOSE => {
                    let code = payload.first_chunk().map_or(1005, |two| u16::from_be_bytes(*two));
                    self.phase = Phase::Ended(code);
                }
                PONG => {}
                _ => {
                    figures.frames += 1;
                    figures.bytes += payload.len() as u64;
                    self.message(payload, plan, reader, figures, now_us);
                }
            }
        }
    }

    fn upgraded(&mut self, head: &str, plan: &Plan, figures: &mut Figures) {
        let status = head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
        if status != 101 {
            figures.complain(format!("the upgrade was answered with {status}"));
            self.phase = Phase::Ended(status);
            return;
        }
        self.flx_v1 = websocket::header(head, "sec-websocket-protocol") == Some("flx.v1");
        self.phase = Phase::Opening;
        if plan.dialect == Dialect::Centrifuge {
            self.out.extend(websocket::client_frame(TEXT, br#"{"id":1,"connect":{}}"#));
        }
    }

    fn message(&mut self, payload: &[u8], plan: &Plan, reader: &mut Reader, figures: &mut Figures, now_us: u64) {
        let said = match reader.read(payload) {
            Ok(said) => said,
            Err(error) => {
                figures.unreadable += 1;
                figures.complain(error.0);
                return;
            }
        };
        for one in said.iter() {
            match one {
                Said::Opened if self.phase == Phase::Opening => {
                    self.phase =
                        if plan.topics.is_empty() { Phase::Live } else { Phase::Subscribing(plan.topics.len()) };
                    plan.subscriptions(self.number, self.pos.as_deref(), &mut self.out);
                }
                Said::Subscribed(pos) => {
                    if let Phase::Subscribing(left) = self.phase {
                        self.phase = if left > 1 { Phase::Subscribing(left - 1) } else { Phase::Live };
                    }
                    // A resume's position is reached when its events have come, not when it is confirmed.
                    if self.pos.is_none() {
                        self.pos.clone_from(pos);
                    }
                }
                Said::Events(run) => {
                    figures.faults.add(self.chains.take(run));
                    figures.events(run, now_us, self.stallable);
                    if run.marked > 0 {
                        let is_first = !self.heard.contains(&run.topic);
                        figures.written.take(run, now_us, is_first);
                        self.heard.extend(is_first.then_some(run.topic));
                    }
                    self.events += run.seqs.len() as u64;
                    if run.pos.is_some() {
                        self.pos.clone_from(&run.pos);
                    }
                }
                Said::Gap(topic, reason) => {
                    self.chains.gap(*topic);
                    figures.gaps += 1;
                    *figures.gap_reasons.entry(reason.clone()).or_default() += 1;
                    self.gaps += 1;
                }
                Said::Refused(code) => figures.complain(format!("refused: {code}")),
                Said::Ping => self.out.extend(websocket::client_frame(TEXT, b"{}")),
                Said::Opened | Said::Other => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        serde_json::from_str(
            r#"{"address":"127.0.0.1:1","path":"/ws/c-{}","dialect":"batched","topics":["bench.{}"],"tokens":["T"],
                "connections":10,"stallable":0.2}"#,
        )
        .unwrap()
    }

    fn served(texts: &[&str]) -> Vec<u8> {
        let mut bytes = b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Protocol: flx.v1\r\n\r\n".to_vec();
        for text in texts {
            websocket::server_head(TEXT, text.len(), &mut bytes);
            bytes.extend_from_slice(text.as_bytes());
        }
        bytes
    }

    const STORY: [&str; 5] = [
        r#"{"type":"connected","message":"connected","client_id":"c"}"#,
        r#"{"type":"subscribed","event":"bench.3","pos":"p0"}"#,
        r#"{"t":"bench.3","e":"E","s":[1,2],"prev":0,"pos":"p2","ts":5,"d":[{"at":100,"n":0},{"at":200,"n":1}]}"#,
        r#"{"t":"bench.3","e":"E","s":[3],"prev":2,"pos":"p3","ts":5,"d":[{"at":300,"n":2}]}"#,
        r#"{"t":"bench.3","e":"E","s":[5],"prev":4,"pos":"p5","ts":5,"d":[{"at":400,"n":4}]}"#,
    ];

    #[test]
    fn a_story_is_the_same_however_it_is_cut() {
        let (plan, bytes) = (plan(), served(&STORY));
        for size in [1, 2, 7, 64, bytes.len()] {
            let lasts = Some(BTreeMap::new());
            let (mut client, mut reader, mut figures) =
                (Client::new(3, &plan), Reader::new(plan.dialect), Figures { lasts, ..Figures::default() });
            for chunk in bytes.chunks(size) {
                client.feed(chunk, &plan, &mut reader, &mut figures, 1000);
            }
            assert_eq!((client.phase, client.flx_v1, client.events), (Phase::Live, true, 4), "{size}");
            assert_eq!(figures.faults, Faults { holes: 1, ..Faults::default() }, "{size}");
            assert_eq!((figures.events, figures.frames, figures.unreadable), (4, 5, 0), "{size}");
            assert_eq!((figures.ages.max(), figures.ages.count()), (900, 4));
            assert_eq!(figures.lasts.unwrap()[&4], (600, 1));
            let sent = String::from_utf8_lossy(&client.out).into_owned();
            assert!(sent.starts_with("GET /ws/c-3 HTTP/1.1\r\n") && sent.contains("Authorization: Bearer T\r\n"));
        }
    }

    #[test]
    fn the_first_line_of_a_topic_counts_once_for_each_client_from_when_it_was_written() {
        let plan = plan();
        let line = |topic: &str, seq: u64, at: u64| {
            let prev = seq - 1;
            format!(r#"{{"t":"{topic}","e":"E","s":[{seq}],"prev":{prev},"pos":"p","ts":5,"d":["at={at}"]}}"#)
        };
        let (mut reader, mut figures) = (Reader::marked(plan.dialect, "at="), Figures::default());
        for (number, delay) in [(1, 50), (2, 900)] {
            let mut client = Client::new(number, &plan);
            client.feed(&served(&STORY[..2]), &plan, &mut reader, &mut figures, 0);
            for (topic, seq, at, now_us) in [("a", 3, 1000, 1000 + delay), ("a", 4, 1000, 5000), ("b", 7, 2000, 6000)] {
                let mut frame = Vec::new();
                let text = line(topic, seq, at);
                websocket::server_head(TEXT, text.len(), &mut frame);
                frame.extend_from_slice(text.as_bytes());
                client.feed(&frame, &plan, &mut reader, &mut figures, now_us);
            }
        }
        let firsts: Vec<(u64, u64)> = figures.written.firsts.into_values().collect();
        assert_eq!((firsts, figures.written.count), (vec![(900, 2), (4000, 2)], 6));
        assert_eq!(figures.written.came_us, Some((1050, 6000)));
    }

    #[test]
    fn who_comes_back_resumes_and_what_the_outage_swallowed_shows() {
        let plan = plan();
        let (mut client, mut reader, mut figures) =
            (Client::new(3, &plan), Reader::new(plan.dialect), Figures::default());
        client.feed(&served(&STORY[..3]), &plan, &mut reader, &mut figures, 0);
        client.come_back(&plan);
        client.feed(&served(&[STORY[0], STORY[1], STORY[4]]), &plan, &mut reader, &mut figures, 0);
        assert_eq!(figures.faults.holes, 1);
        let mut frame = client.out.clone();
        let at = websocket::end_of_head(&frame).unwrap();
        let head = websocket::head(&frame[at..]).unwrap().unwrap();
        websocket::unmask(&mut frame[at + head.start..], head.mask.unwrap());
        let text = String::from_utf8_lossy(&frame[at + head.start..]).into_owned();
        assert_eq!(text, r#"{"type":"subscribe","event":"bench.3","from":"p2"}"#);
    }

    #[test]
    fn ends_and_refusals_are_told_apart() {
        let plan = plan();
        let ended = |bytes: &[u8]| {
            let (mut client, mut reader, mut figures) =
                (Client::new(3, &plan), Reader::new(plan.dialect), Figures::default());
            client.feed(bytes, &plan, &mut reader, &mut figures, 0);
            (client.phase, figures.unreadable)
        };
        assert_eq!(ended(b"HTTP/1.1 401 Unauthorized\r\n\r\n"), (Phase::Ended(401), 0));
        let mut close = served(&[]);
        close.extend_from_slice(&[0x88, 2, 0x11, 0x38]);
        assert_eq!(ended(&close), (Phase::Ended(4408), 0));
        let mut broken = served(&[]);
        broken.extend_from_slice(&[0x01, 0]);
        assert_eq!(ended(&broken), (Phase::Ended(1002), 1));
    }

    #[test]
    fn the_first_of_the_fleet_can_be_stalled() {
        let plan = plan();
        assert_eq!((0..10).filter(|number| plan.stallable(*number)).collect::<Vec<_>>(), [0, 1]);
    }
}
