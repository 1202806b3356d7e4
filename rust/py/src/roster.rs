//! `Roster`: the open connections of a gateway process, on either face, and whose tokens let them in.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flx_core::admission::roster as core;
use flx_core::admission::roster::{Face, Guest};
use flx_realtime::seat::SharedRoster;
use pyo3::prelude::*;

use crate::hub;
use crate::principal::Principal;
use crate::revocation::Revocations;

/// Number, client id, subject, whether the native listener has it, microseconds since 1970, `exp`.
type Line = (u64, String, String, bool, u64, i64);

/// The roster; see the stub.
#[pyclass(frozen, module = "flx_api._core")]
pub(crate) struct Roster {
    pub(crate) shared: SharedRoster,
}

impl Roster {
    fn core(&self) -> MutexGuard<'_, core::Roster> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Roster {
    #[new]
    fn new() -> Self {
        Self { shared: Arc::new(Mutex::default()) }
    }

    /// A connection of the main port comes; its number.
    fn enter(&self, principal: &Principal, client_id: &str, handle: u64, since_us: u64) -> u64 {
        let principal = Arc::clone(&principal.core);
        // There a handle is that of the hub.
        let key = Some(hub::key(handle));
        self.core().enter(Guest { principal, client_id: client_id.into(), face: Face::Asgi, handle, key, since_us })
    }

    /// It leaves.
    fn leave(&self, number: u64) {
        self.core().leave(number);
    }

    /// Another token is in force for a connection; false when it has left.
    fn renew(&self, number: u64, principal: &Principal) -> bool {
        self.core().renew(number, Arc::clone(&principal.core))
    }

    /// Whose token is in force for a connection; None when it has left.
    fn principal(&self, number: u64) -> Option<Principal> {
        self.core().get(number).map(|guest| Principal { core: Arc::clone(&guest.principal) })
    }

    /// Those whose tokens were revoked: whether the native listener has it, and its number there.
    fn revoked(&self, py: Python<'_>, revocations: &Revocations) -> Vec<(bool, u64)> {
        let hit = py.detach(|| self.core().revoked(revocations));
        hit.into_iter().map(place).collect()
    }

    /// A tenant's connections of which all that is given is true, and that came until then; where a number is given, whenever:
    /// it is that of one connection, and clocks may differ.
    #[pyo3(signature = (tenant, *, number=None, subject=None, client_id=None, until_us))]
    fn find(
        &self,
        tenant: &str,
        number: Option<u64>,
        subject: Option<&str>,
        client_id: Option<&str>,
        until_us: u64,
    ) -> Vec<(bool, u64)> {
        let core = self.core();
        let found = core.after(0).filter(|(its, guest)| {
            (number.is_some() || guest.since_us <= until_us)
                && guest.tenant() == tenant
                && number.is_none_or(|number| number == *its)
                && subject.is_none_or(|subject| subject == guest.principal.subject)
                && client_id.is_none_or(|client_id| client_id == &*guest.client_id)
        });
        found.map(|(_, guest)| place((guest.face, guest.handle))).collect()
    }

    /// A tenant's connections behind a moment and a number.
    fn page(&self, tenant: &str, subject: Option<&str>, after: (u64, u64), limit: usize) -> Vec<Line> {
        let core = self.core();
        let found = core.page(after, limit, |guest| {
            guest.tenant() == tenant && subject.is_none_or(|subject| subject == guest.principal.subject)
        });
        found.into_iter().map(line).collect()
    }

    /// A tenant's connections that a hub knows by these handles.
    #[expect(clippy::needless_pass_by_value, reason = "arguments of a pyfunction are owned")]
    fn known_as(&self, tenant: &str, handles: HashSet<u64>) -> Vec<(u64, Line)> {
        let core = self.core();
        let found = core.after(0).filter(|(_, guest)| guest.tenant() == tenant);
        let named = found.filter_map(|(number, guest)| Some((hub::handle(guest.key?), line((number, guest)))));
        named.filter(|(handle, _)| handles.contains(handle)).collect()
    }

    /// All of them.
    fn all(&self) -> Vec<(bool, u64)> {
        self.core().after(0).map(|(_, guest)| place((guest.face, guest.handle))).collect()
    }

    fn __len__(&self) -> usize {
        self.core().len()
    }
}

fn line((number, guest): (u64, &Guest)) -> Line {
    let who = &*guest.principal;
    let is_native = guest.face == Face::Native;
    (number, guest.client_id.to_string(), who.subject.clone(), is_native, guest.since_us, who.expires_at)
}

fn place((face, handle): (Face, u64)) -> (bool, u64) {
    (face == Face::Native, handle)
}
