//! Connections, the audiences they form by what they hear, and the cohorts these fall into by how far they are.
//!
//! Strategy: an audience is a (shard, tenant, rights, dialect, set of patterns) that is interned; topics and audiences know each
//! other.
//! A cohort is *idle* (it has everything; its cursor counts as the present), *queued* (it is to be served when it is due), or
//! *held* (its only connection takes nothing for now). A connection that differs from the others of its audience (behind,
//! held, or with beginnings of its own) is a cohort of one, and joins another when it no longer does.
//!
//! Rule: all lists of members and topics are kept in step here and nowhere else.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use super::ids::Ids;
use super::log::{Kind, TopicLog};
use super::queue::{Agenda, Fresh};
use super::reader::Joins;
use super::resume::Catching;
use super::rights::Rights;
use super::store::Store;
use super::topic::{Patterns, beginnings, matches, may_match, wild_prefix};
use super::{COHORT, ConnKey, Dialect, Profile, Shard};

pub(super) const NONE: u32 = u32::MAX;

#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) shard: Shard,
    pub(super) tenant: Box<str>,
    pub(super) rights: Rights,
    pub(super) dialect: Dialect,
    pub(super) patterns: Vec<Box<str>>,
}

impl Key {
    fn hears(&self, tenant: &str, topic: &str) -> bool {
        self.may_hear(tenant, topic) && self.patterns.iter().any(|pattern| matches(pattern, topic))
    }

    fn may_hear(&self, tenant: &str, topic: &str) -> bool {
        *tenant == *self.tenant && self.rights.may_hear(topic)
    }
}

#[derive(Debug)]
pub(super) struct Audience {
    pub(super) key: Arc<Key>,
    /// The same as in the key, which is looked at for this seldom.
    pub(super) shard: Shard,
    pub(super) dialect: Dialect,
    pub(super) tenant: Arc<str>,
    pub(super) topics: Ids,
    pub(super) fresh: Fresh,
    pub(super) members: usize,
    pub(super) cohorts: usize,
    /// Cohorts that have everything.
    pub(super) idle: Ids,
    /// The period of the governor in which it was counted.
    pub(super) period: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Idle,
    Queued,
    Held,
}

#[derive(Debug)]
pub(super) struct Cohort {
    pub(super) audience: u32,
    pub(super) cursor: u64,
    pub(super) served_ms: u64,
    pub(super) state: State,
    /// Tells an entry of the queue that is meant from one that is not any more.
    pub(super) stamp: u64,
    pub(super) members: Ids,
    /// Members that have no room.
    pub(super) busy: u32,
    pub(super) joins: Option<Arc<Joins>>,
    /// A restart is to be told.
    pub(super) reset: bool,
    /// Since when its members have had no room for what was due to them.
    pub(super) behind_ms: Option<u64>,
}

impl Cohort {
    /// Where its members are, while it has something to get.
    pub(super) fn standing(&self) -> Standing {
        let (served_ms, joins, behind_ms) = (self.served_ms, self.joins.clone(), self.behind_ms);
        Standing { cursor: self.cursor, idle: false, served_ms, joins, reset: self.reset, behind_ms }
    }
}

#[derive(Debug)]
pub(super) struct Conn {
    /// NONE without subscriptions.
    pub(super) cohort: u32,
    /// Its place among the cohort's members, of which there are no more than `COHORT`.
    slot: u16,
    pub(super) busy: bool,
    pub(super) profile: Arc<Profile>,
    pub(super) catching: Option<Box<Catching>>,
}

/// Where a connection is.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    pub(super) cursor: u64,
    /// Whether it has everything up to there, and there is no more.
    pub(super) idle: bool,
    pub(super) served_ms: u64,
    pub(super) joins: Option<Arc<Joins>>,
    pub(super) reset: bool,
    pub(super) behind_ms: Option<u64>,
}

/// All connections of a hub.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    /// One copy of each that somebody has.
    profiles: HashSet<Arc<Profile>>,
    pub(super) conns: Vec<Option<Conn>>,
    generations: Vec<u32>,
    free: Vec<u32>,
    pub(super) audiences: Vec<Option<Audience>>,
    free_audiences: Vec<u32>,
    interned: HashMap<Arc<Key>, u32>,
    /// Audiences by what comes before the star of one of their patterns.
    wild: HashMap<Box<str>, Vec<u32>>,
    pub(super) cohorts: Vec<Option<Cohort>>,
    free_cohorts: Vec<u32>,
    /// By shard.
    pub(super) agendas: Vec<Agenda>,
    /// Shards whose servers have to be called.
    pub(super) called: Vec<Shard>,
    pub(super) stamp: u64,
    connections: usize,
    subscriptions: usize,
}

impl Fleet {
    // --- connections -------------------------------------------------------------------------------------------------

    pub(super) const fn len(&self) -> usize {
        self.connections
    }

    pub(super) const fn subscriptions(&self) -> usize {
        self.subscriptions
    }

    pub(super) fn audience_count(&self) -> usize {
        self.interned.len()
    }

    pub(super) const fn cohort_count(&self) -> usize {
        self.cohorts.len() - self.free_cohorts.len()
    }

    pub(super) fn connect(&mut self, profile: Profile) -> ConnKey {
        let profile = self.shared(profile);
        let index = self.free.pop().unwrap_or_else(|| {
            self.conns.push(None);
            self.generations.push(0);
            self.conns.len() as u32 - 1
        });
        let generation = self.generations[index as usize];
        let conn = Conn { cohort: NONE, slot: 0, busy: false, profile, catching: None };
        self.conns[index as usize] = Some(conn);
        self.connections += 1;
        ConnKey { index, generation }
    }

    pub(super) fn remove(&mut self, index: u32) {
        if let Some(conn) = self.conns[index as usize].take() {
            self.give_back(&conn.profile);
            self.generations[index as usize] = self.generations[index as usize].wrapping_add(1);
            self.free.push(index);
            self.connections -= 1;
        }
    }

    pub(super) fn get(&self, key: ConnKey) -> Option<&Conn> {
        self.conn(key.index).filter(|_| self.key(key.index) == key)
    }

    pub(super) fn get_mut(&mut self, key: ConnKey) -> Option<&mut Conn> {
        let is_it = self.generations.get(key.index as usize) == Some(&key.generation);
        self.conns.get_mut(key.index as usize)?.as_mut().filter(|_| is_it)
    }

    pub(super) fn conn(&self, index: u32) -> Option<&Conn> {
        self.conns.get(index as usize)?.as_ref()
    }

    pub(super) fn key(&self, index: u32) -> ConnKey {
        ConnKey { index, generation: self.generations[index as usize] }
    }

    pub(super) fn set_profile(&mut self, index: u32, profile: Profile) {
        let profile = self.shared(profile);
        if let Some(conn) = &mut self.conns[index as usize] {
            let before = std::mem::replace(&mut conn.profile, profile);
            self.give_back(&before);
        }
    }

    fn shared(&mut self, profile: Profile) -> Arc<Profile> {
        if let Some(known) = self.profiles.get(&profile) {
            return Arc::clone(known);
        }
        let profile = Arc::new(profile);
        self.profiles.insert(Arc::clone(&profile));
        profile
    }

    /// A connection has this profile no longer.
    fn give_back(&mut self, profile: &Arc<Profile>) {
        // This one and that of the set.
        if Arc::strong_count(profile) == 2 {
            self.profiles.remove(profile);
        }
    }

    pub(super) fn set_busy(&mut self, index: u32, busy: bool) {
        let Some(conn) = &mut self.conns[index as usize] else { return };
        if std::mem::replace(&mut conn.busy, busy) != busy
            && let Some(cohort) = self.cohorts.get_mut(conn.cohort as usize).and_then(Option::as_mut)
        {
            cohort.busy = if busy { cohort.busy + 1 } else { cohort.busy - 1 };
        }
    }

    fn cohort_of(&self, index: u32) -> Option<&Cohort> {
        self.cohort(self.conn(index)?.cohort)
    }

    pub(super) fn cohort(&self, id: u32) -> Option<&Cohort> {
        self.cohorts.get(id as usize)?.as_ref()
    }

    pub(super) fn cohort_mut(&mut self, id: u32) -> Option<&mut Cohort> {
        self.cohorts.get_mut(id as usize)?.as_mut()
    }

    pub(super) fn audience(&self, id: u32) -> Option<&Audience> {
        self.audiences.get(id as usize)?.as_ref()
    }

    pub(super) fn audience_of(&self, index: u32) -> Option<&Audience> {
        self.audience(self.cohort_of(index)?.audience)
    }

    pub(super) fn patterns(&self, index: u32) -> &[Box<str>] {
        self.audience_of(index).map_or(&[], |audience| &audience.key.patterns)
    }

    /// Where a connection is; `top` is the present order.
    pub(super) fn standing(&self, index: u32, top: u64) -> Standing {
        match self.cohort_of(index) {
            Some(cohort) if cohort.state == State::Idle => Standing { cursor: top, idle: true, ..cohort.standing() },
            Some(cohort) => cohort.standing(),
            None => Standing { cursor: top, idle: true, served_ms: 0, joins: None, reset: false, behind_ms: None },
        }
    }

    // --- moving ------------------------------------------------------------------------------------------------------

    /// Takes a connection out of its cohort.
    pub(super) fn leave(&mut self, store: &mut Store, index: u32) {
        let Some(audience) = self.detach(index) else { return };
        self.release(store, audience);
    }

    /// The same, and the audience may be left without members.
    fn detach(&mut self, index: u32) -> Option<u32> {
        let conn = self.conns[index as usize].as_mut()?;
        let (id, slot, busy) = (std::mem::replace(&mut conn.cohort, NONE), conn.slot as usize, conn.busy);
        let cohort = self.cohorts.get_mut(id as usize)?.as_mut()?;
        cohort.members.swap_remove(slot);
        cohort.busy -= u32::from(busy);
        let (audience, empty) = (cohort.audience, cohort.members.is_empty());
        if let Some(moved) = cohort.members.get(slot).copied()
            && let Some(moved) = &mut self.conns[moved as usize]
        {
            moved.slot = slot as u16;
        }
        if empty {
            self.drop_cohort(id);
        }
        let found = self.audiences[audience as usize].as_mut()?;
        found.members -= 1;
        self.subscriptions -= found.key.patterns.len();
        Some(audience)
    }

    fn drop_cohort(&mut self, id: u32) {
        let Some(cohort) = self.cohorts[id as usize].take() else { return };
        self.free_cohorts.push(id);
        if let Some(audience) = &mut self.audiences[cohort.audience as usize] {
            audience.cohorts -= 1;
            audience.idle.remove(id);
        }
    }

    /// Gives a connection these patterns, at this standing.
    pub(super) fn place(&mut self, store: &mut Store, index: u32, patterns: Vec<Box<str>>, standing: Standing) {
        let before = self.detach(index);
        if !patterns.is_empty()
            && let Some(profile) = self.conn(index).map(|conn| Arc::clone(&conn.profile))
        {
            let audience = self.intern(store, &profile, patterns);
            self.attach(index, audience, standing);
        }
        if let Some(audience) = before {
            self.release(store, audience);
        }
    }

    fn attach(&mut self, index: u32, audience: u32, standing: Standing) {
        let Some(found) = self.audiences[audience as usize].as_mut() else { return };
        found.members += 1;
        self.subscriptions += found.key.patterns.len();
        let id = match self.company(audience, &standing) {
            Some(id) => id,
            None => self.new_cohort(audience, standing),
        };
        self.seat(index, id);
    }

    fn seat(&mut self, index: u32, id: u32) {
        let Some(cohort) = self.cohorts[id as usize].as_mut() else { return };
        let Some(conn) = &mut self.conns[index as usize] else { return };
        (conn.cohort, conn.slot) = (id, cohort.members.len() as u16);
        cohort.busy += u32::from(conn.busy);
        cohort.members.push(index);
    }

    /// An idle cohort with room that one with this standing can join.
    fn company(&mut self, audience: u32, standing: &Standing) -> Option<u32> {
        if !standing.idle || standing.joins.is_some() || standing.reset {
            return None;
        }
        let idle = &self.audiences[audience as usize].as_ref()?.idle;
        let id = *idle.last()?;
        let cohort = self.cohorts[id as usize].as_mut()?;
        if cohort.members.len() >= COHORT || cohort.joins.is_some() || cohort.reset {
            return None;
        }
        cohort.served_ms = cohort.served_ms.max(standing.served_ms);
        cohort.cursor = cohort.cursor.max(standing.cursor);
        Some(id)
    }

    fn new_cohort(&mut self, audience: u32, standing: Standing) -> u32 {
        let state = if standing.idle && !standing.reset { State::Idle } else { State::Held };
        let cohort = Cohort {
            audience,
            cursor: standing.cursor,
            served_ms: standing.served_ms,
            state,
            stamp: 0,
            members: Ids::default(),
            busy: 0,
            joins: standing.joins,
            reset: standing.reset,
            behind_ms: standing.behind_ms,
        };
        let id = if let Some(id) = self.free_cohorts.pop() {
            self.cohorts[id as usize] = Some(cohort);
            id
        } else {
            self.cohorts.push(Some(cohort));
            self.cohorts.len() as u32 - 1
        };
        if let Some(audience) = &mut self.audiences[audience as usize] {
            audience.cohorts += 1;
            if state == State::Idle {
                audience.idle.push(id);
            }
        }
        id
    }

    /// Makes one member of a cohort a cohort of its own, held, at this standing.
    pub(super) fn part(&mut self, index: u32, standing: Standing) {
        let Some(audience) = self.cohort_of(index).map(|cohort| cohort.audience) else { return };
        // The audience gets it back at once, so it is not without members in between.
        if self.detach(index).is_some() {
            self.attach(index, audience, Standing { idle: false, ..standing });
        }
    }

    /// Lets a held connection go on, unless it has no room or is catching up.
    pub(super) fn wake(&mut self, index: u32, now_ms: u64) {
        let Some(conn) = self.conn(index).filter(|conn| !conn.busy && conn.catching.is_none()) else { return };
        let agenda = &self.agendas[conn.profile.shard.index()];
        let (id, window_ms) = (conn.cohort, agenda.governor.window_of(conn.profile.dialect));
        if self.cohort(id).is_some_and(|cohort| cohort.state == State::Held) {
            self.queue(id, now_ms, window_ms);
        }
    }

    /// Leaves the first `count` members in a cohort; the others are a cohort like it, that is returned.
    pub(super) fn split(&mut self, id: u32, count: usize) -> Option<u32> {
        let cohort = self.cohorts[id as usize].as_mut()?;
        if cohort.members.len() <= count {
            return None;
        }
        let rest = cohort.members.split_off(count);
        let (audience, standing) = (cohort.audience, cohort.standing());
        cohort.busy = 0;
        let other = self.new_cohort(audience, standing);
        for index in rest.iter() {
            self.seat(*index, other);
        }
        let busy = self.cohort(id).map_or(0, |cohort| {
            cohort.members.iter().filter(|index| self.conn(**index).is_some_and(|conn| conn.busy)).count() as u32
        });
        if let Some(cohort) = self.cohort_mut(id) {
            cohort.busy = busy;
        }
        Some(other)
    }

    /// A cohort has everything; a small one joins another.
    pub(super) fn settle(&mut self, id: u32) {
        let Some(cohort) = self.cohorts[id as usize].as_mut() else { return };
        (cohort.state, cohort.behind_ms) = (State::Idle, None);
        let (audience, cursor, served_ms) = (cohort.audience, cohort.cursor, cohort.served_ms);
        let whole = cohort.joins.is_none() && !cohort.reset;
        let count = cohort.members.len();
        let last = self.audiences[audience as usize].as_ref().and_then(|found| found.idle.last().copied());
        if let Some(other) = last
            && whole
            && let Some(company) = self.cohorts[other as usize].as_mut()
            && company.members.len() + count <= COHORT
            && company.joins.is_none()
            && !company.reset
        {
            company.served_ms = company.served_ms.max(served_ms);
            company.cursor = company.cursor.max(cursor);
            let members = self.cohorts[id as usize].as_mut().map(|cohort| std::mem::take(&mut cohort.members));
            self.drop_cohort(id);
            for index in members.unwrap_or_default().iter() {
                self.seat(*index, other);
            }
        } else if let Some(found) = &mut self.audiences[audience as usize] {
            found.idle.push(id);
        }
    }

    // --- audiences and topics ----------------------------------------------------------------------------------------

    fn intern(&mut self, store: &mut Store, profile: &Profile, mut patterns: Vec<Box<str>>) -> u32 {
        patterns.sort_unstable();
        patterns.dedup();
        let hears_users = patterns.iter().any(|pattern| &**pattern == "*" || pattern.starts_with("user."));
        let rights = if hears_users { profile.rights.clone() } else { profile.rights.of_anybody() };
        let (shard, tenant, dialect) = (profile.shard, profile.tenant.clone(), profile.dialect);
        let key = Arc::new(Key { shard, tenant, rights, dialect, patterns });
        if let Some(id) = self.interned.get(&key) {
            return *id;
        }
        let audience = Audience {
            key: Arc::clone(&key),
            shard,
            dialect,
            tenant: store.tenant(&key.tenant),
            topics: Ids::default(),
            fresh: Fresh { after: store.order, topic: NONE },
            members: 0,
            cohorts: 0,
            idle: Ids::default(),
            period: 0,
        };
        let id = if let Some(id) = self.free_audiences.pop() {
            self.audiences[id as usize] = Some(audience);
            id
        } else {
            self.audiences.push(Some(audience));
            self.audiences.len() as u32 - 1
        };
        self.interned.insert(Arc::clone(&key), id);
        self.link_audience(store, id, &key);
        id
    }

    fn link_audience(&mut self, store: &mut Store, id: u32, key: &Key) {
        let mut topics = Vec::new();
        let mut is_wild = false;
        for pattern in &key.patterns {
            if let Some(prefix) = wild_prefix(pattern) {
                let audiences = self.wild.entry_ref(prefix).or_default();
                if !audiences.contains(&id) {
                    audiences.push(id);
                }
                is_wild = true;
            } else if key.rights.may_hear(pattern) {
                let (topic, made) = store.open(&key.tenant, pattern, false);
                if made {
                    self.link_topic(store, topic);
                }
                topics.push(topic);
                topics.extend(store.find(&key.tenant, pattern, true));
            }
        }
        if is_wild {
            let patterns = Patterns::new(&key.patterns);
            let hears = |log: &TopicLog| key.may_hear(&log.tenant, &log.name) && patterns.include(&log.name);
            topics = store.topics().filter(|(_, log)| hears(log)).map(|(topic, _)| topic).collect();
        }
        for name in ["app.*", "user.*", "presence.*"] {
            if key.rights.may_lose(name) && key.patterns.iter().any(|pattern| may_match(pattern, name)) {
                topics.push(store.open(&key.tenant, name, true).0);
            }
        }
        for topic in topics {
            self.link(store, id, topic);
        }
    }

    fn link(&mut self, store: &mut Store, audience: u32, topic: u32) {
        let Some(log) = store.topic_mut(topic) else { return };
        if log.audiences.insert_sorted(audience)
            && let Some(found) = &mut self.audiences[audience as usize]
        {
            found.topics.push(topic);
        }
    }

    /// A topic is new: whose patterns include it?
    pub(super) fn link_topic(&mut self, store: &mut Store, topic: u32) {
        let Some(log) = store.topic(topic) else { return };
        let (tenant, name) = (log.tenant.clone(), log.name.clone());
        if log.kind == Kind::Ephemeral
            && let Some(journal) = store.find(&tenant, &name, false).and_then(|id| store.topic(id))
        {
            for audience in journal.audiences.clone().iter() {
                self.link(store, *audience, topic);
            }
        }
        if self.wild.is_empty() {
            return;
        }
        for beginning in beginnings(&name) {
            let Some(audiences) = self.wild.get(beginning) else { continue };
            let hears = |id: &u32| self.audience(*id).is_some_and(|audience| audience.key.hears(&tenant, &name));
            let hearing: Vec<u32> = audiences.iter().copied().filter(hears).collect();
            for audience in hearing {
                self.link(store, audience, topic);
            }
        }
    }

    /// Gives up an audience without members.
    fn release(&mut self, store: &mut Store, id: u32) {
        if self.audience(id).is_none_or(|audience| audience.members > 0) {
            return;
        }
        let Some(audience) = self.audiences[id as usize].take() else { return };
        self.free_audiences.push(id);
        self.interned.remove(&audience.key);
        for prefix in audience.key.patterns.iter().filter_map(|pattern| wild_prefix(pattern)) {
            if let Some(audiences) = self.wild.get_mut(prefix) {
                audiences.retain(|other| *other != id);
                if audiences.is_empty() {
                    self.wild.remove(prefix);
                }
            }
        }
        for topic in audience.topics.iter() {
            if let Some(log) = store.topic_mut(*topic) {
                log.audiences.remove(id);
            }
            store.release(*topic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There are twenty thousand of them.
    #[test]
    fn the_record_of_a_connection_is_small() {
        assert_eq!(24, size_of::<Option<Conn>>());
    }
}
