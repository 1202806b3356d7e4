//! Process ties that Python has no call for.

use pyo3::prelude::*;

/// Asks the kernel to kill this process when its parent ends; False when the parent had ended already.
#[pyfunction]
#[pyo3(signature = (parent_pid=None))]
pub(crate) fn die_with_parent(parent_pid: Option<i32>) -> PyResult<bool> {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
        let parent = || getppid().map(Pid::as_raw_pid);
        let expected = parent_pid.or_else(parent);
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(std::io::Error::from)?;
        // The parent may have ended before the request: then no signal will ever come.
        Ok(parent() == expected)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = parent_pid;
        Ok(true)
    }
}

/// Makes orphans among this process' descendants its children; False where there is no such thing.
#[pyfunction]
pub(crate) fn become_subreaper() -> PyResult<bool> {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{getpid, set_child_subreaper};
        set_child_subreaper(Some(getpid())).map_err(std::io::Error::from)?;
        Ok(true)
    }
    #[cfg(not(target_os = "linux"))]
    {
        Ok(false)
    }
}

/// "release" or "debug": benchmarks refuse the latter.
#[pyfunction]
pub(crate) fn build_profile() -> &'static str {
    if cfg!(debug_assertions) { "debug" } else { "release" }
}
