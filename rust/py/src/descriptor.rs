//! A descriptor that Python names by its number.
#![expect(unsafe_code, reason = "a number says nothing about whether it is open")]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// A copy of an open descriptor, which is closed by itself.
pub(crate) fn copy(fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: it is used in this call only, and what is not open is an error of the system's.
    let given = unsafe { BorrowedFd::borrow_raw(fd.max(0)) };
    given.try_clone_to_owned()
}
