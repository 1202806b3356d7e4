//! Who hears which topic, where that is to be told: changes as connections come and go, for the shell to fetch.
//!
//! Rules: present is who has subscribed to exactly this topic and may hear it; each connection counts for itself. Nothing is
//! noted of topics that no pattern names.

use super::topic::matches;
use super::{ConnKey, Hub, Profile};

/// A connection began or ceased to hear a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresenceChange {
    /// Whose topic it is.
    pub tenant: Box<str>,
    /// The topic.
    pub topic: Box<str>,
    /// Whose connection it is.
    pub subject: Box<str>,
    /// Whether it began.
    pub here: bool,
}

#[derive(Debug, Default)]
pub(super) struct Presence {
    patterns: Vec<Box<str>>,
    changes: Vec<PresenceChange>,
}

impl Presence {
    pub(super) fn note(&mut self, profile: &Profile, topic: &str, here: bool) {
        let is_topic = !topic.ends_with('*') && self.patterns.iter().any(|pattern| matches(pattern, topic));
        if is_topic && profile.rights.may_hear(topic) {
            let (tenant, subject) = (profile.tenant.clone(), profile.rights.subject().into());
            self.changes.push(PresenceChange { tenant, topic: topic.into(), subject, here });
        }
    }
}

impl Hub {
    /// Notes from now on who hears the topics of these patterns.
    pub fn note_presence_of(&mut self, patterns: impl IntoIterator<Item = Box<str>>) {
        self.presence.patterns = patterns.into_iter().collect();
    }

    /// What has changed since this was asked for the last time, in order.
    pub fn presence_changes(&mut self) -> Vec<PresenceChange> {
        std::mem::take(&mut self.presence.changes)
    }

    /// A connection began or ceased to hear what a pattern names.
    pub(super) fn note_presence(&mut self, conn: ConnKey, pattern: &str, here: bool) {
        if let Some(found) = self.fleet.get(conn) {
            self.presence.note(&found.profile, pattern, here);
        }
    }
}
