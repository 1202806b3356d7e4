//! Whether a text is strict JSON.

use flx_core::json::{self, Refusal};
use pyo3::prelude::*;

/// What is wrong with a text as one strict JSON value; None when it is one.
#[pyfunction]
#[pyo3(signature = (text, max_depth))]
pub(crate) fn check_json(text: &[u8], max_depth: u8) -> Option<&'static str> {
    json::check(text, usize::from(max_depth)).err().map(|refusal| match refusal {
        Refusal::Malformed => "malformed",
        Refusal::TooDeep => "too_deep",
        Refusal::NameTwice => "name_twice",
    })
}
