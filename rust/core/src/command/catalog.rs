//! The commands that may be plain: what is the same for each call of one.

use hashbrown::HashMap;

/// What repeating a command means, as far as its frame is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// It changes nothing.
    Read,
    /// It travels with a key, the client's or one that is made for it.
    Keyed,
    /// A key means nothing to it.
    Bare,
}

impl Repeat {
    /// Of `idempotency` in the registry of commands.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "read" => Some(Self::Read),
            "key" | "idempotent" => Some(Self::Keyed),
            "none" => Some(Self::Bare),
            _ => None,
        }
    }
}

/// One command, with what a shell keeps beside it.
#[derive(Debug)]
pub struct Entry<X> {
    /// What repeating it means.
    pub repeat: Repeat,
    /// Who may call it.
    pub roles: Vec<String>,
    /// The shell's own.
    pub extra: X,
}

/// Commands by name.
#[derive(Debug)]
pub struct Catalog<X> {
    entries: HashMap<String, Entry<X>>,
}

impl<X> Catalog<X> {
    /// All of them.
    pub fn new(entries: impl IntoIterator<Item = (String, Entry<X>)>) -> Self {
        Self { entries: entries.into_iter().collect() }
    }

    /// The command of a name, if one who has these roles may call it.
    #[must_use]
    pub fn permitted(&self, name: &str, roles: &[String]) -> Option<&Entry<X>> {
        self.entries.get(name).filter(|entry| roles.iter().any(|role| entry.roles.contains(role)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_needed() {
        let entry = Entry { repeat: Repeat::Read, roles: vec!["viewer".into(), "admin".into()], extra: 7 };
        let catalog = Catalog::new([("a.get".to_owned(), entry)]);
        let found = |name, roles: &[&str]| {
            let roles: Vec<String> = roles.iter().map(|&role| role.to_owned()).collect();
            catalog.permitted(name, &roles).map(|entry| entry.extra)
        };
        assert_eq!(Some(7), found("a.get", &["other", "admin"]));
        assert_eq!(None, found("a.get", &["other"]));
        assert_eq!(None, found("a.get", &[]));
        assert_eq!(None, found("b.get", &["admin"]));
    }

    #[test]
    fn repeating_has_four_names() {
        let all = ["read", "key", "idempotent", "none", "other"].map(Repeat::named);
        assert_eq!([Some(Repeat::Read), Some(Repeat::Keyed), Some(Repeat::Keyed), Some(Repeat::Bare), None], all);
    }
}
