//! Decimal digits: headers, frames and events are full of numbers, and the ways of `fmt` are long.

/// A number in decimal.
#[derive(Clone, Copy, Debug)]
pub struct Decimal {
    digits: [u8; 20],
    at: usize,
}

impl Decimal {
    /// The digits of a number.
    #[must_use]
    #[inline]
    pub fn of(mut number: u64) -> Self {
        let mut digits = [0; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                return Self { digits, at };
            }
        }
    }

    /// As ASCII.
    #[must_use]
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.digits[self.at..]
    }

    /// As text.
    #[must_use]
    #[inline]
    pub fn as_str(&self) -> &str {
        str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The twin is `fmt`.
        #[test]
        fn numbers_are_written_as_anybody_would(number in prop_oneof![any::<u64>(), 0_u64..100, Just(u64::MAX)]) {
            let found = Decimal::of(number);
            prop_assert_eq!(number.to_string(), found.as_str());
            prop_assert_eq!(found.as_str().as_bytes(), found.as_bytes());
        }
    }
}
