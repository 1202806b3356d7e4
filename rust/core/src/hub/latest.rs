//! State topics: of those an event says how something is now, and makes what was said of it before worthless.
//!
//! Strategy: a member of an event's data is its key. The log of a state topic keeps each event's key beside its entry, and
//! by key the order of the newest. Who reads at a usual pace is given everything, as of any topic. Who has been behind for a
//! while is given the newest event of each key, and before them one gap for each topic, from the first to the last event that
//! was left out of the turn.
//!
//! Rules:
//! - an event whose data has no key is told in any case, and makes none worthless;
//! - nothing is left out of a log, nor for who resumes from a position, until it has caught up.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use super::frame::{self, Frame, Gap};
use super::log::TopicLog;
use super::turn::Pick;
use super::{Dialect, Hub};
use crate::json::{self, Json};

/// Why an event that a newer one makes worthless is not told.
pub(super) const SUPERSEDED: &str = "superseded";
/// Bytes of the longest text that is a key.
const MAX_KEY: usize = 256;
/// Bytes of an entry's key, and what a key costs besides its text.
const ENTRY: usize = size_of::<Option<Arc<str>>>();
const KEY: usize = 64;

/// The keys of a topic's events.
#[derive(Debug)]
pub(super) struct Latest {
    member: Box<str>,
    /// Of each entry.
    keys: VecDeque<Option<Arc<str>>>,
    /// The order of the newest event of each key that has events here.
    newest: HashMap<Arc<str>, u64>,
}

impl Latest {
    pub(super) fn of(member: &str) -> Self {
        Self { member: member.into(), keys: VecDeque::new(), newest: HashMap::new() }
    }

    /// There is one more event; how many bytes that is.
    pub(super) fn push(&mut self, order: u64, data: &[u8]) -> usize {
        let Some(key) = self.key_of(data) else {
            self.keys.push_back(None);
            return ENTRY;
        };
        let (key, bytes) = match self.newest.get_key_value(&*key) {
            Some((known, _)) => (Arc::clone(known), ENTRY),
            None => (Arc::from(&*key), ENTRY + KEY + key.len()),
        };
        self.newest.insert(Arc::clone(&key), order);
        self.keys.push_back(Some(key));
        bytes
    }

    /// The oldest event, which had this order, is cut; how many bytes that was.
    pub(super) fn pop(&mut self, order: u64) -> usize {
        let Some(key) = self.keys.pop_front().flatten() else { return ENTRY };
        if self.newest.get(&key) != Some(&order) {
            return ENTRY;
        }
        self.newest.remove(&key);
        ENTRY + KEY + key.len()
    }

    /// Whether a newer event has the same key as this one.
    fn is_superseded(&self, index: usize, order: u64) -> bool {
        let key = self.keys.get(index).and_then(Option::as_ref);
        key.and_then(|key| self.newest.get(key)).is_some_and(|newest| *newest > order)
    }

    /// The same of no events.
    pub(super) fn emptied(&self) -> Self {
        Self::of(&self.member)
    }

    /// A text or a whole number, told apart.
    fn key_of(&self, data: &[u8]) -> Option<String> {
        let key = match json::parse(data).ok()?.get(&self.member)? {
            Json::Str(text) => format!("\"{text}"),
            Json::Int(number) => number.to_string(),
            _ => return None,
        };
        (key.len() <= MAX_KEY).then_some(key)
    }
}

impl TopicLog {
    fn is_superseded(&self, index: usize) -> bool {
        self.latest.as_ref().is_some_and(|latest| latest.is_superseded(index, self.entries[index].order))
    }
}

impl Hub {
    /// Takes those events out of a turn that newer ones make worthless.
    pub(super) fn leave_out(&self, picks: &mut Vec<Pick>, left_out: &mut Vec<Pick>) {
        picks.retain(|pick| {
            let is_told = self.store.topic(pick.1).is_none_or(|topic| !topic.is_superseded(pick.2));
            if !is_told {
                left_out.push(*pick);
            }
            is_told
        });
    }

    /// Tells what was left out of a turn, each topic's in one gap; how many gaps that are.
    pub(super) fn tell_left_out(&self, mut left_out: Vec<Pick>, dialect: Dialect, frames: &mut Vec<Frame>) -> u64 {
        left_out.sort_unstable_by_key(|pick| (pick.1, pick.2));
        let before = frames.len();
        for of_topic in left_out.chunk_by(|one, next| one.1 == next.1) {
            let (Some((_, id, first)), Some((_, _, last))) = (of_topic.first(), of_topic.last()) else { continue };
            let Some(topic) = self.store.topic(*id) else { continue };
            let between = Some((topic.prev(*first), topic.entries[*last].seq + 1));
            let (name, epoch) = (Some(&*topic.name), self.store.epoch_of(topic));
            let gap = Gap { topic: name, between, epoch, reason: SUPERSEDED, pos: None, log_of: None };
            frames.push(frame::gap(&gap, dialect));
        }
        (frames.len() - before) as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_are_texts_and_whole_numbers() {
        let latest = Latest::of("id");
        let key = |data: &str| latest.key_of(data.as_bytes());
        assert_eq!(Some("\"1".to_owned()), key(r#"{"a":{"id":7},"id":"1"}"#));
        assert_eq!(Some("1".to_owned()), key(r#"{"id":1}"#));
        assert_eq!(Some("\"é".to_owned()), key(r#"{"id":"\u00e9"}"#));
        let long = format!(r#"{{"id":"{}"}}"#, "x".repeat(MAX_KEY));
        for none in ["null", "[]", "{}", "\"id\"", r#"{"id":null}"#, r#"{"id":[1]}"#, r#"{"id":1.5}"#, "{", &long] {
            assert_eq!(None, key(none), "{none}");
        }
    }

    proptest! {
        /// The twin looks through all later events.
        #[test]
        fn superseded_is_what_comes_again(events in prop::collection::vec(prop::option::of(0..6_u8), 0..60), cut in 0..60_usize) {
            let mut latest = Latest::of("id");
            let mut bytes = 0;
            for (order, key) in events.iter().enumerate() {
                let data = key.map_or("0".to_owned(), |key| format!(r#"{{"id":{key}}}"#));
                bytes += latest.push(order as u64, data.as_bytes());
            }
            let cut = cut.min(events.len());
            for order in 0..cut {
                bytes -= latest.pop(order as u64);
            }
            for (index, key) in events[cut..].iter().enumerate() {
                let again = key.is_some() && events[cut + index + 1..].contains(key);
                prop_assert_eq!(again, latest.is_superseded(index, (cut + index) as u64));
            }
            let mut kept: Vec<u8> = events[cut..].iter().flatten().copied().collect();
            kept.sort_unstable();
            kept.dedup();
            prop_assert_eq!(kept.len(), latest.newest.len(), "nothing is remembered of what is gone");
            prop_assert_eq!((events.len() - cut) * ENTRY + kept.len() * (KEY + 1), bytes);
        }
    }
}
