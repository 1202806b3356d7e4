//! Tokens that were verified, so that they need not be verified again; and, apart from them, some that were refused.
//!
//! Strategy: a dense list of entries behind a hash table of their places. The hash is seeded and covers the end of the
//! token, where the signature is: an honest issuer's signatures are as good as random, and nobody else's are kept, so a
//! fast hash is good enough. It only finds the place; whether it is the same token is decided by comparing all of it. Room
//! is made by the clock algorithm: a hand walks over the entries, spares those used since it last came by, and drops the
//! first other one. Rules:
//! - an entry is good until its token ends, for one key epoch; when the revocation epoch has moved since it was looked
//!   at, the caller looks again and notes the new epoch;
//! - bytes are counted, not entries: token, entry, and what the caller says its value holds;
//! - refused tokens live in a table of their own with one place per hash, so that no flood of them can drop a verified
//!   one or build a chain. Only a refusal that cost a signature is worth a place, and only one that neither time nor
//!   another key set heals within [`REFUSED_FOR_S`].

use std::hash::Hasher as _;

use foldhash::SharedSeed;
use foldhash::fast::FoldHasher;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Place;

use super::jws::MAX_TOKEN_BYTES;
use crate::error::{Reason, Unusable};

/// Seconds for which a refusal is remembered.
pub const REFUSED_FOR_S: f64 = 10.0;
/// Bytes at the end of a token that are hashed: most of a signature of 32 bytes, the shortest.
const HASHED: usize = 40;
/// What the hash table needs for an entry, free room included.
const TABLE_BYTES: usize = 16;

/// What is known of a token.
#[derive(Debug, PartialEq)]
pub enum Lookup<'c, V> {
    /// It was verified.
    Hit {
        /// What the caller kept.
        value: &'c V,
        /// The revocation epoch in which it was last found to be in force; the caller moves it on.
        revocation_epoch: &'c mut u64,
    },
    /// It was refused a moment ago.
    Refused(Reason),
    /// Nothing.
    Miss,
}

#[derive(Debug)]
struct Entry<V> {
    hash: u64,
    token: Box<[u8]>,
    value: V,
    expires_at_s: f64,
    key_epoch: u64,
    revocation_epoch: u64,
    bytes: usize,
    used: bool,
}

#[derive(Debug)]
struct Refused {
    token: Box<[u8]>,
    reason: Reason,
    since_s: f64,
    key_epoch: u64,
}

/// Verified and refused tokens in bounded memory.
#[derive(Debug)]
pub struct TokenCache<V> {
    entries: Vec<Entry<V>>,
    table: HashTable<u32>,
    hand: usize,
    bytes: usize,
    max_bytes: usize,
    refused: Vec<Option<Refused>>,
    refused_hand: usize,
    refused_bytes: usize,
    max_refused_bytes: usize,
    seed: (u64, SharedSeed),
}

impl<V> TokenCache<V> {
    /// `seed` must be random. Either bound may be 0: nothing is remembered then.
    pub fn new(max_bytes: usize, negative_max_bytes: usize, seed: (u64, u64)) -> Result<Self, Unusable> {
        if max_bytes > 1 << 34 || negative_max_bytes > 1 << 34 {
            return Err(Unusable("a token cache has at most 16 GiB"));
        }
        // The table itself takes at most a quarter of the room.
        let places = negative_max_bytes / 4 / size_of::<Option<Refused>>();
        let places = if places == 0 { 0 } else { 1 << places.ilog2() };
        Ok(Self {
            entries: Vec::new(),
            table: HashTable::new(),
            hand: 0,
            bytes: 0,
            max_bytes,
            refused: std::iter::repeat_with(|| None).take(places).collect(),
            refused_hand: 0,
            refused_bytes: 0,
            max_refused_bytes: negative_max_bytes - places * size_of::<Option<Refused>>(),
            seed: (seed.0, SharedSeed::from_u64(seed.1)),
        })
    }

    /// What is known of `token` at `now_s` with the key set of `key_epoch`.
    pub fn get(&mut self, token: &[u8], now_s: f64, key_epoch: u64) -> Lookup<'_, V> {
        let hash = self.hash(token);
        if let Some(place) = self.find(hash, token) {
            let entry = &self.entries[place];
            if now_s >= entry.expires_at_s || entry.key_epoch != key_epoch {
                self.drop_entry(place);
                return Lookup::Miss;
            }
            let entry = &mut self.entries[place];
            entry.used = true;
            return Lookup::Hit { value: &entry.value, revocation_epoch: &mut entry.revocation_epoch };
        }
        match self.refusal(hash, token, now_s, key_epoch) {
            Some(reason) => Lookup::Refused(reason),
            None => Lookup::Miss,
        }
    }

    /// Remembers a verified token until `expires_at_s` (its leeway included). `extra_bytes` is what `value` holds beyond
    /// its own size. An entry with the same token is replaced; one too large for the cache is not kept.
    pub fn insert(
        &mut self,
        token: &[u8],
        value: V,
        expires_at_s: f64,
        key_epoch: u64,
        revocation_epoch: u64,
        extra_bytes: usize,
    ) {
        self.remove(token);
        let bytes = size_of::<Entry<V>>().saturating_add(TABLE_BYTES + token.len()).saturating_add(extra_bytes);
        if bytes > self.max_bytes || token.len() > MAX_TOKEN_BYTES {
            return;
        }
        while self.bytes > self.max_bytes - bytes {
            self.make_room();
        }
        let hash = self.hash(token);
        let place = self.entries.len() as u32;
        let token = token.into();
        self.entries.push(Entry { hash, token, value, expires_at_s, key_epoch, revocation_epoch, bytes, used: false });
        let entries = &self.entries;
        self.table.insert_unique(hash, place, |&place| entries[place as usize].hash);
        self.bytes += bytes;
    }

    /// Remembers a refusal for a short while, when that is worth it (see the head of the file).
    pub fn refuse(&mut self, token: &[u8], reason: Reason, now_s: f64, key_epoch: u64) {
        let bytes = token.len();
        if !is_worth_a_place(reason) || self.refused.is_empty() || bytes > self.max_refused_bytes {
            return;
        }
        let place = self.refused_place(self.hash(token));
        self.forget_refusal(place);
        while self.refused_bytes > self.max_refused_bytes - bytes {
            self.refused_hand = (self.refused_hand + 1) % self.refused.len();
            self.forget_refusal(self.refused_hand);
        }
        self.refused[place] = Some(Refused { token: token.into(), reason, since_s: now_s, key_epoch });
        self.refused_bytes += bytes;
    }

    /// Forgets a token.
    pub fn remove(&mut self, token: &[u8]) {
        let hash = self.hash(token);
        if let Some(place) = self.find(hash, token) {
            self.drop_entry(place);
        }
        if !self.refused.is_empty() {
            let place = self.refused_place(hash);
            if self.refused[place].as_ref().is_some_and(|refused| *refused.token == *token) {
                self.forget_refusal(place);
            }
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.entries = Vec::new();
        self.table = HashTable::new();
        (self.hand, self.bytes) = (0, 0);
        self.refused.fill_with(|| None);
        self.refused_bytes = 0;
    }

    /// Bytes of verified tokens, as they are counted.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Verified tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no verified token is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn hash(&self, token: &[u8]) -> u64 {
        let mut hasher = FoldHasher::with_seed(self.seed.0, &self.seed.1);
        hasher.write(&token[token.len().saturating_sub(HASHED)..]);
        hasher.finish()
    }

    fn find(&self, hash: u64, token: &[u8]) -> Option<usize> {
        let same = |&place: &u32| {
            let entry = &self.entries[place as usize];
            entry.hash == hash && *entry.token == *token
        };
        self.table.find(hash, same).map(|&place| place as usize)
    }

    /// Moves the hand to the first entry that was not used since it last came by, and drops that one.
    fn make_room(&mut self) {
        loop {
            if self.hand >= self.entries.len() {
                self.hand = 0;
            }
            let Some(entry) = self.entries.get_mut(self.hand) else {
                return;
            };
            if !std::mem::take(&mut entry.used) {
                return self.drop_entry(self.hand);
            }
            self.hand += 1;
        }
    }

    /// Drops an entry; the last one takes its place.
    fn drop_entry(&mut self, place: usize) {
        self.unlink(place);
        let last = self.entries.len() - 1;
        if place != last {
            let hash = self.entries[last].hash;
            if let Some(moved) = self.table.find_mut(hash, |&known| known as usize == last) {
                *moved = place as u32;
            }
        }
        let dropped = self.entries.swap_remove(place);
        self.bytes -= dropped.bytes;
    }

    fn unlink(&mut self, place: usize) {
        let (hash, entries) = (self.entries[place].hash, &self.entries);
        let known = self.table.entry(hash, |&known| known as usize == place, |&known| entries[known as usize].hash);
        if let Place::Occupied(known) = known {
            known.remove();
        }
    }

    fn refused_place(&self, hash: u64) -> usize {
        hash as usize & (self.refused.len() - 1)
    }

    fn refusal(&mut self, hash: u64, token: &[u8], now_s: f64, key_epoch: u64) -> Option<Reason> {
        if self.refused_bytes == 0 {
            return None;
        }
        let place = self.refused_place(hash);
        let refused = self.refused[place].as_ref().filter(|refused| *refused.token == *token)?;
        // A clock that was set back ends it too.
        if refused.key_epoch == key_epoch && (0.0..REFUSED_FOR_S).contains(&(now_s - refused.since_s)) {
            return Some(refused.reason);
        }
        self.forget_refusal(place);
        None
    }

    fn forget_refusal(&mut self, place: usize) {
        if let Some(refused) = self.refused[place].take() {
            self.refused_bytes -= refused.token.len();
        }
    }
}

/// Whether a refusal cost a signature and stays right for a while.
fn is_worth_a_place(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::InvalidSignature
            | Reason::WrongType
            | Reason::InvalidPayload
            | Reason::MissingClaim
            | Reason::InvalidClaim
            | Reason::Expired
            | Reason::WrongIssuer
            | Reason::WrongAudience
            | Reason::InvalidSubject
            | Reason::InvalidRoles
            | Reason::InvalidTenant
            | Reason::InvalidSession
    )
}
