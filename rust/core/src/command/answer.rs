//! The body of an answer, and one of the results of a batch: `CommandReply` and `BatchResult` of `flx_api.models.envelope`, whose
//! encoder is the judge in the tests.

use crate::decimal::Decimal;

/// What is said of a command that was carried out.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// The request's id.
    pub request_id: &'a str,
    /// The name of the command.
    pub command: &'a str,
    /// JSON; empty: null.
    pub result: &'a [u8],
    /// From receiving the request to now.
    pub duration_us: u64,
    /// Whether this is the answer of an earlier request with the same key.
    pub replayed: bool,
}

impl Answer<'_> {
    /// As JSON.
    #[must_use]
    pub fn encoded(&self) -> Vec<u8> {
        let result = if self.result.is_empty() { b"null" } else { self.result };
        let mut out = Vec::with_capacity(160 + 2 * self.request_id.len() + self.command.len() + result.len());
        out.extend_from_slice(b"{\"id\":");
        text(&mut out, self.request_id);
        out.extend_from_slice(b",\"command\":");
        text(&mut out, self.command);
        out.extend_from_slice(b",\"status\":\"ok\",\"result\":");
        out.extend_from_slice(result);
        out.extend_from_slice(b",\"meta\":");
        meta(&mut out, self.request_id, self.duration_us, self.replayed);
        out.push(b'}');
        out
    }
}

/// What is said of one operation of a batch that was carried out.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// Its place among the operations.
    pub index: usize,
    /// The request's id.
    pub request_id: &'a str,
    /// The name of the command.
    pub command: &'a str,
    /// JSON; empty: null.
    pub result: &'a [u8],
    /// JSON: what is said of it beside the result.
    pub meta: &'a [u8],
}

impl Item<'_> {
    /// As JSON.
    #[must_use]
    pub fn encoded(&self) -> Vec<u8> {
        let texts = 2 * self.request_id.len() + self.command.len();
        let mut out = Vec::with_capacity(96 + texts + self.result.len() + self.meta.len());
        self.put(&mut out);
        out
    }

    /// Appends the same.
    fn put(&self, out: &mut Vec<u8>) {
        let result = if self.result.is_empty() { b"null" } else { self.result };
        out.extend_from_slice(b"{\"index\":");
        let index = Decimal::of(self.index as u64);
        out.extend_from_slice(index.as_bytes());
        out.extend_from_slice(b",\"id\":");
        text(out, self.request_id);
        // Within the text: its end is put behind the number.
        out.pop();
        out.push(b'.');
        out.extend_from_slice(index.as_bytes());
        out.extend_from_slice(b"\",\"command\":");
        text(out, self.command);
        out.extend_from_slice(b",\"status\":\"ok\",\"result\":");
        out.extend_from_slice(result);
        out.extend_from_slice(b",\"meta\":");
        out.extend_from_slice(self.meta);
        out.push(b'}');
    }
}

/// One operation of a batch that was carried out, as all of them stand in an answer.
#[derive(Clone, Copy, Debug)]
pub struct Carried<'a> {
    /// The name of the command.
    pub command: &'a str,
    /// JSON; empty: null.
    pub result: &'a [u8],
    /// From receiving the request to its reply.
    pub duration_us: u64,
    /// Whether this is the answer of an earlier request with the same key.
    pub replayed: bool,
}

/// The answer to a batch of which every operation was carried out (`BatchReply`), in their order.
#[must_use]
pub fn batch(operations: &[Carried<'_>], request_id: &str, duration_us: u64) -> Vec<u8> {
    let count = operations.len();
    let said: usize = operations.iter().map(|one| one.command.len() + one.result.len()).sum();
    let mut out = Vec::with_capacity(256 + said + count * (128 + 2 * request_id.len()));
    out.extend_from_slice(b"{\"results\":[");
    // Nearly all come in one message, and so with one time.
    let (mut own, mut told) = (Vec::new(), None);
    for (index, one) in operations.iter().enumerate() {
        if told != Some((one.duration_us, one.replayed)) {
            told = Some((one.duration_us, one.replayed));
            own.clear();
            meta(&mut own, request_id, one.duration_us, one.replayed);
        }
        if index > 0 {
            out.push(b',');
        }
        Item { index, request_id, command: one.command, result: one.result, meta: &own }.put(&mut out);
    }
    for (before, number) in [(&b"],\"totals\":{\"operations\":"[..], count), (b",\"ok\":", count)] {
        out.extend_from_slice(before);
        out.extend_from_slice(Decimal::of(number as u64).as_bytes());
    }
    out.extend_from_slice(b",\"accepted\":0,\"error\":0,\"not_attempted\":0},\"meta\":");
    meta(&mut out, request_id, duration_us, false);
    out.push(b'}');
    out
}

/// `ReplyMeta`.
fn meta(out: &mut Vec<u8>, request_id: &str, duration_us: u64, replayed: bool) {
    out.extend_from_slice(b"{\"request_id\":");
    text(out, request_id);
    out.extend_from_slice(b",\"duration_us\":");
    out.extend_from_slice(Decimal::of(duration_us).as_bytes());
    out.extend_from_slice(if replayed { b",\"replayed\":true}" } else { b"}" });
}

/// A text that needs no escapes, which ids and names of commands never do, or else with them.
fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    if text.bytes().any(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f)) {
        for &byte in text.as_bytes() {
            match byte {
                b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
                0..=0x1f => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
                _ => out.push(byte),
            }
        }
    } else {
        out.extend_from_slice(text.as_bytes());
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_of_many_is_compact_json() {
        let item = Item { index: 12, request_id: "r\"1", command: "a.b", result: b"", meta: b"{}" };
        let expected = br#"{"index":12,"id":"r\"1.12","command":"a.b","status":"ok","result":null,"meta":{}}"#;
        assert_eq!(expected.to_vec(), item.encoded());
    }

    #[test]
    fn a_batch_is_its_results_and_totals() {
        let one = Carried { command: "a.b", result: b"[]", duration_us: 5, replayed: false };
        let all = [one, Carried { result: b"", replayed: true, ..one }];
        let first = br#"{"results":[{"index":0,"id":"r.0","command":"a.b","status":"ok","result":[],"meta":{"request_id":"r","duration_us":5}},"#;
        let second = br#"{"index":1,"id":"r.1","command":"a.b","status":"ok","result":null,"meta":{"request_id":"r","duration_us":5,"replayed":true}}],"#;
        let end = br#""totals":{"operations":2,"ok":2,"accepted":0,"error":0,"not_attempted":0},"meta":{"request_id":"r","duration_us":7}}"#;
        let found = batch(&all, "r", 7);
        assert_eq!(String::from_utf8([&first[..], second, end].concat()), String::from_utf8(found));
    }

    #[test]
    fn an_answer_is_compact_json() {
        let answer = Answer { request_id: "r\"1", command: "a.b", result: b"", duration_us: 7, replayed: false };
        assert_eq!(
            br#"{"id":"r\"1","command":"a.b","status":"ok","result":null,"meta":{"request_id":"r\"1","duration_us":7}}"#
                .to_vec(),
            answer.encoded()
        );
        let again = Answer { request_id: "r", result: br#"{"n":1}"#, replayed: true, ..answer };
        let tail = br#","result":{"n":1},"meta":{"request_id":"r","duration_us":7,"replayed":true}}"#;
        assert!(again.encoded().ends_with(tail));
    }
}
