//! Revocations: which tokens are no longer good although their signature and their times are.
//!
//! A revocation names a token (`jti`), a session (`sid`), a subject (`sub`) or a key (`kid`) and hits every token that
//! says so and was issued at or before its moment; without a moment it hits them all. Rules:
//! - a token without `iat` counts as issued before any moment: what cannot be told apart is refused;
//! - tenants are apart: a name revoked in one says nothing about the same name in another. A key belongs to the service
//!   and so to no tenant. A token without a tenant is of the tenant [`DEFAULT_TENANT`];
//! - a look-up is one hash per kind that has any revocation at all, and allocates nothing;
//! - every change moves the epoch, so that whoever remembers a verdict knows when to ask again.

use std::hash::{BuildHasher, Hash};

use hashbrown::{Equivalent, HashMap};
use siphasher::sip::SipHasher13;

/// The tenant of a token that names none.
pub const DEFAULT_TENANT: &str = "default";

/// What a revocation names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// One token, by `jti`.
    Token,
    /// All tokens of a session, by `sid`.
    Session,
    /// All tokens of a subject, by `sub`.
    Subject,
    /// All tokens of a key, by `kid`.
    Key,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Token, Self::Session, Self::Subject, Self::Key];

    /// The word for it outside.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Token => "jti",
            Self::Session => "session",
            Self::Subject => "subject",
            Self::Key => "key",
        }
    }

    /// The kind of a word.
    #[must_use]
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.word() == word)
    }
}

/// A revocation as it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// What `value` is.
    pub kind: Kind,
    /// The `jti`, `sid`, `sub` or `kid`.
    pub value: String,
    /// The tenant it is revoked in; means nothing for a key.
    pub tenant: String,
    /// Hits what was issued at or before this second; none: everything.
    pub issued_before_s: Option<i64>,
    /// From this second on nothing is left that it could hit, and it may be forgotten; none: never.
    pub expires_at_s: Option<i64>,
}

#[derive(PartialEq, Eq, Hash, Debug)]
struct Name {
    tenant: Box<str>,
    value: Box<str>,
}

/// A [`Name`] that is looked for. Hashes like it, since `str` and `Box<str>` do.
#[derive(Hash)]
struct Sought<'a> {
    tenant: &'a str,
    value: &'a str,
}

impl Equivalent<Name> for Sought<'_> {
    fn equivalent(&self, name: &Name) -> bool {
        self.value == &*name.value && self.tenant == &*name.tenant
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reach {
    issued_before_s: i64,
    expires_at_s: i64,
}

/// Names come from tokens, and so from strangers: a keyed hash.
#[derive(Clone, Debug)]
struct Seed(u64, u64);

impl BuildHasher for Seed {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0, self.1)
    }
}

type Names = HashMap<Name, Reach, Seed>;

/// All revocations in force.
#[derive(Debug)]
pub struct Revocations {
    tokens: Names,
    sessions: Names,
    subjects: Names,
    keys: Names,
    epoch: u64,
}

impl Revocations {
    /// None yet; `seed` must be random.
    #[must_use]
    pub fn new(seed: (u64, u64)) -> Self {
        let names = || HashMap::with_hasher(Seed(seed.0, seed.1));
        Self { tokens: names(), sessions: names(), subjects: names(), keys: names(), epoch: 0 }
    }

    /// Puts a revocation in force, in place of one of the same name.
    pub fn apply(&mut self, revocation: Revocation) {
        let Revocation { kind, value, tenant, issued_before_s, expires_at_s } = revocation;
        let reach = Reach {
            issued_before_s: issued_before_s.unwrap_or(i64::MAX),
            expires_at_s: expires_at_s.unwrap_or(i64::MAX),
        };
        let name = Name { tenant: scope(kind, &tenant).into(), value: value.into_boxed_str() };
        if self.names_mut(kind).insert(name, reach) != Some(reach) {
            self.epoch += 1;
        }
    }

    /// Takes a revocation back; whether there was one.
    pub fn remove(&mut self, kind: Kind, value: &str, tenant: &str) -> bool {
        let sought = Sought { tenant: scope(kind, tenant), value };
        let found = self.names_mut(kind).remove(&sought).is_some();
        self.epoch += u64::from(found);
        found
    }

    /// Puts exactly these in force.
    pub fn replace_all(&mut self, revocations: impl IntoIterator<Item = Revocation>) {
        for kind in Kind::ALL {
            self.names_mut(kind).clear();
        }
        self.epoch += 1;
        for revocation in revocations {
            self.apply(revocation);
        }
        for kind in Kind::ALL {
            self.names_mut(kind).shrink_to_fit();
        }
    }

    /// Moves with every change.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How many are in force.
    #[must_use]
    pub fn len(&self) -> usize {
        Kind::ALL.into_iter().map(|kind| self.names(kind).len()).sum()
    }

    /// Whether none is in force.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        Kind::ALL.into_iter().all(|kind| self.names(kind).is_empty())
    }

    /// Whether a token that says this is revoked. `issued_at` is `iat` in whole seconds, rounded down; `key_id` is that of
    /// the key that verified it, whatever its header named.
    #[must_use]
    pub fn revokes(
        &self,
        subject: &str,
        tenant: Option<&str>,
        token_id: Option<&str>,
        session: Option<&str>,
        key_id: Option<&str>,
        issued_at: Option<i64>,
    ) -> bool {
        let tenant = tenant.unwrap_or(DEFAULT_TENANT);
        let hit = |kind: Kind, value: Option<&str>| {
            let (names, Some(value)) = (self.names(kind), value) else { return false };
            // The map itself hashes before it finds out that it is empty.
            !names.is_empty()
                && names
                    .get(&Sought { tenant: scope(kind, tenant), value })
                    .is_some_and(|reach| issued_at.is_none_or(|issued_at| issued_at <= reach.issued_before_s))
        };
        hit(Kind::Token, token_id)
            || hit(Kind::Session, session)
            || hit(Kind::Subject, Some(subject))
            || hit(Kind::Key, key_id)
    }

    /// Forgets those that can hit nothing any more; how many.
    pub fn forget_expired(&mut self, now_s: i64) -> usize {
        let before = self.len();
        for kind in Kind::ALL {
            self.names_mut(kind).retain(|_, reach| reach.expires_at_s > now_s);
        }
        let forgotten = before - self.len();
        self.epoch += u64::from(forgotten > 0);
        forgotten
    }

    fn names(&self, kind: Kind) -> &Names {
        match kind {
            Kind::Token => &self.tokens,
            Kind::Session => &self.sessions,
            Kind::Subject => &self.subjects,
            Kind::Key => &self.keys,
        }
    }

    fn names_mut(&mut self, kind: Kind) -> &mut Names {
        match kind {
            Kind::Token => &mut self.tokens,
            Kind::Session => &mut self.sessions,
            Kind::Subject => &mut self.subjects,
            Kind::Key => &mut self.keys,
        }
    }
}

/// The tenant a name is kept under.
fn scope(kind: Kind, tenant: &str) -> &str {
    if kind == Kind::Key { "" } else { tenant }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revocation(kind: Kind, value: &str) -> Revocation {
        let (value, tenant) = (value.to_owned(), DEFAULT_TENANT.to_owned());
        Revocation { kind, value, tenant, issued_before_s: None, expires_at_s: None }
    }

    fn with(revocation: Revocation) -> Revocations {
        let mut made = Revocations::new((1, 2));
        made.apply(revocation);
        made
    }

    #[test]
    fn each_kind_hits_its_own_claim_only() {
        for kind in Kind::ALL {
            let made = with(revocation(kind, "x"));
            let hits = [
                made.revokes("a", None, Some("x"), None, None, Some(1)),
                made.revokes("a", None, None, Some("x"), None, Some(1)),
                made.revokes("x", None, None, None, None, Some(1)),
                made.revokes("a", None, None, None, Some("x"), Some(1)),
            ];
            assert_eq!(Kind::ALL.map(|other| other == kind), hits);
            assert!(!made.revokes("a", None, Some("y"), Some("y"), Some("y"), None));
            assert_eq!(Some(kind), Kind::named(kind.word()));
        }
        assert_eq!(None, Kind::named("JTI"));
    }

    #[test]
    fn a_moment_hits_what_was_issued_until_then_and_what_says_nothing() {
        let made = with(Revocation { issued_before_s: Some(100), ..revocation(Kind::Subject, "anna") });
        let hit = |issued_at| made.revokes("anna", None, None, None, None, issued_at);
        assert_eq!([true, true, false, true], [hit(Some(99)), hit(Some(100)), hit(Some(101)), hit(None)]);
    }

    #[test]
    fn tenants_are_apart_and_keys_belong_to_none() {
        let made = with(Revocation { tenant: "a".to_owned(), ..revocation(Kind::Subject, "anna") });
        let hit = |tenant| made.revokes("anna", tenant, None, None, None, None);
        assert_eq!([true, false, false], [hit(Some("a")), hit(Some("b")), hit(None)]);
        let made = with(Revocation { tenant: "a".to_owned(), ..revocation(Kind::Key, "k1") });
        assert!(made.revokes("anna", Some("b"), None, None, Some("k1"), None));
        let made = with(revocation(Kind::Token, "t"));
        assert!(made.revokes("anna", None, Some("t"), None, None, None));
        assert!(made.revokes("anna", Some(DEFAULT_TENANT), Some("t"), None, None, None));
    }

    #[test]
    fn the_epoch_moves_with_changes_only() {
        let mut made = Revocations::new((1, 2));
        let mut seen = vec![made.epoch()];
        let mut moved = |made: &Revocations| {
            seen.push(made.epoch());
            seen[seen.len() - 1] != seen[seen.len() - 2]
        };
        made.apply(Revocation { expires_at_s: Some(10), ..revocation(Kind::Token, "t") });
        assert!(moved(&made));
        made.apply(Revocation { expires_at_s: Some(10), ..revocation(Kind::Token, "t") });
        assert!(!moved(&made));
        assert_eq!(0, made.forget_expired(9));
        assert!(!moved(&made));
        assert_eq!(1, made.forget_expired(10));
        assert!(moved(&made) && made.is_empty());
        assert!(!made.remove(Kind::Token, "t", DEFAULT_TENANT));
        assert!(!moved(&made));
        made.replace_all([revocation(Kind::Key, "k"), revocation(Kind::Session, "s")]);
        assert!(moved(&made));
        assert_eq!(2, made.len());
        assert!(made.remove(Kind::Key, "k", "any"));
        assert!(moved(&made));
    }
}
