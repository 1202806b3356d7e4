//! What is too old goes, and topics of which nothing is left go with it.
//!
//! Rules: a topic goes only when all readers have passed what was cut of it. One of the journal goes also when it is heard by
//! patterns alone: it is linked again when it is made again, and its numbers are the journal's. Numbers of this process go on
//! where somebody hears them, and who has subscribed to a topic by its name is linked to that topic. So many ephemeral topics
//! that patterns hear are kept for their numbers; when there are more, the epoch of all numbers ends, as after a loss.

use std::sync::Arc;

use hashbrown::HashSet;

use super::Hub;
use super::audience::Fleet;
use super::ids::Ids;
use super::log::{Kind, TopicLog};
use super::store::Store;
use super::turn::EVICTED;

impl Hub {
    /// Drops what is too old. Cheap when called every few seconds.
    pub fn sweep(&mut self, now_ms: u64) {
        self.store.cut_stale(now_ms);
        if self.store.empty_of_patterns() > self.limits.empty_topics {
            self.lose(EVICTED, now_ms);
        }
        let behind = self.fleet.slowest(self.store.order);
        let gone = self.store.sweep(behind, |topic| self.fleet.hears_by_patterns_alone(topic));
        self.fleet.unlink(&gone);
    }
}

impl Store {
    /// Drops what is too old.
    fn cut_stale(&mut self, now_ms: u64) {
        for id in 0..self.ids_end() {
            while self.topic(id).is_some_and(|topic| topic.is_stale(now_ms)) {
                self.cut(id, TopicLog::cut);
            }
        }
    }

    /// Ephemeral topics without events that are heard by patterns alone: who names one hears the journal's of that name too.
    fn empty_of_patterns(&self) -> usize {
        let is_empty = |topic: &TopicLog| {
            topic.kind == Kind::Ephemeral && topic.heard && topic.entries.is_empty() && !topic.audiences.is_empty()
        };
        let empty = self.topics().map(|(_, topic)| topic).filter(|topic| is_empty(topic));
        empty.filter(|topic| self.find(&topic.tenant, &topic.name, false).is_none()).count()
    }

    /// Drops topics of which nothing is left and that all readers (at or after `behind`) have passed; of those that somebody
    /// hears, the ones that may go. The latter, with who heard them.
    fn sweep(&mut self, behind: u64, may_go: impl Fn(&TopicLog) -> bool) -> Vec<(u32, Ids)> {
        let mut gone = Vec::new();
        for id in 0..self.ids_end() {
            let Some(topic) = self.topic_mut(id) else { continue };
            let is_over = topic.entries.is_empty() && topic.floor_order <= behind && !topic.listed;
            if is_over && (topic.audiences.is_empty() || may_go(topic)) {
                let audiences = std::mem::take(&mut topic.audiences);
                if !audiences.is_empty() {
                    gone.push((id, audiences));
                }
                self.forget(id);
            }
        }
        self.unlist();
        self.trim();
        self.forget_tenants();
        gone
    }

    /// Drops the part of the ring and of the marks that is behind every event that is still here.
    pub(super) fn trim(&mut self) {
        while let Some(id) = self.ring.front() {
            let first = self.topic(*id).and_then(|topic| topic.entries.front());
            if first.is_some_and(|entry| entry.order <= self.base) {
                break;
            }
            self.ring.pop_front();
            self.base += 1;
        }
        while self.marks.get(1).is_some_and(|mark| mark.0 < self.base) {
            self.marks.pop_front();
        }
    }

    /// Forgets the names of tenants of whom nothing is here.
    fn forget_tenants(&mut self) {
        self.tenants.retain(|name| Arc::strong_count(name) > 1);
    }
}

impl Fleet {
    /// Whether a topic goes though it is heard.
    fn hears_by_patterns_alone(&self, topic: &TopicLog) -> bool {
        let names = |id: &u32| self.audience(*id).is_some_and(|audience| audience.key.patterns.contains(&topic.name));
        let has_numbers = topic.kind.is_own() && topic.heard;
        topic.kind != Kind::Loss && !has_numbers && !topic.audiences.iter().any(names)
    }

    /// Topics are gone that these audiences heard.
    fn unlink(&mut self, gone: &[(u32, Ids)]) {
        let topics: HashSet<u32> = gone.iter().map(|(topic, _)| *topic).collect();
        let audiences: HashSet<u32> = gone.iter().flat_map(|(_, audiences)| audiences.iter().copied()).collect();
        for id in audiences {
            if let Some(audience) = &mut self.audiences[id as usize] {
                audience.topics.retain(|topic| !topics.contains(&topic));
                audience.fresh.forget(&topics);
            }
        }
    }
}
