//! The open connections of a process, and on whose token each was let in: what ends a token must end what it has opened.
//!
//! Strategy: a list in the order in which they came, which is that of their numbers. After a change all are judged again in one pass
//! ([`Roster::revoked`]): twenty thousand cost a few milliseconds, and changes that come together cost one pass. The shell knows
//! how to reach a connection; here it is a face and a number of that face's own.
//!
//! Rules: a number is never used again. Pure; who asks holds the lock.

use std::sync::Arc;

use super::{InForce, Principal};
use crate::hub::ConnKey;
use crate::jwt::revocation::DEFAULT_TENANT;

/// Which part of the process holds a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Face {
    /// The server of the main port.
    Asgi,
    /// The native listener.
    Native,
}

/// An open connection.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Who, by the token that is in force for it.
    pub principal: Arc<Principal>,
    /// What it calls itself.
    pub client_id: Arc<str>,
    /// Who holds it.
    pub face: Face,
    /// Its number there.
    pub handle: u64,
    /// The same in the hub, once it is there.
    pub key: Option<ConnKey>,
    /// When it came, in microseconds since 1970.
    pub since_us: u64,
}

impl Guest {
    /// Its tenant.
    #[must_use]
    pub fn tenant(&self) -> &str {
        self.principal.tenant.as_deref().unwrap_or(DEFAULT_TENANT)
    }
}

/// Who is here.
#[derive(Debug, Default)]
pub struct Roster {
    /// In the order of their numbers. Who has left leaves a hole; holes are closed when they are more than the guests.
    seats: Vec<(u64, Option<Guest>)>,
    here: usize,
    last: u64,
}

impl Roster {
    /// Somebody comes; its number.
    pub fn enter(&mut self, guest: Guest) -> u64 {
        self.last += 1;
        self.seats.push((self.last, Some(guest)));
        self.here += 1;
        self.last
    }

    /// Somebody leaves.
    pub fn leave(&mut self, number: u64) {
        if self.seat(number).and_then(Option::take).is_none() {
            return;
        }
        self.here -= 1;
        if self.seats.len() > 2 * self.here {
            self.seats.retain(|(_, guest)| guest.is_some());
            self.seats.shrink_to(2 * self.here);
        }
    }

    /// Another token is in force for a connection; false when it has left.
    pub fn renew(&mut self, number: u64, principal: Arc<Principal>) -> bool {
        self.seat(number).and_then(Option::as_mut).map(|guest| guest.principal = principal).is_some()
    }

    /// The hub knows a connection by this.
    pub fn heard_as(&mut self, number: u64, key: ConnKey) {
        if let Some(Some(guest)) = self.seat(number) {
            guest.key = Some(key);
        }
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, number: u64) -> Option<&Guest> {
        self.after(number.checked_sub(1)?).next().filter(|(found, _)| *found == number).map(|(_, guest)| guest)
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.here
    }

    /// Whether nobody is here.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.here == 0
    }

    /// Those whose tokens were revoked.
    #[must_use]
    pub fn revoked(&self, revocations: &dyn InForce) -> Vec<(Face, u64)> {
        let hit = self.after(0).filter(|(_, guest)| revocations.revokes(&guest.principal));
        hit.map(|(_, guest)| (guest.face, guest.handle)).collect()
    }

    /// All that came after a number, in the order in which they came.
    pub fn after(&self, number: u64) -> impl Iterator<Item = (u64, &Guest)> {
        let first = self.seats.partition_point(|(other, _)| *other <= number);
        self.seats[first..].iter().filter_map(|(number, guest)| Some((*number, guest.as_ref()?)))
    }

    fn seat(&mut self, number: u64) -> Option<&mut Option<Guest>> {
        let place = self.seats.binary_search_by_key(&number, |(other, _)| *other).ok()?;
        self.seats.get_mut(place).map(|(_, guest)| guest)
    }

    /// The first of those that are wanted behind a moment and a number, in the order of both: the same at all gateways, while
    /// numbers are each one's own.
    pub fn page(&self, after: (u64, u64), limit: usize, wanted: impl Fn(&Guest) -> bool) -> Vec<(u64, &Guest)> {
        let order = |(number, guest): &(u64, &Guest)| (guest.since_us, *number);
        let mut found: Vec<_> = self.after(0).filter(|it| order(it) > after && wanted(it.1)).collect();
        if limit > 0 && limit < found.len() {
            found.select_nth_unstable_by_key(limit - 1, order);
        }
        found.truncate(limit);
        found.sort_unstable_by_key(order);
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::jwt::revocation::{Kind, Revocation, Revocations};

    fn principal(subject: u8, token: u8, issued_at: Option<i64>) -> Arc<Principal> {
        Arc::new(Principal {
            subject: format!("s{subject}"),
            tenant: (subject == 0).then(|| "other".to_owned()),
            roles: Vec::new(),
            token_id: Some(format!("t{token}")),
            session: None,
            issued_at,
            expires_at: 9,
            key_id: Some(format!("k{}", token % 2)),
        })
    }

    #[derive(Clone, Debug)]
    enum Step {
        Enter(u8, u8, Option<i64>),
        Leave(u64),
        Renew(u64, u8, u8),
        Revoke(usize, u8, Option<i64>),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let moment = prop::option::of(0_i64..6);
        let step = prop_oneof![
            4 => (0_u8..3, 0_u8..6, moment.clone()).prop_map(|(who, token, at)| Step::Enter(who, token, at)),
            2 => (1_u64..10).prop_map(Step::Leave),
            2 => (1_u64..10, 0_u8..3, 0_u8..6).prop_map(|(number, who, token)| Step::Renew(number, who, token)),
            2 => (0_usize..4, 0_u8..6, moment).prop_map(|(kind, value, at)| Step::Revoke(kind, value, at)),
        ];
        prop::collection::vec(step, 0..40)
    }

    proptest! {
        /// The twin sorts all of them, and pages through the whole.
        #[test]
        fn pages_are_the_whole_in_its_order(moments in prop::collection::vec((0_u64..5, 0_u8..2), 0..30), limit in 1_usize..5) {
            let mut roster = Roster::default();
            for (since_us, who) in &moments {
                let (principal, face) = (principal(*who, 0, None), Face::Asgi);
                roster.enter(Guest { principal, client_id: "c".into(), face, handle: 0, key: None, since_us: *since_us });
            }
            let mut expected: Vec<_> = roster.after(0).map(|(number, guest)| (guest.since_us, number)).collect();
            expected.retain(|(_, number)| moments[*number as usize - 1].1 == 1);
            expected.sort_unstable();
            let (mut found, mut after) = (Vec::new(), (0, 0));
            loop {
                let page = roster.page(after, limit, |guest| guest.principal.subject == "s1");
                prop_assert!(page.len() <= limit);
                found.extend(page.iter().map(|(number, guest)| (guest.since_us, *number)));
                match found.last() {
                    Some(last) if !page.is_empty() => after = *last,
                    _ => break,
                }
            }
            prop_assert_eq!(expected, found);
        }

        /// The twin is a list that is asked one by one.
        #[test]
        fn who_was_revoked_is_found_and_nobody_else(steps in steps()) {
            let (mut roster, mut twin) = (Roster::default(), Vec::<(u64, Arc<Principal>)>::new());
            let mut revocations = Revocations::new((1, 2));
            for step in steps {
                match step {
                    Step::Enter(who, token, at) => {
                        let (principal, face) = (principal(who, token, at), Face::Native);
                        let handle = twin.last().map_or(1, |(number, _)| number + 1).max(roster.last + 1);
                        let guest = Guest { principal: principal.clone(), client_id: "c".into(), face, handle, key: None, since_us: 1 };
                        prop_assert_eq!(handle, roster.enter(guest));
                        twin.push((handle, principal));
                    }
                    Step::Leave(number) => {
                        roster.leave(number);
                        twin.retain(|(known, _)| *known != number);
                    }
                    Step::Renew(number, who, token) => {
                        let principal = principal(who, token, Some(9));
                        let known = twin.iter_mut().find(|(known, _)| *known == number);
                        prop_assert_eq!(known.is_some(), roster.renew(number, principal.clone()));
                        if let Some(known) = known {
                            known.1 = principal;
                        }
                    }
                    Step::Revoke(kind, value, issued_before_s) => {
                        let kind = Kind::ALL[kind];
                        let letter = ["t", "x", "s", "k"][Kind::ALL.iter().position(|it| *it == kind).unwrap_or(0)];
                        let (value, tenant) = (format!("{letter}{value}"), DEFAULT_TENANT.to_owned());
                        revocations.apply(Revocation { kind, value, tenant, issued_before_s, expires_at_s: None });
                    }
                }
                let hit = twin.iter().filter(|(_, it)| {
                    let (tenant, token) = (it.tenant.as_deref(), it.token_id.as_deref());
                    revocations.revokes(&it.subject, tenant, token, None, it.key_id.as_deref(), it.issued_at)
                });
                let expected: Vec<_> = hit.map(|(number, _)| (Face::Native, *number)).collect();
                prop_assert_eq!(expected, roster.revoked(&revocations));
                let (numbers, all): (Vec<_>, Vec<_>) =
                    (roster.after(0).map(|(number, _)| number).collect(), twin.iter().map(|(number, _)| *number).collect());
                prop_assert_eq!(numbers, all);
            }
        }
    }
}
