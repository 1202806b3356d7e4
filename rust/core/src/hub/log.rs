//! The remembered events of one topic, as they go over the wire.
//!
//! Strategy: events lie comma-joined in slabs, in one space of byte offsets, so that any range of them is copied into the
//! list of a frame as it stands. An entry per event keeps its place in the hub's order, its number and where it ends. The old
//! end is cut by whole slabs; of the only slab, where room has to be made for others, the older half; and one by one where so
//! many are remembered.
//!
//! Rules: the numbers of a topic grow. What is cut is remembered by `floor_seq` (the number before the first event here) and
//! `floor_order` (readers that have not come so far have lost something).

use std::collections::VecDeque;
use std::sync::Arc;

use super::ids::Ids;
use super::latest::Latest;

const FIRST_SLAB: usize = 1024;
const LARGEST_SLAB: usize = 64 * 1024;
const CHECKPOINTS: usize = 32;
const CHECKPOINT_ORDERS: u64 = 64;
/// So many of the latest entries are looked at one by one.
const NEAR: usize = 3;

/// What is remembered of a topic at most; its latest slab is kept in any case.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound {
    pub(super) bytes: usize,
    pub(super) events: usize,
    pub(super) ttl_ms: u64,
}

/// What a topic's numbers are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The journal's sequence numbers.
    Journal,
    /// Line numbers of this execution's log.
    Log(Box<str>),
    /// Numbers of this process alone, in an epoch of its own.
    Local,
    /// The same for what is in no journal, beside a journal topic of the same name; in an epoch that ends with a loss.
    Ephemeral,
    /// No events: its tears say that ephemeral events of a pattern were lost.
    Loss,
}

impl Kind {
    /// Whether this process gives the numbers, and no position has them.
    pub(super) const fn is_own(&self) -> bool {
        matches!(self, Self::Local | Self::Ephemeral | Self::Loss)
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) order: u64,
    pub(super) seq: u64,
    pub(super) ts_us: u64,
    /// Offset of the comma after it.
    end: u64,
}

#[derive(Debug)]
struct Slab {
    start: u64,
    bytes: Vec<u8>,
    touched_ms: u64,
}

#[derive(Debug)]
pub(super) struct TopicLog {
    // First what every event needs.
    pub(super) name: Box<str>,
    pub(super) tenant: Arc<str>,
    pub(super) kind: Kind,
    pub(super) last_seq: u64,
    /// Bytes of slabs, entries and keys.
    pub(super) bytes: usize,
    slabs: VecDeque<Slab>,
    /// Where the next slab begins, and how large it is.
    end: u64,
    next_slab: usize,
    pub(super) entries: VecDeque<Entry>,
    /// Who hears it, sorted.
    pub(super) audiences: Ids,
    pub(super) bound: Bound,
    /// Of a state topic.
    pub(super) latest: Option<Box<Latest>>,
    /// Where the first entry begins.
    begin: u64,
    pub(super) hash: u64,
    pub(super) floor_seq: u64,
    pub(super) floor_order: u64,
    /// Where the journal and the order were when this began.
    pub(super) born_seq: u64,
    pub(super) born_order: u64,
    /// Whether an event was ever heard: a topic may be there for its subscribers alone.
    pub(super) heard: bool,
    /// Whether it is part of positions (logs only).
    pub(super) listed: bool,
    /// When it was that again after it had not been: the journal's number, and that of the line before.
    pub(super) again: Vec<(u64, u64)>,
    /// (order, number) of the last event of each of the latest cuts.
    cuts: VecDeque<(u64, u64)>,
}

impl TopicLog {
    pub(super) fn new(tenant: Arc<str>, name: &str, kind: Kind, hash: u64, bound: Bound) -> Self {
        Self {
            tenant,
            name: name.into(),
            kind,
            hash,
            bound,
            begin: 0,
            slabs: VecDeque::new(),
            entries: VecDeque::new(),
            end: 0,
            next_slab: FIRST_SLAB,
            last_seq: 0,
            floor_seq: 0,
            floor_order: 0,
            born_seq: 0,
            born_order: 0,
            heard: false,
            listed: false,
            again: Vec::new(),
            cuts: VecDeque::new(),
            audiences: Ids::default(),
            latest: None,
            bytes: 0,
        }
    }

    /// Remembers an event; `data` is JSON.
    pub(super) fn push(&mut self, order: u64, seq: u64, ts_us: u64, data: &[u8], now_ms: u64) {
        let needed = data.len() + 1;
        let has_room = self.slabs.back().is_some_and(|slab| slab.bytes.len() + needed <= slab.bytes.capacity());
        if !has_room {
            let bytes = Vec::with_capacity(self.next_slab.max(needed));
            self.bytes += bytes.capacity();
            self.slabs.push_back(Slab { start: self.end, bytes, touched_ms: now_ms });
            let largest = LARGEST_SLAB.min(self.bound.bytes / 4).max(FIRST_SLAB);
            self.next_slab = (self.next_slab * 2).min(largest);
        }
        if let Some(slab) = self.slabs.back_mut() {
            slab.bytes.extend_from_slice(data);
            slab.bytes.push(b',');
            slab.touched_ms = now_ms;
        }
        self.end += needed as u64;
        self.entries.push_back(Entry { order, seq, ts_us, end: self.end - 1 });
        self.bytes += size_of::<Entry>() + self.latest.as_mut().map_or(0, |latest| latest.push(order, data));
        self.last_seq = seq;
    }

    /// Cuts the oldest slab.
    pub(super) fn cut(&mut self) {
        let Some(slab) = self.slabs.pop_front() else { return };
        self.bytes -= slab.bytes.capacity();
        self.drop_before(slab.start + slab.bytes.len() as u64);
        if self.slabs.is_empty() {
            self.next_slab = FIRST_SLAB;
            self.entries.shrink_to_fit();
        }
    }

    /// Makes room for others: cuts the oldest slab, but of the only one, which has what came just now, the older half.
    pub(super) fn give_way(&mut self) {
        let middle = self.entries.len() / 2;
        let start = self.start(middle);
        match self.slabs.make_contiguous() {
            [slab] if middle > 0 => {
                let kept = slab.bytes[(start - slab.start) as usize..].to_vec();
                self.bytes = self.bytes - slab.bytes.capacity() + kept.capacity();
                (slab.start, slab.bytes) = (start, kept);
                self.drop_before(start);
            }
            _ => self.cut(),
        }
        // Where room is short, slabs that are far larger than what is kept of a topic would hold others' room empty.
        self.next_slab = (self.next_slab / 2).max(FIRST_SLAB);
    }

    /// Forgets the entries before an offset, where one begins.
    fn drop_before(&mut self, end: u64) {
        self.begin = end;
        while let Some(entry) = self.entries.front().copied().filter(|entry| entry.end < end) {
            self.entries.pop_front();
            self.bytes -= size_of::<Entry>() + self.latest.as_mut().map_or(0, |latest| latest.pop(entry.order));
            (self.floor_order, self.floor_seq) = (entry.order, entry.seq);
        }
        self.note_cut();
    }

    /// Cuts the oldest event, and the slab that has no others.
    pub(super) fn cut_one(&mut self) {
        let Some(entry) = self.entries.pop_front() else { return };
        self.bytes -= size_of::<Entry>() + self.latest.as_mut().map_or(0, |latest| latest.pop(entry.order));
        (self.floor_order, self.floor_seq, self.begin) = (entry.order, entry.seq, entry.end + 1);
        if let Some(slab) = self.slabs.front()
            && slab.start + slab.bytes.len() as u64 <= self.begin
        {
            self.bytes -= slab.bytes.capacity();
            self.slabs.pop_front();
        }
        // One checkpoint for each event would soon be all there is.
        if self.cuts.back().is_none_or(|(order, _)| entry.order >= order + CHECKPOINT_ORDERS) {
            self.note_cut();
        }
    }

    /// What comes next does not join on: everything before it is gone for who has not had it yet, and so is what is missing.
    pub(super) fn tear(&mut self, order: u64, prev: u64) {
        while !self.slabs.is_empty() {
            self.cut();
        }
        (self.floor_order, self.floor_seq) = (order, prev);
        self.note_cut();
    }

    /// Forgets everything but who hears it; how many bytes that were.
    pub(super) fn begin_anew(&mut self) -> usize {
        let (kind, bytes) = (std::mem::replace(&mut self.kind, Kind::Journal), self.bytes);
        let audiences = std::mem::take(&mut self.audiences);
        let latest = self.latest.as_ref().map(|latest| Box::new(latest.emptied()));
        *self =
            Self { audiences, latest, ..Self::new(Arc::clone(&self.tenant), &self.name, kind, self.hash, self.bound) };
        bytes
    }

    fn note_cut(&mut self) {
        if self.cuts.len() == CHECKPOINTS {
            self.cuts.pop_front();
        }
        self.cuts.push_back((self.floor_order, self.floor_seq));
    }

    pub(super) fn slab_count(&self) -> usize {
        self.slabs.len()
    }

    /// Whether the oldest slab was last written to too long ago.
    pub(super) fn is_stale(&self, now_ms: u64) -> bool {
        self.slabs.front().is_some_and(|slab| slab.touched_ms + self.bound.ttl_ms <= now_ms)
    }

    /// The first entry after an order.
    pub(super) fn after_order(&self, order: u64) -> usize {
        // Nearly everyone is at the end or near it, and to halve the distance would be to look where nobody has looked lately.
        let newer = self.entries.iter().rev().take(NEAR + 1).take_while(|entry| entry.order > order).count();
        if newer <= NEAR {
            self.entries.len() - newer
        } else {
            self.entries.partition_point(|entry| entry.order <= order)
        }
    }

    /// Looks at what is needed to add an event to it, or to tell its latest; what this says is of no meaning.
    pub(super) fn glance(&self) -> u64 {
        let entry = self.entries.back().map_or(0, |entry| entry.order);
        let slab = self.slabs.back().and_then(|slab| slab.bytes.last()).copied();
        let name = self.name.as_bytes().first().copied();
        entry ^ u64::from(slab.unwrap_or_default()) ^ u64::from(name.unwrap_or_default())
    }

    /// The first entry after a number.
    pub(super) fn after_seq(&self, seq: u64) -> usize {
        self.entries.partition_point(|entry| entry.seq <= seq)
    }

    /// The topic's number at an order: exact where its events are here, else no more than it was.
    pub(super) fn seq_at(&self, order: u64) -> u64 {
        match self.after_order(order) {
            0 if self.floor_order <= order => self.floor_seq,
            0 => self.cuts.iter().rev().find(|(cut, _)| *cut <= order).map_or(0, |(_, seq)| *seq),
            index => self.entries[index - 1].seq,
        }
    }

    /// The number before an entry's.
    pub(super) fn prev(&self, index: usize) -> u64 {
        if index == 0 { self.floor_seq } else { self.entries[index - 1].seq }
    }

    fn start(&self, index: usize) -> u64 {
        match index {
            0 => self.begin,
            _ => self.entries[index - 1].end + 1,
        }
    }

    /// Bytes of the entries `from..to`, with the commas between them.
    pub(super) fn len_of(&self, from: usize, to: usize) -> usize {
        if from >= to { 0 } else { (self.entries[to - 1].end - self.start(from)) as usize }
    }

    /// How many entries of `from..to` are no longer than `bytes` together; at least one, if there is one.
    pub(super) fn within(&self, from: usize, to: usize, bytes: usize) -> usize {
        if self.len_of(from, to) <= bytes {
            return to;
        }
        let limit = self.start(from) + bytes as u64;
        // Linear in what fits, which is copied next.
        (from + 1..to).find(|index| self.entries[*index].end > limit).unwrap_or(to)
    }

    /// Appends the entries `from..to`, with the commas between them.
    pub(super) fn copy(&self, from: usize, to: usize, out: &mut Vec<u8>) {
        if from >= to {
            return;
        }
        let (start, end) = (self.start(from), self.entries[to - 1].end);
        let first = self.slabs.partition_point(|slab| slab.start <= start).saturating_sub(1);
        for slab in self.slabs.range(first..) {
            if slab.start >= end {
                break;
            }
            let low = start.saturating_sub(slab.start) as usize;
            let high = ((end - slab.start) as usize).min(slab.bytes.len());
            out.extend_from_slice(&slab.bytes[low..high]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Any range of what is left, copied, is what was pushed; after any cuts.
        #[test]
        fn a_range_is_what_was_pushed(sizes in prop::collection::vec(prop_oneof![1..200_usize, 60_000..70_000_usize], 1..80),
                                      cuts in prop::collection::vec(0..12_usize, 0..20), ends in any::<(u16, u16)>(), bytes in 1..100_000_usize) {
            let bound = Bound { bytes: 1 << 20, events: usize::MAX, ttl_ms: 0 };
            let mut log = TopicLog::new("t".into(), "x", Kind::Journal, 0, bound);
            let events: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(index, size)| vec![b'a' + (index % 26) as u8; *size]).collect();
            for (index, event) in events.iter().enumerate() {
                log.push(2 * index as u64 + 1, 3 * index as u64 + 1, 0, event, 0);
            }
            for way in cuts {
                let (before, bytes) = (log.entries.len(), log.bytes);
                match way {
                    0 => log.cut(),
                    1 => {
                        log.give_way();
                        prop_assert!(log.bytes < bytes || before == 0);
                        prop_assert!(before < 2 || !log.entries.is_empty(), "the newest is here");
                    }
                    _ => {
                        log.cut_one();
                        prop_assert_eq!(before.saturating_sub(1), log.entries.len());
                    }
                }
            }
            let here = log.entries.len();
            let left = &events[events.len() - here..];
            let from = ends.0 as usize % (here + 1);
            let to = from + ends.1 as usize % (here + 1 - from);
            let mut copied = Vec::new();
            log.copy(from, to, &mut copied);
            prop_assert_eq!(left[from..to].join(&b','), copied.clone());
            prop_assert_eq!(copied.len(), log.len_of(from, to));
            let fits = log.within(from, to, bytes);
            prop_assert!(fits >= to.min(from + 1) && fits <= to);
            prop_assert!(log.len_of(from, fits) <= bytes || fits == from + 1);
            prop_assert!(fits == to || log.len_of(from, fits + 1) > bytes);
            let capacity: usize = log.slabs.iter().map(|slab| slab.bytes.capacity()).sum();
            prop_assert_eq!(capacity + here * size_of::<Entry>(), log.bytes);
            let cut = events.len() - here;
            prop_assert_eq!(if cut == 0 { 0 } else { 3 * cut as u64 - 2 }, log.floor_seq);
            for order in 0..2 * events.len() as u64 {
                let seq = order.div_ceil(2);
                let exact = if seq == 0 { 0 } else { 3 * seq - 2 };
                prop_assert!(log.seq_at(order) == exact || (order < log.floor_order && log.seq_at(order) < exact));
            }
        }
    }
}
