//! INTERIM
use std::sync::atomic::AtomicU64;
/// INTERIM
pub trait Memory {
    /// INTERIM
    type Word;
    /// INTERIM
    fn words(&self) -> &[Self::Word];
}
impl Memory for Box<[AtomicU64]> {
    type Word = AtomicU64;
    fn words(&self) -> &[AtomicU64] {
        self
    }
}
