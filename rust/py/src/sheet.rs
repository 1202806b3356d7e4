//! What headers are written on: a list of Python's for a server that is called from Python, or the lane's own map.

use http::{HeaderMap, HeaderName, HeaderValue};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use crate::answer::{Face, LINES, Line, Lines, Memo, Name};

/// A header as the lane's server has it.
pub(crate) type NativeLine = (HeaderName, HeaderValue);

/// What headers are written on.
pub(crate) trait Sheet {
    /// A header that never changes.
    fn ready(&mut self, line: &Line);

    /// A header with a value of its own.
    fn value(&mut self, name: &Name, value: &[u8]) -> PyResult<()>;

    /// The same, where the value goes with a number that is mostly that of the last time.
    fn seldom_new(&mut self, memo: &Memo, number: u64, name: &Name, make: impl Fn() -> Vec<u8>) -> PyResult<()>;
}

/// A list for a face.
pub(crate) struct Listed<'py> {
    py: Python<'py>,
    face: Face,
    pub(crate) lines: Lines<'py>,
}

impl<'py> Listed<'py> {
    /// With room for so many more than those of every response.
    pub(crate) fn new(py: Python<'py>, face: Face, more: usize) -> Self {
        Self { py, face, lines: Lines::with_capacity(LINES + more) }
    }
}

impl Sheet for Listed<'_> {
    fn ready(&mut self, line: &Line) {
        self.lines.push(line.of(self.face).bind(self.py).clone());
    }

    fn value(&mut self, name: &Name, value: &[u8]) -> PyResult<()> {
        self.lines.push(name.with(self.py, self.face, value)?);
        Ok(())
    }

    fn seldom_new(&mut self, memo: &Memo, number: u64, name: &Name, make: impl Fn() -> Vec<u8>) -> PyResult<()> {
        let (py, face) = (self.py, self.face);
        self.lines.push(memo.header(py, face, number, || name.with(py, face, &make()))?);
        Ok(())
    }
}

impl Sheet for HeaderMap {
    fn ready(&mut self, line: &Line) {
        self.append(line.native.0.clone(), line.native.1.clone());
    }

    fn value(&mut self, name: &Name, value: &[u8]) -> PyResult<()> {
        self.append(name.native.clone(), header_value(value)?);
        Ok(())
    }

    fn seldom_new(&mut self, _memo: &Memo, _number: u64, name: &Name, make: impl Fn() -> Vec<u8>) -> PyResult<()> {
        self.value(name, &make())
    }
}

fn header_value(value: &[u8]) -> PyResult<HeaderValue> {
    HeaderValue::from_bytes(value).map_err(|_| PyValueError::new_err("a header with what no header may have"))
}

/// A header of ours, which is of bytes, as the lane's server has it.
pub(crate) fn native(header: &Bound<'_, PyTuple>) -> PyResult<NativeLine> {
    let (name, value) = (header.get_borrowed_item(0)?, header.get_borrowed_item(1)?);
    let name = HeaderName::from_bytes(name.cast::<PyBytes>()?.as_bytes());
    let name = name.map_err(|_| PyValueError::new_err("a header with a name that no header may have"))?;
    Ok((name, header_value(value.cast::<PyBytes>()?.as_bytes())?))
}

/// Several of them.
pub(crate) fn natives(headers: &[Bound<'_, PyTuple>]) -> PyResult<Vec<NativeLine>> {
    headers.iter().map(native).collect()
}
