//! The meter: counts Singer messages as they pass from tap to target.
//!
//! Strategy: lines are found by `memchr`; of each line only as much is read as is needed to know `type` and `stream`, in
//! whatever order they come ([`scan`]). On a stream without key properties the record itself is never looked at. Where a
//! SCHEMA named key properties, the key of each record is read too and the distinct ones are kept as 128-bit hashes
//! ([`keys`]), so that a destination that upserts can be counted against them.
//!
//! Rules:
//! - how the bytes are cut into chunks changes nothing;
//! - a line is malformed when what must be read of it cannot be read, when it does not end with `}`, or when it is longer
//!   than [`MAX_LINE_BYTES`]; it is then in no other count. What need not be read is not validated;
//! - of two equal names in one object the first counts;
//! - memory is bounded by the longest line, [`MAX_STREAMS`], `max_keys` and [`keys::MAX_PENDING_BYTES`].

mod keys;
mod scan;

use std::borrow::Cow;
use std::collections::BTreeMap;

use hashbrown::HashTable;
use memchr::memchr;

use keys::{Key, Keys};
use scan::{Malformed, Members, Text};

/// Longer lines are malformed; Meltano refuses far shorter ones.
pub const MAX_LINE_BYTES: usize = 64 * 1024 * 1024;
/// Streams told apart; what comes beyond is counted under [`OTHER_STREAMS`].
pub const MAX_STREAMS: usize = 10_000;
/// The name further streams are counted under.
pub const OTHER_STREAMS: &str = "*";

/// What has passed of one stream.
#[derive(Debug, Default)]
pub struct Stream {
    /// Its name.
    pub name: String,
    /// RECORD messages.
    pub records: u64,
    /// Bytes of the RECORD lines, line ends included.
    pub bytes: u64,
    /// Whether a SCHEMA was seen.
    pub schema: bool,
    /// The key properties of the newest SCHEMA.
    pub key_properties: Vec<String>,
    /// `ACTIVATE_VERSION` messages.
    pub activate_versions: u64,
    /// Distinct keys; none without key properties or when they are not all known.
    distinct: Option<HashTable<u128>>,
    /// New distinct keys not fetched yet, one JSON array a line.
    pending: Vec<u8>,
    since_state: u64,
    /// The number of STATE messages when `since_state` was last true.
    states_seen: u64,
}

impl Stream {
    /// How many different keys have passed, when that is known.
    #[must_use]
    pub fn distinct_keys(&self) -> Option<usize> {
        self.distinct.as_ref().map(HashTable::len)
    }
}

/// Counts Singer messages fed to it in any chunking.
#[derive(Debug)]
pub struct Meter {
    lines: u64,
    bytes: u64,
    malformed: u64,
    other: u64,
    states: u64,
    last_state: Option<Vec<u8>>,
    partial_bytes: u64,
    streams: Vec<Stream>,
    names: BTreeMap<Vec<u8>, usize>,
    /// The stream of the last message: nearly always the next one's too.
    latest: usize,
    keys: Keys,
    /// The beginning of a line whose end has not come yet.
    carry: Vec<u8>,
    /// Bytes of that line beyond [`MAX_LINE_BYTES`].
    dropped: u64,
}

impl Meter {
    /// `max_keys` bounds the distinct keys kept over all streams.
    #[must_use]
    pub fn new(max_keys: usize) -> Self {
        Self {
            lines: 0,
            bytes: 0,
            malformed: 0,
            other: 0,
            states: 0,
            last_state: None,
            partial_bytes: 0,
            streams: Vec::new(),
            names: BTreeMap::new(),
            latest: 0,
            keys: Keys::new(max_keys),
            carry: Vec::new(),
            dropped: 0,
        }
    }

    /// Complete lines.
    #[must_use]
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// All bytes fed.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Lines that are no Singer message.
    #[must_use]
    pub fn malformed(&self) -> u64 {
        self.malformed
    }

    /// Messages of a type the meter does not know (BATCH, for instance).
    #[must_use]
    pub fn other(&self) -> u64 {
        self.other
    }

    /// Bytes of an unterminated last line, once finished.
    #[must_use]
    pub fn partial_bytes(&self) -> u64 {
        self.partial_bytes
    }

    /// STATE messages.
    #[must_use]
    pub fn states(&self) -> u64 {
        self.states
    }

    /// The last STATE message as it was written.
    #[must_use]
    pub fn last_state(&self) -> Option<Cow<'_, str>> {
        self.last_state.as_deref().map(String::from_utf8_lossy)
    }

    /// The streams in the order of their first message.
    #[must_use]
    pub fn streams(&self) -> &[Stream] {
        &self.streams
    }

    /// Records of `stream` since the last STATE message of any kind (since the start when there was none).
    #[must_use]
    pub fn records_after_state(&self, stream: &Stream) -> u64 {
        if stream.states_seen == self.states { stream.since_state } else { 0 }
    }

    /// Takes the next bytes.
    pub fn feed(&mut self, mut data: &[u8]) {
        self.bytes += data.len() as u64;
        if !self.carry.is_empty() || self.dropped > 0 {
            let Some(end) = memchr(b'\n', data) else {
                return self.keep(data);
            };
            self.keep(&data[..end]);
            data = &data[end + 1..];
            let mut carry = std::mem::take(&mut self.carry);
            if std::mem::take(&mut self.dropped) > 0 {
                self.lines += 1;
                self.malformed += 1;
            } else {
                self.line(&carry);
            }
            carry.clear();
            self.carry = carry;
        }
        while let Some(end) = memchr(b'\n', data) {
            self.line(&data[..end]);
            data = &data[end + 1..];
        }
        self.keep(data);
    }

    /// Says that no more bytes come; what is left without a line end is partial.
    pub fn finish(&mut self) {
        self.partial_bytes = self.carry.len() as u64 + self.dropped;
    }

    /// Hands over the new distinct keys by stream: one JSON array a line, in the order of the key properties.
    pub fn drain_keys(&mut self) -> Vec<(String, Vec<u8>)> {
        self.keys.drained();
        let streams = self.streams.iter_mut().filter(|stream| !stream.pending.is_empty());
        streams.map(|stream| (stream.name.clone(), std::mem::take(&mut stream.pending))).collect()
    }

    fn keep(&mut self, data: &[u8]) {
        let room = (MAX_LINE_BYTES + 1).saturating_sub(self.carry.len()).min(data.len());
        self.carry.extend_from_slice(&data[..room]);
        self.dropped += (data.len() - room) as u64;
    }

    fn line(&mut self, line: &[u8]) {
        self.lines += 1;
        if line.len() > MAX_LINE_BYTES || self.message(line.trim_ascii_end(), line.len() as u64 + 1).is_err() {
            self.malformed += 1;
        }
    }

    fn message(&mut self, line: &[u8], size: u64) -> Result<(), Malformed> {
        if !line.ends_with(b"}") {
            return Err(Malformed);
        }
        let mut head = Head::read(line)?;
        match head.kind.decode()?.as_ref() {
            b"RECORD" => {
                let index = self.stream(head.stream()?)?;
                // The key is read first: a record without one readable must not be half counted.
                let stream = &self.streams[index];
                let key = match &stream.distinct {
                    Some(_) => Some(Key::read(head.value_of("record")?.ok_or(Malformed)?, &stream.key_properties)?),
                    None => None,
                };
                self.count_record(index, size);
                if let Some(key) = key {
                    self.keys.note(&mut self.streams, index, &key);
                }
            }
            b"STATE" => {
                self.states += 1;
                let text = self.last_state.get_or_insert_default();
                text.clear();
                text.extend_from_slice(line.trim_ascii_start());
            }
            b"SCHEMA" => {
                let key_properties = head.value_of("key_properties")?.map_or(Ok(Vec::new()), scan::names)?;
                let index = self.stream(head.stream()?)?;
                self.keys.schema(&mut self.streams[index], key_properties);
            }
            b"ACTIVATE_VERSION" => {
                let index = self.stream(head.stream()?)?;
                self.streams[index].activate_versions += 1;
            }
            _ => self.other += 1,
        }
        Ok(())
    }

    fn count_record(&mut self, index: usize, size: u64) {
        let stream = &mut self.streams[index];
        stream.records += 1;
        stream.bytes += size;
        if stream.states_seen != self.states {
            stream.states_seen = self.states;
            stream.since_state = 0;
        }
        stream.since_state += 1;
    }

    /// The index of a stream, new or known.
    fn stream(&mut self, name: Text<'_>) -> Result<usize, Malformed> {
        if let Some(latest) = self.streams.get(self.latest)
            && name.is(&latest.name)
        {
            return Ok(self.latest);
        }
        let name = name.decode()?;
        let index = match self.names.get(name.as_ref()) {
            Some(&index) => index,
            None if self.streams.len() < MAX_STREAMS => self.new_stream(name.into_owned()),
            None => match self.names.get(OTHER_STREAMS.as_bytes()) {
                Some(&index) => index,
                None => self.new_stream(OTHER_STREAMS.into()),
            },
        };
        self.latest = index;
        Ok(index)
    }

    fn new_stream(&mut self, name: Vec<u8>) -> usize {
        let text = String::from_utf8_lossy(&name).into_owned();
        self.streams.push(Stream { name: text, ..Stream::default() });
        self.names.insert(name, self.streams.len() - 1);
        self.streams.len() - 1
    }
}

/// The beginning of a message, read until its type and, where it needs one, its stream are known.
struct Head<'a> {
    kind: Text<'a>,
    stream: Option<Text<'a>>,
    /// Members that were passed on the way and may be wanted.
    passed: [(&'static str, Option<&'a [u8]>); 2],
    rest: Members<'a>,
}

impl<'a> Head<'a> {
    fn read(line: &'a [u8]) -> Result<Self, Malformed> {
        let mut rest = Members::of(line)?;
        let (mut kind, mut stream) = (None, None);
        let mut passed = [("record", None), ("key_properties", None)];
        while let Some(name) = rest.next_name()? {
            if kind.is_none() && name.is("type") {
                kind = Some(rest.text()?);
            } else if stream.is_none() && name.is("stream") {
                stream = Some(rest.text()?);
            } else {
                let start = rest.remaining();
                rest.skip()?;
                if let Some((_, value)) = passed.iter_mut().find(|(wanted, value)| value.is_none() && name.is(wanted)) {
                    *value = Some(start);
                }
            }
            if let Some(kind) = kind
                && (stream.is_some() || kind.is("STATE"))
            {
                return Ok(Self { kind, stream, passed, rest });
            }
        }
        Ok(Self { kind: kind.ok_or(Malformed)?, stream, passed, rest })
    }

    fn stream(&self) -> Result<Text<'a>, Malformed> {
        self.stream.ok_or(Malformed)
    }

    /// The text from the beginning of a member's value on (its end is found by reading it).
    fn value_of(&mut self, wanted: &str) -> Result<Option<&'a [u8]>, Malformed> {
        if let Some((_, Some(value))) = self.passed.iter().find(|(name, _)| *name == wanted) {
            return Ok(Some(value));
        }
        while let Some(name) = self.rest.next_name()? {
            if name.is(wanted) {
                return Ok(Some(self.rest.remaining()));
            }
            self.rest.skip()?;
        }
        Ok(None)
    }
}
