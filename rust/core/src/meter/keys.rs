//! Distinct record keys: how many rows an upserting destination should end up with.
//!
//! Strategy: a key is hashed to 128 bits (a million keys collide with a chance of about 10^-27) and kept in a set per stream;
//! each one seen for the first time is also queued as one JSON array line for the shell to write down. Rules:
//! - strings compare by meaning, other values as written (`1` and `1.0` are two keys: a tap writes one key one way);
//!   a key property that a record lacks is `null`;
//! - a count is given only when it is exact. It is given up for a stream whose key properties change, that had records before
//!   its SCHEMA, or whose set is the largest when `max_keys` or the queue's bound is reached.

use std::hash::Hasher as _;

use hashbrown::HashTable;
use siphasher::sip128::{Hasher128 as _, SipHasher13};

use super::Stream;
use super::scan::{self, Malformed, Members};

/// Queued bytes over all streams; a shell that fetches after each chunk never gets near.
pub(super) const MAX_PENDING_BYTES: usize = 64 * 1024 * 1024;

/// The key of one record: its values as written, in the order of the key properties.
pub(super) struct Key<'a> {
    values: Vec<&'a [u8]>,
    hash: u128,
}

impl<'a> Key<'a> {
    /// Reads the key out of the object `record` begins with.
    pub(super) fn read(record: &'a [u8], properties: &[String]) -> Result<Self, Malformed> {
        let mut found: Vec<Option<&[u8]>> = vec![None; properties.len()];
        let mut missing = properties.len();
        let mut members = Members::of(record)?;
        while missing > 0
            && let Some(name) = members.next_name()?
        {
            let value = members.skip()?;
            for (property, place) in properties.iter().zip(&mut found) {
                if place.is_none() && name.is(property) {
                    *place = Some(value);
                    missing -= 1;
                }
            }
        }
        let values: Vec<&[u8]> = found.into_iter().map(|value| value.unwrap_or(b"null")).collect();
        let mut hasher = SipHasher13::new();
        for value in &values {
            let (is_text, meaning) = scan::meaning(value)?;
            // Length and kind keep ("a", "bc") apart from ("ab", "c"), and "1" from 1.
            hasher.write_usize(meaning.len() << 1 | usize::from(is_text));
            hasher.write(&meaning);
        }
        Ok(Self { values, hash: hasher.finish128().as_u128() })
    }

    fn write_line(&self, out: &mut Vec<u8>) {
        for (index, value) in self.values.iter().enumerate() {
            out.push(if index == 0 { b'[' } else { b',' });
            out.extend_from_slice(value);
        }
        out.extend_from_slice(b"]\n");
    }
}

/// The bounds over all streams.
#[derive(Debug)]
pub(super) struct Keys {
    max: usize,
    kept: usize,
    pending_bytes: usize,
}

impl Keys {
    pub(super) fn new(max: usize) -> Self {
        Self { max, kept: 0, pending_bytes: 0 }
    }

    /// A SCHEMA names the key properties of a stream.
    pub(super) fn schema(&mut self, stream: &mut Stream, key_properties: Vec<String>) {
        if !stream.schema && stream.records == 0 && !key_properties.is_empty() && self.max > 0 {
            stream.distinct = Some(HashTable::new());
        } else if stream.key_properties != key_properties {
            if stream.records == 0 && !key_properties.is_empty() && self.max > 0 {
                stream.distinct = Some(HashTable::new());
            } else {
                self.give_up(stream);
            }
        }
        stream.schema = true;
        stream.key_properties = key_properties;
    }

    /// A record with `key` has passed.
    pub(super) fn note(&mut self, streams: &mut [Stream], index: usize, key: &Key<'_>) {
        let stream = &mut streams[index];
        let Some(distinct) = &mut stream.distinct else {
            return;
        };
        if distinct.find(key.hash as u64, |&known| known == key.hash).is_some() {
            return;
        }
        distinct.insert_unique(key.hash as u64, key.hash, |&known| known as u64);
        let before = stream.pending.len();
        key.write_line(&mut stream.pending);
        self.kept += 1;
        self.pending_bytes += stream.pending.len() - before;
        if self.kept > self.max || self.pending_bytes > MAX_PENDING_BYTES {
            let size = |stream: &Stream| (stream.distinct_keys(), stream.pending.len());
            if let Some(largest) = streams.iter_mut().max_by_key(|stream| size(stream)) {
                self.give_up(largest);
            }
        }
    }

    /// Everything queued has been fetched.
    pub(super) fn drained(&mut self) {
        self.pending_bytes = 0;
    }

    fn give_up(&mut self, stream: &mut Stream) {
        if let Some(distinct) = stream.distinct.take() {
            self.kept -= distinct.len();
            self.pending_bytes -= stream.pending.len();
            stream.pending = Vec::new();
        }
    }
}
