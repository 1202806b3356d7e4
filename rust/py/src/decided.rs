//! `Decided`: what admission has found out about a request of the lane, before Python has heard of it.

use std::sync::Arc;

use flx_core::admission::Known;
use flx_core::admission::head::Head;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::admission::Admission;
use crate::admitted::{Admitted, Client, RequestId};
use crate::answer::{Face, Told};
use crate::judge::Go;
use crate::principal::Shell;
use crate::request::Kept;
use crate::seen::Seen;

/// All that an `Admitted` is made of.
pub(crate) struct Decided {
    known: Option<Arc<Known<Shell>>>,
    pub(crate) route: usize,
    values: Vec<String>,
    request_id: RequestId,
    client: String,
    api_key: Option<Kept>,
    idempotency_key: Option<Kept>,
    traceparent: Option<Kept>,
    pub(crate) length: Option<u64>,
    started_ns: u64,
    method: usize,
    secure: bool,
    told: Option<Told>,
}

impl Decided {
    pub(crate) fn new(seen: Seen, go: Go<'_>, head: &Head<&[u8]>) -> Self {
        let own = |value: Option<&&[u8]>| value.map(|&value| Kept::Own(value.into()));
        Self {
            known: go.known,
            route: seen.route,
            values: go.values.into_iter().map(Into::into).collect(),
            request_id: seen.request_id,
            client: go.client.to_owned(),
            api_key: own(head.api_key.as_ref()),
            idempotency_key: own(head.idempotency_key.one()),
            traceparent: own(head.traceparent.as_ref()),
            length: go.length,
            started_ns: seen.now.ns,
            method: seen.method,
            secure: seen.secure,
            told: seen.told,
        }
    }

    /// As Python has it. Its headers are those of ASGI.
    pub(crate) fn admitted(self, py: Python<'_>, by: &Py<Admission>) -> PyResult<Py<Admitted>> {
        let admitted = Admitted {
            by: by.clone_ref(py),
            known: self.known,
            route: self.route,
            values: PyTuple::new(py, self.values)?.unbind(),
            request_id: self.request_id,
            client: Client::Told(self.client),
            api_key: self.api_key,
            idempotency_key: self.idempotency_key,
            traceparent: self.traceparent,
            length: self.length,
            started_ns: self.started_ns,
            method: self.method,
            secure: self.secure,
            told: self.told,
            face: Face::Asgi,
        };
        Py::new(py, admitted)
    }
}
