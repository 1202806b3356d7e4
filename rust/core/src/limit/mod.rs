//! INTERIM
mod history;
pub mod memory;
pub mod window;
pub use memory::Memory;
pub use window::{Check, Identity, SlidingWindow};
