//! Where the subscriptions of a connection begin, as long as that is not simply where the connection is.
//!
//! Strategy: a subscription from a position, or one that a lagging connection makes, begins elsewhere than the cursor. Until
//! the cursor has passed all beginnings the connection is served alone and each event is asked whether it is one of them.

use std::sync::Arc;

use super::log::{Entry, Kind, TopicLog};
use super::position::Position;
use super::store::Store;
use super::topic::matches;

/// How long a log of a position that was never heard of here is waited for.
const UNKNOWN_LOGS_MS: u64 = 5_000;

/// A position that a subscription goes on from.
#[derive(Debug)]
pub(super) struct Since {
    pub(super) position: Position,
    /// Where its reader began: logs that began before and are not in the position are none of its business.
    pub(super) born_from: u64,
    /// The order at which it joined, and when.
    pub(super) joined: u64,
    pub(super) joined_ms: u64,
}

impl Since {
    /// Whether everything it covers was heard here, so that it need not be looked at any more.
    fn is_settled(&self, store: &Store, now_ms: u64) -> bool {
        let unknown = || self.position.logs.keys().any(|execution| !store.knows_log(execution));
        store.covers(&self.position) && (now_ms >= self.joined_ms + UNKNOWN_LOGS_MS || !unknown())
    }
}

#[derive(Clone, Debug)]
pub(super) struct Join {
    pub(super) pattern: Box<str>,
    /// Nothing up to this order.
    pub(super) after: u64,
    pub(super) since: Option<Arc<Since>>,
}

impl Join {
    fn passes(&self, topic: &TopicLog, entry: &Entry) -> bool {
        let begun = self.since.as_ref().is_none_or(|since| match topic.kind {
            Kind::Local | Kind::Ephemeral | Kind::Loss => entry.order > since.joined,
            _ => seen_of(&since.position, since.born_from, topic).is_some_and(|seen| entry.seq > seen),
        });
        entry.order > self.after && begun && matches(&self.pattern, &topic.name)
    }

    /// Whether something of the topic that it should have brought is gone.
    fn has_lost(&self, topic: &TopicLog) -> bool {
        let gone = match &self.since {
            Some(since) if topic.kind.is_own() => topic.floor_order > since.joined,
            Some(since) => seen_of(&since.position, since.born_from, topic).is_some_and(|seen| topic.floor_seq > seen),
            None => true,
        };
        let concerned = topic.kind == Kind::Loss || matches(&self.pattern, &topic.name);
        topic.floor_order > self.after && gone && concerned
    }
}

/// The beginnings of all subscriptions of one connection.
#[derive(Clone, Debug)]
pub(super) struct Joins(pub(super) Vec<Join>);

impl Joins {
    /// Subscriptions that all begin after an order.
    pub(super) fn all_after(patterns: &[Box<str>], after: u64) -> Self {
        Self(patterns.iter().map(|pattern| Join { pattern: pattern.clone(), after, since: None }).collect())
    }

    /// None of the present ones begins before this order.
    pub(super) fn not_before(&mut self, order: u64) {
        for join in &mut self.0 {
            join.after = join.after.max(order);
        }
    }

    /// Puts a beginning in place of that of the same pattern, if there is one.
    pub(super) fn set(&mut self, join: Join) {
        self.0.retain(|other| other.pattern != join.pattern);
        self.0.push(join);
    }

    pub(super) fn keep(&mut self, patterns: &[Box<str>]) {
        self.0.retain(|join| patterns.contains(&join.pattern));
    }

    pub(super) fn pass(&self, topic: &TopicLog, entry: &Entry) -> bool {
        self.0.iter().any(|join| join.passes(topic, entry))
    }

    pub(super) fn have_lost(&self, topic: &TopicLog) -> bool {
        self.0.iter().any(|join| join.has_lost(topic))
    }

    /// Whether a connection at this order is past all of them.
    pub(super) fn are_past(&self, order: u64, store: &Store, now_ms: u64) -> bool {
        self.0.iter().all(|join| {
            join.after <= order
                && join.since.as_ref().is_none_or(|since| since.joined <= order && since.is_settled(store, now_ms))
        })
    }
}

/// The last number that the reader of a position has seen of a topic; None when it wants nothing of it.
///
/// A log that is not in the position counts from 0 when it began at or after `born_from`, where its reader began; from where it
/// went on when it had ended before and did so since; and not at all otherwise.
pub(super) fn seen_of(position: &Position, born_from: u64, topic: &TopicLog) -> Option<u64> {
    match &topic.kind {
        Kind::Journal => Some(position.seq),
        Kind::Log(execution) => match position.logs.get(execution) {
            Some(line) => Some(*line),
            None if topic.born_seq >= born_from => Some(0),
            None => topic.again.iter().find(|(seq, _)| *seq >= born_from).map(|(_, line)| *line),
        },
        Kind::Local | Kind::Ephemeral | Kind::Loss => None,
    }
}
