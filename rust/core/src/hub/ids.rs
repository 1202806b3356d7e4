//! A list of numbers that mostly has one, which then lies in the record itself.
//!
//! Strategy: where each client has a topic of its own, a topic has one audience, that one cohort, and that one member. A list for
//! each of them would be three more places in memory to look at for every event, far from one another.

use std::mem;
use std::ops::Deref;
use std::slice;

#[derive(Clone, Debug, Default)]
pub(super) enum Ids {
    #[default]
    None,
    One(u32),
    /// Once there were more than one.
    Many(Vec<u32>),
}

impl Ids {
    pub(super) fn push(&mut self, id: u32) {
        match self {
            Self::None => *self = Self::One(id),
            Self::One(first) => *self = Self::Many(vec![*first, id]),
            Self::Many(all) => all.push(id),
        }
    }

    /// Puts it where the list stays sorted, unless it is there; whether it was not.
    pub(super) fn insert_sorted(&mut self, id: u32) -> bool {
        let Err(place) = self.binary_search(&id) else { return false };
        self.push(id);
        if let Self::Many(all) = self {
            all[place..].rotate_right(1);
        }
        true
    }

    pub(super) fn remove(&mut self, id: u32) {
        self.retain(|other| other != id);
    }

    pub(super) fn retain(&mut self, stays: impl Fn(u32) -> bool) {
        match self {
            Self::One(id) if !stays(*id) => *self = Self::None,
            Self::Many(all) => all.retain(|id| stays(*id)),
            _ => {}
        }
    }

    /// Takes out what is at a place that is one of the list's; the last one takes the place.
    pub(super) fn swap_remove(&mut self, place: usize) {
        match self {
            Self::Many(all) => drop(all.swap_remove(place)),
            _ => *self = Self::None,
        }
    }

    /// Takes away all from a place on.
    pub(super) fn split_off(&mut self, place: usize) -> Self {
        match self {
            Self::Many(all) => Self::Many(all.split_off(place)),
            _ if place == 0 => mem::take(self),
            _ => Self::None,
        }
    }

    /// Forgets them and keeps their room.
    pub(super) fn clear(&mut self) {
        match self {
            Self::Many(all) => all.clear(),
            _ => *self = Self::None,
        }
    }
}

impl Deref for Ids {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        match self {
            Self::None => &[],
            Self::One(id) => slice::from_ref(id),
            Self::Many(all) => all,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Push(u32),
        Insert(u32),
        Remove(u32),
        SwapRemove(usize),
        SplitOff(usize),
        Clear,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0_u32..6).prop_map(Step::Push),
            2 => (0_u32..6).prop_map(Step::Insert),
            2 => (0_u32..6).prop_map(Step::Remove),
            2 => any::<usize>().prop_map(Step::SwapRemove),
            1 => any::<usize>().prop_map(Step::SplitOff),
            1 => Just(Step::Clear),
        ];
        prop::collection::vec(step, 0..30)
    }

    proptest! {
        /// The twin is the list.
        #[test]
        fn it_is_a_list_like_any_other(steps in steps()) {
            let (mut ids, mut twin) = (Ids::default(), Vec::<u32>::new());
            for step in steps {
                match step {
                    Step::Push(id) => {
                        ids.push(id);
                        twin.push(id);
                    }
                    Step::Insert(id) => {
                        twin.sort_unstable();
                        if let Ids::Many(all) = &mut ids {
                            all.sort_unstable();
                        }
                        let place = twin.binary_search(&id);
                        if let Err(place) = place {
                            twin.insert(place, id);
                        }
                        prop_assert_eq!(place.is_err(), ids.insert_sorted(id));
                    }
                    Step::Remove(id) => {
                        ids.remove(id);
                        twin.retain(|other| *other != id);
                    }
                    Step::SwapRemove(place) if !twin.is_empty() => {
                        ids.swap_remove(place % twin.len());
                        twin.swap_remove(place % twin.len());
                    }
                    Step::SwapRemove(_) => {}
                    Step::SplitOff(place) => {
                        let place = place % (twin.len() + 1);
                        prop_assert_eq!(twin.split_off(place), ids.split_off(place).to_vec());
                    }
                    Step::Clear => {
                        ids.clear();
                        twin.clear();
                    }
                }
                prop_assert_eq!(&twin[..], &ids[..]);
            }
        }
    }

    #[test]
    fn it_is_no_larger_than_a_list() {
        assert_eq!(size_of::<Vec<u32>>(), size_of::<Ids>());
    }
}
