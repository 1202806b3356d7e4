//! The core of admission by where its windows lie: in memory of this process alone, which the lock around the core orders and
//! which costs less then, or in memory that workers share.

use std::sync::Arc;

use flx_core::admission::{Admission, Policy, TokenRoom, Tokens, Toll};
use flx_core::error::Unusable;
use flx_core::jwt::TokenVerifier;
use flx_core::limit::{Heap, Lone, Rate};

use crate::memory;
use crate::principal::Shell;
use crate::shared::{Region, SharedMemory};

/// The core, over either kind of memory.
pub(crate) enum Core {
    Own(Admission<Heap<Lone>, Shell>),
    Shared(Admission<Region, Shell>),
}

/// The same for either.
macro_rules! of_either {
    ($core:expr, $it:ident => $said:expr) => {
        match $core {
            $crate::either::Core::Own($it) => $said,
            $crate::either::Core::Shared($it) => $said,
        }
    };
}
pub(crate) use of_either;

impl Core {
    /// `words` says how many a window of this rate takes; `place` is the memory that is shared, if any, and where in it the
    /// windows begin.
    pub(crate) fn new(
        verifier: Arc<TokenVerifier>,
        policies: Vec<Policy>,
        classes: Vec<Vec<Toll>>,
        room: TokenRoom,
        words: impl Fn(Rate) -> Result<usize, Unusable>,
        place: Option<(&SharedMemory, usize)>,
        seed: (u64, u64),
    ) -> Result<Self, Unusable> {
        if let Some((shared, mut start)) = place {
            let memory = |rate: Rate| {
                let region = memory::next(shared, &mut start, words(rate)?);
                region.ok_or(Unusable("the memory of the windows is too small"))
            };
            return Admission::new(verifier, policies, classes, room, memory, seed).map(Self::Shared);
        }
        let memory = |rate: Rate| Heap::zeroed(words(rate)?).ok_or(Unusable("there is no memory for the windows"));
        Admission::new(verifier, policies, classes, room, memory, seed).map(Self::Own)
    }

    pub(crate) fn tokens(&mut self) -> &mut Tokens<Shell> {
        of_either!(self, it => &mut it.tokens)
    }
}
