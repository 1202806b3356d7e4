//! Rate-limit policies and what they apply to.
//!
//! A policy has one window or several; each has a table of its own. What a request is decides which windows
//! it passes: its class, which is the route or the command it asks for. The classes are drawn up once, when the settings
//! are read; per request there is one list to walk.

use crate::error::Unusable;
use crate::limit::Rate;

/// Whose requests a policy counts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The client address (IPv6 by /64).
    Ip,
    /// The `X-API-Key` header, which names a caller without proving anything; requests without one are not counted.
    ApiKey,
    /// The verified subject within its tenant.
    Subject,
    /// The verified tenant.
    Tenant,
}

impl By {
    /// The word of the settings.
    #[must_use]
    pub fn named(word: &str) -> Option<Self> {
        Some(match word {
            "ip" => Self::Ip,
            "api_key" => Self::ApiKey,
            "subject" => Self::Subject,
            "tenant" => Self::Tenant,
            _ => return None,
        })
    }

    /// Whether the key is known only when the token stands.
    #[must_use]
    pub fn needs_principal(self) -> bool {
        matches!(self, Self::Subject | Self::Tenant)
    }
}

/// One window of a policy.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Its name in headers, logs and metrics.
    pub name: String,
    /// Whose requests are counted together.
    pub by: By,
    /// Units per window.
    pub limit: u32,
    /// Length of the window.
    pub window_ms: u64,
    /// The most units one request costs.
    pub cost: u32,
    /// Evaluated and reported, never refusing.
    pub shadow: bool,
}

impl Policy {
    pub(super) fn rate(&self) -> Rate {
        Rate { limit: self.limit, window_ms: self.window_ms, max_cost: self.cost }
    }

    pub(super) fn check(&self, others: &[Self]) -> Result<(), Unusable> {
        if self.name.is_empty() || others.iter().any(|other| other.name == self.name) {
            return Err(Unusable("policies have unique names that are not empty"));
        }
        if self.cost == 0 || self.cost > self.limit {
            return Err(Unusable("a policy's cost is between 1 and its limit"));
        }
        Ok(())
    }
}

/// A window that requests of a class pass, and what each of them costs there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Toll {
    /// Index of the policy.
    pub policy: usize,
    /// Units.
    pub cost: u32,
}

/// The windows of each class, those that need no principal first.
#[derive(Debug, Default)]
pub struct Classes(Vec<Class>);

#[derive(Debug)]
struct Class {
    tolls: Box<[Toll]>,
    /// How many of them need no principal.
    open: usize,
}

impl Classes {
    pub(super) fn new(classes: Vec<Vec<Toll>>, policies: &[Policy]) -> Result<Self, Unusable> {
        let sound =
            |toll: &Toll| policies.get(toll.policy).is_some_and(|policy| (1..=policy.cost).contains(&toll.cost));
        let mut made = Vec::with_capacity(classes.len());
        for mut tolls in classes {
            if !tolls.iter().all(sound) {
                return Err(Unusable("a class names policies and at most their cost"));
            }
            tolls.sort_by_key(|toll| policies[toll.policy].by.needs_principal());
            let open = tolls.iter().filter(|toll| !policies[toll.policy].by.needs_principal()).count();
            made.push(Class { tolls: tolls.into(), open });
        }
        Ok(Self(made))
    }

    /// The windows a class passes before and after its token is looked at; none for a class that is not known.
    pub(super) fn of(&self, class: usize) -> (&[Toll], &[Toll]) {
        self.0.get(class).map_or((&[], &[]), |class| class.tolls.split_at(class.open))
    }
}
