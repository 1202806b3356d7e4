//! Rate limits: at most `limit` units in any true window of `window_ms`, in bounded memory, for any number of workers.
//!
//! - [`window`]: many keys under one limit; what callers use
//! - [`table`]: which entry is whose
//! - [`history`]: what an entry remembers
//! - [`memory`]: where the words lie: on the heap, or in a mapping that the shell made
//! - [`lease`]: one limit for many hosts

mod history;
pub mod lease;
pub mod memory;
mod table;
pub mod window;

pub use memory::{Heap, Lone, Memory};
pub use table::Identity;
pub use window::{Charge, Check, Rate, SlidingWindow};
