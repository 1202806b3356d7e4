//! A request as RSGI tells it, read once: for admission, and as the scope that ASGI would have made of it.
//!
//! Rules, each a limit of RSGI 1.6:
//! - there is no raw path: what cannot have stood in a path is escaped again, what was no UTF-8 is escaped so that it is
//!   refused. An escaped plain character cannot be told from a plain one; there is one reading of it, this one;
//! - a header whose value is not ASCII is left out of the items but not out of the names: it is put back with a value that
//!   nothing accepts;
//! - the host of HTTP/2 is no header but the authority.

use flx_core::admission::head::{Field, Head};
use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};

use crate::request::Value;

/// Refused wherever it is read, and by the right name: a token that cannot be one is still a token that was given.
const UNREADABLE: &[u8] = b"Bearer \xff";

/// What an RSGI scope says.
pub(crate) struct Rsgi<'py> {
    pub(crate) method: Bound<'py, PyString>,
    pub(crate) client: Bound<'py, PyString>,
    pub(crate) scheme: Bound<'py, PyString>,
    decoded: Bound<'py, PyString>,
    /// The path, where it is not as it was decoded.
    escaped: Option<Vec<u8>>,
    /// For what is only looked at when the request goes on.
    scope: Bound<'py, PyAny>,
    items: Bound<'py, PyList>,
    unreadable: Vec<Bound<'py, PyString>>,
    /// Only where there is no Host.
    authority: Option<Bound<'py, PyString>>,
}

impl<'py> Rsgi<'py> {
    /// The scope, and what admission decides by: both in one walk over the headers.
    pub(crate) fn read(scope: &Bound<'py, PyAny>) -> PyResult<(Self, Head<Value<'py>>)> {
        let py = scope.py();
        let mut head = Head::default();
        let text = |name| Ok::<_, PyErr>(scope.getattr(name)?.cast_into::<PyString>()?);
        // Each look at the headers copies them.
        let headers = scope.getattr(intern!(py, "headers"))?;
        let items = headers.call_method0(intern!(py, "items"))?.cast_into::<PyList>()?;
        let mut names = 0;
        let mut has_host = false;
        let mut last: Option<Bound<'py, PyString>> = None;
        for item in items.iter() {
            let (name, value) = pair(&item)?;
            let text = name.to_str()?;
            if let Some(field) = Field::of(text.as_bytes()) {
                head.take(field, Value::Text(value.clone()));
            }
            // Those of one name follow one another.
            if !last.as_ref().is_some_and(|last| last.is(name) || last.to_str().is_ok_and(|last| last == text)) {
                names += 1;
                has_host |= text == "host";
                last = Some(name.clone());
            }
        }
        let unreadable = if headers.len()? == names { Vec::new() } else { missing(&headers, &items)? };
        has_host |= unreadable.iter().any(|name| *name == "host");
        let authority = if has_host {
            None
        } else {
            // None where there is no authority either: then the host is empty.
            let given = scope.getattr(intern!(py, "authority"))?.cast_into::<PyString>();
            Some(given.unwrap_or_else(|_| PyString::new(py, "")))
        };
        for name in &unreadable {
            if let Some(field) = Field::of(name.to_str()?.as_bytes()) {
                head.take(field, unreadable_value(py));
            }
        }
        if let Some(authority) = &authority {
            head.take(Field::Host, Value::Text(authority.clone()));
        }
        let decoded = text(intern!(py, "path"))?;
        let it = Self {
            method: text(intern!(py, "method"))?,
            client: text(intern!(py, "client"))?,
            scheme: text(intern!(py, "scheme"))?,
            escaped: escaped(decoded.to_str()?),
            decoded,
            items,
            unreadable,
            authority,
            scope: scope.clone(),
        };
        Ok((it, head))
    }

    /// The path as it may have stood in the request.
    pub(crate) fn path(&self) -> PyResult<&[u8]> {
        Ok(match &self.escaped {
            Some(escaped) => escaped,
            None => self.decoded.to_str()?.as_bytes(),
        })
    }

    /// Every header: those that can be read, then the others, and the host of HTTP/2.
    fn walk(&self, mut see: impl FnMut(&[u8], Value<'py>)) -> PyResult<()> {
        if let Some(authority) = &self.authority {
            see(b"host", Value::Text(authority.clone()));
        }
        for item in self.items.iter() {
            let (name, value) = pair(&item)?;
            see(name.to_str()?.as_bytes(), Value::Text(value.clone()));
        }
        for name in &self.unreadable {
            see(name.to_str()?.as_bytes(), unreadable_value(name.py()));
        }
        Ok(())
    }

    /// The scope as ASGI has it.
    pub(crate) fn asgi_scope(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let headers = PyList::empty(py);
        self.walk(|name, value| {
            // It fails only where there is no memory; then the header is missing, and the next step fails too.
            let pair = PyTuple::new(py, [PyBytes::new(py, name), PyBytes::new(py, value.as_ref())]);
            let _ = pair.and_then(|pair| headers.append(pair));
        })?;
        let scope = PyDict::new(py);
        scope.set_item(intern!(py, "type"), intern!(py, "http"))?;
        scope.set_item(intern!(py, "http_version"), self.scope.getattr(intern!(py, "http_version"))?)?;
        scope.set_item(intern!(py, "method"), &self.method)?;
        scope.set_item(intern!(py, "scheme"), &self.scheme)?;
        scope.set_item(intern!(py, "path"), &self.decoded)?;
        scope.set_item(intern!(py, "raw_path"), PyBytes::new(py, self.path()?))?;
        let query = self.scope.getattr(intern!(py, "query_string"))?.cast_into::<PyString>()?;
        scope.set_item(intern!(py, "query_string"), PyBytes::new(py, query.to_str()?.as_bytes()))?;
        scope.set_item(intern!(py, "root_path"), intern!(py, ""))?;
        scope.set_item(intern!(py, "headers"), headers)?;
        Ok(scope)
    }
}

/// The scope of a request or a connection as ASGI has it.
#[pyfunction]
pub(crate) fn asgi_scope<'py>(scope: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyDict>> {
    Rsgi::read(scope)?.0.asgi_scope(scope.py())
}

/// Names without a value that can be read.
fn missing<'py>(headers: &Bound<'py, PyAny>, items: &Bound<'py, PyList>) -> PyResult<Vec<Bound<'py, PyString>>> {
    let mut found = Vec::new();
    for name in headers.call_method0(intern!(headers.py(), "keys"))?.try_iter()? {
        let name = name?.cast_into::<PyString>()?;
        let mut readable = false;
        for item in items.iter() {
            readable |= same(pair(&item)?.0, &name);
        }
        if !readable {
            found.push(name);
        }
    }
    Ok(found)
}

fn unreadable_value(py: Python<'_>) -> Value<'_> {
    Value::Bytes(PyBytes::new(py, UNREADABLE))
}

fn pair<'a, 'py>(item: &'a Bound<'py, PyAny>) -> PyResult<(&'a Bound<'py, PyString>, &'a Bound<'py, PyString>)> {
    let wrong = || PyTypeError::new_err("headers are tuples of two str objects");
    let item = item.cast::<PyTuple>().map_err(|_| wrong())?;
    let [name, value] = item.as_slice() else { return Err(wrong()) };
    Ok((name.cast().map_err(|_| wrong())?, value.cast().map_err(|_| wrong())?))
}

fn same(one: &Bound<'_, PyString>, other: &Bound<'_, PyString>) -> bool {
    one.to_str().is_ok_and(|one| other.to_str().is_ok_and(|other| one == other))
}

/// What the server's parser takes as it is. `%` is not among it: here it was escaped twice.
static PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = b'!';
    while byte <= b'~' {
        plain[byte as usize] = matches!(byte, b'!' | b'"' | b'$' | b'&'..=b';' | b'=' | b'@'..=b'~');
        byte += 1;
    }
    plain
};

/// A path as it may have stood in the request; nothing, where that is the path as it is.
fn escaped(path: &str) -> Option<Vec<u8>> {
    if path.bytes().fold(true, |all, byte| all & PLAIN[usize::from(byte)]) {
        return None;
    }
    let mut raw = Vec::with_capacity(path.len());
    for character in path.chars() {
        match character {
            // What was no UTF-8 arrives as this; escaped like this it is refused as on the other face.
            char::REPLACEMENT_CHARACTER => raw.extend_from_slice(b"%FF"),
            other => {
                for byte in other.encode_utf8(&mut [0; 4]).bytes() {
                    if PLAIN[usize::from(byte)] {
                        raw.push(byte);
                    } else {
                        raw.push(b'%');
                        raw.extend([byte >> 4, byte & 15].map(|half| b"0123456789ABCDEF"[usize::from(half)]));
                    }
                }
            }
        }
    }
    Some(raw)
}
